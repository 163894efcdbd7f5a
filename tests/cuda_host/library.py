"""A compiled source: its kernels, their parameters, and launching them as the CUDA driver does."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import numpy as np

MOST_SHARED = 227 << 10  # bytes a block of a Hopper GPU may have
_WITHOUT_ASKING = 48 << 10


class KernelError(RuntimeError):
    """What would hang, fail or be undefined on a GPU."""

    def __init__(self, text: str, address: int = 0):
        super().__init__(text)
        self.address = address


class Function:
    """What is known of a ``__global__`` function."""

    def __init__(self, index: int, name: str, threads: int, static_shared: int, parameters: list[str]):
        self.index, self.name, self.threads = index, name, threads
        self.static_shared, self.parameters = static_shared, parameters


class Library:
    """The kernels of one source.

    Args:
        path: the shared library that ``compile_source`` has made.
        text: the source, to quote lines of.
    """

    def __init__(self, path: Path, text: str):
        # PyDLL: calls hold the interpreter's lock, so that two threads never run kernels at once
        self._lib, self._lines = ctypes.PyDLL(str(path)), text.splitlines()
        self.functions: dict[str, Function] = {}
        out = ctypes.create_string_buffer(1 << 16)
        while self._lib.host_describe(len(self.functions), out, ctypes.c_size_t(len(out))) >= 0:
            name, threads, shared, *rest = out.value.decode().split(" ")
            parameters = [p for p in rest[0].split(",") if p]
            self.functions[name] = Function(
                len(self.functions), name, int(threads), int(shared), parameters)

    def launch(self, name: str, grid: tuple, block: tuple, args: list, shared: int = 0,
               backwards: bool = False, most_shared: int = MOST_SHARED) -> None:
        """Run a kernel; see ``Kernel``. An array among ``args`` is a NumPy array or has ``pointer`` and
        ``dtype``; other arguments pack as CuPy packs them."""
        function = self.functions.get(name)
        if function is None:
            raise KernelError(f"{name} is no kernel of this source, which has {sorted(self.functions)}")
        grid, block = ((*map(int, (*size, 1, 1)),)[:3] for size in (grid, block))
        self._check_sizes(function, grid, block, shared, most_shared)
        if len(args) != len(function.parameters):
            raise KernelError(
                f"{name} takes {len(function.parameters)} arguments, {len(args)} were given")
        packed = [_pack(name, i, a, p) for i, (a, p) in enumerate(zip(args, function.parameters))]
        pointers = (ctypes.c_void_p * len(packed))(*(ctypes.addressof(p) for p in packed))
        text, address = ctypes.create_string_buffer(4096), ctypes.c_uint64()
        status = self._lib.host_launch(
            function.index, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
            ctypes.c_size_t(shared), pointers, int(backwards), text, ctypes.c_size_t(len(text)),
            ctypes.byref(address))
        if status:
            raise KernelError(self._quote(text.value.decode()), address.value)

    def _check_sizes(self, function, grid, block, shared, most_shared):
        threads, name = math.prod(block), function.name
        if min(*grid, *block) < 1 or grid[0] >= 1 << 31 or max(grid[1:]) > 65535 or block[2] > 64:
            raise KernelError(f"{name}: no launch of {grid} blocks of {block} threads is possible")
        if threads > min(1024, function.threads):
            raise KernelError(f"{name}: blocks of {block} threads, where {min(1024, function.threads)} "
                              f"are allowed (1024, or what its __launch_bounds__ say)")
        if function.static_shared > _WITHOUT_ASKING:
            raise KernelError(f"{name}: {function.static_shared} bytes of static shared memory, at most "
                              f"{_WITHOUT_ASKING}: use DYNAMIC_SHARED")
        if shared > most_shared or shared + function.static_shared > MOST_SHARED:
            raise KernelError(f"{name}: {shared} bytes of dynamic shared memory, where {most_shared} "
                              f"are allowed (more than {_WITHOUT_ASKING} must be asked for)")

    def _quote(self, message: str) -> str:
        """Lines that a message names, with their text."""
        def quoted(found):
            number = int(found[1])
            inside = 0 < number <= len(self._lines)
            return f"line {number} (`{self._lines[number - 1].strip()}`)" if inside else found[0]

        return re.sub(r"line (\d+)", quoted, message)


def _pack(name: str, position: int, value, parameter: str):
    """A ctypes object that holds an argument as CuPy lays it out, checked against the parameter."""
    said = f"{name}, argument {position}"
    dtype = getattr(value, "dtype", None)
    if isinstance(value, np.generic):
        value = np.asarray(value)
    elif dtype is not None:
        if isinstance(value, np.ndarray):
            address = value.__array_interface__["data"][0]
        else:
            address = value.pointer
        _check_array(said, dtype, parameter)
        return ctypes.c_uint64(address)
    elif isinstance(value, bool):
        value = np.asarray(value)
    elif isinstance(value, int):
        if parameter[0] == "p":  # None (a null pointer), or an address
            return ctypes.c_uint64(value)
        value = np.asarray(value, np.int64)
    elif isinstance(value, float):
        value = np.asarray(value, np.float64)
    elif value is None and parameter[0] == "p":
        return ctypes.c_uint64(0)
    elif isinstance(value, bytes):  # a structure
        value = np.frombuffer(value, np.uint8)
        value = np.frombuffer(value, np.dtype((np.void, value.size)))
    else:
        raise KernelError(f"{said} is of the type {type(value).__name__}, which no kernel takes")
    kind = {"i": "i", "u": "i", "f": "f", "b": "b", "V": "s"}.get(value.dtype.kind, "?")
    if (kind, value.dtype.itemsize) != (parameter[0], int(parameter[1:] if parameter[0] != "p" else 8)):
        raise KernelError(
            f"{said} is passed as {value.dtype.name} ({value.dtype.itemsize} bytes), but the kernel "
            f"takes {_in_words(parameter)}: Python's int is an i64, its float a double; NumPy scalars "
            "are themselves")
    return (ctypes.c_char * value.dtype.itemsize).from_buffer_copy(value.tobytes())


def _check_array(said: str, dtype: np.dtype, parameter: str) -> None:
    if parameter[0] != "p":
        raise KernelError(f"{said} is an array, but the kernel takes {_in_words(parameter)}")
    kind, size = parameter[2], int(parameter[3:])
    wrong = False
    if kind == "f":
        wrong = dtype.name not in ("float32", "float64", "complex64", "complex128") or (
            dtype.itemsize != size * (2 if dtype.kind == "c" else 1))
    elif kind in "ib" and size > 1:
        wrong = dtype.itemsize % size != 0
    if wrong:
        raise KernelError(
            f"{said} is an array of {dtype.name}, but the kernel takes {_in_words(parameter)}")


def _in_words(parameter: str) -> str:
    if parameter[0] == "p":
        return f"a pointer to {_in_words(parameter[2:])}"
    kinds = {"i": "an integer", "f": "a floating-point number", "b": "a bool", "s": "a structure",
             "v": "anything"}
    return f"{kinds.get(parameter[0], parameter)} of {parameter[1:]} bytes"
