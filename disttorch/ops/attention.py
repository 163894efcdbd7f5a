"""Scaled dot product attention: one op for kernels of its own, one that keeps its weights, one that
computes them anew.

Attention weights take L×S numbers a head. Where the namespace has kernels that never store them
(``xp.attention_fits``), those run. Elsewhere they are kept for backward up to a size; above it, both
directions walk over blocks of query rows and keep one number a row, the logarithm of the softmax's
denominator, from which backward computes the weights again (Rabe & Staats, arXiv:2112.05682;
Dao et al., arXiv:2205.14135).

Shape legend: … leading dims (batch, heads), L queries, S keys, E width of queries and keys, V width
of values. A mask is boolean (True takes part) or is added to the scores.
"""

from __future__ import annotations

import itertools
import math

from ..backend import META, dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY, op
from .nn import dropout, softmax
from .random import default_generator
from .samples import case

# Scores (elements, all heads together) up to which keeping them is faster than a second pass: on the
# CPU; a namespace may have room for more (``xp.attention_room``).
KEPT_SCORES = 1 << 20
_BLOCK_SCORES = 1 << 18  # of one block: with its temporaries it stays in the L2 cache
_INF = math.inf


# ---------------------------------------------------------------- kernels of the namespace
@op(tensors=("query", "key", "value", "mask"), optional=("mask",), method=False, aux=True, fused=True,
    name="attention_fused", node_name="ScaledDotProductAttention", samples=lambda m: [
        case(m(2, 2, 5, 3), m(2, 2, 5, 3), m(2, 2, 5, 3), None, True, 0.6, 0.0, None),
        case(m(2, 4, 5, 3), m(2, 2, 7, 3), m(2, 2, 7, 4), None, False, 0.5, 0.0, None),
        case(m(5, 3), m(7, 3), m(7, 4), None, True, 0.5, 0.0, None),
        case(m(2, 5, 3), m(2, 7, 3), m(2, 7, 4), m.bool(2, 1, 7), False, 0.5, 0.0, None),
    ])
def _fused(xp, query, key, value, mask, is_causal, scale, dropout_p, random):
    """Attention by ``xp.attention_forward``, which stores no weights; a mask gets no gradient.

    aux holds the logarithm of each row's denominator, …×L.
    """
    out, logs = xp.attention_forward(query, key, value, mask, is_causal, scale, dropout_p, random)
    return out, (logs,)


@_fused.fast_grad("query", "key", "value")
def _(F, g, needs, query, key, value, mask, out, aux, is_causal, scale, dropout_p, random):
    return F.xp.attention_backward(g, query, key, value, mask, out, aux[0], is_causal, scale, dropout_p,
                                   random)


@_fused.compose
def _(query, key, value, mask, is_causal, scale, dropout_p, random):
    def drop(weights):
        a = weights._data
        xp = namespace_of(a)
        return weights * wrap(xp.attention_factors(a.shape, a.dtype, dropout_p, random))

    q, k = query._data.shape, key._data.shape
    if len(q) > 2 and q[-3] != k[-3]:
        key, value = (_repeated(t, q[-3] // k[-3]) for t in (key, value))
    return _composed(query, key, value, mask, is_causal, scale, drop if dropout_p else None)


def _repeated(t, group):
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
def _kept(xp, query, key, value, mask, is_causal, scale):
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


@_kept.fast_grad("query", "key", "value", "mask")
def _(F, g, needs, query, key, value, mask, aux, scale):
    xp, weights = F.xp, aux[0]
    grad_value = xp.matmul(weights.swapaxes(-1, -2), g)
    grad_weights = xp.matmul(g, value.swapaxes(-1, -2))
    grad_scores = xp.softmax_backward(grad_weights, weights, weights.ndim - 1)
    grad_mask = F.sum_to(grad_scores, mask.shape) if needs[3] else None  # may be the same array
    grad_scores = grad_scores * grad_scores.dtype.type(scale)
    grad_key = xp.matmul(grad_scores.swapaxes(-1, -2), query)
    return xp.matmul(grad_scores, key), grad_key, grad_value, grad_mask


@_kept.compose
def _(query, key, value, mask, is_causal, scale):
    return _composed(query, key, value, mask, is_causal, scale)


def _composed(query, key, value, mask, is_causal, scale, drop=None):
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
def _anew(xp, query, key, value, mask, is_causal, scale, rows, dropout_p, seed):
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


@_anew.fast_grad("query", "key", "value", "mask")
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


@_anew.compose
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

    return _composed(query, key, value, mask, is_causal, scale, drop if dropout_p else None)


# ---------------------------------------------------------------- what users call
def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0,
                                 is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """softmax(query keyᵀ·scale + mask) value (Vaswani et al., arXiv:1706.03762).

    Args:
        query: …×L×E; key: …×S×E; value: …×S×V.
        attn_mask: bool (True takes part) or added to the scores; broadcasts to …×L×S.
        dropout_p: applied to the attention weights (also outside training).
        is_causal: position i sees keys 0..i; excludes ``attn_mask``.
        scale: default 1/√E.
        enable_gqa: heads of key and value (dim −3) are shared by groups of query's heads.

    Returns:
        …×L×V; a row whose mask lets nothing take part is 0.

    Raises:
        RuntimeError: if a mask and ``is_causal`` are both given, or sizes do not fit.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError("scaled_dot_product_attention: Explicit attn_mask should not be set "
                           "when is_causal=True")
    if not 0.0 <= dropout_p <= 1.0:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    if attn_mask is not None:
        _check_mask(query, attn_mask)
    if scale is None:
        scale = 1 / math.sqrt(query._data.shape[-1])
    if _has_kernels(query, key, value, attn_mask, dropout_p, scale, enable_gqa):
        random = default_generator(query.device).source.philox_state(1) if dropout_p else None
        return _fused.call(query, key, value, attn_mask, is_causal, scale, dropout_p, random)
    if enable_gqa and query._data.shape[-3] != key._data.shape[-3]:
        return _grouped(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return _attend(query, key, value, attn_mask, dropout_p, is_causal, scale)


def _has_kernels(query, key, value, mask, dropout_p, scale, enable_gqa) -> bool:
    """Whether kernels of the namespace compute this: sizes that fit, and a mask without gradient."""
    xp = namespace_of(query._data)
    if not xp.fused_half or xp is META or mask is not None and mask.requires_grad:
        return False
    q, k, v = (t._data.shape for t in (query, key, value))
    if not len(q) == len(k) == len(v) >= 2:
        return False
    shared = enable_gqa and len(q) > 2 and k[-3] and not q[-3] % k[-3]
    lead = (*q[:-3], k[-3]) if shared else q[:-2]
    return _sizes_fit(q, (*lead, *k[-2:]), (*lead, *v[-2:]), mask) and k[:-2] == v[:-2] == lead and (
        xp.attention_fits(query._data, key._data, value._data, None if mask is None else mask._data,
                          dropout_p, scale))


def _sizes_fit(q, k, v, mask) -> bool:
    """Whether widths and lengths agree, and a mask broadcasts to the scores."""
    if q[-1] != k[-1] or k[-2] != v[-2]:
        return False
    if mask is None:
        return True
    m = mask._data.shape
    return 2 <= len(m) <= len(q) and all(
        a in (1, b) for a, b in zip(m, (*q[:-1], k[-2])[len(q) - len(m):]))


def _check_mask(query, mask):
    if mask.dtype is not dtypes.bool and mask.dtype is not query.dtype:
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or to match query dtype, but got attn_mask.dtype: "
            f"{mask.dtype} and query.dtype: {query.dtype} instead."
        )


def _attend(query, key, value, mask, dropout_p, is_causal, scale):
    q, k, v = (t._data.shape for t in (query, key, value))
    fits = q[:-2] == k[:-2] == v[:-2] and _sizes_fit(q, k, v, mask)
    xp = namespace_of(query._data)
    room = 0 if xp is META else xp.attention_room()
    if fits and math.prod(q[:-1]) * k[-2] > max(KEPT_SCORES, room):
        rows = max(16, max(_BLOCK_SCORES, room // 4) // k[-2])
        seed = _draw_seed(query) if dropout_p else 0
        return _anew.call(query, key, value, mask, is_causal, scale, rows, dropout_p, seed)
    if fits and not dropout_p:
        return _kept.call(query, key, value, mask, is_causal, scale)
    drop = (lambda weights: dropout(weights, dropout_p)) if dropout_p else None
    return _composed(query, key, value, mask, is_causal, scale, drop)


def _draw_seed(t) -> int:
    return int(default_generator(t.device).source.integers(0, 1 << 62, ()))


def _grouped(query, key, value, mask, dropout_p, is_causal, scale):
    """Each head of key and value serves a group of query's heads, without being copied."""
    shape, heads = query._data.shape, key._data.shape[-3]
    if value._data.shape[-3] != heads or shape[-3] % heads:
        raise RuntimeError(
            "scaled_dot_product_attention: enable_gqa needs as many heads of value as of key, and "
            f"a multiple of them of query; got {shape[-3]}, {heads} and {value._data.shape[-3]}"
        )
    group = shape[-3] // heads
    reshape, expand, unsqueeze = (REGISTRY[n].call for n in ("reshape", "expand", "unsqueeze"))
    query = reshape(query, (*shape[:-3], heads, group, *shape[-2:]))
    key, value = (
        expand(unsqueeze(t, -3), (*t._data.shape[:-2], group, *t._data.shape[-2:]))
        for t in (key, value)
    )
    if mask is not None and mask.ndim > 2:
        m = mask._data.shape
        split = (1, 1) if m[-3] == 1 else (heads, group)
        mask = reshape(mask, (*m[:-3], *split, *m[-2:]))
    out = _attend(query, key, value, mask, dropout_p, is_causal, scale)
    return reshape(out, (*shape[:-1], out._data.shape[-1]))
