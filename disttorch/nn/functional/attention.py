"""Attention. Shapes: query [..., Q, E], key [..., K, E], value [..., K, V] -> [..., Q, V]."""

from __future__ import annotations

from ...ops import attention as _attention
from ...tensor import Tensor


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query·keyᵀ·scale + mask)·value (Vaswani et al., arXiv:1706.03762).

    Args:
        attn_mask: broadcastable to [..., Q, K]; boolean (True takes part) or added to the scores.
        dropout_p: probability of dropping an attention weight. Applied always: pass 0 to evaluate.
        is_causal: position i sees keys up to i only; excludes ``attn_mask``.
        scale: 1/√E by default.
        enable_gqa: key and value have fewer heads (dim -3), each shared by a group of queries'.
    """
    return _attention.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
