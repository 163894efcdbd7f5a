"""Tensors' memory in blocks that several processes map: what ``share_memory_`` does.

A block is an unnamed file in memory with a descriptor. It lives as long as any process has it mapped
or holds its descriptor, so nothing is left behind however a process ends.

Arrays cannot change their memory, so sharing gives every tensor and storage over it a new array: the
same window, onto a block with the same bytes. Those that hold the memory besides the one that was
asked are found among the interpreter's objects; reference counts tell when there are none, which is
the rule for parameters.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import sys
import weakref
from typing import Any

from ..backend import CPU, ndarray
from ..backend.shared_memory import _new_file
from ..storage import TypedStorage, UntypedStorage
from ..tensor import Tensor, wrap

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value

_known: weakref.WeakValueDictionary[tuple[int, int], Block] = weakref.WeakValueDictionary()


class Block:
    """Shared memory mapped into this process. Make one by ``new_block`` or ``attach``.

    Attributes:
        fd: the descriptor by which other processes map it. nbytes: its size. address: where it is.
    """

    # Python's own mmap keeps a second descriptor for each mapping before 3.13
    def __init__(self, fd: int, nbytes: int):
        length = max(nbytes, 1)
        address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            error = ctypes.get_errno()
            os.close(fd)
            raise OSError(error, f"cannot map {nbytes} bytes of shared memory: {os.strerror(error)}")
        self.fd, self.nbytes, self.address = fd, nbytes, address
        weakref.finalize(self, _release, fd, address, length).atexit = False

    def flat(self, np_dtype):
        """All of it as a 1-dim array, which keeps the block alive."""
        memory = (ctypes.c_ubyte * max(self.nbytes, 1)).from_address(self.address)
        memory.block = self  # type: ignore[attr-defined]
        return CPU.ndarray((self.nbytes // np_dtype.itemsize,), np_dtype, memory)  # type: ignore[arg-type]

    def window(self, np_dtype, offset: int, shape: tuple, strides: tuple):
        """An array in it; offset and strides in bytes.

        Raises:
            ValueError, TypeError: if it would reach outside the block.
        """
        # a view of ``flat``, so that the tensor's storage is all of the block
        return CPU.ndarray(shape, np_dtype, self.flat(np_dtype).view(CPU.uint8), offset, strides)


def _release(fd: int, address: int, length: int) -> None:
    _libc.munmap(address, length)
    os.close(fd)


def _key(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def new_block(nbytes: int) -> Block:
    """A block of zeros.

    Raises:
        OSError: if the process has as many files open as it may, or memory is short.
    """
    try:
        fd = _new_file(max(nbytes, 1))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise OSError(
            errno.EMFILE,
            "too many open files: each shared tensor keeps one; raise the limit with `ulimit -n` or "
            "torch.multiprocessing.set_sharing_strategy('file_system'), or share fewer tensors",
        ) from None
    block = Block(fd, nbytes)
    _known[_key(fd)] = block
    return block


def attach(fd: int, nbytes: int) -> Block:
    """The block behind a descriptor, which it takes over: mapped already, or mapped now."""
    key = _key(fd)
    block = _known.get(key)
    if block is not None:
        os.close(fd)
        return block
    block = _known[key] = Block(fd, nbytes)
    return block


# ---------------------------------------------------------------- what lies behind an array
def _root(array):
    """The array at the end of the chain of views."""
    root = below = array
    while (below := getattr(below, "base", None)) is not None:
        if isinstance(below, ndarray):
            root = below
    return root


def block_of(array) -> Block | None:
    """The block that an array lies in, None for memory of this process alone."""
    return getattr(_root(array).base, "block", None) if isinstance(array, ndarray) else None


def place_of(array) -> tuple[Block, int]:
    """The block of a shared array and its offset there, in bytes."""
    block = block_of(array)
    assert block is not None
    return block, array.ctypes.data - block.address if array.size else 0


def is_shared(holder) -> bool:
    """Whether a tensor's or storage's memory can be seen by other processes; a GPU's always."""
    return holder.is_cuda or block_of(_array_of(holder)) is not None


def _slot(kind: type) -> str | None:
    if issubclass(kind, Tensor):
        return "_data"
    return "_flat" if issubclass(kind, (UntypedStorage, TypedStorage)) else None


def _array_of(holder):
    return holder._data if isinstance(holder, Tensor) else holder._flat


# ---------------------------------------------------------------- moving
def share(*holders) -> None:
    """Move the memory of tensors and storages to shared blocks, for all that look at it.

    Tensors on a GPU stay, as do those that are shared already.

    Raises:
        OSError: if no more blocks can be made.
    """
    moves: dict[int, _Move] = {}
    others = False
    for holder in {id(holder): holder for holder in holders}.values():
        if holder.is_cuda or block_of(_array_of(holder)) is not None:
            continue
        others = others or not _is_alone(holder)
        if not isinstance(_array_of(holder), ndarray):  # one of NumPy's scalars has no memory
            holder._data = CPU.asarray(holder._data)
        root = _root(_array_of(holder))
        if id(root) not in moves:
            moves[id(root)] = _Move(root)
    if not moves:
        return
    found = gc.get_objects() if others else holders
    slots = {kind: _slot(kind) for kind in set(map(type, found))}
    windows: list[tuple[Any, str, Any]] = []
    for holder in found:
        slot = slots[type(holder)]
        array = vars(holder).get(slot) if slot else None
        if slot and isinstance(array, ndarray) and (move := moves.get(id(_root(array)))):
            windows.append((holder, slot, move.window(array)))
    for holder, slot, window in windows:  # all or none
        setattr(holder, slot, window)


class _Move:
    """From the memory of ``root``, which owns it, to a new block."""

    def __init__(self, root):
        self.root = root  # also keeps its id from being given to another
        self.low = root.ctypes.data
        low, high = CPU.lib.array_utils.byte_bounds(root) if root.size else (self.low, self.low)
        self.low = low
        self.block = new_block(high - low)
        ctypes.memmove(self.block.address, low, high - low)

    def window(self, array):
        offset = array.ctypes.data - self.low if array.size else 0
        return self.block.window(array.dtype, offset, array.shape, array.strides)


def _counts(holder) -> tuple[int, int, int]:
    """(length of the chain of views, references to the array, to what it is a view of)."""
    array = _array_of(holder)
    below = getattr(array, "base", None)
    if below is None:
        return 0, sys.getrefcount(array), 0
    deeper = getattr(below, "base", None) is not None
    return 1 + deeper, sys.getrefcount(array), sys.getrefcount(below)


_LONE = {counts[0]: counts for counts in
         (_counts(wrap(CPU.zeros(2))), _counts(wrap(CPU.zeros((2, 2))[0])))}


def _is_alone(holder) -> bool:
    """Whether surely nothing else looks at a tensor's memory."""
    counts = _counts(holder)
    return counts == _LONE.get(counts[0])


__all__ = ["Block", "attach", "block_of", "is_shared", "new_block", "place_of", "share"]
