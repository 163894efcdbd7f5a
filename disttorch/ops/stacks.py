"""Stacks and splits by direction: hstack, vsplit, atleast_2d, tensor_split and their kin."""

from __future__ import annotations

from ..tensor import Tensor
from .core import REGISTRY, wrap_dim
from .join import cat
from .views import reshape


def atleast_1d(*tensors):
    """0-dim tensors as vectors; others unchanged."""
    return _each(tensors, lambda t: t if t.ndim else reshape.call(t, (1,)))


def atleast_2d(*tensors):
    """Tensors with fewer than two dims as matrices of one row."""
    def grow(t):
        return t if t.ndim >= 2 else reshape.call(t, (1, t.numel()))

    return _each(tensors, grow)


def atleast_3d(*tensors):
    """Tensors with fewer than three dims with dims of size 1 added (a vector becomes 1×N×1)."""
    def grow(t):
        if t.ndim >= 3:
            return t
        shape = (1, t.numel(), 1) if t.ndim < 2 else (*t._data.shape, 1)
        return reshape.call(t, shape)

    return _each(tensors, grow)


def _each(tensors, grow):
    if len(tensors) == 1:
        if isinstance(tensors[0], Tensor):
            return grow(tensors[0])
        return tuple(map(grow, tensors[0]))
    return tuple(map(grow, tensors))


def hstack(tensors, *, out=None) -> Tensor:
    """Joined along dim 1 (vectors along dim 0)."""
    tensors = _nonempty(atleast_1d(tensors), "hstack")
    return cat.call(tensors, 0 if tensors[0].ndim == 1 else 1, out=out)


def vstack(tensors, *, out=None) -> Tensor:
    """Joined along dim 0; vectors as rows."""
    return cat.call(_nonempty(atleast_2d(tensors), "vstack"), 0, out=out)


def dstack(tensors, *, out=None) -> Tensor:
    """Joined along dim 2."""
    return cat.call(_nonempty(atleast_3d(tensors), "dstack"), 2, out=out)


def column_stack(tensors, *, out=None) -> Tensor:
    """Joined along dim 1; vectors as columns."""
    columns = [t if t.ndim > 1 else reshape.call(t, (t.numel(), 1)) for t in tensors]
    return hstack(_nonempty(columns, "column_stack"), out=out)


def _nonempty(tensors, name):
    if not tensors:
        raise RuntimeError(f"{name} expects a non-empty TensorList")
    return tensors


def tensor_split(input: Tensor, indices_or_sections, dim=0) -> tuple:
    """Views of parts along ``dim``: a number of nearly equal ones, or cut at given places."""
    if input.ndim == 0:
        raise RuntimeError(
            "tensor_split expected at least a 1-dimensional tensor, but got a tensor with 0 dims"
        )
    dim, cuts = wrap_dim(dim, input.ndim), indices_or_sections
    n = input._data.shape[dim]
    if isinstance(cuts, Tensor):
        cuts = cuts.tolist()
    if isinstance(cuts, int):
        if cuts <= 0:
            raise RuntimeError(f"number of sections must be larger than 0, got {cuts}")
        size, extra = divmod(n, cuts)
        cuts = [i * size + min(i, extra) for i in range(1, cuts)]
    bounds = [0, *cuts, n]
    lead = (slice(None),) * dim
    last, pieces = len(bounds) - 2, []
    for i, start in enumerate(bounds[:-1]):
        end = bounds[i + 1] if i < last else None
        pieces.append(REGISTRY["slice"].call(input, (*lead, slice(start, end))))
    return tuple(pieces)


def _direction_split(name, least, dim):
    def split(input: Tensor, indices_or_sections) -> tuple:
        if input.ndim < least:
            raise RuntimeError(
                f"torch.{name} requires a tensor with at least {least} dimension"
                f"{'s' if least > 1 else ''}, but got a tensor with {input.ndim} dimensions!"
            )
        at = 0 if name == "hsplit" and input.ndim == 1 else dim
        parts, n = indices_or_sections, input._data.shape[at]
        if isinstance(parts, int) and (parts == 0 or n % parts):
            raise RuntimeError(
                f"torch.{name} attempted to split along dimension {at}, but the size of the "
                f"dimension {n} is not divisible by the split_size {parts}!"
            )
        return tensor_split(input, indices_or_sections, at)

    split.__name__ = name
    split.__doc__ = f"Views of equal parts along dim {dim}, or cut at the given places."
    return split


hsplit = _direction_split("hsplit", 1, 1)
vsplit = _direction_split("vsplit", 2, 0)
dsplit = _direction_split("dsplit", 3, 2)


COMPOSITES = {"tensor_split": tensor_split, "hsplit": hsplit, "vsplit": vsplit, "dsplit": dsplit}
FUNCTIONS = {
    "atleast_1d": atleast_1d, "atleast_2d": atleast_2d, "atleast_3d": atleast_3d,
    "hstack": hstack, "vstack": vstack, "dstack": dstack, "column_stack": column_stack,
    "row_stack": vstack,
}
