"""Streams, cuBLAS and cuDNN's frontend without effect; see ``_null_cupy``."""

from __future__ import annotations

import ctypes
import types
from typing import Any

ADDRESS = 1 << 30


def nothing(*args, **kwargs):
    """Any function without effect."""


class Address(int):
    """A kernel's place in memory, which knows the kernel's ``name``."""

    name = ""


class OutOfMemory(Exception):
    pass


class Device:
    id, compute_capability = 0, "90"
    use = synchronize = nothing

    def __init__(self, index=0):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


class Memory:
    device_id, ptr, size = 0, ADDRESS, 512


class Event:
    ptr, done = 0, True
    record = synchronize = nothing

    def __init__(self, **kwargs):
        pass


class Stream:
    ptr, null = 0, None
    synchronize = wait_event = is_capturing = nothing

    def record(self, event=None):
        return event


the_stream = Stream()


class Runtime:
    getDevice = staticmethod(iter(int, 1).__next__)  # a C call that returns 0
    getDeviceCount = staticmethod(lambda: 1)
    runtimeGetVersion = staticmethod(lambda: 13000)
    getDeviceProperties = staticmethod(lambda i: {
        "name": b"null", "multiProcessorCount": 132, "major": 9, "minor": 0, "totalGlobalMem": 1 << 37,
        "sharedMemPerBlockOptin": 232448, "l2CacheSize": 50 << 20})
    deviceGetAttribute = staticmethod(lambda *a: 132)
    memGetInfo = staticmethod(lambda: (1 << 37, 1 << 37))

    def __getattr__(self, name):
        return nothing


class Library:
    """Every function of cuBLAS and cuBLASLt: a C call without effect that returns 0.

    Args:
        note: called with the name of each product, or None.
    """

    PRODUCTS = ("cublasGemmEx_64", "cublasGemmStridedBatchedEx_64", "cublasLtMatmul")

    def __init__(self, note):
        self._libc, self._note = ctypes.CDLL(None), note

    def __getattr__(self, name):
        if name == "cublasLtMatmulAlgoGetHeuristic":
            function = self._found_one
        elif name not in self.PRODUCTS:
            function = self._done
        elif self._note is None:
            function = self._libc["labs"]  # of the handle, which is 0
        else:
            def function(*args):
                self._note(name)
                return 0
        setattr(self, name, function)
        return function

    @staticmethod
    def _found_one(*args):
        args[9]._obj.value = 1
        return 0

    @staticmethod
    def _done(*args):
        return 0


class _Tensor:
    """A tensor of cuDNN's graph: it knows its uid, and takes any other setting."""

    def __init__(self, uid=None):
        self.uid, self.virtual = uid, uid is None

    def get_uid(self):
        return self.uid

    def get_is_virtual(self):
        return self.virtual

    def get_is_pass_by_value(self):
        return False

    def set_uid(self, uid):
        self.uid = uid
        return self

    def set_output(self, yes):
        self.virtual = not yes
        return self

    def __getattr__(self, name):
        return lambda *a, **k: self


class _Graph:
    def __init__(self, note):
        self._note = note or nothing

    def tensor(self, uid=None, **kwargs):
        return _Tensor(uid)

    def sdpa(self, *a, **k):
        return _Tensor(), _Tensor()

    def sdpa_backward(self, *a, **k):
        return _Tensor(), _Tensor(), _Tensor()

    def get_workspace_size(self):
        return 4096

    def execute(self, *args, **kwargs):
        self._note("cudnn")

    _execute_with_ptrs = execute

    def _get_variant_pack_uids_sorted(self):
        return ()

    def __getattr__(self, name):
        return lambda *a, **k: _Tensor()


class _Names:
    """An enumeration of any names."""

    def __getattr__(self, name):
        return name


def cudnn(note) -> Any:
    """The module ``cudnn``; ``note`` is called at each execution, if not None."""
    module: Any = types.ModuleType("cudnn")
    module.pygraph = lambda *a, **k: _Graph(note)
    module.create_handle = lambda: 1
    module.set_stream = nothing
    module.backend_version = lambda: 91300
    module.data_type = module.heur_mode = module.numerical_note = module.behavior_note = _Names()
    module.__getattr__ = lambda name: nothing if not name.startswith("__") else None
    return module
