"""Memory that processes share without a name: blocks passed as file descriptors.

A block is an unnamed file in memory (``memfd_create``; elsewhere an unlinked temporary file). As it
has no name there is nothing in ``/dev/shm`` to clean up, however a process ends, and its size is not
bound by that of ``/dev/shm``: the kernel frees it with the last descriptor and mapping.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
import tempfile
import weakref

import numpy as np

_live = 0  # mappings of this process; each keeps a descriptor open before Python 3.13
_NO_DESCRIPTOR = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _new_file(nbytes: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("disttorch", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, nbytes)
    except OSError:
        os.close(fd)
        raise
    return fd


class Blocks:
    """The shared blocks that a process has made and not yet passed on."""

    def __init__(self):
        self._fds: dict[int, tuple[int, int]] = {}  # address -> descriptor, size

    def empty(self, shape, dtype):
        """A new array in a block of its own."""
        array = np.empty(shape, dtype) if 0 in shape else None
        if array is not None:
            return array
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        fd = _new_file(nbytes)
        array = np.ndarray(shape, dtype, buffer=mmap.mmap(fd, nbytes, **_NO_DESCRIPTOR))
        address = array.__array_interface__["data"][0]
        self._fds[address] = fd, nbytes
        weakref.finalize(array, self._drop, address, fd)
        return array

    def _drop(self, address, fd):
        """The array is gone: if it was never passed on, so is its block."""
        if self._fds.get(address, (None,))[0] == fd:
            del self._fds[address]
            os.close(fd)

    def take(self, buffer) -> int:
        """A descriptor of a block with the bytes of ``buffer``; the caller closes it.

        An array made by ``empty`` is passed on as it is, anything else is copied.
        """
        flat = np.frombuffer(buffer, np.uint8)
        address = flat.__array_interface__["data"][0]
        if self._fds.get(address, (0, -1))[1] == flat.size:
            return self._fds.pop(address)[0]
        fd = _new_file(flat.size)
        try:
            with mmap.mmap(fd, flat.size) as memory:
                np.frombuffer(memory, np.uint8)[...] = flat
        except BaseException:
            os.close(fd)
            raise
        return fd


def attach(fd: int, nbytes: int):
    """The memory of a block as a writable buffer; closes ``fd``.

    So many mappings of this process that descriptors would run out are copied instead.
    """
    global _live
    try:
        memory = mmap.mmap(fd, nbytes, **_NO_DESCRIPTOR)
    finally:
        os.close(fd)
    if not _NO_DESCRIPTOR and _live > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        with memory:
            return bytearray(memory)
    _live += 1
    weakref.finalize(memory, _one_less)
    return memory


def _one_less():
    global _live
    _live -= 1


def stack_into(blocks: Blocks, arrays):
    """``np.stack(arrays)`` in a shared block."""
    out = blocks.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return np.stack(arrays, out=out)


def seed_numpy(words) -> None:
    """Seed NumPy's global generator, which a user's dataset may draw from."""
    np.random.seed(np.random.SeedSequence(words).generate_state(4))
