"""Casting and writing over any namespace: what a GPU has kernels of its own for (``gpu/copies.py``)."""

from __future__ import annotations


def cast(xp, a, dtype):
    """A copy of ``a`` in another dtype."""
    return a.astype(dtype)


def assign(xp, out, source):
    """``out[...] = source``; returns ``out``."""
    out[...] = source
    return out


def fill_with(xp, out, value):
    """``out[...] = value`` for a number, cast like NumPy's ``full``; returns ``out``."""
    out[...] = xp.full((), value, out.dtype)
    return out
