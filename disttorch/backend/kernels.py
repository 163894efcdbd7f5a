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

_sum, _max = np.add.reduce, np.maximum.reduce  # without the Python layers of np.sum and np.max
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
          0.0036319876950221155, 0.050343992349064205, 0.19817522720458225, 1.1283791124624587)
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


def _is_small(x):
    """One pass fits the cache as it lies: blocks would only cost their Python."""
    return 0 < x.size <= _BLOCK and x.ndim > 0


def softmax(xp, x, axis):
    """exp(x - max) / sum along ``axis``."""
    if _is_small(x):
        e = np.exp(x - _max(x, axis, None, None, True))
        e /= _sum(e, axis, None, None, True)
        return e
    flat, back = _rows(x, axis)
    out = np.empty_like(flat)
    if flat.size:
        for b in _row_blocks(*flat.shape):
            ob = out[b]
            np.subtract(flat[b], _max(flat[b], 1, None, None, True), out=ob)
            np.exp(ob, out=ob)
            ob /= _sum(ob, 1, None, None, True)
    return back(out)


def softmax_backward(xp, g, out, axis):
    """Gradient of softmax: out·(g − Σ g·out)."""
    if _is_small(out):
        grad = g * out
        return (g - _sum(grad, axis, None, None, True)) * out
    gf, back = _rows(g, axis)
    of, _ = _rows(out, axis)
    grad = np.empty_like(of)
    for b in _row_blocks(*of.shape):
        dot = np.vecdot(gf[b], of[b])
        np.subtract(gf[b], dot[:, None], out=grad[b])
        grad[b] *= of[b]
    return back(grad)


def log_softmax(xp, x, axis):
    """x − log Σ exp x along ``axis``, shifted by the maximum against overflow."""
    if _is_small(x):
        out = x - _max(x, axis, None, None, True)
        out -= np.log(_sum(np.exp(out), axis, None, None, True))
        return out
    flat, back = _rows(x, axis)
    out = np.empty_like(flat)
    if flat.size:
        for b in _row_blocks(*flat.shape):
            ob = out[b]
            np.subtract(flat[b], _max(flat[b], 1, None, None, True), out=ob)
            ob -= np.log(_sum(np.exp(ob), 1, None, None, True))
    return back(out)


def log_softmax_backward(xp, g, out, axis):
    """Gradient of log_softmax: g − exp(out)·Σ g."""
    if _is_small(out):
        return g - np.exp(out) * _sum(g, axis, None, None, True)
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
    if _is_small(x):
        return _layer_norm_block(x, weight, bias, eps)
    out = np.empty_like(x)
    mean, rstd = np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    inverse, eps = x.dtype.type(1 / (width or 1)), x.dtype.type(eps)
    for b in _row_blocks(rows, width):
        ob = out[b]
        centre = _sum(x[b], 1, None, mean[b])
        centre *= inverse
        np.subtract(x[b], centre[:, None], out=ob)
        spread = np.vecdot(ob, ob)
        spread *= inverse
        spread += eps
        scale = np.divide(1, np.sqrt(spread, out=spread), out=rstd[b])
        ob *= scale[:, None]
        if weight is not None:
            ob *= weight
        if bias is not None:
            ob += bias
    return out, mean, rstd


def _layer_norm_block(x, weight, bias, eps):
    inverse = x.dtype.type(1 / x.shape[1])
    mean = _sum(x, 1, None, None, True)
    mean *= inverse
    out = x - mean
    rstd = _sum(out * out, 1, None, None, True)
    rstd *= inverse
    rstd += x.dtype.type(eps)
    rstd = 1 / np.sqrt(rstd, out=rstd)
    out *= rstd
    if weight is not None:
        out *= weight
    if bias is not None:
        out += bias
    return out, mean[:, 0], rstd[:, 0]


def layer_norm_backward(xp, g, x, weight, mean, rstd, affine=True):
    """(grad x R×C, grad weight C, grad bias C) of layer_norm; the latter None unless ``affine``."""
    rows, width = x.shape
    if _is_small(x):
        return _layer_norm_backward_block(g, x, weight, mean[:, None], rstd[:, None], affine)
    gx = np.empty_like(x)
    gw, gb = (np.zeros(width, x.dtype), np.zeros(width, x.dtype)) if affine else (None, None)
    share = np.full(width, 1 / (width or 1), x.dtype)
    if weight is not None:
        share *= weight
    for b in _row_blocks(rows, width):
        gr, out, scale = g[b], gx[b], rstd[b][:, None]
        xhat = x[b] - mean[b][:, None]
        xhat *= scale
        np.multiply(gr, xhat, out=out)
        if affine:
            gw += _sum(out, 0)
            gb += _sum(gr, 0)
        xhat *= np.vecdot(out, share)[:, None]
        xhat += np.vecdot(gr, share)[:, None]
        if weight is None:
            np.subtract(gr, xhat, out=out)
        else:
            np.multiply(gr, weight, out=out)
            out -= xhat
        out *= scale
    return gx, gw, gb


def _layer_norm_backward_block(g, x, weight, mean, rstd, affine):
    inverse = x.dtype.type(1 / x.shape[1])
    xhat = x - mean
    xhat *= rstd
    product = g * xhat
    gw, gb = (_sum(product, 0), _sum(g, 0)) if affine else (None, None)
    if weight is not None:
        g = g * weight
        product *= weight
    s2 = _sum(product, 1, None, None, True)
    s2 *= inverse
    xhat *= s2
    s1 = _sum(g, 1, None, None, True)
    s1 *= inverse
    xhat += s1
    gx = g - xhat
    gx *= rstd
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
    lead = len(shape) - a.ndim
    if not a.flags.c_contiguous or a.size == 0 or lead < 0:
        return np.broadcast_to(a, shape)
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


_WIDE = 64  # elements of a row from which one call per row beats sorting


def dropout(xp, x, p, generator):
    """``(x / (1 − p) where kept, else 0; the mask of what was kept)``, each kept with 1 − p > 0."""
    keep = generator.bernoulli_mask(1 - p, x.shape)
    return np.where(keep, x * x.dtype.type(1 / (1 - p)), x.dtype.type(0)), keep


def dropout_backward(xp, g, keep, scale):
    """``g`` times ``scale`` where kept, else 0."""
    return np.where(keep, g * g.dtype.type(scale), g.dtype.type(0))


def index_outside(xp, index, low, high):
    """An index below ``low`` or from ``high`` on; None if there is none."""
    if index.size:
        least, most = int(index.min()), int(index.max())
        if most >= high:
            return most
        if least < low:
            return least
    return None


def check_places(xp, shape, index) -> None:
    """Nothing: NumPy's indexing itself raises an IndexError for a place out of range."""


def add_rows(xp, out, index, rows):
    """``out[index[i]] += rows[i]``, equal indices summed in order of i (deterministic).

    out: V×C, index: N (int64, in range), rows: N×C. Wide rows are added one by one; for narrow
    ones sorting turns the scatter into one segmented sum, far cheaper than ``add.at``.
    """
    if index.size == 0:
        return out
    if out.shape[1] >= _WIDE:
        targets, add = {}, np.add
        for i, row in zip(index.tolist(), rows):
            target = targets.get(i)
            if target is None:
                target = targets[i] = out[i]
            add(target, row, target)
        return out
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
    out[ordered[first]] += np.add.reduceat(rows[order], first, axis=0)
    return out


def _flat_places(shape, index, axis):
    """Where ``index`` along ``axis`` points in the flat, contiguous array of ``shape``."""
    step = math.prod(shape[axis + 1 :])
    index = index.astype(np.int64, copy=False)
    places = index * step if step != 1 else index
    stride = 1
    for d in range(len(shape) - 1, -1, -1):
        if d != axis and index.shape[d] > 1:
            offset = np.arange(0, index.shape[d] * stride, stride)
            places = places + offset.reshape((-1,) + (1,) * (index.ndim - 1 - d))
        stride *= shape[d]
    return places


def take_along_axis(xp, a, index, axis):
    """``numpy.take_along_axis`` for index ≥ 0: ``out[i][j] = a[i][index[i][j]]`` (for axis 1).

    One ``take`` from the flat array: NumPy's own goes through an index array for every dim.
    """
    axis %= a.ndim
    if index.size == 0 or a.shape[:axis] != index.shape[:axis] or (
        a.shape[axis + 1 :] != index.shape[axis + 1 :]
    ):
        return np.take_along_axis(a, index, axis)
    places = _flat_places(a.shape, index, axis)
    return np.take(np.ascontiguousarray(a).reshape(-1), places)


def add_along_axis(xp, out, index, values, axis):
    """``out[i][index[i][j]] += values[i][j]`` (for axis 1), in place, in order of j.

    out: contiguous; index and values: one shape, no larger than ``out`` but along ``axis``.
    """
    if index.size:
        places = _flat_places(out.shape, index, axis).reshape(-1)
        np.add.at(out.reshape(-1), places, np.ascontiguousarray(values).reshape(-1))
    return out


_STRIPE = 64  # bytes: a cache line


def contiguous_copy(xp, a):
    """A C-ordered copy. A transposed array is copied in stripes one cache line wide: what is read
    of one line of the source is then still in cache when the next row of the stripe wants it."""
    width = _STRIPE // (a.itemsize or 1)
    if a.ndim < 2 or a.size < _BLOCK or builtins.abs(a.strides[-1]) <= a.itemsize or width < 2:
        return np.array(a, order="C", copy=True)
    out = np.empty(a.shape, a.dtype)
    for i in range(0, a.shape[-1], width):
        out[..., i : i + width] = a[..., i : i + width]
    return out


def reversed_cumsum(xp, a, axis):
    """Sums from each element to the end along ``axis``."""
    out = np.empty(a.shape, a.dtype)
    back = tuple(slice(None, None, -1) if d == axis else slice(None) for d in range(a.ndim))
    np.add.accumulate(a[back], axis, out=out[back])
    return out


def scatter_at(xp, ufunc, out, places, values):
    """``ufunc`` (its name) of ``values`` into ``places`` of ``out``, in place; places may repeat."""
    getattr(np, ufunc).at(out, places, values)


def running(xp, ufunc, a, axis):
    """``ufunc`` (its name) of the elements up to each one along ``axis``."""
    return getattr(np, ufunc).accumulate(a, axis=axis)


def top_k(xp, a, k, largest):
    """Positions (…×k) of the k largest (or smallest) along the last axis of ``a``, best first.

    A partition finds them and only they are sorted. NaN counts as the largest.
    """
    n = a.shape[-1]
    if 4 * k >= n:
        chosen = np.broadcast_to(np.arange(n), a.shape)
    elif largest:
        chosen = np.argpartition(a, n - k, axis=-1)[..., n - k :]
    else:
        chosen = np.argpartition(a, k - 1 if k else 0, axis=-1)[..., :k]
    chosen = np.sort(chosen, axis=-1)  # so that ties come in their given order
    values = take_along_axis(xp, a, chosen, a.ndim - 1)
    if largest:
        order = chosen.shape[-1] - 1 - np.argsort(values[..., ::-1], axis=-1, kind="stable")
        order = order[..., ::-1]
    else:
        order = np.argsort(values, axis=-1, kind="stable")
    return take_along_axis(xp, chosen, order[..., :k], a.ndim - 1)


def sum_rows_to(xp, g, shape):
    """Sum ``g`` down to ``shape``, the shape it was broadcast from."""
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, s in enumerate(shape) if s == 1 and g.shape[i + lead] != 1
    )
    if g.dtype.itemsize == 2:  # 16-bit sums saturate: add up in float32
        return g.astype(np.float32).sum(axis=axes, keepdims=True).reshape(shape).astype(g.dtype)
    if lead == g.ndim - 1 and len(axes) == lead and g.size and g.flags.c_contiguous and (
        g.dtype.kind == "f"
    ):
        width = g.shape[-1]
        flat = g.reshape(-1, width)  # a bias gradient: BLAS adds rows faster than sum(axis=0)
        return np.ones(flat.shape[0], g.dtype) @ flat
    return g.sum(axis=axes, keepdims=True).reshape(shape)
