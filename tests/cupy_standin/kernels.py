"""RawModule, RawKernel and ElementwiseKernel: the source runs on the CPU (``cuda_host``)."""

from __future__ import annotations

import functools
import itertools
import re

import numpy as np
from cuda_host import Kernel as HostKernel
from cuda_host import KernelError, compile_text

from . import memory, order
from .arrays import ndarray

_WITHOUT_ASKING = 48 << 10
_turn = itertools.count()


class RawKernel:
    """A ``__global__`` function; calling it launches it in the current stream."""

    kernel = None  # no machine code: disttorch.backend.gpu.launch asks for ``kernel.ptr``

    def __init__(self, code, name, options=(), backend="nvrtc", **kwargs):
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.max_dynamic_shared_size_bytes = _WITHOUT_ASKING
        self._library = compile_text(code, tuple(options), _title(code))
        if name not in self._library.functions:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        self._parameters = self._library.functions[name].parameters

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = (tuple(max(1, int(n)) for n in size) for size in (grid, block))
        given, reads, writes = [], [], []
        for value, parameter in zip(args, self._parameters):
            if isinstance(value, np.ndarray):
                raise TypeError("a NumPy array as a kernel's argument")
            if isinstance(value, ndarray):
                given.append(_Address(value.data.ptr, value.dtype))
                if value._span is not None:
                    (reads if parameter.startswith("pr") else writes).append(value._span)
            else:
                given.append(value)
                if isinstance(value, bytes):
                    writes += _spans_inside(value)
                elif isinstance(value, int) and parameter[0] == "p" and value:
                    writes += _rest(value)
        given += list(args[len(given):])

        def run():
            launch(self._library, self.name, grid, block, given, shared_mem,
                   self.max_dynamic_shared_size_bytes, reads + writes)

        order.give(self.name, reads, writes, run)


RawKernel.__module__ = "cupy"


class _Address:
    def __init__(self, pointer: int, dtype):
        self.pointer, self.dtype = pointer, dtype


def launch(library, name, grid, block, given, shared, most_shared, spans) -> None:
    """Run a kernel on device memory; every second time with the threads of a block backwards."""
    try:
        library.launch(name, grid, block, given, shared, bool(next(_turn) & 1), most_shared)
    except KernelError as error:
        raise KernelError(str(error) + _explain(error.address, spans), error.address) from None


def _explain(address: int, spans) -> str:
    if not address:
        return ""
    for s in spans:
        if s.memory.start - 4096 <= address < s.memory.end + 8192:
            return (f": byte {address - s.memory.start} of a block of {s.memory.end - s.memory.start} "
                    f"bytes, of which an argument is bytes {s.low - s.memory.start} to "
                    f"{s.high - s.memory.start}")
    return f": address {address:#x}"


def _rest(address: int) -> list:
    found = order.memory_at(address)
    if found is None:
        if memory.is_pinned(address, 1):  # which the device sees, too
            return []
        raise KernelError(f"{address:#x} is passed as an address, but is no memory of the device's")
    return [order.Span(found, address, found.end)]


def _spans_inside(structure: bytes) -> list:
    """The device memory that a structure's addresses point to (to its end: how much is not said)."""
    words = np.frombuffer(structure[: len(structure) // 8 * 8], np.uint64).tolist()
    found = [(w, order.memory_at(w)) for w in words if w > 4096]
    return [order.Span(m, w, m.end) for w, m in found if m is not None]


@functools.cache
def _title(code: str) -> str:
    """The file's name: a family's, so that it shares its library with ``cuda_host.kernel``."""
    from disttorch.backend.gpu import source

    for family in source.families():
        if source.text(family) == code:
            return f"{family}.cu"
    found = re.search(r'__global__[\w\s()*,]*?\bvoid\b[\w\s()*,]*?\b(\w+)\s*\(', code)
    return f"{found[1] if found else 'kernels'}.cu"


class RawModule:
    """A source of several kernels."""

    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", name_expressions=None,
                 **kwargs):
        if code is None or path is not None or name_expressions is not None:
            raise NotImplementedError("the stand-in knows RawModule(code=, options=) only")
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        self.code, self.options, self.backend = code, options, backend

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.code, name, self.options, self.backend)

    def compile(self, log_stream=None) -> None:
        compile_text(self.code, tuple(self.options), _title(self.code))


RawModule.__module__ = "cupy"


# ---- elementwise -----------------------------------------------------------------------------------

_C = {"bool": "bool", "int8": "signed char", "uint8": "unsigned char", "int16": "short",
      "uint16": "unsigned short", "int32": "int", "uint32": "unsigned", "int64": "long long",
      "uint64": "unsigned long long", "float32": "float", "float64": "double"}  # fmt: skip


class ElementwiseKernel:
    """CuPy's kernel of one expression an element; types as letters or by name, ``raw`` arrays."""

    def __init__(self, in_params, out_params, operation, name="kernel", **kwargs):
        if set(kwargs) - {"preamble", "no_return"}:
            raise NotImplementedError(f"ElementwiseKernel {name}: no {sorted(kwargs)} here")
        self._ins, self._outs = ([self._parameter(p) for p in text.split(",") if p.strip()]
                                 for text in (in_params, out_params))
        self.operation, self.name, self._preamble = operation, name, kwargs.get("preamble", "")

    @staticmethod
    def _parameter(text):
        words = text.split()
        return words[-2], words[-1], words[0] == "raw"

    def __call__(self, *args, size=None):
        if len(args) != len(self._ins) + len(self._outs):
            raise NotImplementedError(f"ElementwiseKernel {self.name}: outputs must be given here")
        types: dict[str, np.dtype] = {}
        arrays = []
        for (kind, _, raw), value in zip(self._ins + self._outs, args):
            if not isinstance(value, ndarray):
                raise NotImplementedError(f"ElementwiseKernel {self.name} with numbers")
            if len(kind) == 1 and types.setdefault(kind, value.dtype) != value.dtype:
                raise TypeError(f"Type is mismatched. {kind} {value.dtype} {types[kind]}")
            arrays.append((value, raw))
        shape = np.broadcast_shapes(*(a.shape for a, raw in arrays if not raw))
        size = int(np.prod(shape)) if size is None else size
        if size == 0:
            return
        spread = [a if raw else _contiguous(a, shape, kind, types)
                  for (a, raw), (kind, _, _) in zip(arrays, self._ins + self._outs)]
        names = tuple((k, d.name) for k, d in types.items())
        kernel = HostKernel(_elementwise(self, names), self.name)
        given = [_Address(a.data.ptr, a.dtype) for a in spread]
        spans = [a._span for a in spread if a._span is not None]
        order.give(self.name, [], spans, lambda: launch(
            kernel.library, self.name, (-(-size // 128),), (128,), [*given, size], 0, _WITHOUT_ASKING,
            spans))


ElementwiseKernel.__module__ = "cupy"


def _contiguous(a, shape, kind, types):
    from .functions import ascontiguousarray, table

    out = ascontiguousarray(table["broadcast_to"](a, shape))
    return out if len(kind) == 1 else out.astype(kind, copy=False)


@functools.cache
def _elementwise(kernel: ElementwiseKernel, names):
    types = dict(names)
    parameters, loads = [], []
    for kind, name, raw in kernel._ins + kernel._outs:
        c = _C[types.get(kind, kind)]
        parameters.append(f"{c}* _{name}")
        loads.append(f"{c}* {name} = _{name};" if raw else f"{c}& {name} = _{name}[i];")
    typedefs = "".join(f"typedef {_C[d]} {k};\n" for k, d in names)
    return compile_text(
        f"{typedefs}{kernel._preamble}\nextern \"C\" __global__ void {kernel.name}"
        f"({', '.join(parameters)}, long long n) {{ "
        "long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; if (i < n) { "
        f"{' '.join(loads)} {kernel.operation}; }} }}\n", (), f"{kernel.name}.cu")


class ReductionKernel:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError("no ReductionKernel in the stand-in: write a kernel in csrc/")


def span_at(address: int, size: int):
    """For cuBLAS's twin: the memory of a matrix."""
    return memory.span(address, size)
