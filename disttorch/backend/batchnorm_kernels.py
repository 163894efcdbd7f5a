"""Batch and group normalisation of N×C×L in cache-sized blocks of the batch.

Each function takes the namespace ``xp`` first and becomes a method of it.
Shape legend: N batch, C channels, S spatial dims, L all their elements, G groups of channels.
Statistics of batch normalisation are C, those of group normalisation N×G.
"""

from __future__ import annotations

import math

import numpy as np

_BLOCK = 1 << 16  # elements of a block: a block and a temporary fit in a second-level cache


def _blocks(shape):
    step = max(1, _BLOCK // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _channel_sums(xp, a):
    """Sums of N×C×L over N and L: C. BLAS adds up contiguous rows faster than a reduction."""
    n, c, length = a.shape
    if length == 1:
        return xp.ones(n, a.dtype) @ a.reshape(n, c)
    return (a.reshape(n * c, length) @ xp.ones(length, a.dtype)).reshape(n, c).sum(axis=0)


# ---- batch normalisation of N×C×S ----------------------------------------------------------------
def _by_channel(xp, a):
    return xp.ascontiguousarray(a).reshape(*a.shape[:2], math.prod(a.shape[2:]))


def batch_stats(xp, x, running_mean=None, running_var=None, momentum=0.0, seen=None):
    """(mean C, biased variance C) of N×C×S, in float32 for 16-bit types.

    ``running_mean`` and ``running_var``, where given, move towards them in place, the variance
    unbiased: new = (1 − momentum)·old + momentum·batch. ``seen``, a count of batches, goes up by one.
    """
    if seen is not None:
        seen += 1
    mean, var = channel_stats(xp, _by_channel(xp, x.astype(np.float32) if x.itemsize == 2 else x))
    if x.shape[0]:
        count = x.size // x.shape[1]
        for running, batch, factor in ((running_mean, mean, 1),
                                       (running_var, var, count / max(count - 1, 1))):
            if running is not None:
                running *= 1 - momentum
                running += momentum * (batch if factor == 1 else batch * factor)
    return mean, var


def normalize_channels(xp, x, weight, bias, mean, var, eps):
    """(x − mean)/√(var + eps)·weight + bias per channel of N×C×S; weight and bias may be None."""
    return batch_norm(xp, _by_channel(xp, x), weight, bias, mean, var, eps).reshape(x.shape)


def normalize_channels_backward(xp, g, x, weight, mean, var, eps, training, needs):
    """(gradient of x N×C×S, of weight C, of bias C); x's only if ``needs[0]``. In ``training`` the
    statistics are x's own."""
    gx, gw, gb = batch_norm_backward(xp, _by_channel(xp, g), _by_channel(xp, x), weight, mean, var,
                                     eps, training, needs)
    return None if gx is None else gx.reshape(x.shape), gw, gb


def channel_sum(xp, g):
    """Sums of N×C×S over N and S: C."""
    return xp.sum(g, axis=(0, *range(2, g.ndim)))


def channel_stats(xp, x):
    """(mean C, biased variance C) of N×C×L, blocks merged by Chan's formula (two-pass accuracy)."""
    mean, square, seen = xp.zeros(x.shape[1], x.dtype), xp.zeros(x.shape[1], x.dtype), 0
    for b in _blocks(x.shape):
        block = x[b]
        count = block.shape[0] * block.shape[2]
        here = _channel_sums(xp, block)
        here /= count
        centred = block - here[:, None]
        centred *= centred
        delta = here - mean
        seen += count
        mean += delta * (count / seen)
        square += _channel_sums(xp, centred)
        square += delta * delta * (count * (seen - count) / seen)
    return mean, square / max(seen, 1)


def batch_norm(xp, x, weight, bias, mean, var, eps):
    """(x − mean)/√(var + eps)·weight + bias per channel; weight and bias may be None."""
    scale = 1 / xp.sqrt(var + x.dtype.type(eps))
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift += bias
    scale, shift = scale[:, None], shift[:, None]
    out = xp.empty(x.shape, x.dtype)
    for b in _blocks(x.shape):
        xp.multiply(x[b], scale, out=out[b])
        out[b] += shift
    return out


def batch_norm_backward(xp, g, x, weight, mean, var, eps, training, needs):
    """(gradient of x N×C×L, of weight C, of bias C); x's only if ``needs[0]``."""
    rstd = 1 / xp.sqrt(var + x.dtype.type(eps))
    g_sum, dot = xp.zeros_like(mean), xp.zeros_like(mean)
    column = mean[:, None]
    for b in _blocks(x.shape):
        centred = x[b] - column
        centred *= g[b]
        dot += _channel_sums(xp, centred)
        g_sum += _channel_sums(xp, g[b])
    gw = dot * rstd
    if not needs[0]:
        return None, gw, g_sum
    scale = rstd if weight is None else rstd * weight
    if not training:
        return g * scale[:, None], gw, g_sum
    count = max(x.shape[0] * x.shape[2], 1)
    # g·a + (x − mean)·b + c, the mean of g and its part along x − mean taken out
    along, level = (-dot / count * rstd * rstd * scale)[:, None], (-g_sum / count * scale)[:, None]
    scale = scale[:, None]
    gx = xp.empty(x.shape, x.dtype)
    for b in _blocks(x.shape):
        out = gx[b]
        xp.subtract(x[b], column, out=out)
        out *= along
        out += level
        out += g[b] * scale
    return gx, gw, g_sum


def _row_sums(xp, a):
    """Sums of N×C×L over L: N×C."""
    n, c, length = a.shape
    return (a.reshape(n * c, length) @ xp.ones(length, a.dtype)).reshape(n, c)


def group_norm(xp, x, weight, bias, groups, eps):
    """(y N×C×L, mean N×G, 1/√(variance + eps) N×G); weight and bias are C or None."""
    n, c, length = x.shape
    count = max(c // groups * length, 1)
    mean, rstd = xp.empty((n, groups), x.dtype), xp.empty((n, groups), x.dtype)
    out = xp.empty(x.shape, x.dtype)
    for b in _blocks(x.shape):
        rows = x[b].reshape(-1, groups, c // groups, length)
        mean[b] = _row_sums(xp, x[b]).reshape(-1, groups, c // groups).sum(axis=2) / count
        centred = out[b].reshape(rows.shape)
        xp.subtract(rows, mean[b][:, :, None, None], out=centred)
        square = _row_sums(xp, out[b] * out[b]).reshape(-1, groups, c // groups).sum(axis=2)
        rstd[b] = 1 / xp.sqrt(square / count + x.dtype.type(eps))
        scale = xp.repeat(rstd[b], c // groups, axis=1)
        out[b] *= (scale if weight is None else scale * weight)[:, :, None]
        if bias is not None:
            out[b] += bias[:, None]
    return out, mean, rstd


def group_norm_backward(xp, g, x, weight, mean, rstd):
    """(gradient of x N×C×L, of weight C, of bias C)."""
    n, c, length = x.shape
    groups = mean.shape[1]
    each, gx = c // groups, xp.empty(x.shape, x.dtype)
    gw, gb, count = xp.zeros(c, x.dtype), xp.zeros(c, x.dtype), max(each * length, 1)
    weights = xp.ones(c, x.dtype) if weight is None else weight
    for b in _blocks(x.shape):
        centred = (x[b].reshape(-1, groups, each, length) - mean[b][:, :, None, None])
        centred = centred.reshape(x[b].shape)
        scale = xp.repeat(rstd[b], each, axis=1)
        total, dots = _row_sums(xp, g[b]), _row_sums(xp, g[b] * centred) * scale
        gb += total.sum(axis=0)
        gw += dots.sum(axis=0)
        # the mean of g·weight over the group and its part along the normalised input are taken out
        level = (total * weights).reshape(-1, groups, each).sum(axis=2) / count * rstd[b]
        along = (dots * weights).reshape(-1, groups, each).sum(axis=2) / count * rstd[b] * rstd[b]
        centred *= xp.repeat(along, each, axis=1)[:, :, None]
        centred += xp.repeat(level, each, axis=1)[:, :, None]
        xp.multiply(g[b], (scale * weights)[:, :, None], out=gx[b])
        gx[b] -= centred
    return gx, gw, gb
