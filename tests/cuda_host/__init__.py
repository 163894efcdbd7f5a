"""CUDA kernels on the CPU: ``csrc/``'s sources compiled by g++ and run over NumPy arrays.

    from cuda_host import kernel
    kernel("softmax", "softmax_forward", ELEMENT="float16")((rows,), (128,), (x, out, rows))

takes what ``disttorch.backend.gpu.kernel`` takes, with NumPy arrays in place of the GPU's, and has
computed when it returns. Finds wrong indices, wrong reductions, threads that do not meet at a barrier
(`KernelError` names kernel, block and thread), accesses outside the arrays (each lies against a page
that may not be touched), misaligned ones, arguments of the wrong type; not races of warps or of memory.
"""

from __future__ import annotations

import functools

import numpy as np

from disttorch.backend.gpu import source

from .compiler import available, compile_source
from .guards import Guarded
from .library import KernelError, Library

__all__ = ["Guarded", "Kernel", "KernelError", "Library", "available", "compile_text", "kernel"]


class Kernel:
    """One ``__global__`` function over NumPy arrays; see the module's text."""

    def __init__(self, library: Library, name: str):
        self.library, self.name = library, name

    def __call__(self, grid: tuple, block: tuple, args: tuple, shared: int = 0,
                 backwards: bool = False) -> None:
        """Run it. ``backwards`` starts each block's threads from the last: a barrier that is missing
        shows in one order or the other.

        Raises:
            KernelError: whatever would hang, fail or be undefined on a GPU.
        """
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        guarded = Guarded(arrays)
        try:
            given = [guarded.get(a) if isinstance(a, np.ndarray) else a for a in args]
            self.library.launch(self.name, grid, block, given, shared, backwards)
        except KernelError as error:
            raise KernelError(str(error) + guarded.explain(error.address)) from None
        finally:
            guarded.close()
        guarded.check(self.name)


@functools.cache
def compile_text(text: str, options: tuple[str, ...] = (), name: str = "kernels.cu") -> Library:
    """The kernels of any source text, compiled as ``source.text`` and ``source.options`` give it."""
    return Library(compile_source(text, options, name), text)


def kernel(family: str, name: str, **values) -> Kernel:
    """The function ``name`` of a family of ``csrc/``, its names given ``values``."""
    library = compile_text(source.text(family), source.options(tuple(values.items())), f"{family}.cu")
    return Kernel(library, name)
