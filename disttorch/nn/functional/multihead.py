"""Multi-head attention as a function of its weights.

Shape legend: L queries, S keys, B batch, E embedding, H heads, W = E/H width of a head.
"""

from __future__ import annotations

import math
import warnings

from ... import ops
from ...tensor import Tensor
from .dropout import dropout


def float_mask(mask: Tensor | None, name: str, dtype, other=None, other_name="") -> Tensor | None:
    """A mask to be added to the scores: −inf where a boolean mask is True (takes no part).

    Raises:
        AssertionError: if it is neither boolean nor floating.
    """
    if mask is None:
        return None
    if not (mask.is_floating_point() or str(mask.dtype).endswith("bool")):
        raise AssertionError(f"only bool and floating types of {name} are supported")
    if other is not None and other.dtype is not mask.dtype:
        warnings.warn(
            f"Support for mismatched {name} and {other_name} is deprecated. Use same type for both "
            "instead.",
            stacklevel=3,
        )
    if mask.is_floating_point():
        return mask
    return ops.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


def _check_ndims(query, key, value, key_padding_mask, attn_mask, heads) -> bool:
    """Whether there is a batch dim."""
    if query.ndim not in (2, 3):
        raise AssertionError(
            "query should be unbatched 2D or batched 3D tensor but received "
            f"{query.ndim}-D query tensor"
        )
    n = query.ndim
    kind = f"{'unbatched' if n == 2 else 'batched'} ({n}-D) `query`"
    if key.ndim != n or value.ndim != n:
        raise AssertionError(
            f"For {kind}, expected `key` and `value` to be {n}-D but found {key.ndim}-D and "
            f"{value.ndim}-D tensors respectively"
        )
    if key_padding_mask is not None and key_padding_mask.ndim != n - 1:
        raise AssertionError(
            f"For {kind}, expected `key_padding_mask` to be `None` or {n - 1}-D but found "
            f"{key_padding_mask.ndim}-D tensor instead"
        )
    if attn_mask is not None:
        if attn_mask.ndim not in (2, 3):
            raise AssertionError(
                f"For {kind}, expected `attn_mask` to be `None`, 2-D or 3-D but found "
                f"{attn_mask.ndim}-D tensor instead"
            )
        want = (heads, query.shape[0], key.shape[0])
        if n == 2 and attn_mask.ndim == 3 and tuple(attn_mask.shape) != want:
            raise AssertionError(
                f"Expected `attn_mask` shape to be {want} but got {attn_mask.shape}"
            )
    return n == 3


def _check_mask_size(mask, queries, keys, batch, heads):
    want = (queries, keys) if mask.ndim == 2 else (batch * heads, queries, keys)
    if tuple(mask.shape) != want:
        raise RuntimeError(
            f"The shape of the {mask.ndim}D attn_mask is {mask.shape}, but should be {want}."
        )


def _projected(query, key, value, weight, bias):
    """Queries, keys and values from one weight [3E, E]: self-attention is one product."""
    if key is value:
        if query is key:
            return ops.linear(query, weight, bias).chunk(3, -1)
        size = weight.shape[0] // 3
        q_bias, kv_bias = (None, None) if bias is None else (bias[:size], bias[size:])
        q = ops.linear(query, weight[:size], q_bias)
        return (q, *ops.linear(key, weight[size:], kv_bias).chunk(2, -1))
    weights = weight.chunk(3)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return tuple(ops.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))


def _with_column(mask):
    """A mask for one more key, which always takes part."""
    if mask is None:
        return None
    return ops.cat([mask, mask.new_zeros([*mask.shape[:-1], 1])], -1)


def _split(x, heads, batch):
    """S×B×E -> B×H×S×W."""
    return x.reshape(x.shape[0], batch, heads, -1).permute(1, 2, 0, 3)


def _static(name, given, batch, heads, width):
    for dim, want in ((0, batch * heads), (2, width)):
        if given.shape[dim] != want:
            raise AssertionError(
                f"expecting {name}.size({dim}) of {want}, but got {given.shape[dim]}"
            )
    return given.reshape(batch, heads, *given.shape[1:])


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
    in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None,
    bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor,
    out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention (Vaswani et al., arXiv:1706.03762).

    Args:
        query: [L, B, E] or [L, E]; key, value: [S, B, …] or [S, …].
        embed_dim_to_check: E.
        num_heads: H.
        in_proj_weight: [3E, E], or None with ``use_separate_proj_weight``: then q_proj_weight
            [E, E], k_proj_weight and v_proj_weight [E, …] stand for it.
        in_proj_bias: [3E].
        bias_k, bias_v: [1, 1, E], one more key and value.
        add_zero_attn: one more key and value, of zeros.
        dropout_p: of the attention weights, in training.
        out_proj_weight, out_proj_bias: [E, E], [E].
        key_padding_mask: [B, S] or [S]: True (or −inf) for keys that take no part.
        need_weights: return the weights too; without them long sequences take less memory.
        attn_mask: [L, S] or [B·H, L, S]: True for pairs that take no part, or added to the scores.
        static_k, static_v: [B·H, S, W], in place of projected keys and values.
        average_attn_weights: the mean of the weights over the heads.
        is_causal: says that ``attn_mask`` is the causal mask.

    Returns:
        [L, B, E] or [L, E], and the weights [B, L, S] (or [B, H, L, S]), or None.

    Raises:
        AssertionError, RuntimeError: if shapes do not fit.
    """
    batched = _check_ndims(query, key, value, key_padding_mask, attn_mask, num_heads)
    if not batched:
        same = (key is query, value is key)
        query = query.unsqueeze(1)
        key = query if same[0] else key.unsqueeze(1)
        value = key if same[1] else value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    queries, batch, width = query.shape
    key_padding_mask = float_mask(
        key_padding_mask, "key_padding_mask", query.dtype, attn_mask, "attn_mask"
    )
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "Need attn_mask if specifying the is_causal hint. You may use the Transformer module "
            "method `generate_square_subsequent_mask` to create this mask."
        )
    is_causal = is_causal and key_padding_mask is None and not need_weights
    attn_mask = None if is_causal else float_mask(attn_mask, "attn_mask", query.dtype)
    if width != embed_dim_to_check:
        raise AssertionError(
            f"was expecting embedding dimension of {embed_dim_to_check}, but got {width}"
        )
    if width % num_heads:
        raise AssertionError(f"embed_dim {width} not divisible by num_heads {num_heads}")
    if use_separate_proj_weight:
        if key.shape[:2] != value.shape[:2]:
            raise AssertionError(
                f"key's sequence and batch dims {key.shape[:2]} do not match value's "
                f"{value.shape[:2]}"
            )
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        matrices: tuple = (q_proj_weight, k_proj_weight, v_proj_weight)
        for name, w in zip("qkv", matrices):
            if w is None:
                raise AssertionError(
                    f"use_separate_proj_weight is True but {name}_proj_weight is None"
                )
        q, k, v = (ops.linear(*xwb) for xwb in zip((query, key, value), matrices, biases))
    else:
        if key.shape != value.shape:
            raise AssertionError(
                f"key shape {key.shape} does not match value shape {value.shape}"
            )
        if in_proj_weight is None:
            raise AssertionError("use_separate_proj_weight is False but in_proj_weight is None")
        q, k, v = _projected(query, key, value, in_proj_weight, in_proj_bias)
    if attn_mask is not None:
        _check_mask_size(attn_mask, queries, key.shape[0], batch, num_heads)
    if (bias_k is None) != (bias_v is None):
        given, missing = ("bias_k", "bias_v") if bias_v is None else ("bias_v", "bias_k")
        raise AssertionError(f"{given} is set but {missing} is None")
    if bias_k is not None and bias_v is not None:
        for name, static in (("key", static_k), ("value", static_v)):
            if static is not None:
                raise AssertionError(f"bias cannot be added to static {name}.")
        k = ops.cat([k, bias_k.expand(1, batch, width)])
        v = ops.cat([v, bias_v.expand(1, batch, width)])
        attn_mask, key_padding_mask = _with_column(attn_mask), _with_column(key_padding_mask)
    q = _split(q, num_heads, batch)
    shape = (batch, num_heads, width // num_heads)
    k = _split(k, num_heads, batch) if static_k is None else _static("static_k", static_k, *shape)
    v = _split(v, num_heads, batch) if static_v is None else _static("static_v", static_v, *shape)
    if add_zero_attn:
        k, v = (ops.cat([t, t.new_zeros([batch, num_heads, 1, shape[2]])], 2) for t in (k, v))
        attn_mask, key_padding_mask = _with_column(attn_mask), _with_column(key_padding_mask)
    mask = _merged(attn_mask, key_padding_mask, batch, num_heads, k.shape[2])
    out, weights = _attend(q, k, v, mask, dropout_p if training else 0.0, is_causal, need_weights)
    out = out.permute(2, 0, 1, 3).reshape(queries, batch, width)
    out = ops.linear(out, out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        return out.squeeze(1), None if weights is None else weights.squeeze(0)
    return out, weights


def _merged(attn_mask, key_padding_mask, batch, heads, keys):
    """Both masks as one that broadcasts to B×H×L×S."""
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.reshape(batch, heads, *attn_mask.shape[1:])
    if key_padding_mask is None:
        return attn_mask
    if tuple(key_padding_mask.shape) != (batch, keys):
        raise AssertionError(
            f"Expected key_padded_mask.shape to be {(batch, keys)}, but got "
            f"{tuple(key_padding_mask.shape)}"
        )
    padding = key_padding_mask.reshape(batch, 1, 1, keys)
    return padding if attn_mask is None else attn_mask + padding


def _attend(q, k, v, mask, dropout_p, is_causal, need_weights):
    if not need_weights:
        return ops.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal), None
    scores = ops.matmul(q * math.sqrt(1.0 / q.shape[-1]), k.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    weights = dropout(ops.softmax(scores, -1), dropout_p)
    return ops.matmul(weights, v), weights


__all__ = ["float_mask", "multi_head_attention_forward"]
