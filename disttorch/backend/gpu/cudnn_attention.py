"""Attention by cuDNN's fused kernels, where cuDNN is installed (see ``cudnn.py``).

For float16 and bfloat16 without mask and dropout, forward and backward, heads of keys shared by groups
of queries' heads included. Statistics are those of the kernels here: the natural logarithm of each
row's sum, float32. Backward is cuDNN's fast one, which adds up the gradient of the queries by atomics:
its last bits differ from run to run. (The deterministic one writes the gradients of all B·H·L·S scores
to memory on Hopper, 400 MB for a layer of GPT-2; where the same bits are wanted, ``attention`` takes
our kernels.)

Shape legend: B batch, H heads of queries, G heads of keys, L queries, S keys, E width of queries and
keys, V of values.
"""

from __future__ import annotations

import numpy as np

from . import cudnn
from .attention_own import maker

_Q, _K, _V, _OUT, _STATS, _GRAD, _DQ, _DK, _DV = range(1, 10)  # uids: the order of addresses


def _elements(a) -> list[int]:
    size = a.dtype.itemsize
    return [s // size for s in a.strides]


def _key(name, arrays, causal, scale) -> tuple:
    return (name, causal, scale, arrays[0].dtype.name, *[(a.shape, a.strides) for a in arrays])


def _put(graph, kind, layouts: dict) -> list:
    """Input tensors; ``layouts``: uid to (dims, strides)."""
    return [graph.tensor(dim=list(dim), stride=list(stride), data_type=kind, uid=uid)
            for uid, (dim, stride) in layouts.items()]


def _take(tensor, uid, dim, stride, kind) -> None:
    tensor.set_output(True).set_dim(list(dim)).set_stride(list(stride)).set_data_type(kind).set_uid(uid)


def _masking(library, causal: bool) -> dict:
    """Query i sees keys 0..i: the diagonal starts top left, and nothing to its right takes part."""
    if not causal:
        return {}
    return {"diagonal_alignment": library.diagonal_alignment.TOP_LEFT, "diagonal_band_right_bound": 0}


def _layouts(arrays) -> list[tuple]:
    return [(tuple(a.shape), tuple(_elements(a))) for a in arrays]


def _rows(shape) -> tuple:
    """(dims, strides) of one number for each row of a B×H×L×… array."""
    B, H, L = shape[:3]
    return (B, H, L, 1), (H * L, L, 1, 1)


def describe_forward(arrays, causal, scale):
    """What ``cudnn.plan`` fills a graph with; ``arrays``: q, k, v, out."""
    layouts, name, rows = _layouts(arrays), arrays[0].dtype.name, _rows(arrays[0].shape)

    def describe(graph, library):
        kind = cudnn.data_type(name)
        q, k, v = _put(graph, kind, dict(zip((_Q, _K, _V), layouts)))
        out, stats = graph.sdpa(q=q, k=k, v=v, generate_stats=True, attn_scale=scale,
                                **_masking(library, causal))
        _take(out, _OUT, *layouts[3], kind)
        _take(stats, _STATS, *rows, cudnn.data_type("float32"))

    return describe


def describe_backward(arrays, causal, scale):
    """The same for q, k, v, out, the gradient of out, and those of q, k, v."""
    layouts, name, rows = _layouts(arrays), arrays[0].dtype.name, _rows(arrays[0].shape)

    def describe(graph, library):
        kind = cudnn.data_type(name)
        q, k, v, out, grad = _put(graph, kind, dict(zip((_Q, _K, _V, _OUT, _GRAD), layouts)))
        (stats,) = _put(graph, cudnn.data_type("float32"), {_STATS: rows})
        grads = graph.sdpa_backward(q=q, k=k, v=v, o=out, dO=grad, stats=stats, attn_scale=scale,
                                    **_masking(library, causal))
        for tensor, uid, layout in zip(grads, (_DQ, _DK, _DV), layouts[5:]):
            _take(tensor, uid, *layout, kind)

    return describe


def forward(xp, q, k, v, causal: bool, scale: float):
    """The forward for arrays that lie in memory as these, as ``attention_own.forward``; None if cuDNN
    has no plan for it.

    Arrays are B×heads×rows×width with a contiguous last dim, at addresses that are multiples of 16.
    """
    (make, _), rows, wide = maker(xp, q, q.shape[2], v.shape[3]), q.shape[:3], np.dtype(np.float32)
    arrays = (q, k, v, make())
    try:
        plan = cudnn.plan(xp, _key("attention", arrays, causal, scale),
                          describe_forward(arrays, causal, scale))
    except cudnn.Unsupported:
        return None
    run, empty = plan.run, xp.empty

    def launch(q, k, v, extras):
        out, logs = make(), empty(rows, wide)
        run([q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, logs.data.ptr])  # by uid
        return out, logs

    return launch


def backward(xp, g, q, k, v, out, causal: bool, scale: float):
    """The same for backward, as ``attention_own.backward``."""
    makes = [maker(xp, a, *a.shape[2:])[0] for a in (q, k, v)]
    arrays = (q, k, v, out, g, *[make() for make in makes])
    try:
        plan = cudnn.plan(xp, _key("attention backward", arrays, causal, scale),
                          describe_backward(arrays, causal, scale))
    except cudnn.Unsupported:
        return None
    run = plan.run

    def launch(g, q, k, v, out, logs, extras):
        dq, dk, dv = [make() for make in makes]
        run([q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, logs.data.ptr, g.data.ptr, dq.data.ptr,
             dk.data.ptr, dv.data.ptr])
        return dq, dk, dv

    return launch
