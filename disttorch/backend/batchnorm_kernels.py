"""Batch normalisation over N×C×L in cache-sized blocks of the batch.

Each function takes the namespace ``xp`` first and becomes a method of it.
Shape legend: N batch, C channels (the only dim that statistics keep), L all spatial elements.
"""

from __future__ import annotations

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
