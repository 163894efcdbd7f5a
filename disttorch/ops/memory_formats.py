"""Tensors whose channels are the innermost dim in memory (``memory_format=torch.channels_last``).

A format changes where elements lie, never what a tensor is: shapes and values stay. On the GPU the
operations of convolutional networks keep it from layer to layer; on the CPU they give row-major results.
"""

from __future__ import annotations

from ..backend import layouts
from ..tensor import Tensor, contiguous_format, memory_format, preserve_format
from .core import op
from .samples import case

_RANKS = {"channels_last": 4, "channels_last_3d": 5}


@op(moves=True, method=False, node_name="Clone",
    samples=lambda m: [case(m(2, 3, 4, 5), True), case(m(2, 3, 2, 3, 2), True), case(m(3, 4), False)])
def clone_laid(xp, input, last):
    """A dense copy, row-major or with channels last."""
    return layouts.copied(xp, input, last)


@clone_laid.grad("input")
def _(F, g):
    return g


def wants_last(format, ndim: int) -> bool | None:
    """Whether a format asks for channels last; None if it asks for nothing.

    Raises:
        TypeError: if it is no memory format.
        RuntimeError: if a tensor of ``ndim`` dims cannot have it.
    """
    if format is None or format is preserve_format:
        return None
    if not isinstance(format, memory_format):
        raise TypeError(f"memory_format must be torch.memory_format, not {type(format).__name__}")
    if format is contiguous_format:
        return False
    rank = _RANKS[format.name]
    if ndim != rank:
        raise RuntimeError(f"required rank {rank} tensor to use {format.name} format, got {ndim} dims")
    return True


def suits(format, ndim: int) -> bool:
    """Whether ``Module.to`` lays out parameters of ``ndim`` dims in a format."""
    return format is not None and _RANKS.get(format.name, ndim) == ndim


def is_contiguous(self, memory_format=None) -> bool:
    """Whether the elements lie without gaps in row-major order, or in that of ``memory_format``."""
    last = wants_last(memory_format, self._data.ndim)
    return layouts.is_dense(self._data, True) if last else self._data.flags.c_contiguous


def contiguous(input: Tensor, memory_format=None) -> Tensor:
    """The same values in row-major memory, or in ``memory_format``; itself if they lie so already."""
    last = bool(wants_last(memory_format, input._data.ndim))
    return input if layouts.is_dense(input._data, last) else clone_laid.call(input, last)


def laid_out(input: Tensor, memory_format) -> Tensor:
    """The tensor in a format, for ``to``: itself if its strides are already that format's."""
    last = wants_last(memory_format, input._data.ndim)
    if last is None or last == layouts.is_channels_last(input._data):
        return input
    return clone_laid.call(input, last)
