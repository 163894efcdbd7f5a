"""Casting and writing over any namespace: what a GPU has kernels of its own for (``gpu/copies.py``)."""

from __future__ import annotations


def cast(xp, a, dtype):
    """A copy of ``a`` in another dtype."""
    return a.astype(dtype)


def duplicate(xp, a):
    """A copy without gaps whose axes lie in the order of the array's."""
    return a.copy(order="K")


def reshaped(xp, a, shape):
    """``a`` in another shape of as many elements: a view where the memory allows it, else a copy."""
    return a.reshape(shape)


def framed(xp, source, shape, starts, value=0):
    """``source`` inside an array of ``shape``, beginning at ``starts``; ``value`` around it."""
    out = xp.zeros(shape, source.dtype) if value == 0 else xp.full(shape, value, source.dtype)
    out[tuple([slice(s, s + n) for s, n in zip(starts, source.shape)])] = source
    return out


def counted_from_ends(xp, index, n):
    """Indices from −n to n − 1 as indices from 0."""
    return xp.where(index < 0, index + n, index)


def ramp(xp, start, step, count, dtype):
    """``start + i·step`` for i below ``count``, computed as int64 or, if one is a float, as float64."""
    steps = xp.arange(count)
    if not isinstance(start, float) and not isinstance(step, float):
        return (steps * step + start).astype(dtype)
    return (steps * float(step) + float(start)).astype(dtype)


def assign(xp, out, source):
    """``out[...] = source``; returns ``out``."""
    out[...] = source
    return out


def fill_with(xp, out, value):
    """``out[...] = value`` for a number, cast like NumPy's ``full``; returns ``out``."""
    out[...] = xp.full((), value, out.dtype)
    return out
