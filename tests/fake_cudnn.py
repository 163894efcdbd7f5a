"""A stand-in for cuDNN's Python frontend whose convolutions NumPy computes at the addresses given.

Plans are candidates of the heuristics: ``notes`` says which numerical notes each carries, ``times`` how
many ms it takes, ``broken`` which cannot be built. What was asked for is in ``asked``.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from disttorch.backend import CPU

TYPES = {"HALF": np.float16, "BFLOAT16": ml_dtypes.bfloat16, "FLOAT": np.float32}


def _setter(name, value=lambda v: v):
    def give(self, given):
        setattr(self, name, value(given))
        return self
    return give


def _convolution(name):
    def add(self, padding, stride, dilation, **operands):
        self.name, self.options = name, [tuple(v) for v in (stride, padding, dilation)]
        self.operands = list(operands.values())
        self.tensors.append(FakeTensor(virtual=True))
        return self.tensors[-1]
    return add


class FakeTensor:
    def __init__(self, dim=(), stride=(), data_type=None, uid=-1, virtual=False):
        self.dim, self.stride, self.data_type, self.uid = list(dim), list(stride), data_type, uid
        self.virtual = virtual

    set_output = _setter("virtual", lambda v: not v)
    set_uid, set_dim, set_stride = map(_setter, ("uid", "dim", "stride"))
    set_data_type = _setter("data_type")

    def get_uid(self):
        return self.uid

    def get_is_virtual(self):
        return self.virtual

    def get_is_pass_by_value(self):
        return False

    def at(self, address):
        """The NumPy array there."""
        assert address % 16 == 0, "plans are made for addresses that are multiples of 16"
        dtype = np.dtype(TYPES[self.data_type])
        count = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride))
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(memory, dtype), self.dim, [s * dtype.itemsize for s in self.stride])


class FakeGraph:
    """``cudnn.pygraph`` of one convolution."""

    def __init__(self, library, **given):
        self.library, self.tensors, self.barred, self.built = library, [], set(), None
        self.added = None  # the tensor of a bias

    def tensor(self, **given):
        self.tensors.append(FakeTensor(**given))
        return self.tensors[-1]

    conv_fprop, conv_dgrad, conv_wgrad = map(_convolution, ("fprop", "dgrad", "wgrad"))

    def bias(self, input, bias):
        self.tensors.append(FakeTensor(virtual=True))
        self.added = bias
        return self.tensors[-1]

    def validate(self):
        assert all(len(t.dim) >= 4 and len(t.dim) == len(t.stride) for t in self.tensors
                   if not t.virtual)

    def build_operation_graph(self):
        pass

    def create_execution_plans(self, modes):
        self.library.asked.append("plans")

    def deselect_numeric_notes(self, notes):
        self.library.asked.append(("without", tuple(notes)))
        self.barred = {i for i, n in enumerate(self.library.notes) if set(n) & set(notes)}

    def check_support(self):
        if all(map(self._is_unfit, range(len(self.library.times)))):
            raise RuntimeError("No execution plans support the graph.")

    def _is_unfit(self, index):
        return index in self.barred or index in self.library.broken

    def build_plans(self):
        self.built = next(i for i in range(len(self.library.times)) if not self._is_unfit(i))

    def get_execution_plan_count(self):
        return len(self.library.times)

    def build_plan_at_index(self, index):
        if self._is_unfit(index):
            raise RuntimeError("Deselecting execution plan")
        self.built = index

    def get_workspace_size(self):
        return 64 * self.built

    def execute(self, pointers, workspace, handle=None):
        library = self.library
        library.clock += library.times[self.built] if self.added is None else library.fused
        library.ran.append((self.built, workspace != 0, library.streams[handle]))
        a, b = (t.at(pointers[t.uid]).astype(np.float64) for t in self.operands)
        out = self.tensors[-1]
        options, size = self.options, tuple(out.dim[2:])
        if self.name == "fprop":
            made = CPU.conv(a, b, None, *options, a.shape[1] // b.shape[1])
        elif self.name == "dgrad":
            made = CPU.conv_input_grad(a, b, size, *options, out.dim[1] // b.shape[1])
        else:
            made = CPU.conv_weight_grad(a, b, size, *options, a.shape[1] // out.dim[1])
        if self.added is not None:
            made = made + self.added.at(pointers[self.added.uid]).astype(np.float64)
        out.at(pointers[out.uid])[...] = made


class QuickGraph(FakeGraph):
    """With the frontend's short ways: addresses as a list, in an order that must be asked for."""

    prepared = False

    def _prepare_variant_pack_template(self):
        self.prepared = True

    def _get_variant_pack_uids_sorted(self):
        return sorted(t.uid for t in self.tensors if not t.virtual) if self.prepared else []

    def _execute_with_ptrs(self, addresses, workspace, handle):
        self.library.quick += 1
        self.execute(dict(zip(self._get_variant_pack_uids_sorted(), addresses)), workspace, handle)


def library(graph=QuickGraph, times=(1.0,), notes=None, broken=(), fused=1.0):
    """The module ``cudnn``. ``fused``: ms that a convolution with a bias takes."""
    made = SimpleNamespace(
        times=times, fused=fused, notes=notes or [()] * len(times), broken=set(broken), asked=[], ran=[],
        streams={}, clock=0.0, quick=0, turns=0, data_type=SimpleNamespace(**{n: n for n in TYPES}),
        heur_mode=SimpleNamespace(A="A", FALLBACK="B"),
        numerical_note=SimpleNamespace(**{n: n for n in (
            "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC")}))

    def set_stream(handle, stream):
        made.turns += 1
        made.streams[handle] = stream

    made.pygraph = lambda **given: graph(made, **given)
    made.create_handle, made.set_stream = lambda: 7, set_stream
    return made
