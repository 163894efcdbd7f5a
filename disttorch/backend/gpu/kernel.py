"""CUDA kernels as Python functions: compiled by NVRTC when first used, kept in CuPy's disk cache."""

from __future__ import annotations

import functools
from collections.abc import Callable

from . import source
from .launch import launcher

WARP = 32


@functools.cache
def _module(cupy, family: str, values: tuple[tuple[str, object], ...]):
    # CuPy compiles a module for the current device when a function is taken from it, and keeps the
    # machine code on disk by the text, the options and the device's architecture.
    return cupy.RawModule(code=source.text(family), options=source.options(values), backend="nvrtc")


class Kernel:
    """A ``__global__`` function of a family, for one set of values.

    Calling it puts a launch into the current stream::

        kernel(xp.cupy, "softmax", "softmax_forward", ELEMENT="float16")((rows,), (128,), (x, out, rows))

    Arguments are passed by their type: an array as the address of its first element, None as a null
    pointer, an int as ``i64``, a float as ``double``, a NumPy scalar as itself. Whether arrays are
    contiguous, of the right dtype and on the current device is the caller's business.
    """

    def __init__(self, cupy, family: str, name: str, values: tuple[tuple[str, object], ...]):
        self.family, self.name = family, name
        self._cupy = cupy
        self._function = _module(cupy, family, values).get_function(name)
        self._launchers: dict[tuple, Callable[..., None]] = {}

    def __call__(self, grid: tuple, block: tuple, args: tuple, shared: int = 0) -> None:
        """Launch on ``grid`` blocks of ``block`` threads with ``shared`` bytes of dynamic memory."""
        types = tuple(map(type, args))
        launch = self._launchers.get(types)
        if launch is None:
            launch = self._launchers[types] = launcher(self._cupy, self._function, types)
        launch(grid, block, shared, *args)

    def prepared(self, block: int, types: tuple[type, ...]):
        """``f(blocks, *args)`` for launches of one shape, where every fraction of a µs counts.

        Args:
            block: threads of a block, along x.
            types: the classes of the arguments: the array's class, NoneType, int, float, a NumPy
                scalar's.
        """
        return launcher(self._cupy, self._function, types, block)

    def allow_shared(self, size: int) -> None:
        """Let blocks have up to ``size`` bytes of dynamic shared memory (48 KiB without asking)."""
        self._function.max_dynamic_shared_size_bytes = size


@functools.cache
def _kernel(cupy, device: int, family: str, name: str, values) -> Kernel:
    return Kernel(cupy, family, name, values)


def kernel(cupy, family: str, name: str, **values) -> Kernel:
    """The function ``name`` of a family, its names given ``values`` (see ``source.options``): numbers,
    texts, dtypes (as themselves: NumPy puts a dtype's name together anew each time it is asked for)."""
    return _kernel(cupy, cupy.cuda.runtime.getDevice(), family, name, tuple(values.items()))


@functools.cache
def type_name(dtype) -> str:
    """A dtype's name, which NumPy puts together anew each time it is asked for (some µs)."""
    return dtype.name


def blocks(n: int, size: int, most: int = 1 << 20) -> int:
    """How many blocks of ``size`` threads cover ``n`` elements, at most ``most`` (which then loop)."""
    return max(1, min(-(-n // size), most))
