"""Formulas over rows for any namespace: means, variances and norms over axes, RMSNorm, cross entropy,
rotary embedding. The CPU computes with them; they are the oracle of the GPU's kernels of these names.

Shape legend: R rows, C columns (or classes).
"""

from __future__ import annotations

import builtins
import math


# ---------------------------------------------------------------- reductions over axes
def mean_over(xp, a, axes, keepdims):
    """The mean over ``axes`` (a tuple) of an array that is not empty."""
    total = xp.sum(a, axis=axes, keepdims=keepdims)
    return total / total.dtype.type(math.prod(a.shape[d] for d in axes))


def variance(xp, a, axes, correction, keepdims, root=False):
    """Σ |a − mean|² / (n − correction) over ``axes`` (None: all), n elements each; or its root."""
    count = a.size if axes is None else math.prod(a.shape[d] for d in axes)
    mean = xp.sum(a, axis=axes, keepdims=True) / a.dtype.type(count or math.nan)
    centred = a - mean
    squares = centred.real**2 + centred.imag**2 if a.dtype.kind == "c" else centred * centred
    total = xp.sum(squares, axis=axes, keepdims=keepdims)
    out = total / squares.dtype.type(builtins.max(count - correction, 0))
    return xp.sqrt(out) if root else out


def euclidean_norm(xp, a, axes, keepdims):
    """√Σ|a|² over ``axes`` (a tuple)."""
    if len(axes) == a.ndim and not keepdims:
        flat = a.reshape(-1)
        return xp.sqrt(xp.vdot(flat, flat).real)
    squares = (a * a.conj()).real if a.dtype.kind == "c" else a * a
    return xp.sqrt(xp.sum(squares, axis=axes, keepdims=keepdims))


# ---------------------------------------------------------------- RMSNorm
def rms_norm(xp, x, weight, eps):
    """(x·weight/√(mean x² + eps) R×C, that factor without the weight R); weight is C or None."""
    rstd = 1 / xp.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(eps))
    out = x * rstd
    return out if weight is None else out * weight, rstd[:, 0]


def rms_norm_backward(xp, g, x, weight, rstd, affine=True):
    """(grad x R×C, grad weight C; None unless ``affine``)."""
    scale = rstd[:, None]
    xhat = x * scale
    gw = (g * xhat).sum(axis=0) if affine else None
    if weight is not None:
        g = g * weight
    return (g - xhat * (g * xhat).mean(axis=1, keepdims=True)) * scale, gw


# ---------------------------------------------------------------- norms over the last axes
# What backward needs beside x and weight, `aux`, is the namespace's own affair.
def layer_norm_over(xp, x, weight, bias, ndim, eps):
    """LayerNorm over the last ``ndim`` axes, whose shape weight and bias have: (y, aux)."""
    rows, flat = _rows(xp, ndim, x), [None if p is None else p.reshape(-1) for p in (weight, bias)]
    out, mean, rstd = xp.layer_norm(*rows, *flat, eps)
    return out.reshape(x.shape), (mean, rstd)


def layer_norm_over_backward(xp, g, x, weight, ndim, aux, affine=True):
    """(grad x, grad weight, grad bias); the latter None unless ``affine``."""
    flat, shape = None if weight is None else weight.reshape(-1), x.shape[-ndim:]
    gx, gw, gb = xp.layer_norm_backward(*_rows(xp, ndim, g, x), flat, *aux, affine)
    gx = gx.reshape(x.shape)
    return (gx, None, None) if gw is None else (gx, gw.reshape(shape), gb.reshape(shape))


def rms_norm_over(xp, x, weight, ndim, eps):
    """RMSNorm over the last ``ndim`` axes, whose shape weight has: (y, aux)."""
    rows = _rows(xp, ndim, x)
    out, rstd = xp.rms_norm(*rows, None if weight is None else weight.reshape(-1), eps)
    return out.reshape(x.shape), (rstd,)


def rms_norm_over_backward(xp, g, x, weight, ndim, aux, affine=True):
    """(grad x, grad weight; None unless ``affine``)."""
    flat = None if weight is None else weight.reshape(-1)
    gx, gw = xp.rms_norm_backward(*_rows(xp, ndim, g, x), flat, *aux, affine)
    return gx.reshape(x.shape), None if gw is None else gw.reshape(x.shape[-ndim:])


def _rows(xp, ndim, *arrays):
    """Arrays as matrices whose rows are the last ``ndim`` axes."""
    width = math.prod(arrays[0].shape[-ndim:])
    return [xp.ascontiguousarray(a).reshape(-1, width) for a in arrays]


# ---------------------------------------------------------------- cross entropy
def cross_entropy(xp, x, target, weight, ignore_index, reduction, smoothing, wide=False):
    """Loss of logits R×C at classes R, and what backward needs beside them.

    Args:
        weight: a weight w per class, C, or None.
        reduction: "mean" (over the sum of the targets' weights), "sum" or "none".
        smoothing: s of (1 − s)·w_t·(lse − x_t) + s/C·Σ_c w_c·(lse − x_c), the loss of a row.
        wide: of 16-bit logits the loss is float32. Only where kernels take 16-bit logits.

    Returns:
        (the loss, (log Σ exp R, weights of the rows' targets R, their sum)). An ignored row has
        weight 0. What the tuple holds is the namespace's own affair.
    """
    rows, classes = x.shape
    counted = target != ignore_index
    safe = xp.where(counted, target, 0)
    top = x.max(axis=1) if x.size else xp.zeros(rows, x.dtype)
    lse = xp.log(xp.exp(x - top[:, None]).sum(axis=1)) + top
    shares = xp.ones(rows, x.dtype) if weight is None else weight[safe]
    shares = xp.where(counted, shares, x.dtype.type(0))
    loss = (lse - x[xp.arange(rows), safe]) * shares
    if smoothing:
        even = lse[:, None] - x
        even = even.sum(axis=1) if weight is None else even @ weight
        loss = (1 - smoothing) * loss + xp.where(counted, even, x.dtype.type(0)) * (smoothing / classes)
    total = shares.sum()
    if reduction != "none":
        loss = loss.sum() if reduction == "sum" else loss.sum() / total
    return loss, (lse, shares, total)


def cross_entropy_backward(xp, g, x, target, weight, aux, ignore_index, reduction, smoothing):
    """Gradient of the logits R×C; g is that of the loss: a scalar, or R for reduction "none"."""
    (lse, shares, total), rows = aux, xp.arange(x.shape[0])
    g = g / total if reduction == "mean" else g
    counted = target != ignore_index
    shares = (shares * (1 - smoothing) * g)[:, None]
    grad = xp.exp(x - lse[:, None])
    if smoothing:
        each = xp.ones(x.shape[1], x.dtype) if weight is None else weight
        even = xp.where(counted, g * (smoothing / x.shape[1]), 0)[:, None]
        grad = grad * (shares + even * each.sum()) - even * each
    else:
        grad = grad * shares
    grad[rows, xp.where(counted, target, 0)] -= shares[:, 0]
    return grad.astype(x.dtype, copy=False)


# ---------------------------------------------------------------- rotary embedding
def rotary(xp, x, cos, sin, inner, interleaved, inverse):
    """Pairs of elements of the last axis turned by the angle of their row's position.

    Args:
        x: …×L×inner×D, the dims between the positions L and D taken as one, D even.
        cos, sin: L×D/2, of the angle of each pair.
        interleaved: pairs are neighbours (2i, 2i + 1); else (i, i + D/2).
        inverse: turn back; the gradient of turning.
    """
    positions, half = cos.shape
    pairs = x.reshape(-1, positions, inner, *((half, 2) if interleaved else (2, half)))
    axis = -1 if interleaved else -2
    a, b = (xp.take(pairs, i, axis=axis) for i in (0, 1))
    cos, sin = cos[:, None, :], -sin[:, None, :] if inverse else sin[:, None, :]
    return xp.stack((a * cos - b * sin, a * sin + b * cos), axis=axis).reshape(x.shape).astype(x.dtype)
