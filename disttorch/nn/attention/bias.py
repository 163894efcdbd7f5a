"""Causal masks for ``scaled_dot_product_attention`` that say in which corner they start."""

from __future__ import annotations

import enum
import warnings

from ...backend.devices import device as Device
from ...tensor import Tensor


class CausalVariant(enum.IntEnum):
    """UPPER_LEFT: query i sees keys 0..i. LOWER_RIGHT: the last query sees all keys, the one before it
    all but the last, and so on."""

    UPPER_LEFT = 1
    LOWER_RIGHT = 2


class CausalBias:
    """A causal mask of L queries and S keys, given as ``attn_mask``. It is stored only where the kernels
    need it: LOWER_RIGHT with L ≠ S.

    Attributes:
        variant: a CausalVariant; seq_len_q: L; seq_len_kv: S.
    """

    def __init__(self, variant: CausalVariant, seq_len_q: int, seq_len_kv: int) -> None:
        if not isinstance(variant, CausalVariant):
            raise AssertionError(f"variant must be a CausalVariant, got {type(variant).__name__}")
        self.variant, self.seq_len_q, self.seq_len_kv = variant, seq_len_q, seq_len_kv
        if seq_len_q > seq_len_kv and variant is CausalVariant.LOWER_RIGHT:
            warnings.warn("a lower right causal mask of more queries than keys lets the first "
                          f"{seq_len_q - seq_len_kv} see nothing: their results are 0", stacklevel=3)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, S)."""
        return self.seq_len_q, self.seq_len_kv

    @property
    def is_top_left(self) -> bool:
        """Whether ``is_causal=True`` says the same."""
        return self.variant is CausalVariant.UPPER_LEFT or self.seq_len_q == self.seq_len_kv

    def _materialize(self, device: Device | str | None = None) -> Tensor:
        """The mask as a boolean tensor L×S, True where a key takes part; on the CPU by default."""
        from ... import ones, tril
        from ...backend import dtypes

        whole = ones(self.shape, dtype=dtypes.bool, device=device or "cpu")
        return tril(whole, 0 if self.is_top_left else self.seq_len_kv - self.seq_len_q)

    def __repr__(self) -> str:
        return repr(self._materialize())


def causal_upper_left(*size: int) -> CausalBias:
    """The mask of L queries and S keys in which query i sees keys 0..i.

    Args:
        size: L and S.
    """
    return _made(CausalVariant.UPPER_LEFT, size)


def causal_lower_right(*size: int) -> CausalBias:
    """The mask of L queries and S keys in which the last query sees all keys: for queries that continue
    a sequence whose keys are kept.

    Args:
        size: L and S.
    """
    return _made(CausalVariant.LOWER_RIGHT, size)


def _made(variant: CausalVariant, size: tuple) -> CausalBias:
    if len(size) != 2:
        raise AssertionError(f"causal_{variant.name.lower()} takes two sizes, queries and keys, not "
                             f"{len(size)}")
    return CausalBias(variant, *size)


__all__ = ["CausalBias", "CausalVariant", "causal_lower_right", "causal_upper_left"]
