"""Attention without its scores in memory: the kernels of ``csrc/attention*.cu`` and their launches.

They take float16 and bfloat16 up to a width of 128, with masks, dropout, and heads of keys that several
heads of queries share. Other cases (float32, float64, wider heads, gradients of a mask, a scale that is
not positive) go to the formulas of ``attention_kernels``. Two runs give the same bits.

Without mask and dropout, cuDNN's kernels come first where cuDNN is installed and has a plan.
``torch.backends.cuda.enable_cudnn_sdp`` and ``enable_flash_sdp`` switch cuDNN's and those here; a call
that only cuDNN may serve, but for which it has no plan, is served here.

Shape legend: B batch, H heads of queries, G of them for one head of keys, L queries, S keys, E width of
queries and keys, V of values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .. import attention_kernels
from . import cudnn, cudnn_attention
from .kernel import kernel

WIDEST = 128
_HALF = ("float16", "bfloat16")
_WARPS, _THREADS = 4, 128
_DELTA_ROWS = 8  # of one block of attention_delta
_MOST = 1 << 31


class _Tiles(NamedTuple):
    """Rows of tiles for one padded width, as the sources define them."""

    width: int
    queries: int
    keys: int
    own_keys: int
    seen: int
    own_queries: int
    step: int

    def shared(self, name: str) -> int:
        """Bytes of dynamic shared memory of a kernel."""
        row = 2 * (self.width + 8)
        return {
            "attention_forward": (self.queries + 4 * self.keys) * row,
            "attention_keys": (2 * self.own_keys + 4 * self.seen) * row + 16 * self.seen,
            "attention_queries": (2 * self.own_queries + 4 * self.step) * row,
        }.get(name, 0)


_TILES = {
    t.width: t
    for t in (_Tiles(32, 128, 64, 128, 32, 128, 32), _Tiles(64, 128, 64, 128, 32, 128, 32),
              _Tiles(96, 128, 48, 64, 64, 64, 64), _Tiles(128, 128, 32, 64, 48, 64, 48))
}
_ready: dict = {}


def _kernel(xp, name: str, dtype: str, width: int, extras: bool):
    """(kernel, its bytes of shared memory)."""
    key = (xp.index, name, dtype, width, extras)
    found = _ready.get(key)
    if found is None:
        family = "attention" if name == "attention_forward" else "attention_backward"
        made = kernel(xp.cupy, family, name, ELEMENT=dtype, WIDTH=width, EXTRAS=int(extras))
        size = _TILES[width].shared(name)
        if size > 48 << 10:
            made.allow_shared(size)
        found = _ready[key] = made, size
    return found


def _padded_width(*widths: int) -> int:
    return next(w for w in _TILES if w >= max(widths))


# ---------------------------------------------------------------- arrays as the kernels want them
def _strides(a) -> tuple[int, int, int]:
    """Elements from batch to batch, head to head, row to row of a B×H×R×C array."""
    size = a.dtype.itemsize
    b, h, r, _ = a.strides
    return b // size, h // size, r // size


def _fits(a) -> bool:
    """Whether 16 bytes can be read at a time: the last dim contiguous, the others multiples of 8."""
    size = a.dtype.itemsize
    *outer, last = a.strides
    return ((last == size or a.shape[-1] == 1) and a.shape[-1] % 8 == 0 and a.data.ptr % 16 == 0
            and all(s % 16 == 0 or n == 1 for s, n in zip(outer, a.shape)))


def _aligned(xp, a):
    """The array itself if it fits, else a copy, its last dim filled up with zeros to 8 elements."""
    if _fits(a):
        return a
    out = xp.zeros((*a.shape[:-1], -(-a.shape[-1] // 8) * 8), a.dtype)
    out[..., : a.shape[-1]] = a
    return out


def _like(xp, a, rows: int, width: int):
    """An empty B×H×rows×width array whose dims lie in memory as those of ``a``: heads beside each other
    if it is a view of a projection, so that what follows need not copy."""
    B, H = a.shape[:2]
    if a.strides[1] < a.strides[2]:
        return xp.empty((B, rows, H, width), a.dtype).transpose(0, 2, 1, 3)
    return xp.empty((B, H, rows, width), a.dtype)


def _as_heads(xp, a):
    """…×R×C as B×H×R×C; a view where the strides allow."""
    if a.ndim == 4:
        return a
    if a.ndim == 3:
        return a[None]
    if a.ndim == 2:
        return a[None, None]
    return a.reshape(-1, *a.shape[-3:])


class _Extras:
    """Mask and dropout as the kernels take them."""

    def __init__(self, mask, dropout_p: float, random: tuple | None):
        self.given = mask is not None or dropout_p > 0
        seed, offset, state = random or (np.uint64(0), np.uint64(0), None)
        strides = (0, 0, 0, 0)
        if mask is not None:
            strides = _mask_strides(mask)
        self.args = (mask, int(mask is not None and mask.dtype.kind != "b"), *strides, float(dropout_p),
                     seed, offset, state) if self.given else ()


def _mask_strides(mask) -> tuple[int, int, int, int]:
    """Elements from batch to batch, head to head, row to row, key to key: 0 where a mask is broadcast.
    A leading dim beyond B×H×L×S must have been merged by the caller."""
    strides = [0] * (4 - mask.ndim) + [s // mask.dtype.itemsize for s in mask.strides]
    sizes = [1] * (4 - mask.ndim) + list(mask.shape)
    return tuple(0 if n == 1 else s for n, s in zip(sizes, strides))  # type: ignore[return-value]


# ---------------------------------------------------------------- which cases
def _cudnn_may(mask, dropout_p) -> bool:
    return attention_kernels.ALLOWED["cudnn"] and mask is None and not dropout_p and cudnn.enabled()


def attention_fits(xp, query, key, value, mask, dropout_p, scale) -> bool:
    """Whether the kernels here compute this attention; see this module's text."""
    q, k, v = query.shape, key.shape, value.shape
    if query.dtype.name not in _HALF or not query.dtype == key.dtype == value.dtype:
        return False
    if not (attention_kernels.ALLOWED["flash"] or _cudnn_may(mask, dropout_p)):
        return False
    if not (scale > 0 and math.isfinite(scale) and q[-1] <= WIDEST and v[-1] <= WIDEST):
        return False
    if 0 in q or 0 in k or 0 in v or max(q[-2], k[-2]) >= _MOST >> 8:
        return False
    if mask is not None and mask.ndim > 2 and len(q) > 4:
        return False  # its leading dims are not merged
    return math.prod(q[:-1]) < _MOST


def attention_room(xp) -> int:
    """Scores that may lie in memory at once: 1 GiB of float32."""
    return 1 << 28


def softmax_or_zero(xp, scores):
    """Softmax over the last axis; a row of nothing but −∞ gets zeros. Nothing is read back."""
    weights = xp.softmax(scores, scores.ndim - 1)
    if not scores.size:
        return weights
    blind = xp.isneginf(scores.max(axis=-1, keepdims=True))
    return xp.where(blind, weights.dtype.type(0), weights)


# ---------------------------------------------------------------- launches
def attention_forward(xp, query, key, value, mask, is_causal, scale, dropout_p, random):
    """softmax(query·keyᵀ·scale + mask)·value.

    Args:
        query: …×H×L×E; key: …×H/G×S×E; value: …×H/G×S×V.
        mask: None, or broadcasts to …×H×L×S; boolean (True takes part) or added.
        is_causal: query i sees keys 0..i.
        random: what a generator's ``philox_state`` gave for dropout, else None.

    Returns:
        (out …×H×L×V; logs …×H×L in float32: the logarithm of each row's sum, ∞ where it sees nothing).
    """
    if not attention_fits(xp, query, key, value, mask, dropout_p, scale):
        return attention_kernels.attention_forward(
            xp, query, key, value, mask, is_causal, scale, dropout_p, random)
    lead, V = query.shape[:-1], value.shape[-1]
    q, k, v = (_aligned(xp, _as_heads(xp, a)) for a in (query, key, value))
    B, H, L, _ = q.shape
    out, logs = _like(xp, q, L, v.shape[3]), xp.empty((B, H, L), np.float32)
    if not (_cudnn_may(mask, dropout_p)
            and cudnn_attention.forward(xp, q, k, v, out, logs, bool(is_causal), float(scale))):
        extras = _Extras(mask, dropout_p, random)
        _forward(xp, q, k, v, out, logs, is_causal, scale, extras)
    return out[..., :V].reshape(*lead, V), logs.reshape(lead)


def _forward(xp, q, k, v, out, logs, is_causal, scale, extras):
    (B, H, L, E), S = q.shape, k.shape[2]
    width = _padded_width(E, v.shape[3])
    run, shared = _kernel(xp, "attention_forward", q.dtype.name, width, extras.given)
    grid = B * H * -(-L // _TILES[width].queries)
    run((grid,), (_THREADS,), (
        q, k, v, out, logs, L, S, E, v.shape[3], H, H // k.shape[1], *_strides(q), *_strides(k),
        *_strides(v), *_strides(out), float(scale), int(is_causal), *extras.args), shared)


def attention_backward(xp, g, query, key, value, mask, out, logs, is_causal, scale, dropout_p, random):
    """The gradients of query, key and value of ``attention_forward``; ``g``: that of ``out``."""
    if not attention_fits(xp, query, key, value, mask, dropout_p, scale):
        return attention_kernels.attention_backward(
            xp, g, query, key, value, mask, out, logs, is_causal, scale, dropout_p, random)
    shapes = query.shape, key.shape, value.shape
    q, k, v, out, g = (_aligned(xp, _as_heads(xp, a))
                       for a in (query, key, value, out, g.astype(query.dtype, copy=False)))
    logs = xp.ascontiguousarray(logs)
    dq, dk, dv = (_like(xp, a, *a.shape[2:]) for a in (q, k, v))
    if not (_cudnn_may(mask, dropout_p) and cudnn_attention.backward(
            xp, q, k, v, out, g, logs, dq, dk, dv, bool(is_causal), float(scale))):
        extras = _Extras(mask, dropout_p, random)
        _backward(xp, g, q, k, v, out, logs, dq, dk, dv, is_causal, scale, extras)
    return tuple(d[..., : s[-1]].reshape(s) for d, s in zip((dq, dk, dv), shapes))


def _backward(xp, g, q, k, v, out, logs, dq, dk, dv, is_causal, scale, extras):
    (B, H, L, E), (heads, S, V), dtype = q.shape, v.shape[1:], q.dtype.name
    width = _padded_width(E, V)
    delta = xp.empty((B, H, L), np.float32)
    run, _ = _kernel(xp, "attention_delta", dtype, width, extras.given)
    run((-(-B * H * L // _DELTA_ROWS),), (_THREADS,),
        (g, out, delta, B * H * L, L, H, V, *_strides(g), *_strides(out)))
    common = (L, S, E, V, H, H // heads, *_strides(q), *_strides(k), *_strides(v), *_strides(g))
    last = (float(scale), int(is_causal), *extras.args)
    tiles = _TILES[width]
    run, shared = _kernel(xp, "attention_keys", dtype, width, extras.given)
    run((B * heads * -(-S // tiles.own_keys),), (_THREADS,),
        (q, k, v, g, logs, delta, dk, dv, *common, *_strides(dk), *_strides(dv), *last), shared)
    run, shared = _kernel(xp, "attention_queries", dtype, width, extras.given)
    run((B * H * -(-L // tiles.own_queries),), (_THREADS,),
        (q, k, v, g, logs, delta, dq, *common, *_strides(dq), *last), shared)
