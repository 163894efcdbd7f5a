"""Copies, casts, fills and GELU of the GPU: one launch where ``xp.fused`` has a kernel, else CuPy's."""

from __future__ import annotations

from .. import plain_copies, plain_kernels


def cast(xp, a, dtype):
    """A copy of ``a`` in another dtype."""
    out = xp.fused.cast(a, dtype)
    return plain_copies.cast(xp, a, dtype) if out is NotImplemented else out


def contiguous_copy(xp, a):
    """A row-major copy."""
    out = xp.fused.contiguous(a)
    return plain_kernels.contiguous_copy(xp, a) if out is NotImplemented else out


def assign(xp, out, source):
    """``out[...] = source``; returns ``out``."""
    done = xp.fused.assign(out, source)
    return plain_copies.assign(xp, out, source) if done is NotImplemented else done


def fill_with(xp, out, value):
    """``out[...] = value`` for a number, cast like NumPy's ``full``; returns ``out``."""
    done = xp.fused.fill(out, value)
    return plain_copies.fill_with(xp, out, value) if done is NotImplemented else done


def gelu(xp, x, approximate="none"):
    """x·Φ(x), or its tanh form; 16-bit floats are rounded once."""
    fused = xp.fused
    out = (fused.gelu if approximate == "none" else fused.gelu_with_tanh)(x)
    return plain_kernels.gelu(xp, x, approximate) if out is NotImplemented else out


def gelu_backward(xp, g, x, approximate="none"):
    """g times the derivative of gelu at x."""
    fused = xp.fused
    out = (fused.gelu_backward if approximate == "none" else fused.gelu_with_tanh_backward)(g, x)
    return plain_kernels.gelu_backward(xp, g, x, approximate) if out is NotImplemented else out
