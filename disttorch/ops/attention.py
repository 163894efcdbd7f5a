"""Scaled dot product attention, as users call it: what is refused, and which op computes the rest.

Attention weights take L×S numbers a head. Where the namespace has kernels that never store them
(``xp.attention_fits``), those run. Elsewhere they are kept for backward up to a size; above it they are
computed anew, block by block (``attention_ops.py``).

Shape legend: … leading dims (batch, heads), L queries, S keys, E width of queries and keys, V width
of values. A mask is boolean (True takes part) or is added to the scores.
"""

from __future__ import annotations

import math

from ..backend import META, dtypes, namespace_of
from ..backend.attention_kernels import ALLOWED
from ..backend.dtypes import FLOAT_NP
from ..tensor import Tensor
from . import attention_ops
from .checks import type_name
from .core import REGISTRY, argument_must_be_tensor
from .nn import dropout
from .random import default_generator

# Scores (elements, all heads together) up to which keeping them is faster than a second pass: on the
# CPU; a namespace may have room for more (``xp.attention_room``).
KEPT_SCORES = 1 << 20
_BLOCK_SCORES = 1 << 18  # of one block: with its temporaries it stays in the L2 cache
_NAME = "scaled_dot_product_attention"


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0,
                                 is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """softmax(query keyᵀ·scale + mask) value (Vaswani et al., arXiv:1706.03762).

    On a GPU, 16-bit floats are served by kernels that never store the weights; their backward may differ
    in its last bits from run to run unless ``torch.use_deterministic_algorithms(True)`` is set.

    Args:
        query: …×L×E; key: …×S×E; value: …×S×V; of one floating dtype.
        attn_mask: bool (True takes part), or added to the scores: of query's dtype or float32;
            broadcasts to …×L×S. Or a mask of ``torch.nn.attention.bias``.
        dropout_p: applied to the attention weights (also outside training).
        is_causal: position i sees keys 0..i; excludes ``attn_mask``.
        scale: default 1/√E.
        enable_gqa: heads of key and value (dim −3) are shared by groups of query's heads.

    Returns:
        …×L×V; a row whose mask lets nothing take part is 0.

    Raises:
        RuntimeError: if a mask and ``is_causal`` are both given, or dtypes or sizes do not fit.
        TypeError: for arguments of another type.
    """
    try:
        q, k, v = query._data, key._data, value._data
    except AttributeError:
        raise _not_tensors(query, key, value) from None
    if is_causal.__class__ is not bool or enable_gqa.__class__ is not bool:
        is_causal, enable_gqa = _boolean("is_causal", is_causal), _boolean("enable_gqa", enable_gqa)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in FLOAT_NP or q.ndim < 2:
        _check_arrays(query, key, value)
    if attn_mask is not None:
        attn_mask, is_causal = _checked_mask(query, attn_mask, is_causal)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1] or 1)
    if dropout_p.__class__ is not float or scale.__class__ is not float:
        dropout_p, scale = _number("dropout_p", dropout_p), _number("scale", scale)
    if not 0.0 <= dropout_p <= 1.0:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    if has_kernels(q, k, v, attn_mask, dropout_p, scale, enable_gqa, is_causal):
        random = default_generator(query.device).source.philox_state(1) if dropout_p else None
        return attention_ops.fused.call(query, key, value, attn_mask, is_causal, scale, dropout_p,
                                        random)
    if not ALLOWED["math"]:
        _refuse_unserved(q, dropout_p)
    if enable_gqa:
        return _grouped(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return _attend(query, key, value, attn_mask, dropout_p, is_causal, scale)


# ---------------------------------------------------------------- arguments
def _not_tensors(*given) -> TypeError:
    for i, (name, t) in enumerate(zip(("query", "key", "value"), given)):
        if not isinstance(t, Tensor):
            return argument_must_be_tensor(_NAME, name, i + 1, t)
    raise AssertionError("unreachable: one of them is no tensor")


def _boolean(name: str, given) -> bool:
    if isinstance(given, bool) or type(given).__name__ in ("bool_", "bool"):
        return bool(given)
    raise TypeError(f"{_NAME}(): argument '{name}' must be bool, not {type(given).__name__}")


def _number(name: str, given) -> float:
    if isinstance(given, (int, float)) or isinstance(given, Tensor) and not (
            given.requires_grad or given.ndim):
        return float(given)
    try:
        return float(given.__index__() if hasattr(given, "__index__") else given.__float__())
    except (AttributeError, RuntimeError, TypeError):
        kind = type(given).__name__
        raise TypeError(f"{_NAME}(): argument '{name}' must be float, not {kind}") from None


def _check_arrays(query, key, value) -> None:
    a, b, c = (type_name(t.dtype) for t in (query, key, value))
    if not a == b == c:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{a} key.dtype: {b} and value.dtype: {c} instead."
        )
    if query._data.dtype not in FLOAT_NP:
        raise RuntimeError(f"{_NAME}: expected tensors of a floating dtype, but got {a}")
    if query._data.ndim < 2 or key._data.ndim < 2 or value._data.ndim < 2:
        raise RuntimeError(
            "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: "
            f"{query.ndim} key.dim: {key.ndim} and value.dim: {value.ndim} instead."
        )


def _checked_mask(query, mask, is_causal):
    """(mask as the ops take it: None, boolean or of query's dtype; ``is_causal``)."""
    if not isinstance(mask, Tensor):
        top_left = getattr(mask, "is_top_left", None)  # of nn.attention.bias
        if top_left is None:
            raise TypeError(f"{_NAME}(): argument 'attn_mask' must be Tensor, not {type(mask).__name__}")
        if is_causal:
            raise ValueError(f"{_NAME}: a CausalBias should not be used with is_causal=True")
        return (None, True) if top_left else (mask._materialize(query.device), False)
    if is_causal:
        raise RuntimeError(f"{_NAME}: Explicit attn_mask should not be set when is_causal=True")
    if mask.dtype is dtypes.bool or mask.dtype is query.dtype:
        return mask, False
    if mask.dtype is dtypes.float32:
        return mask.to(query.dtype), False
    raise RuntimeError(
        "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
        f"attn_mask.dtype: {type_name(mask.dtype)} and  query.dtype: {type_name(query.dtype)} instead."
    )


# ---------------------------------------------------------------- which op
def has_kernels(query, key, value, mask, dropout_p, scale, enable_gqa, is_causal) -> bool:
    """Whether kernels of the namespace compute this: sizes that fit, and a mask without gradient."""
    xp = namespace_of(query)
    if not xp.fused_half or xp is META or mask is not None and mask.requires_grad:
        return False
    q, k, v = query.shape, key.shape, value.shape
    if not len(q) == len(k) == len(v):
        return False
    lead = q[:-2]
    if k[:-2] != lead:
        if not enable_gqa or len(q) < 3 or not k[-3] or q[-3] % k[-3]:
            return False
        lead = (*q[:-3], k[-3])
    return k[:-2] == lead == v[:-2] and _sizes_fit(q, k, v, mask) and (
        xp.attention_fits(query, key, value, None if mask is None else mask._data, dropout_p, scale,
                          is_causal))


def _sizes_fit(q, k, v, mask) -> bool:
    """Whether widths and lengths agree, and a mask broadcasts to the scores."""
    if q[-1] != k[-1] or k[-2] != v[-2]:
        return False
    if mask is None:
        return True
    m = mask._data.shape
    return 2 <= len(m) <= len(q) and all(
        a in (1, b) for a, b in zip(m, (*q[:-1], k[-2])[len(q) - len(m):]))


def _refuse_unserved(query, dropout_p) -> None:
    """What no kernel serves is not computed where "math" is switched off. On the CPU the formulas here
    are what PyTorch calls "flash", which takes no dropout."""
    if namespace_of(query).fused_half or not ALLOWED["flash"] or dropout_p:
        allowed = [name for name, is_on in ALLOWED.items() if is_on and name != "own first"]
        raise RuntimeError(
            f"{_NAME}: No available kernel for these tensors among those allowed ({allowed}): allow "
            "SDPBackend.MATH, too"
        )


def _attend(query, key, value, mask, dropout_p, is_causal, scale):
    q, k, v = (t._data.shape for t in (query, key, value))
    fits = q[:-2] == k[:-2] == v[:-2] and _sizes_fit(q, k, v, mask)
    if fits and not k[-2]:  # nothing to see: zeros, and gradients of zeros
        product, turned = REGISTRY["matmul"].call, REGISTRY["transpose"].call(key, -1, -2)
        return product(product(query, turned), value)
    xp = namespace_of(query._data)
    room = 0 if xp is META else xp.attention_room()
    if fits and math.prod(q[:-1]) * k[-2] > max(KEPT_SCORES, room):
        rows = max(16, max(_BLOCK_SCORES, room // 4) // k[-2])
        seed = _draw_seed(query) if dropout_p else 0
        return attention_ops.anew.call(query, key, value, mask, is_causal, scale, rows, dropout_p, seed)
    if fits and not dropout_p:
        return attention_ops.kept.call(query, key, value, mask, is_causal, scale)
    drop = (lambda weights: dropout(weights, dropout_p)) if dropout_p else None
    return attention_ops.composed(query, key, value, mask, is_causal, scale, drop)


def _draw_seed(t) -> int:
    return int(default_generator(t.device).source.integers(0, 1 << 62, ()))


def _grouped(query, key, value, mask, dropout_p, is_causal, scale):
    """Each head of key and value serves a group of query's heads, without being copied where they have
    the same number of heads."""
    shape = query._data.shape
    if min(len(shape), key._data.ndim, value._data.ndim) < 3:
        raise IndexError(f"{_NAME}: enable_gqa needs a dim of heads (dim -3), but query has "
                         f"{len(shape)} dims, key {key.ndim} and value {value.ndim}")
    heads, others = key._data.shape[-3], value._data.shape[-3]
    if shape[-3] == heads == others:
        return _attend(query, key, value, mask, dropout_p, is_causal, scale)
    if not heads or not others or shape[-3] % heads or shape[-3] % others:
        raise RuntimeError(
            f"{_NAME}: Number of heads in key and value must divide the number of heads in query, but "
            f"got {heads}, {others} and {shape[-3]}"
        )
    if heads != others:
        key, value = (attention_ops.repeated(t, shape[-3] // t._data.shape[-3]) for t in (key, value))
        return _attend(query, key, value, mask, dropout_p, is_causal, scale)
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
