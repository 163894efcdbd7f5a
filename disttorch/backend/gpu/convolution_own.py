"""Convolution and its two gradients on a GPU without cuDNN: windows as matrices, and own kernels.

Windows are gathered into the rows of a matrix (im2col) and multiplied in one strided-batched product,
one matrix a group; windows of one element need no gathering, and groups of one channel have a kernel
of their own. Products are summed in float32 (float64 for float64) and rounded once.

Shape legend: N batch, C and O channels in and out, S spatial dims, K kernel dims, P output dims (one
to three each), G groups. x: N×C×S, w: O×(C/G)×K, g: N×O×P; ``shape`` is the result's, ``last`` its
layout.
"""

from __future__ import annotations

import math

import numpy as np

from .. import layouts
from ..dtypes import bfloat16, float16
from .kernel import blocks, kernel

_HALF = (bfloat16.np, float16.np)
_CHUNK = 1 << 27  # elements of a matrix of windows
_THREADS = 256


def _launch(xp, name, dtype, count, args):
    run = kernel(xp.cupy, "convolution", name, ELEMENT=dtype.name)
    run((blocks(count, _THREADS),), (_THREADS,), args)


def _three(values, fill) -> tuple:
    """Three spatial numbers of one to three."""
    return (fill,) * (3 - len(values)) + tuple(values)


def _steps(array) -> tuple:
    """Strides of N, C and three spatial dims, in elements."""
    size = array.itemsize
    n, c, *spatial = (s // size for s in array.strides)
    return n, c, *_three(spatial, 0)


def _geometry(size, kernel_size, out_size, stride, padding, dilation) -> tuple:
    return (*_three(size, 1), *_three(kernel_size, 1), *_three(out_size, 1), *_three(stride, 1),
            *_three(padding, 0), *_three(dilation, 1))


def _is_direct(kernel_size, stride, padding, groups) -> bool:
    """Whether windows are single elements: the convolution is a product of matrices."""
    return groups == 1 and set(kernel_size) == {1} and set(stride) == {1} and not any(padding)


def _is_depthwise(width, groups) -> bool:
    return width == 1 and groups > 1


def _weight_matrices(xp, w, groups):
    """w as G×(O/G)×(K·C/G): the order of a row of windows."""
    last = layouts.dense(xp, w, True)
    return layouts.rows(last).reshape(groups, w.shape[0] // groups, -1)


def _gathered(xp, x, kernel_size, out_size, stride, padding, dilation, groups):
    """The windows of x: G×(N·P)×(K·C/G)."""
    n, width = x.shape[0], x.shape[1] // groups
    places, window = math.prod(out_size), math.prod(kernel_size)
    cols = xp.empty((groups, n * places, window * width), x.dtype)
    steps, run = _steps(x), 16 // x.itemsize
    unfit = [s % run for s, many in zip(steps, (n, 0, *_three(x.shape[2:], 1))) if many > 1]
    if steps[1] != 1 or width % run or any(unfit) or not layouts.is_aligned(x):
        run = 1
    count = cols.size // run
    _launch(xp, "im2col", x.dtype, count, (
        x, cols, count, run, n, width,
        *_geometry(x.shape[2:], kernel_size, out_size, stride, padding, dilation), *steps))
    return cols


def _batches(n, each):
    """Slices of the batch whose matrices of ``each`` elements a sample keep to _CHUNK."""
    step = max(1, min(n, _CHUNK // max(1, each)))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _rows_of(xp, g, groups):
    """g as G×(N·P)×(O/G)."""
    matrix = layouts.rows(layouts.dense(xp, g, True))
    if groups == 1:
        return matrix[None]
    return matrix.reshape(matrix.shape[0], groups, -1).transpose(1, 0, 2)


def _from_groups(xp, product, shape):
    """G×(N·P)×(O/G) as a channels-last array N×O×P."""
    if product.shape[0] > 1:
        product = xp.ascontiguousarray(product.transpose(1, 0, 2))
    return layouts.from_rows(product, shape)


def forward(xp, x, w, shape, last, stride, padding, dilation, groups):
    kernel_size, size = w.shape[2:], shape[2:]
    if _is_depthwise(w.shape[1], groups):
        return _depthwise(xp, x, w, shape, last, stride, padding, dilation)
    if _is_direct(kernel_size, stride, padding, groups):
        matrix = w.reshape(w.shape[:2])
        if last:
            return layouts.from_rows(
                xp.matmul(layouts.rows(layouts.dense(xp, x, True)), matrix.T), shape)
        flat = xp.ascontiguousarray(x).reshape(*x.shape[:2], -1)
        return xp.matmul(matrix[None], flat).reshape(shape)
    matrices = _weight_matrices(xp, w, groups).transpose(0, 2, 1)
    parts = _batches(x.shape[0], math.prod(size) * math.prod(kernel_size) * x.shape[1])
    out = None if len(parts) == 1 else layouts.empty(xp, shape, x.dtype, last)
    for part in parts:
        cols = _gathered(xp, x[part], kernel_size, size, stride, padding, dilation, groups)
        product = xp.matmul(cols, matrices)
        made = _from_groups(xp, product, (part.stop - part.start, *shape[1:]))
        if out is None:
            return layouts.dense(xp, made, last)
        out[part] = made
    return out


def input_grad(xp, g, w, shape, last, stride, padding, dilation, groups):
    kernel_size, size = w.shape[2:], shape[2:]
    if _is_depthwise(w.shape[1], groups):
        return _depthwise_input_grad(xp, g, w, shape, last, stride, padding, dilation, groups)
    if _is_direct(kernel_size, stride, padding, groups):
        matrix = w.reshape(w.shape[:2])
        if last:
            return layouts.from_rows(
                xp.matmul(layouts.rows(layouts.dense(xp, g, True)), matrix), shape)
        flat = xp.ascontiguousarray(g).reshape(*g.shape[:2], -1)
        return xp.matmul(matrix.T[None], flat).reshape(shape)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size)]
    if set(stride) == {1} and all(p <= r for p, r in zip(padding, reach)):
        # a convolution with the mirrored kernel, channels in and out exchanged
        mirrored = _mirrored(xp, w, groups)
        pad = tuple(r - p for r, p in zip(reach, padding))
        return forward(xp, g, mirrored, shape, last, stride, pad, dilation, groups)
    if g.dtype in _HALF:  # a place's sum is over several windows: round it, not them
        wide = input_grad(xp, g.astype(np.float32), w.astype(np.float32), shape, last, stride,
                               padding, dilation, groups)
        return wide.astype(g.dtype)
    matrices = _weight_matrices(xp, w, groups)
    out = layouts.empty(xp, shape, g.dtype, last)
    steps = _steps(out)
    geometry = _geometry(size, kernel_size, g.shape[2:], stride, padding, dilation)
    for part in _batches(shape[0], math.prod(g.shape[2:]) * math.prod(kernel_size) * shape[1]):
        cols = xp.ascontiguousarray(xp.matmul(_rows_of(xp, g[part], groups), matrices))
        target = out[part]
        _launch(xp, "col2im", g.dtype, target.size, (
            cols, target, target.size, target.shape[0], groups, w.shape[1], *geometry, *steps))
    return out


def _mirrored(xp, w, groups):
    """w with its kernel turned round, and channels in and out of each group exchanged."""
    kernel_size, width = w.shape[2:], w.shape[1]
    turned = w[(slice(None), slice(None), *(slice(None, None, -1) for _ in kernel_size))]
    if groups == 1:
        return turned.swapaxes(0, 1)
    split = turned.reshape(groups, -1, width, *kernel_size).swapaxes(1, 2)
    return split.reshape(groups * width, -1, *kernel_size)


def weight_grad(xp, x, g, shape, last, stride, padding, dilation, groups):
    kernel_size, size = shape[2:], g.shape[2:]
    if _is_depthwise(shape[1], groups):
        return _depthwise_weight_grad(xp, x, g, shape, stride, padding, dilation)
    if _is_direct(kernel_size, stride, padding, groups):
        a, b = (layouts.rows(layouts.dense(xp, t, True)) for t in (g, x))
        return layouts.from_rows(xp.matmul(a.T, b), shape) if last else (
            xp.matmul(a.T, b).reshape(shape))
    parts = _batches(x.shape[0], math.prod(size) * math.prod(kernel_size) * x.shape[1])
    if len(parts) > 1 and x.dtype in _HALF:  # sums of parts are rounded once
        wide = weight_grad(xp, x.astype(np.float32), g.astype(np.float32), shape, last, stride,
                                padding, dilation, groups)
        return wide.astype(x.dtype)
    total = None
    for part in parts:
        cols = _gathered(xp, x[part], kernel_size, size, stride, padding, dilation, groups)
        product = xp.matmul(_rows_of(xp, g[part], groups).transpose(0, 2, 1), cols)
        total = product if total is None else xp.add(total, product, out=total)
    return layouts.dense(xp, layouts.from_rows(xp.ascontiguousarray(total), shape), last)


# ---- groups of one channel -----------------------------------------------------------------------
def _depthwise(xp, x, w, shape, last, stride, padding, dilation):
    out = layouts.empty(xp, shape, x.dtype, last)
    geometry = _geometry(x.shape[2:], w.shape[2:], shape[2:], stride, padding, dilation)
    _launch(xp, "depthwise", x.dtype, out.size, (
        x, xp.ascontiguousarray(w), out, out.size, shape[1], shape[1] // x.shape[1],
        *geometry, *_steps(x), *_steps(out), int(last)))
    return out


def _depthwise_input_grad(xp, g, w, shape, last, stride, padding, dilation, groups):
    out = layouts.empty(xp, shape, g.dtype, last)
    geometry = _geometry(shape[2:], w.shape[2:], g.shape[2:], stride, padding, dilation)
    _launch(xp, "depthwise_input_grad", g.dtype, out.size, (
        g, xp.ascontiguousarray(w), out, out.size, shape[1], w.shape[0] // groups,
        *geometry, *_steps(g), *_steps(out), int(last)))
    return out


def _depthwise_weight_grad(xp, x, g, shape, stride, padding, dilation):
    out = xp.empty(shape, x.dtype)
    geometry = _geometry(x.shape[2:], shape[2:], g.shape[2:], stride, padding, dilation)
    run = kernel(xp.cupy, "convolution", "depthwise_weight_grad", ELEMENT=x.dtype.name)
    run((out.size,), (_THREADS,), (
        x, g, out, x.shape[0], g.shape[1] // x.shape[1], *geometry, *_steps(x), *_steps(g)))
    return out


def bias_adder(xp, shape, dtype, last):
    """``f(out, bias)``: out += bias, in place, for dense arrays N×C×P of that layout that begin at
    multiples of 16 bytes, as new ones do."""
    count, channels, run = math.prod(shape), shape[1], 16 // dtype.itemsize
    inner = 1 if last else math.prod(shape[2:])
    wide = (channels if inner == 1 else inner) % run == 0
    name, run = ("add_bias_wide", run) if wide else ("add_bias", 1)
    made = kernel(xp.cupy, "convolution", name, ELEMENT=dtype.name)
    launch = made.prepared(_THREADS, (xp.ndarray, xp.ndarray, int, int, int))
    grid = blocks(count // run, _THREADS)

    def add(out, bias):
        launch(grid, out, bias if bias.flags.c_contiguous else xp.ascontiguousarray(bias), count // run,
               channels, inner)

    return add
