"""Ordering along a dim: sort, argsort, topk. NaN counts as larger than every number."""

from __future__ import annotations

from ..backend import dtypes
from ..tensor import Tensor
from .core import op, wrap_dim
from .reduce import named
from .samples import case


def _ordered(xp, input, dim, descending, count=None):
    """Values and int64 positions in order along ``dim``, ties in their given order."""
    if input.dtype.kind == "c":
        raise RuntimeError(
            f"Sort does not support complex dtypes, and the input is {input.dtype.name}"
        )
    if input.ndim == 0:
        return input.copy(), xp.zeros((), dtypes.int64.np)
    lines = xp.moveaxis(input, dim, -1)
    if descending:
        # The ascending stable order of the reversed line, read backwards: ties keep their order.
        index = lines.shape[-1] - 1 - xp.argsort(lines[..., ::-1], axis=-1, kind="stable")
        index = index[..., ::-1]
    else:
        index = xp.argsort(lines, axis=-1, kind="stable")
    index = xp.moveaxis(index[..., :count], -1, dim)
    index = xp.ascontiguousarray(index).astype(dtypes.int64.np, copy=False)
    return xp.take_along_axis(input, index, dim), index


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 4)), case(m(3, 4), 0, True), case(m(2, 0, 3), 1), case(m(2, 0, 3), -1, True),
    case(m(), 0)])
def sort_dim(xp, input, dim=-1, descending=False):
    return _ordered(xp, input, wrap_dim(dim, input.ndim), descending)


@op(nout=2, method=False, moves=True, samples=lambda m: [
    case(m(3, 6), 2), case(m(5, 4), 3, 0), case(m(3, 4), 2, 1, False), case(m(3, 4), 0),
    case(m(), 1)])
def topk_dim(xp, input, k, dim=-1, largest=True):
    dim = wrap_dim(dim, input.ndim)
    if not 0 <= k <= (input.shape[dim] if input.ndim else 1):
        raise RuntimeError(
            f"selected index k out of range: k is {k}, and dim {dim} of the input has "
            f"{input.shape[dim] if input.ndim else 1} elements"
        )
    if input.ndim == 0 or not k or not input.size:
        return _ordered(xp, input, dim, largest, k)
    best = xp.top_k(xp.ascontiguousarray(xp.moveaxis(input, dim, -1)), k, largest)
    index = xp.ascontiguousarray(xp.moveaxis(best, -1, dim)).astype(dtypes.int64.np, copy=False)
    return xp.take_along_axis(input, index, dim), index


def _return_gradient(F, g, input_shape, out1, dim):
    """Each value came from one place: its gradient goes back there."""
    if not input_shape:
        return g[0]
    return F.gather_backward(g[0], input_shape, dim, out1)


sort_dim.grad("input")(_return_gradient)
topk_dim.grad("input")(_return_gradient)


def sort(input: Tensor, dim=-1, descending=False, stable=False, *, out=None):
    """Values in order along ``dim`` and their positions (int64), as a pair ``values, indices``.

    Equal elements keep their order whether or not ``stable`` asks for it.
    """
    return named("sort", sort_dim.call(input, dim, descending), out)


def argsort(input: Tensor, dim=-1, descending=False, stable=False) -> Tensor:
    """The positions (int64) that put ``input`` in order along ``dim``."""
    return sort_dim.call(input, dim, descending)[1]


def topk(input: Tensor, k, dim=-1, largest=True, sorted=True, *, out=None):
    """The ``k`` largest (or smallest) values along ``dim`` and their positions (int64).

    They come in order whether or not ``sorted`` asks for it.

    Raises:
        RuntimeError: for a ``k`` that is negative or larger than the dim.
    """
    return named("topk", topk_dim.call(input, k, dim, largest), out)


COMPOSITES = {"sort": sort, "argsort": argsort, "topk": topk}
