"""The operations of convolutional networks, as registered, written with PyTorch's functions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F


def conv_nd(x, w, b, stride, padding, dilation, groups):
    return torch.convolution(x, w, b, stride, padding, dilation, False, (0,) * len(stride), groups)


def conv_input_grad(g, w, size, stride, padding, dilation, groups):
    least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in
             zip(g.shape[2:], stride, padding, dilation, w.shape[2:])]
    extra = [n - a for n, a in zip(size, least)]
    return torch.convolution(g, w, None, stride, padding, dilation, True, extra, groups)


def conv_weight_grad(x, g, kernel, stride, padding, dilation, groups):
    w = torch.zeros(g.shape[1], x.shape[1] // groups, *kernel, dtype=x.dtype)
    return torch.ops.aten.convolution_backward(
        g, x, w, None, stride, padding, dilation, False, (0,) * len(stride), groups,
        [False, True, False])[1]


def max_pool(x, windows):
    """Gather all windows, then take the maximum over their elements."""
    dims = len(windows)
    flat = torch.zeros((), dtype=torch.int64)
    for i, w in enumerate(windows):
        places = torch.from_numpy(w.places * math.prod(v.size for v in windows[i + 1 :]))
        outs, each = places.shape
        grown = flat.reshape(*flat.shape[:i], 1, *flat.shape[i:], 1)
        flat = grown + places.reshape(*(1,) * i, outs, *(1,) * i, each)
    flat = flat.flatten(dims)
    values, which = x.flatten(-dims)[..., flat].max(-1)
    return values, flat.expand(*which.shape, -1).gather(-1, which[..., None])[..., 0]


def unpool(x, places, size, unique):
    lead = x.shape[: -len(size)]
    zeros = torch.zeros(*lead, math.prod(size), dtype=x.dtype)
    full = zeros.scatter_add(-1, places.reshape(*lead, -1), x.reshape(*lead, -1))
    return full.reshape(*lead, *size)


def pooled_sum(x, kernel, stride, padding, size):
    dims = len(kernel)
    sides = []
    for i in reversed(range(dims)):
        reach = (size[i] - 1) * stride[i] + kernel[i] - padding[i] - x.shape[i - dims]
        sides += [padding[i], max(reach, 0)]
    x = F.pad(x, sides)
    for k, s, n in zip(kernel, stride, size):  # the first of the pooled dims goes to the end
        x = x.unfold(-dims, k, s).sum(-1).movedim(-dims, -1)[..., :n]
    return x


def spread_sum(g, kernel, stride, padding, size):
    dims = len(kernel)
    rows = g.reshape(-1, 1, *g.shape[-dims:])
    least = [(n - 1) * s - 2 * p + k for n, s, p, k in
             zip(g.shape[-dims:], stride, padding, kernel)]
    extra = [max(n - a, 0) for n, a in zip(size, least)]
    ones = torch.ones(1, 1, *kernel, dtype=g.dtype)
    full = torch.convolution(rows, ones, None, stride, padding, (1,) * dims, True, extra, 1)
    for i, n in enumerate(size):
        full = full.narrow(2 + i, 0, n)
    return full.reshape(*g.shape[:-dims], *size)


def resample_dim(x, dim, taps):
    matrix = np.zeros((taps.size, taps.index.shape[1]))
    weight = np.ones(taps.index.shape) if taps.weight is None else taps.weight
    for row, part in zip(taps.index, weight):
        np.add.at(matrix, (row, np.arange(matrix.shape[1])), part)
    return (x.movedim(dim, -1) @ torch.from_numpy(matrix).to(x.dtype)).movedim(-1, dim)


CONV_COUNTERPARTS = {
    "conv_nd": conv_nd, "conv_input_grad": conv_input_grad, "conv_weight_grad": conv_weight_grad,
    "max_pool": max_pool, "unpool": unpool, "pooled_sum": pooled_sum, "spread_sum": spread_sum,
    "resample_dim": resample_dim,
    "im2col": F.unfold, "col2im": F.fold,
    "constant_pad": lambda x, p, v=0.0: F.pad(x, p, "constant", v),
    "batch_norm_nd": lambda x, w, b, mean, var, training, eps: F.batch_norm(
        x, mean, var, w, b, training, 0.0, eps),
    "group_norm_nd": lambda x, w, b, groups, eps: F.group_norm(x, groups, w, b, eps),
}
