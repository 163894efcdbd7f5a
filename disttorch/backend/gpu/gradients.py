"""Norms, clipping and unscaling of many gradients in a launch or two (``csrc/gradients.cu``).

Nothing here waits for the GPU, and everything has the same bits on every run: partial sums are made and
added in an order that depends on the tensors' sizes only. A norm of many tensors is the norm of their
norms, so whoever has one norm after the other gets the same bits.
"""

from __future__ import annotations

import numpy as np

from .. import optim_kernels
from ..dtypes import bfloat16, float16, float32
from .kernel import kernel, type_name
from .multi import CHUNK, THREADS, is_dense, tables

_FLOATS = ("float32", "float64", "float16", "bfloat16")
# Kinds of norms as gradients.cu numbers them
_KINDS = {0.0: 0, 1.0: 1, 2.0: 2, float("inf"): 3, float("-inf"): 4}
_POWER = 5
_CONVERTED = {pair for half in (float16.np, bfloat16.np)
              for pair in ((half, float32.np), (float32.np, half))}


def _function(xp, name, element):
    return kernel(xp.cupy, "gradients", name, ELEMENT=element)


def _wide(name: str):
    return np.float64 if name == "float64" else np.float32


# ---------------------------------------------------------------- norms
def vector_norm(xp, array, p):
    """The p-norm of all elements, as a 0-dim array of the array's (real) type.

    Real floats by one kernel or two; other types, and the smallest of no elements, by plain formulas.
    """
    name = type_name(array.dtype)
    if name not in _FLOATS or (p == float("-inf") and not array.size):
        return optim_kernels.vector_norm(xp, array, p)
    if array.size > CHUNK:
        return _norms(xp, [array], p)[0]
    array, out = xp.ascontiguousarray(array), xp.empty((), array.dtype)
    _function(xp, "norm_small", name)(
        (1,), (THREADS,), (array, array.size, out, _KINDS.get(float(p), _POWER), float(p)))
    return out


def _norms(xp, arrays, p):
    """The norm of each array, all of one float type: a 1-dim array of that type."""
    name, kind, p = type_name(arrays[0].dtype), _KINDS.get(float(p), _POWER), float(p)
    arrays = [a if a.flags.c_contiguous else xp.ascontiguousarray(a) for a in arrays]
    norms = xp.empty(len(arrays), arrays[0].dtype)
    for table, chunks, start, n in tables([arrays], least=1):
        parts = xp.empty(chunks, _wide(name))
        _function(xp, "norm_parts", name)((chunks,), (THREADS,), (table, parts, kind, p))
        _function(xp, "norm_finish", name)(
            (n,), (THREADS,), (table, parts, norms[start : start + n], chunks, kind, p))
    return norms


def total_norm(xp, arrays, p):
    """The p-norm of all arrays seen as one vector; see ``optim_kernels.total_norm``."""
    first = arrays[0].dtype
    alike = all(a.dtype == first for a in arrays)
    empty = p == float("-inf") and not all(a.size for a in arrays)
    if len(arrays) == 1 or not alike or type_name(first) not in _FLOATS or empty:
        return optim_kernels.total_norm(xp, arrays, p)
    return vector_norm(xp, _norms(xp, arrays, p), p)


# ---------------------------------------------------------------- in place
def _in_place(xp, arrays, name, args, plain):
    """Launch the kernel ``name`` for all arrays of each float type; ``plain(array)`` for the others."""
    groups: dict = {}  # of each dtype
    for a in arrays:
        kind = a.dtype
        if type_name(kind) in _FLOATS and (a.flags.c_contiguous or is_dense(a)):
            if kind in groups:
                groups[kind].append(a)
            else:
                groups[kind] = [a]
        else:
            plain(a)
    for kind, members in groups.items():
        launch = _function(xp, name, kind)
        given = args(type_name(kind))
        for table, chunks, _, _ in tables([members]):
            if chunks:  # not of empty arrays only
                launch((chunks,), (THREADS,), (table, *given))


def clip_factor(xp, norm, most):
    """By how much gradients of a norm are to be scaled; see ``optim_kernels.clip_factor``. One launch,
    and of the type that the elements are computed in."""
    name = type_name(norm.dtype)
    if name not in _FLOATS:
        return optim_kernels.clip_factor(xp, norm, most)
    factor = xp.empty(norm.shape, _wide(name))
    _function(xp, "clip_factor", name)((1,), (1,), (norm, factor, float(most)))
    return factor


def scale_all(xp, arrays, factor):
    """Multiply all arrays by a 0-dim array, in place."""
    _in_place(xp, arrays, "scale_all", lambda t: (factor.astype(_wide(t), copy=False),),
              lambda a: optim_kernels.scale_all(xp, [a], factor))


def clip_all(xp, arrays, low, high):
    """Limit all elements to [low, high], in place."""
    _in_place(xp, arrays, "clip_all", lambda t: (float(low), float(high)),
              lambda a: optim_kernels.clip_all(xp, [a], low, high))


def unscale_all(xp, arrays, scale, found):
    """Divide all arrays by ``scale`` in place and note in ``found`` what is not finite; see
    ``optim_kernels.unscale_all``."""
    _in_place(xp, arrays, "unscale_all", lambda t: (scale, found),
              lambda a: _unscale_one(xp, a, scale, found))


def _unscale_one(xp, a, scale, found):
    if scale is not None:
        inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
        a[...] = (a * inverse).astype(a.dtype)
    xp.maximum(found, xp.logical_not(xp.isfinite(a).all()).astype(np.float32), out=found)


def update_scale(xp, scale, good, found, growth, backoff, interval):
    """The next step's scale and count of good steps, in place; see ``optim_kernels.update_scale``."""
    _function(xp, "update_scale", "float32")(
        (1,), (1,), (scale, good, found, float(growth), float(backoff), int(interval)))


# ---------------------------------------------------------------- to float32 and back
def convert_all(xp, sources, targets):
    """Copy each array into another of its shape and another dtype: in one launch a pair of dtypes, for
    16-bit floats to float32 and back; see ``optim_kernels.convert_all``."""
    groups: dict[tuple, tuple[list, list]] = {}
    for source, target in zip(sources, targets):
        kinds = source.dtype, target.dtype
        if kinds in _CONVERTED and source.flags.c_contiguous and target.flags.c_contiguous:
            if source.size:
                for column, array in zip(groups.setdefault(kinds, ([], [])), (source, target)):
                    column.append(array)
        else:
            xp.assign(target, source)
    for kinds, columns in groups.items():
        launch = kernel(xp.cupy, "convert", "convert_all", SOURCE=kinds[0], TARGET=kinds[1])
        for table, chunks, _, _ in tables(columns):
            launch((chunks,), (THREADS,), (table,))
