"""The ops of attention: one for kernels of its own, one that keeps its weights, one that computes them
anew. ``attention.py`` chooses.

The last one walks over blocks of query rows in both directions and keeps one number a row, the logarithm
of the softmax's denominator, from which backward computes the weights again (Rabe & Staats,
arXiv:2112.05682; Dao et al., arXiv:2205.14135).

Shape legend: … leading dims (batch, heads), L queries, S keys, E width of queries and keys, V width
of values. A mask is boolean (True takes part) or is added to the scores.
"""

from __future__ import annotations

import itertools
import math

from ..backend import dtypes, namespace_of
from ..tensor import wrap
from .core import REGISTRY, op
from .nn import softmax
from .samples import case

_INF = math.inf


# ---------------------------------------------------------------- kernels of the namespace
@op(tensors=("query", "key", "value", "mask"), optional=("mask",), method=False, aux=True, fused=True,
    name="attention_fused", node_name="ScaledDotProductAttention", samples=lambda m: [
        case(m(2, 2, 5, 3), m(2, 2, 5, 3), m(2, 2, 5, 3), None, True, 0.6, 0.0, None),
        case(m(2, 4, 5, 3), m(2, 2, 7, 3), m(2, 2, 7, 4), None, False, 0.5, 0.0, None),
        case(m(5, 3), m(7, 3), m(7, 4), None, True, 0.5, 0.0, None),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m.bool(2, 1, 7), False, 0.5, 0.0, None),
    ])
def fused(xp, query, key, value, mask, is_causal, scale, dropout_p, random):
    """Attention by ``xp.attention_forward``, which stores no weights; a mask gets no gradient.

    aux holds the logarithm of each row's denominator, …×L.
    """
    out, logs = xp.attention_forward(query, key, value, mask, is_causal, scale, dropout_p, random)
    return out, (logs,)


@fused.fast_grad("query", "key", "value")
def _(F, g, needs, query, key, value, mask, out, aux, is_causal, scale, dropout_p, random):
    return F.xp.attention_backward(g, query, key, value, mask, out, aux[0], is_causal, scale, dropout_p,
                                   random)


@fused.compose
def _(query, key, value, mask, is_causal, scale, dropout_p, random):
    def drop(weights):
        a = weights._data
        xp = namespace_of(a)
        return weights * wrap(xp.attention_factors(a.shape, a.dtype, dropout_p, random))

    q, k = query._data.shape, key._data.shape
    if len(q) > 2 and q[-3] != k[-3]:
        key, value = (repeated(t, q[-3] // k[-3]) for t in (key, value))
    return composed(query, key, value, mask, is_causal, scale, drop if dropout_p else None)


def repeated(t, group):
    """Each head for a group of queries' heads, …×H×S×E to …×H·group×S×E, as a copy."""
    *lead, heads, rows, width = t._data.shape
    reshape, expand, unsqueeze = (REGISTRY[n].call for n in ("reshape", "expand", "unsqueeze"))
    t = expand(unsqueeze(t, -3), (*lead, heads, group, rows, width))
    return reshape(t, (*lead, heads * group, rows, width))


# ---------------------------------------------------------------- weights kept
@op(tensors=("query", "key", "value", "mask"), optional=("mask",), method=False, aux=True,
    name="attention_kept", node_name="ScaledDotProductAttention", samples=lambda m: [
        case(m(2, 2, 5, 3), m(2, 2, 5, 3), m(2, 2, 5, 3), None, True, 0.6),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), None, False, 0.5),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m(5, 7), False, 0.5),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m(2, 5, 7), False, 0.5),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m.bool(2, 1, 7), False, 0.5),
    ])
def kept(xp, query, key, value, mask, is_causal, scale):
    """softmax(query·keyᵀ·scale + mask)·value, without dropout; aux holds the weights."""
    scores = xp.matmul(query * query.dtype.type(scale), key.swapaxes(-1, -2))
    if is_causal:
        scores += _causal_bias(xp, scores.shape[-2], scores.shape[-1], scores.dtype)
    weights = _masked_softmax(xp, scores, mask)
    return xp.matmul(weights, value), (weights,)


def _masked_softmax(xp, scores, mask):
    """Softmax over the last axis; a row that may look at nothing gets weights 0."""
    if mask is None:
        return xp.softmax(scores, scores.ndim - 1)
    return xp.softmax_or_zero(_with_mask(xp, scores, mask))


def _with_mask(xp, scores, mask):
    if mask.dtype.kind == "b":
        return xp.where(mask, scores, scores.dtype.type(-_INF))
    return scores + mask


_causal_cache: dict = {}


def _causal_bias(xp, rows, columns, dtype):
    """0 on and below the diagonal, −inf above, kept between calls."""
    key = (xp.name, getattr(xp, "index", 0), rows, columns, dtype)
    bias = _causal_cache.get(key)
    if bias is None:
        if len(_causal_cache) > 8:
            _causal_cache.clear()
        above = xp.arange(rows)[:, None] < xp.arange(columns)[None, :]
        bias = _causal_cache[key] = xp.where(above, -_INF, 0.0).astype(dtype)
    return bias


@kept.fast_grad("query", "key", "value", "mask")
def _(F, g, needs, query, key, value, mask, aux, scale):
    xp, weights = F.xp, aux[0]
    grad_value = xp.matmul(weights.swapaxes(-1, -2), g)
    grad_weights = xp.matmul(g, value.swapaxes(-1, -2))
    grad_scores = xp.softmax_backward(grad_weights, weights, weights.ndim - 1)
    grad_mask = F.sum_to(grad_scores, mask.shape) if needs[3] else None  # may be the same array
    grad_scores = grad_scores * grad_scores.dtype.type(scale)
    grad_key = xp.matmul(grad_scores.swapaxes(-1, -2), query)
    return xp.matmul(grad_scores, key), grad_key, grad_value, grad_mask


@kept.compose
def _(query, key, value, mask, is_causal, scale):
    return composed(query, key, value, mask, is_causal, scale)


def composed(query, key, value, mask, is_causal, scale, drop=None):
    """Attention written with other ops; ``drop`` turns the weights into those after dropout."""
    scores = REGISTRY["matmul"].call(query * scale, REGISTRY["transpose"].call(key, -1, -2))
    if is_causal:
        a = scores._data
        scores = scores + wrap(_causal_bias(namespace_of(a), a.shape[-2], a.shape[-1], a.dtype))
    elif mask is not None:
        if mask.dtype is dtypes.bool:
            scores = REGISTRY["where"].call(mask, scores, -_INF)
        else:
            scores = scores + mask
    weights = softmax(scores, -1)
    if mask is not None and scores._data.size:
        blind = wrap(namespace_of(scores._data).isneginf(scores._data.max(-1, keepdims=True)))
        weights = REGISTRY["where"].call(blind, 0.0, weights)
    return REGISTRY["matmul"].call(weights if drop is None else drop(weights), value)


# ---------------------------------------------------------------- weights computed anew
def _blocks(shape, rows):
    """(index of leading dims, slice of query rows, number of the block) of scores …×L×S: ``rows`` query
    rows at once, or as many whole heads as have no more rows."""
    *lead, length, _ = shape
    if rows < length or not lead:
        starts = range(0, length, rows)
        places = itertools.product(*map(range, lead))
        for number, (place, start) in enumerate(itertools.product(places, starts)):
            yield place, slice(start, min(start + rows, length)), number
        return
    left, axis = max(rows // max(length, 1), 1), len(lead)
    while axis and lead[axis - 1] <= left:  # dims that are taken whole
        axis -= 1
        left //= max(lead[axis], 1)
    parts = [range(n) for n in lead[:axis]]
    if axis and left > 1:
        parts[-1] = [slice(i, i + left) for i in range(0, lead[axis - 1], left)]
    for number, place in enumerate(itertools.product(*parts)):
        yield place, slice(0, length), number


def _mask_part(mask, place, rows, columns):
    """The part of a mask (as many dims as the scores, some of them 1) at a block; a view."""
    sizes = mask.shape
    place = tuple(i if n > 1 else slice(None) if isinstance(i, slice) else 0
                  for i, n in zip(place, sizes))
    rows = slice(None) if sizes[-2] == 1 else rows
    return mask[place][..., rows, slice(None) if sizes[-1] == 1 else slice(columns)]


def _kept_after_dropout(xp, seed, number, dropout_p, shape, dtype):
    """Factors of the weights of one block, 0 or 1/(1 − p): the same whenever they are asked for."""
    if dropout_p >= 1:
        return xp.zeros(shape, dtype)
    keep = xp.make_generator(seed + number).bernoulli_mask(1 - dropout_p, shape)
    return keep.astype(dtype) * dtype.type(1 / (1 - dropout_p))


def _block_scores(xp, query, key, mask, place, rows, is_causal):
    """Scores of the query rows of one block (…×R×C): a causal block needs no later keys."""
    columns = min(key.shape[-2], rows.stop) if is_causal else key.shape[-2]
    scores = xp.matmul(query[place][..., rows, :], key[place][..., :columns, :].swapaxes(-1, -2))
    if is_causal:
        late = xp.arange(rows.start, rows.stop)[:, None] < xp.arange(columns)[None, :]
        scores = xp.where(late, scores.dtype.type(-_INF), scores)
    if mask is not None:
        scores = _with_mask(xp, scores, _mask_part(mask, place, rows, columns))
    return scores


def _full_mask(mask, ndim):
    return None if mask is None else mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)


@op(tensors=("query", "key", "value", "mask"), optional=("mask",), method=False, aux=True,
    name="attention_anew", node_name="ScaledDotProductAttention", samples=lambda m: [
        case(m(2, 2, 5, 3), m(2, 2, 5, 3), m(2, 2, 5, 3), None, True, 0.6, 2, 0.0, 0),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m(5, 7), False, 0.5, 3, 0.4, 11),
        case(m(2, 5, 3), m(2, 4, 3), m(2, 4, 2), None, True, 0.5, 3, 0.0, 0),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m.bool(2, 1, 7), False, 0.5, 5, 0.0, 0),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m(2, 5, 1), False, 0.5, 4, 0.0, 0),
    ])
def anew(xp, query, key, value, mask, is_causal, scale, rows, dropout_p, seed):
    """As ``attention_kept``, in blocks of ``rows`` query rows of all heads, with dropout.

    aux holds the logarithm of each row's denominator, …×L. ``seed`` makes the dropout.
    """
    lead = query.shape[:-2]
    out = xp.empty((*query.shape[:-1], value.shape[-1]), value.dtype)
    logs = xp.empty(query.shape[:-1], query.dtype)
    mask, query = _full_mask(mask, query.ndim), query * query.dtype.type(scale)
    for place, r, number in _blocks((*lead, query.shape[-2], key.shape[-2]), rows):
        weights = _block_scores(xp, query, key, mask, place, r, is_causal)
        top = weights.max(axis=-1, keepdims=True)
        blind = xp.isneginf(top)
        weights -= xp.where(blind, top.dtype.type(0), top)
        xp.exp(weights, out=weights)
        total = weights.sum(axis=-1, keepdims=True)
        logs[place][..., r] = xp.where(blind, top.dtype.type(_INF), top + xp.log(total))[..., 0]
        if dropout_p:
            weights *= _kept_after_dropout(xp, seed, number, dropout_p, weights.shape,
                                           weights.dtype)
        part = xp.matmul(weights, value[place][..., : weights.shape[-1], :])
        out[place][..., r, :] = part / xp.where(blind, total.dtype.type(1), total)
    return out, (logs,)


@anew.fast_grad("query", "key", "value", "mask")
def _(F, g, needs, query, key, value, mask, out, aux, is_causal, scale, rows, dropout_p, seed):
    xp, logs = F.xp, aux[0]
    grads = [xp.empty_like(query), xp.zeros_like(key), xp.zeros_like(value)]
    grad_mask = xp.zeros_like(mask) if needs[3] else None
    masks = [_full_mask(m, query.ndim) for m in (mask, grad_mask)]
    through = (g * out).sum(axis=-1)  # Σ over keys of weight × its gradient, a number for each row
    query = query * query.dtype.type(scale)
    for place, r, number in _blocks((*query.shape[:-1], key.shape[-2]), rows):
        weights = _block_scores(xp, query, key, masks[0], place, r, is_causal)
        weights -= logs[place][..., r, None]
        xp.exp(weights, out=weights)
        c = weights.shape[-1]
        slopes = g[place][..., r, :]
        grad_weights = xp.matmul(slopes, value[place][..., :c, :].swapaxes(-1, -2))
        dropped = weights
        if dropout_p:
            factors = _kept_after_dropout(xp, seed, number, dropout_p, weights.shape, weights.dtype)
            grad_weights *= factors
            dropped = weights * factors
        grads[2][place][..., :c, :] += xp.matmul(dropped.swapaxes(-1, -2), slopes)
        grad_weights -= through[place][..., r, None]
        grad_weights *= weights  # the gradient of the scores, from here
        if grad_mask is not None:
            part = _mask_part(masks[1], place, r, c)
            part += F.sum_to(grad_weights, part.shape)
        grads[1][place][..., :c, :] += xp.matmul(grad_weights.swapaxes(-1, -2), query[place][..., r, :])
        grads[0][place][..., r, :] = xp.matmul(grad_weights, key[place][..., :c, :])
    grads[0] *= grads[0].dtype.type(scale)
    return *grads, grad_mask


@anew.compose
def _(query, key, value, mask, is_causal, scale, rows, dropout_p, seed):
    def drop(weights):
        a = weights._data
        xp, factors = namespace_of(a), namespace_of(a).zeros_like(a)
        for place, r, number in _blocks(a.shape, rows):
            part = factors[place][..., r, :]
            if is_causal:
                part = part[..., : min(a.shape[-1], r.stop)]
            part[...] = _kept_after_dropout(xp, seed, number, dropout_p, part.shape, a.dtype)
        return weights * wrap(factors)

    return composed(query, key, value, mask, is_causal, scale, drop if dropout_p else None)
