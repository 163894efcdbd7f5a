"""DLPack capsules: CPython's own, with the struct that DLPack prescribes.

Arrays are found again by its address.
"""

from __future__ import annotations

import ctypes
from collections import deque

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api))
_given: deque = deque(maxlen=64)  # (struct, array) of the last capsules
_CUDA = 2


def capsule(array):
    """A capsule whose struct tells address, device and number of axes."""
    fields = (ctypes.c_int64 * 8)(array.data.ptr, _CUDA, array.ndim)
    _given.append((fields, array))
    return _api.PyCapsule_New(ctypes.addressof(fields), b"dltensor", None)


def array_of(given):
    """The array that a capsule was made for."""
    address = _pointer(given, b"dltensor")
    return next(array for fields, array in _given if ctypes.addressof(fields) == address)
