"""Finding: unique values, positions in sorted sequences, membership, coordinates."""

from __future__ import annotations

import math

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY, device_error, wrap_dim, write_out
from .creation import tensor
from .sorting import sort


def msort(input: Tensor, *, out=None) -> Tensor:
    """Sorted along dim 0."""
    result = sort(input, 0)[0]
    return result if out is None else write_out(result, out, "msort")


def argwhere(input: Tensor) -> Tensor:
    """Indices of the nonzero elements, N×ndim."""
    return input.nonzero()


# ---------------------------------------------------------------- unique
def unique(input: Tensor, sorted=True, return_inverse=False, return_counts=False, dim=None):
    """The distinct elements in ascending order, or the distinct slices along ``dim``.

    Args:
        sorted: accepted; the result is sorted in any case.
        return_inverse: also give, for each element, where it is in the result.
        return_counts: also give how often each occurs.

    Returns:
        The values, or a tuple (values, inverse, counts) with what was asked for.
    """
    xp, a = namespace_of(input._data), input._data
    if dim is None:
        values, inverse, counts = xp.unique(a.reshape(-1), return_inverse=True, return_counts=True,
                                            equal_nan=False)
        inverse = inverse.reshape(a.shape)
    else:
        dim = wrap_dim(dim, a.ndim)
        values, inverse, counts = _unique_slices(xp, a, dim)
    return _asked(values, inverse, counts, return_inverse, return_counts)


def _unique_slices(xp, a, dim):
    if a.shape[dim] == 0 or a.size == 0:
        if a.shape[dim] and a.size == 0:
            raise RuntimeError(
                "There are 0 sized dimensions, and they aren't selected, so unique cannot be "
                "applied"
            )
        none = xp.zeros(0, dtypes.int64.np)
        return a.copy(), none, none
    rows = xp.ascontiguousarray(xp.moveaxis(a, dim, 0)).reshape(a.shape[dim], -1)
    order = xp.lexsort(rows.T[::-1])
    ordered = rows[order]
    new = xp.concatenate(([True], (ordered[1:] != ordered[:-1]).any(1)))
    inverse = xp.empty(len(order), dtypes.int64.np)
    inverse[order] = xp.cumsum(new) - 1
    return xp.take(a, order[new], dim), inverse, _run_lengths(xp, new)


def _run_lengths(xp, new):
    """How long each run is, from where runs begin."""
    starts = xp.flatnonzero(new)
    return xp.diff(xp.concatenate((starts, [len(new)])))


def unique_consecutive(input: Tensor, return_inverse=False, return_counts=False, dim=None):
    """Every element (or slice along ``dim``) but those equal to the one before."""
    xp, a = namespace_of(input._data), input._data
    at = 0 if dim is None else wrap_dim(dim, a.ndim)
    lines = a.reshape(-1) if dim is None else a
    n = lines.shape[at] if lines.ndim else 1
    if n == 0:
        none = xp.zeros(0, dtypes.int64.np)
        return _asked(lines.copy(), none.reshape(a.shape if dim is None else -1), none,
                      return_inverse, return_counts)
    rows = xp.moveaxis(lines, at, 0).reshape(n, -1)
    new = xp.concatenate(([True], (rows[1:] != rows[:-1]).any(1)))
    inverse = xp.cumsum(new) - 1
    inverse = inverse.reshape(a.shape) if dim is None else inverse
    values = xp.take(lines, xp.flatnonzero(new), at)
    return _asked(values, inverse, _run_lengths(xp, new), return_inverse, return_counts)


def _asked(values, inverse, counts, return_inverse, return_counts):
    out = [wrap(values)]
    if return_inverse:
        out.append(wrap(inverse.astype(dtypes.int64.np)))
    if return_counts:
        out.append(wrap(counts.astype(dtypes.int64.np)))
    return out[0] if len(out) == 1 else tuple(out)


# ---------------------------------------------------------------- places in sorted sequences
def searchsorted(sorted_sequence: Tensor, input, *, out_int32=False, right=False, side=None,
                 sorter=None, out=None) -> Tensor:
    """Where each value would be inserted to keep a sequence (or each of several rows) sorted.

    Args:
        sorted_sequence: a vector, or *×N rows whose leading dims are those of ``input``.
        input: a tensor or a number.
        right: among equal elements, the place behind them (also ``side="right"``).
        sorter: positions that sort ``sorted_sequence``, where it is not sorted itself.
    """
    if side not in (None, "left", "right"):
        raise RuntimeError(
            f"torch.searchsorted(): side can only be 'left' or 'right' but got {side}"
        )
    if side == "left" and right:
        raise RuntimeError(
            "torch.searchsorted(): side and right can't be set to opposites, got side of left "
            "while right was True"
        )
    side = "right" if right or side == "right" else "left"
    values = input if isinstance(input, Tensor) else tensor(input, device=sorted_sequence.device)
    if sorter is not None:
        sorted_sequence = REGISTRY["gather"].call(sorted_sequence, -1, sorter)
    seq, a = sorted_sequence._data, values._data
    if seq.__class__ is not a.__class__:
        raise device_error("searchsorted", seq, a)
    if seq.ndim != 1 and (seq.ndim != a.ndim or seq.shape[:-1] != a.shape[:-1]):
        raise RuntimeError(
            "torch.searchsorted(): boundaries tensor should be 1 dimension or the first N-1 "
            "dimensions of boundaries tensor and input value tensor must match, but we got "
            f"boundaries tensor {list(seq.shape)} and input value tensor {list(a.shape)}"
        )
    xp = namespace_of(seq)
    if seq.ndim == 1:
        found = xp.searchsorted(seq, a, side)
    else:
        rows, wanted = seq.reshape(-1, seq.shape[-1]), a.reshape(-1, a.shape[-1])
        found = xp.stack([xp.searchsorted(r, w, side) for r, w in zip(rows, wanted)]) if len(
            rows) else xp.zeros((0,))
        found = found.reshape(a.shape)
    result = wrap(xp.asarray(found).astype("int32" if out_int32 else "int64"))
    return result if out is None else write_out(result, out, "searchsorted")


def bucketize(input, boundaries: Tensor, *, out_int32=False, right=False, out=None) -> Tensor:
    """The number of the bucket between sorted ``boundaries`` that each value falls into."""
    if boundaries.ndim != 1:
        raise RuntimeError(
            f"bucketize(): boundaries tensor must be 1 dimension, but got dim({boundaries.ndim})"
        )
    return searchsorted(boundaries, input, out_int32=out_int32, right=right, out=out)


def isin(elements, test_elements, *, assume_unique=False, invert=False, out=None) -> Tensor:
    """Whether each element is among the test elements; either may be a number."""
    if not isinstance(elements, Tensor) and not isinstance(test_elements, Tensor):
        raise TypeError("isin(): argument 'elements' (position 1) must be Tensor")
    a = elements._data if isinstance(elements, Tensor) else elements
    b = test_elements._data if isinstance(test_elements, Tensor) else test_elements
    xp = namespace_of(a if isinstance(elements, Tensor) else b)
    result = wrap(xp.asarray(xp.isin(a, b, assume_unique=assume_unique, invert=invert)))
    return result if out is None else write_out(result, out, "isin")


def unravel_index(indices: Tensor, shape) -> tuple:
    """Coordinates (one tensor per dim) of flat positions in a tensor of ``shape``."""
    if indices.dtype.category != dtypes.INT:
        raise ValueError(
            f"expected 'indices' to be integer dtype, but got {indices.dtype!r}"
        )
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    xp, a = namespace_of(indices._data), indices._data
    out = []
    for n in shape:
        count //= max(n, 1)
        out.append(wrap(xp.asarray(a // max(count, 1) % n)))
    return tuple(out)


COMPOSITES = {"msort": msort, "argwhere": argwhere, "unique": unique,
              "unique_consecutive": unique_consecutive}
FUNCTIONS = {"searchsorted": searchsorted, "bucketize": bucketize, "isin": isin,
             "unravel_index": unravel_index}
