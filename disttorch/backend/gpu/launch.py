"""From Python to ``cuLaunchKernel`` by the shortest way that CuPy leaves open.

``RawKernel.__call__`` makes a NumPy scalar and a C++ object of every argument: some µs a launch. Here
the arguments of a launch are packed into one stretch of host memory by one call of ``struct``, and the
driver is handed that stretch (``CU_LAUNCH_PARAM_BUFFER_POINTER``), through CuPy's own binding of the
driver: 0.3 µs of Python beside the driver's own time.

The seam for tests: a function that has no address of machine code (``function.kernel.ptr``), such as
those of a stand-in for CuPy, is called like a RawKernel: ``function(grid, block, args, shared_mem=)``
with None as 0 and everything else as it was given.
"""

from __future__ import annotations

import ctypes
import struct

import numpy as np

METHOD = "driver"  # or "rawkernel": CuPy's own call, for comparison (benchmarks/gpu_overhead.py)

_CODES = {int: "q", bool: "q", float: "d", type(None): "P"}
_CODES |= {np.dtype(c).type: {"l": "q", "L": "Q"}.get(c, c) for c in "?bBhHiIlLqQefd"
           if c not in "lL" or np.dtype(c).itemsize == 8}


class Structure(bytes):
    """A C structure that a kernel takes by value: its bytes, aligned like a pointer.

    A subclass for each size has it as ``SIZE``, a multiple of 8; all arguments of a launch take at
    most 4 KiB.
    """

    SIZE = 0


def _code(kind: type) -> str:
    """The code of ``struct`` for an argument of a class; arrays are pointers."""
    return f"0q{kind.SIZE}s" if issubclass(kind, Structure) else _CODES.get(kind, "P")


# CUDA's numbers for the places of ``extra``
_END, _BUFFER, _SIZE = 0, 1, 2

_TEXT = """
def launch({head}{names}):
    try:
        block_of_arguments = pop()
    except IndexError:
        block_of_arguments = make()
    memory, extra = block_of_arguments[:2]
    pack(memory, 0, {values})
    stream = get_current_stream().ptr
    {shape}
    try:
        put(address, {grid}, {shared}, stream, 0, extra)
    except driver_error:
        attach()  # a thread that has not used the device has no context; another error comes again
        put(address, {grid}, {shared}, stream, 0, extra)
    append(block_of_arguments)
"""


class _Blocks:
    """Host memory for the arguments of launches under way: a thread takes a block and puts it back.

    The driver copies the arguments before ``cuLaunchKernel`` returns, but CuPy lets other threads run
    meanwhile, so two launches must not share a block.
    """

    def __init__(self, layout: struct.Struct):
        self.size = layout.size
        self.free: list[tuple] = []

    def make(self):
        memory = ctypes.create_string_buffer(max(self.size, 1))
        size = ctypes.c_size_t(self.size)
        extra = (ctypes.c_void_p * 5)(_BUFFER, ctypes.addressof(memory), _SIZE,
                                      ctypes.addressof(size), _END)
        return memory, ctypes.addressof(extra), extra, size


def launcher(cupy, function, types: tuple[type, ...], block: int | None = None):
    """A launch of ``function`` with arguments of these classes.

    Returns:
        ``f(grid, block, shared, *args)``, the first two tuples of up to three numbers; with ``block``
        given ``f(blocks, *args)``, both along x.

    Raises:
        TypeError: for a class of arguments that kernels do not take.
    """
    for kind in types:
        if kind not in _CODES and kind is not cupy.ndarray and not issubclass(kind, Structure):
            raise TypeError(f"a kernel takes arrays, numbers, structures and None, not {kind.__name__}")
    address = getattr(getattr(function, "kernel", None), "ptr", None)
    if METHOD == "rawkernel" or address is None:
        return _by_cupy(function, block)
    return _by_driver(cupy, address, types, block)


def _by_cupy(function, block):
    def shaped(grid, block, shared, *args):
        function(grid, block, tuple([0 if a is None else a for a in args]), shared_mem=shared)

    def along_x(blocks, *args):
        function((blocks,), (block,), tuple([0 if a is None else a for a in args]))

    return shaped if block is None else along_x


def _by_driver(cupy, address, types, block):
    from cupy_backends.cuda.api import driver

    layout = struct.Struct("".join(map(_code, types)))
    blocks = _Blocks(layout)
    names = [f"a{i}" for i in range(len(types))]
    values = [f"{n}.data.ptr" if t is cupy.ndarray else "0" if t is type(None) else n
              for n, t in zip(names, types)]
    head = "grid, " if block is not None else "grid, block, shared, "
    shape = "" if block is not None else "grid, block = (*grid, 1, 1), (*block, 1, 1)"
    full = (f"grid or 1, 1, 1, {block}, 1, 1" if block is not None
            else "grid[0] or 1, grid[1] or 1, grid[2] or 1, block[0], block[1], block[2]")
    runtime = cupy.cuda.runtime
    scope = {
        "pop": blocks.free.pop, "append": blocks.free.append, "make": blocks.make,
        "pack": layout.pack_into, "put": driver.launchKernel, "address": address,
        "driver_error": driver.CUDADriverError,
        "get_current_stream": cupy.cuda.get_current_stream,
        "attach": lambda: runtime.setDevice(runtime.getDevice()),
    }
    exec(_TEXT.format(head=head, names=", ".join(names), values=", ".join(values), shape=shape,
                      grid=full, shared="0" if block is not None else "shared"), scope)
    return scope["launch"]
