"""Attention without its scores in memory: who serves a call, our kernels or cuDNN's.

Both take float16 and bfloat16 up to a width of 128 (cuDNN's up to 256), and heads of keys that several
heads of queries share; ours also masks and dropout. Other cases (float32, float64, wider heads,
gradients of a mask, a scale that is not positive) go to formulas with products and a softmax.

Without mask and dropout, cuDNN comes first where it is installed and has a plan. Its backward adds up
the gradient of the queries in no fixed order, as in PyTorch; where deterministic algorithms are asked
for, ours runs backward: the same bits on every run. ``torch.backends.cuda.enable_cudnn_sdp`` switches
cuDNN's kernels, ``enable_flash_sdp`` and ``enable_mem_efficient_sdp`` both allow ours.

Who serves a call, and with which numbers, hangs on the layout of its arrays alone: that is decided once
for each layout and kept as a function.

Shape legend: B batch, H heads of queries, G of them for one head of keys, L queries, S keys, E width of
queries and keys, V of values.
"""

from __future__ import annotations

import math

from .. import attention_kernels
from ..dtypes import HALF_NP
from . import attention_own as own
from . import cudnn, cudnn_attention

_MOST = 1 << 31
_SHORT = 128  # fewer queries or keys are not worth the time that cuDNN takes to make a plan (some 0.4 s)
_MOST_PLANS = 64  # layouts for which it is asked: lengths may change from call to call
_MOST_LAYOUTS = 4096
_WIDEST_OF_CUDNN = 256

_forwards: dict = {}
_backwards: dict = {}
_alone: dict[tuple, bool] = {}  # whether cuDNN serves a layout that nobody else does
_asked: set = set()  # layouts that cuDNN was asked for


# ---------------------------------------------------------------- arrays as the kernels want them
def _lies_well(a) -> bool:
    """Whether rows of a B×H×R×C array can be read 16 bytes at a time: the last dim contiguous, the other
    strides multiples of 16 bytes. Its address must be one, too."""
    *outer, last = a.strides
    return (a.ndim == 4 and (last == a.dtype.itemsize or a.shape[-1] == 1) and a.shape[-1] % 8 == 0
            and all(s % 16 == 0 or n == 1 for s, n in zip(outer, a.shape)))


def _aligned(xp, a):
    """The array itself if it fits, else a copy, its last dim filled up with zeros to 8 elements."""
    a = _as_heads(a)
    if _lies_well(a) and a.data.ptr % 16 == 0:
        return a
    out = xp.zeros((*a.shape[:-1], -(-a.shape[-1] // 8) * 8), a.dtype)
    out[..., : a.shape[-1]] = a
    return out


def _as_heads(a):
    """…×R×C as B×H×R×C; a view where the strides allow."""
    if a.ndim == 4:
        return a
    if a.ndim == 3:
        return a[None]
    if a.ndim == 2:
        return a[None, None]
    return a.reshape(-1, *a.shape[-3:])


# ---------------------------------------------------------------- which cases
def _switches() -> tuple[bool, bool, bool]:
    """What programs may change between calls: whether cuDNN and the kernels here may serve, and whether
    the same bits are asked for on every run."""
    allowed = attention_kernels.ALLOWED
    own_may = allowed["flash"] or allowed["mem_efficient"]
    cudnn_may = allowed["cudnn"] and not (own_may and allowed["own first"]) and cudnn.enabled()
    return cudnn_may, own_may, cudnn.deterministic()


def _layout(xp, extras, is_causal, scale, q, k, v) -> tuple:
    """What it hangs on who serves a call and with which numbers, the addresses aside."""
    return (xp.index, extras, is_causal, scale, _switches(), q.dtype, q.shape, q.strides, k.dtype,
            k.shape, k.strides, v.dtype, v.shape, v.strides)


def attention_fits(xp, query, key, value, mask, dropout_p, scale, is_causal=False) -> bool:
    """Whether the kernels here compute this attention; see this module's text."""
    q, k, v = query.shape, key.shape, value.shape
    if query.dtype not in HALF_NP or not query.dtype == key.dtype == value.dtype:
        return False
    by_cudnn, by_own, _ = _switches()
    if not (by_own or by_cudnn and mask is None and not dropout_p):
        return False
    if not (scale > 0 and math.isfinite(scale)):
        return False
    if 0 in q or 0 in k or 0 in v or max(q[-2], k[-2]) >= _MOST >> 8:
        return False
    if mask is not None and (mask.ndim > 2 and len(q) > 4  # its leading dims are not merged
                             or abs(mask.strides[-1]) * k[-2] >= _MOST):
        return False
    if math.prod(q[:-1]) >= _MOST:
        return False
    return by_own and not _is_wide(query, value) or (
        mask is None and not dropout_p and _cudnn_has_plans(xp, query, key, value, is_causal, scale))


def _is_wide(query, value) -> bool:
    """Whether heads are too wide for the kernels here."""
    return query.shape[-1] > own.WIDEST or value.shape[-1] > own.WIDEST


def _cudnn_has_plans(xp, query, key, value, is_causal, scale) -> bool:
    """Whether cuDNN serves, in both directions, what the kernels here may not or cannot. Its backward is
    not taken where the same bits are asked for, and then nor is its forward."""
    by_cudnn, by_own, repeatable = _switches()
    width = max(query.shape[-1], value.shape[-1])
    if repeatable or not by_cudnn or width > _WIDEST_OF_CUDNN:
        return False
    layout = _layout(xp, 0, is_causal, scale, query, key, value)
    found = _alone.get(layout)
    if found is None:
        q, k, v = (_aligned(xp, a) for a in (query, key, value))
        found = _cudnn_is_worth_it(layout, by_own, q.shape[2], k.shape[2])
        run = found and cudnn_attention.forward(xp, q, k, v, bool(is_causal), float(scale))
        if found := bool(run):
            out = own.maker(xp, q, q.shape[2], v.shape[3])[0]()
            back = cudnn_attention.backward(xp, out, q, k, v, out, bool(is_causal), float(scale))
            found = back is not None
        _keep(_alone, layout, found)
    return found


def _cudnn_is_worth_it(layout, by_own: bool, queries: int, keys: int) -> bool:
    """Whether to ask cuDNN: always where nothing else may serve, else for long rows and few layouts."""
    if by_own and (min(queries, keys) < _SHORT or layout not in _asked and len(_asked) >= _MOST_PLANS):
        return False
    _asked.add(layout)
    return True


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


# ---------------------------------------------------------------- forward
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
    extras = own.which(mask, dropout_p)
    run = _forwards.get(_layout(xp, extras, is_causal, scale, query, key, value))
    if run is not None and not (query.data.ptr | key.data.ptr | value.data.ptr) & 15:
        return run(query, key, value, own.extras_of(mask, dropout_p, random) if extras else ())
    if not attention_fits(xp, query, key, value, mask, dropout_p, scale, is_causal):
        return attention_kernels.attention_forward(
            xp, query, key, value, mask, is_causal, scale, dropout_p, random)
    arrays = [_aligned(xp, a) for a in (query, key, value)]
    run = _forward(xp, *arrays, is_causal, scale, extras)
    out, logs = run(*arrays, own.extras_of(mask, dropout_p, random))
    lead, V = query.shape[:-1], value.shape[-1]
    return out[..., :V].reshape(*lead, V), logs.reshape(lead)


def _forward(xp, q, k, v, is_causal, scale, extras):
    """What serves arrays that lie in memory as these: ``f(q, k, v, extras)``."""
    by_cudnn, by_own, _ = _switches()
    layout = _layout(xp, extras, is_causal, scale, q, k, v)
    run = _forwards.get(layout)
    if run is None:
        if by_cudnn and not extras and (
                _is_wide(q, v) or _cudnn_is_worth_it(layout, by_own, q.shape[2], k.shape[2])):
            run = cudnn_attention.forward(xp, q, k, v, bool(is_causal), float(scale))
        run = run or own.forward(xp, q, k, v, is_causal, scale, extras)
        _keep(_forwards, layout, run)
    return run


def _keep(where: dict, layout: tuple, run) -> None:
    if len(where) >= _MOST_LAYOUTS:
        where.clear()
    where[layout] = run


# ---------------------------------------------------------------- backward
def attention_backward(xp, g, query, key, value, mask, out, logs, is_causal, scale, dropout_p, random):
    """The gradients of query, key and value of ``attention_forward``; ``g``: that of ``out``."""
    extras = own.which(mask, dropout_p)
    run = _backwards.get((_layout(xp, extras, is_causal, scale, query, key, value), g.dtype, g.strides,
                          out.strides))
    if run is not None and not (query.data.ptr | key.data.ptr | value.data.ptr | g.data.ptr
                                | out.data.ptr) & 15:
        return run(g, query, key, value, out, logs,
                   own.extras_of(mask, dropout_p, random) if extras else ())
    if not attention_fits(xp, query, key, value, mask, dropout_p, scale, is_causal):
        return attention_kernels.attention_backward(
            xp, g, query, key, value, mask, out, logs, is_causal, scale, dropout_p, random)
    arrays = [_aligned(xp, a) for a in (g.astype(query.dtype, copy=False), query, key, value, out)]
    run = _backward(xp, *arrays, is_causal, scale, extras)
    grads = run(*arrays, xp.ascontiguousarray(logs), own.extras_of(mask, dropout_p, random))
    return tuple(d[..., : a.shape[-1]].reshape(a.shape) for d, a in zip(grads, (query, key, value)))


def _backward(xp, g, q, k, v, out, is_causal, scale, extras):
    """What serves arrays that lie in memory as these: ``f(g, q, k, v, out, logs, extras)``."""
    by_cudnn, by_own, repeatable = _switches()
    layout = _layout(xp, extras, is_causal, scale, q, k, v), g.dtype, g.strides, out.strides
    run = _backwards.get(layout)
    if run is None:
        if by_cudnn and not extras and not repeatable and (
                _is_wide(q, v) or _cudnn_is_worth_it(layout, by_own, q.shape[2], k.shape[2])):
            run = cudnn_attention.backward(xp, g, q, k, v, out, bool(is_causal), float(scale))
        if run is None and _is_wide(q, v):
            run = _by_formula(xp, is_causal, scale)
        run = run or own.backward(xp, g, q, k, v, out, is_causal, scale, extras)
        _keep(_backwards, layout, run)
    return run


def _by_formula(xp, is_causal, scale):
    """Backward of wide heads whose gradient lies as cuDNN does not take it: scores in memory."""
    def backward(g, q, k, v, out, logs, extras):
        return attention_kernels.attention_backward(
            xp, g, q, k, v, None, out, logs, is_causal, scale, 0.0, None)

    return backward
