"""The kernels of ``kernels.py`` as plain formulas over any namespace.

They are what a GPU runs until it has kernels of its own, and the oracle the CPU's blocked kernels
are tested against. Shape legend as there: R rows, C columns, V table rows, N indices.
"""

from __future__ import annotations

import math

_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_TANH_A, _TANH_B = math.sqrt(2 / math.pi), 0.044715


def gelu(xp, x, approximate="none"):
    """x·Φ(x), or its tanh form."""
    if approximate == "none":
        return x * 0.5 * (1 + xp.erf(x * math.sqrt(0.5)))
    return x * 0.5 * (1 + xp.tanh(_TANH_A * (x + _TANH_B * x * x * x)))


def gelu_backward(xp, g, x, approximate="none"):
    """g times the derivative of gelu at x."""
    if approximate == "none":
        cdf = 0.5 * (1 + xp.erf(x * math.sqrt(0.5)))
        return g * (cdf + x * xp.exp(x * x * -0.5) * _INV_SQRT_2PI)
    t = xp.tanh(_TANH_A * (x + _TANH_B * x * x * x))
    slope = _TANH_A * (1 + 3 * _TANH_B * x * x)
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


def softmax(xp, x, axis):
    """exp(x − max) / sum along ``axis``."""
    if x.size == 0:
        return xp.empty_like(x)
    if x.ndim == 0:
        return softmax(xp, x.reshape(1), 0).reshape(())
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softmax_backward(xp, g, out, axis):
    """out·(g − Σ g·out)."""
    if out.ndim == 0:
        return xp.zeros_like(out)
    return out * (g - (g * out).sum(axis=axis, keepdims=True))


def log_softmax(xp, x, axis):
    """x − max − log Σ exp(x − max) along ``axis``."""
    if x.size == 0:
        return xp.empty_like(x)
    if x.ndim == 0:
        return log_softmax(xp, x.reshape(1), 0).reshape(())
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


def log_softmax_backward(xp, g, out, axis):
    """g − exp(out)·Σ g."""
    if out.ndim == 0:
        return xp.zeros_like(out)
    return g - xp.exp(out) * g.sum(axis=axis, keepdims=True)


def layer_norm(xp, x, weight, bias, eps):
    """(y R×C, mean R, rstd R)."""
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    rstd = 1 / xp.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
    out = centred * rstd
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out, mean[:, 0], rstd[:, 0]


def layer_norm_backward(xp, g, x, weight, mean, rstd, affine=True):
    """(grad x R×C, grad weight C, grad bias C); the latter None unless ``affine``."""
    xhat = (x - mean[:, None]) * rstd[:, None]
    gh = g if weight is None else g * weight
    s1 = gh.mean(axis=1, keepdims=True)
    s2 = (gh * xhat).mean(axis=1, keepdims=True)
    gx = (gh - s1 - xhat * s2) * rstd[:, None]
    return (gx, (g * xhat).sum(axis=0), g.sum(axis=0)) if affine else (gx, None, None)


def add_rows(xp, out, index, rows):
    """``out[index[i]] += rows[i]``, in place; returns ``out``."""
    xp.add.at(out, index, rows)
    return out


def add_along_axis(xp, out, index, values, axis):
    """``out[i][index[i][j]] += values[i][j]`` (for axis 1), in place; returns ``out``."""
    places = list(xp.indices(index.shape, sparse=True))
    places[axis] = index
    xp.add.at(out, tuple(places), values)
    return out


def contiguous_copy(xp, a):
    """A C-ordered copy."""
    return xp.array(a, order="C", copy=True)


def reversed_cumsum(xp, a, axis):
    """Sums from each element to the end along ``axis``."""
    return xp.flip(xp.cumsum(xp.flip(a, axis), axis), axis)


def running(xp, ufunc, a, axis):
    """``ufunc`` (its name) of the elements up to each one along ``axis``.

    Hillis and Steele's scan: after the step of distance d every element holds the last 2d ones.
    """
    function, distance = getattr(xp, ufunc), 1
    lead = (slice(None),) * (axis % a.ndim)
    out = a.copy()
    while distance < a.shape[axis]:
        later, earlier = (*lead, slice(distance, None)), (*lead, slice(None, -distance))
        out[later] = function(out[later], out[earlier])
        distance *= 2
    return out


def top_k(xp, a, k, largest):
    """Positions (…×k) of the k largest (or smallest) along the last axis, ties in given order."""
    if not largest:
        return xp.argsort(a, axis=-1, kind="stable")[..., :k]
    last = a.shape[-1] - 1
    return (last - xp.argsort(a[..., ::-1], axis=-1, kind="stable"))[..., ::-1][..., :k]


def sum_rows_to(xp, g, shape):
    """Sum ``g`` down to ``shape``, the shape it was broadcast from."""
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, s in enumerate(shape) if s == 1 and g.shape[i + lead] != 1
    )
    return g.sum(axis=axes, keepdims=True).reshape(shape)
