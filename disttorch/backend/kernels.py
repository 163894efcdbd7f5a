"""Fused array kernels that NumPy lacks, as few cache-sized passes as plain array calls allow.

Each takes the namespace ``xp`` first and becomes a method of it. NumPy runs every call over the
whole array, so a formula of ten calls streams ten times through main memory; the kernels walk over
blocks of rows that stay in the L2 cache instead.

Shape legend: R rows, C columns (the reduced, contiguous last axis), N flat elements.
"""

from __future__ import annotations

import builtins
import math

import numpy as np

_BLOCK = 1 << 15  # elements of a block: 128 KiB of float32, a few temporaries fit in L2


def _row_blocks(rows: int, width: int):
    step = builtins.max(1, _BLOCK // builtins.max(1, width))
    for start in range(0, rows, step):
        yield slice(start, builtins.min(rows, start + step))


def _rows(a, axis):
    """(a as contiguous R×C with ``axis`` last, how to put the result back)."""
    if a.ndim == 0:
        return a.reshape(1, 1), lambda r: r.reshape(())
    moved = np.moveaxis(a, axis, -1)
    flat = np.ascontiguousarray(moved).reshape(-1, a.shape[axis])
    return flat, lambda r: np.moveaxis(r.reshape(moved.shape), -1, axis)


# erf(x)/x as a rational function of x*x on |x| <= 3.9, fitted to a relative error of 5e-8
_ERF_P = (2.0148433033958363e-08, -1.9631806073058536e-06, 0.00014059199886108528,
          0.0036319876950221155, 0.050343992349064205, 0.19817522720458225, 1.1283791124624587)  # fmt: skip
_ERF_Q = (0.0009405089617767256, 0.01420726545886705, 0.11427798461738836, 0.5089599695973762, 1.0)


def _horner(t, coefficients, out):
    np.multiply(t, t.dtype.type(coefficients[0]), out=out)
    for c in coefficients[1:-1]:
        out += t.dtype.type(c)
        out *= t
    out += t.dtype.type(coefficients[-1])
    return out


def _erf32(x, out):
    """erf of a float32 block into ``out`` (absolute error 4e-7)."""
    x = np.clip(x, -3.9, 3.9)
    t = x * x
    _horner(t, _ERF_P, out)
    out *= x
    out /= _horner(t, _ERF_Q, x)
    return np.clip(out, -1.0, 1.0, out=out)


def erf(xp, x):
    """The error function; float32 by a rational approximation, other types exact to the last bit."""
    if x.dtype != np.float32:
        wide = np.asarray(x, np.float64)
        flat = np.fromiter(map(math.erf, wide.ravel().tolist()), np.float64, wide.size)
        return flat.reshape(x.shape).astype(x.dtype, copy=False)
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    for b in _row_blocks(flat.size, 1):
        _erf32(flat[b], out[b])
    return out.reshape(x.shape)


_SQRT_HALF, _INV_SQRT_2PI = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_TANH_A, _TANH_B = math.sqrt(2 / math.pi), 0.044715


def _normal_cdf(x, out):
    """Standard normal distribution function of a block, into ``out``."""
    if x.dtype == np.float32:
        _erf32(x * np.float32(_SQRT_HALF), out)
    else:
        out[...] = erf(np, x * x.dtype.type(_SQRT_HALF))
    out += 1
    out *= 0.5
    return out


def gelu(xp, x, approximate="none"):
    """x·Φ(x), or its tanh form (Hendrycks & Gimpel, arXiv:1606.08415)."""
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    for b in _row_blocks(flat.size, 1):
        xb, ob = flat[b], out[b]
        if approximate == "none":
            _normal_cdf(xb, ob)
        else:
            np.tanh(_TANH_A * (xb + _TANH_B * xb * xb * xb), out=ob)
            ob += 1
            ob *= 0.5
        ob *= xb
    return out.reshape(x.shape)


def gelu_backward(xp, g, x, approximate="none"):
    """g times the derivative of gelu at x."""
    flat, gflat = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(g).reshape(-1)
    out = np.empty_like(flat)
    for b in _row_blocks(flat.size, 1):
        xb, ob = flat[b], out[b]
        if approximate == "none":
            _normal_cdf(xb, ob)
            pdf = np.exp(xb * xb * -0.5)
            pdf *= xb
            pdf *= _INV_SQRT_2PI
            ob += pdf
        else:
            x2 = xb * xb
            t = np.tanh(_TANH_A * (xb + _TANH_B * x2 * xb))
            du = _TANH_A * (1 + 3 * _TANH_B * x2)
            np.multiply(0.5 * (1 + t), 1, out=ob)
            ob += 0.5 * xb * (1 - t * t) * du
        ob *= gflat[b]
    return out.reshape(x.shape)


def softmax(xp, x, axis):
    """exp(x - max) / sum along ``axis``."""
    flat, back = _rows(x, axis)
    out = np.empty_like(flat)
    if flat.size:
        for b in _row_blocks(*flat.shape):
            ob = out[b]
            np.subtract(flat[b], flat[b].max(axis=1, keepdims=True), out=ob)
            np.exp(ob, out=ob)
            ob /= ob.sum(axis=1, keepdims=True)
    return back(out)


def softmax_backward(xp, g, out, axis):
    """Gradient of softmax: out·(g − Σ g·out)."""
    gf, back = _rows(g, axis)
    of, _ = _rows(out, axis)
    grad = np.empty_like(of)
    for b in _row_blocks(*of.shape):
        dot = np.einsum("rc,rc->r", gf[b], of[b])
        np.subtract(gf[b], dot[:, None], out=grad[b])
        grad[b] *= of[b]
    return back(grad)


def log_softmax(xp, x, axis):
    """x − log Σ exp x along ``axis``, shifted by the maximum against overflow."""
    flat, back = _rows(x, axis)
    out = np.empty_like(flat)
    if flat.size:
        for b in _row_blocks(*flat.shape):
            ob = out[b]
            np.subtract(flat[b], flat[b].max(axis=1, keepdims=True), out=ob)
            ob -= np.log(np.exp(ob).sum(axis=1, keepdims=True))
    return back(out)


def log_softmax_backward(xp, g, out, axis):
    """Gradient of log_softmax: g − exp(out)·Σ g."""
    gf, back = _rows(g, axis)
    of, _ = _rows(out, axis)
    grad = np.empty_like(of)
    for b in _row_blocks(*of.shape):
        np.exp(of[b], out=grad[b])
        grad[b] *= gf[b].sum(axis=1, keepdims=True)
        np.subtract(gf[b], grad[b], out=grad[b])
    return back(grad)


def layer_norm(xp, x, weight, bias, eps):
    """Normalise each row. x: R×C, weight and bias: C or None -> (y R×C, mean R, rstd R)."""
    rows, width = x.shape
    out = np.empty_like(x)
    mean, rstd = np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    inverse = x.dtype.type(1 / (width or 1))
    for b in _row_blocks(rows, width):
        ob = out[b]
        mean[b] = x[b].sum(axis=1) * inverse
        np.subtract(x[b], mean[b][:, None], out=ob)
        variance = np.einsum("rc,rc->r", ob, ob) * inverse
        rstd[b] = 1 / np.sqrt(variance + x.dtype.type(eps))
        ob *= rstd[b][:, None]
        if weight is not None:
            ob *= weight
        if bias is not None:
            ob += bias
    return out, mean, rstd


def layer_norm_backward(xp, g, x, weight, mean, rstd):
    """(grad x R×C, grad weight C, grad bias C) of layer_norm."""
    rows, width = x.shape
    gx = np.empty_like(x)
    gw, gb = np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    inverse = x.dtype.type(1 / (width or 1))
    for b in _row_blocks(rows, width):
        xhat = x[b] - mean[b][:, None]
        xhat *= rstd[b][:, None]
        gw += np.einsum("rc,rc->c", g[b], xhat)
        gb += g[b].sum(axis=0)
        gh = g[b] if weight is None else g[b] * weight
        s1 = gh.sum(axis=1) * inverse
        s2 = np.einsum("rc,rc->r", gh, xhat) * inverse
        xhat *= s2[:, None]
        np.subtract(gh, xhat, out=gx[b])
        gx[b] -= s1[:, None]
        gx[b] *= rstd[b][:, None]
    return gx, gw, gb


def sum(xp, a, axis=None, keepdims=False, dtype=None):
    """``numpy.sum`` without its Python layers, which cost more than a small sum."""
    return np.add.reduce(a, axis, dtype, None, keepdims)


def max(xp, a, axis=None, keepdims=False):
    """``numpy.max`` without its Python layers."""
    return np.maximum.reduce(a, axis, None, None, keepdims)


def min(xp, a, axis=None, keepdims=False):
    """``numpy.min`` without its Python layers."""
    return np.minimum.reduce(a, axis, None, None, keepdims)


def broadcast_to(xp, a, shape):
    """``numpy.broadcast_to``: a read-only view; quick where ``a`` is contiguous."""
    if not a.flags.c_contiguous or a.size == 0:
        return np.broadcast_to(a, shape)
    lead = len(shape) - a.ndim
    strides = [0] * lead
    for i, (n, step) in enumerate(zip(a.shape, a.strides), lead):
        if n != shape[i]:
            if n != 1:
                raise ValueError(f"cannot broadcast {a.shape} to {tuple(shape)}")
            step = 0
        strides.append(step)
    if 0 in shape:
        return np.broadcast_to(a, shape)
    # the buffer argument wants no more elements than a has: strides of 0 keep within it
    out = np.ndarray(shape, a.dtype, a, 0, strides)
    out.flags.writeable = False
    return out


def add_rows(xp, out, index, rows):
    """``out[index[i]] += rows[i]``, equal indices summed in order of i (deterministic).

    out: V×C, index: N (int64, in range), rows: N×C. Sorting turns the scatter into one
    segmented sum, far cheaper than an element-wise ``add.at``.
    """
    if index.size == 0:
        return out
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
    out[ordered[first]] += np.add.reduceat(rows[order], first, axis=0)
    return out


def sum_rows_to(xp, g, shape):
    """Sum ``g`` down to ``shape``, the shape it was broadcast from."""
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, s in enumerate(shape) if s == 1 and g.shape[i + lead] != 1
    )
    if g.dtype.itemsize == 2:  # 16-bit sums saturate: add up in float32
        return g.astype(np.float32).sum(axis=axes, keepdims=True).reshape(shape).astype(g.dtype)
    if lead == g.ndim - 1 and len(axes) == lead and g.flags.c_contiguous and g.dtype.kind == "f":
        width = g.shape[-1]
        flat = g.reshape(-1, width)  # a bias gradient: BLAS adds rows faster than sum(axis=0)
        return np.ones(flat.shape[0], g.dtype) @ flat
    return g.sum(axis=axes, keepdims=True).reshape(shape)
