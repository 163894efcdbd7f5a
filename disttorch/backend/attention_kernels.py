"""Attention as a plain formula over any namespace, with the scores in memory.

It is the oracle of the GPU's kernels (``gpu/attention.py``) and what runs where they do not fit.
Shape legend: … leading dims, H heads of queries, G of them for one head of keys, L queries, S keys, E
width of queries and keys, V of values. 16-bit floats are computed in float32 and rounded at the end.
"""

from __future__ import annotations

import math

import numpy as np

_WIDE = np.dtype(np.float32)

# Which ways may be taken, by PyTorch's names; ``torch.backends.cuda.enable_flash_sdp`` and its like set
# them. "flash" and "mem_efficient" are both the kernels of ``gpu/attention_own.py``, which come before
# cuDNN's where "own first" is set.
ALLOWED = {"flash": True, "mem_efficient": True, "math": True, "cudnn": True, "own first": False}


def attention_fits(xp, query, key, value, mask, dropout_p, scale, is_causal=False) -> bool:
    """Whether the namespace has kernels for this attention that keep no scores in memory."""
    return False


def attention_room(xp) -> int:
    """Scores (elements, all heads together) that may lie in memory at once because it is large; 0 for
    no opinion."""
    return 0


def softmax_or_zero(xp, scores):
    """Softmax over the last axis; a row of nothing but −∞ gets zeros."""
    weights = xp.softmax(scores, scores.ndim - 1)
    if scores.size:
        blind = xp.isneginf(scores.max(axis=-1, keepdims=True))
        if blind.any():
            weights = xp.where(blind, weights.dtype.type(0), weights)
    return weights


def attention_forward(xp, query, key, value, mask, is_causal, scale, dropout_p, random):
    """softmax(query·keyᵀ·scale + mask)·value.

    Args:
        query: …×H×L×E; key: …×H/G×S×E; value: …×H/G×S×V.
        mask: None, or broadcasts to …×H×L×S; boolean (True takes part) or added.
        is_causal: query i sees keys 0..i.
        random: seed and offset of the dropout, as ``attention_factors`` takes them.

    Returns:
        (out …×H×L×V; logs …×H×L: the logarithm of each row's sum, ∞ for one that sees nothing).
    """
    dtype = query.dtype
    query, key, value = (_wide(a) for a in (query, key, value))
    scores = _scores(xp, query, _spread(xp, key, query), mask, is_causal, scale)
    top = scores.max(axis=-1, keepdims=True) if scores.size else xp.full((*scores.shape[:-1], 1),
                                                                         -math.inf, scores.dtype)
    blind = xp.isneginf(top)
    weights = xp.exp(scores - xp.where(blind, top.dtype.type(0), top))
    total = weights.sum(axis=-1, keepdims=True)
    total = xp.where(blind, total.dtype.type(1), total)
    logs = xp.where(blind, top.dtype.type(math.inf), top + xp.log(total))[..., 0]
    weights /= total
    if dropout_p:
        weights *= attention_factors(xp, weights.shape, weights.dtype, dropout_p, random)
    out = xp.matmul(weights, _spread(xp, value, query))
    return out.astype(dtype, copy=False), logs


def attention_backward(xp, g, query, key, value, mask, out, logs, is_causal, scale, dropout_p, random):
    """The gradients of query, key and value of ``attention_forward``; ``g``: that of ``out``."""
    dtype, heads = query.dtype, key.shape
    g, query, key, value, out = (_wide(a) for a in (g, query, key, value, out))
    keys, values = (_spread(xp, a, query) for a in (key, value))
    weights = xp.exp(_scores(xp, query, keys, mask, is_causal, scale) - logs[..., None])
    slopes, dropped = xp.matmul(g, values.swapaxes(-1, -2)), weights
    if dropout_p:
        factors = attention_factors(xp, weights.shape, weights.dtype, dropout_p, random)
        slopes, dropped = slopes * factors, weights * factors
    grad_value = xp.matmul(dropped.swapaxes(-1, -2), g)
    slopes = weights * (slopes - (g * out).sum(axis=-1, keepdims=True)) * weights.dtype.type(scale)
    grads = (xp.matmul(slopes, keys), xp.matmul(slopes.swapaxes(-1, -2), query), grad_value)
    grads = (grads[0], *(_gather(a, heads) for a in grads[1:]))
    return tuple(a.astype(dtype, copy=False) for a in grads)


def attention_factors(xp, shape, dtype, dropout_p, random):
    """Factors of the weights, 0 or 1/(1 − p): what the kernels make of the same numbers.

    Each is decided by 32 bits that are mixed from a seed, an offset, the number of the head (leading
    dims in C order), the query and the key.

    Args:
        shape: …×L×S.
        random: (seed, offset, None or a device array of two uint64: a seed, and an offset to be added).
    """
    seed, offset, state = random
    if state is not None:
        seed, offset = state[0], state[1] + offset
    key = np.uint32(0)
    for number in (seed, offset):
        for shift in (0, 32):
            part = (number >> np.uint64(shift)) & np.uint64(0xFFFFFFFF)
            key = _mixed(xp, key ^ xp.asarray(part).astype(np.uint32))
    heads = xp.arange(math.prod(shape[:-2]), dtype=np.uint32)[:, None, None]
    queries = xp.arange(shape[-2], dtype=np.uint32)[:, None]
    keys = xp.arange(shape[-1], dtype=np.uint32) * np.uint32(0x9E3779B9)
    bits = _mixed(xp, _mixed(xp, _mixed(xp, heads ^ key) ^ queries) ^ keys)
    stays = bits.astype(np.uint64) < np.uint64((1 - dropout_p) * 2.0**32)
    factor = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
    return stays.reshape(shape).astype(dtype) * dtype.type(factor)


def _mixed(xp, x):
    """32 bits of which each depends on all those of x; as ``mixed`` in ``csrc/attention.cuh``."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _wide(a):
    return a.astype(_WIDE) if a.dtype.itemsize == 2 else a


def _spread(xp, a, query):
    """Heads of keys repeated for the groups of queries' heads: …×H/G×S×E to …×H×S×E."""
    if a.ndim < 3 or a.shape[-3] == query.shape[-3]:
        return a
    group = query.shape[-3] // a.shape[-3]
    return xp.repeat(a, group, axis=a.ndim - 3)


def _gather(a, shape):
    """Sums over the groups of heads: …×H×S×E to …×H/G×S×E, the leading dims those of ``shape``."""
    if a.ndim < 3 or a.shape[-3] == shape[-3]:
        return a
    return a.reshape(*shape[:-2], a.shape[-3] // shape[-3], *a.shape[-2:]).sum(axis=-3)


def _scores(xp, query, key, mask, is_causal, scale):
    scores = xp.matmul(query * query.dtype.type(scale), key.swapaxes(-1, -2))
    if is_causal:
        late = xp.arange(scores.shape[-2])[:, None] < xp.arange(scores.shape[-1])[None, :]
        scores = xp.where(late, scores.dtype.type(-math.inf), scores)
    if mask is None:
        return scores
    if mask.dtype.kind == "b":
        return xp.where(mask, scores, scores.dtype.type(-math.inf))
    return scores + _wide(mask)
