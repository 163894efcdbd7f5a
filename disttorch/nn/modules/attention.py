"""Multi-head attention as a module.

Shape legend: L queries, S keys, B batch, E embedding, H heads.
"""

from __future__ import annotations

from ... import ops
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .linear import NonDynamicallyQuantizableLinear
from .module import Module


class MultiheadAttention(Module):
    """Several attentions side by side (Vaswani et al., arXiv:1706.03762).

    Args:
        embed_dim, num_heads: E and H; H divides E.
        dropout: of the attention weights, in training.
        bias: whether the projections have biases.
        add_bias_kv: one more key and value, trained.
        add_zero_attn: one more key and value, of zeros.
        kdim, vdim: width of keys and values, if not E.
        batch_first: inputs and output are [B, L, E] instead of [L, B, E].

    Raises:
        ValueError, AssertionError: if E and H do not fit.
    """

    def __init__(
        self, embed_dim, num_heads, dropout=0.0, bias=True, add_bias_kv=False,
        add_zero_attn=False, kdim=None, vdim=None, batch_first=False, device=None, dtype=None,
    ):
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                "embed_dim and num_heads must be greater than 0, got "
                f"embed_dim={embed_dim} and num_heads={num_heads} instead"
            )
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim == self.vdim
        self.batch_first, self.head_dim = batch_first, embed_dim // num_heads
        if self.head_dim * num_heads != embed_dim:
            raise AssertionError("embed_dim must be divisible by num_heads")
        where = {"device": device, "dtype": dtype}
        shapes: dict = {"q_proj_weight": None, "k_proj_weight": None, "v_proj_weight": None}
        if self._qkv_same_embed_dim:
            shapes = {"in_proj_weight": (3 * embed_dim, embed_dim), **shapes}
        else:
            widths = (embed_dim, self.kdim, self.vdim)
            shapes = {name: (embed_dim, w) for name, w in zip(shapes, widths)}
            shapes["in_proj_weight"] = None
        shapes["in_proj_bias"] = (3 * embed_dim,) if bias else None
        for name, shape in shapes.items():
            param = None if shape is None else Parameter(ops.empty(shape, **where))
            self.register_parameter(name, param)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, **where)
        self.bias_k = self.bias_v = None
        if add_bias_kv:
            self.bias_k = Parameter(ops.empty((1, 1, embed_dim), **where))
            self.bias_v = Parameter(ops.empty((1, 1, embed_dim), **where))
        self.add_zero_attn = add_zero_attn
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if getattr(self, name) is not None:
                init.xavier_uniform_(getattr(self, name))
        if self.in_proj_bias is not None:
            init.constant_(self.in_proj_bias, 0.0)
            init.constant_(self.out_proj.bias, 0.0)
        for param in (self.bias_k, self.bias_v):
            if param is not None:
                init.xavier_normal_(param)

    def forward(
        self, query, key, value, key_padding_mask=None, need_weights: bool = True, attn_mask=None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ):
        """(output, attention weights or None): see ``F.multi_head_attention_forward``."""
        if self.batch_first and query.ndim == 3:
            query, key, value = _transposed(query, key, value)
        out, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight,
            self.in_proj_bias, self.bias_k, self.bias_v, self.add_zero_attn, self.dropout,
            self.out_proj.weight, self.out_proj.bias, self.training, key_padding_mask,
            need_weights, attn_mask, not self._qkv_same_embed_dim, self.q_proj_weight,
            self.k_proj_weight, self.v_proj_weight, average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        if self.batch_first and out.ndim == 3:
            out = out.transpose(0, 1)
        return out, weights

    def merge_masks(self, attn_mask, key_padding_mask, query):
        """Both masks as one [B, H, L, L] (or as given, if one is None), and which kind it is:
        0 attn_mask, 1 key_padding_mask, 2 both, None neither."""
        if attn_mask is None:
            return (None, None) if key_padding_mask is None else (key_padding_mask, 1)
        if key_padding_mask is None:
            return attn_mask, 0
        batch, length = query.shape[:2]
        if attn_mask.ndim == 3:
            merged = attn_mask.reshape(batch, -1, length, length)
        else:
            merged = attn_mask.expand(batch, self.num_heads, length, length)
        return merged + key_padding_mask.reshape(batch, 1, 1, length), 2


def _transposed(query, key, value):
    """Batch and length exchanged; what is one tensor stays one, so that it is projected once."""
    q = query.transpose(0, 1)
    k = q if key is query else key.transpose(0, 1)
    return q, k, k if value is key else value.transpose(0, 1)


__all__ = ["MultiheadAttention"]
