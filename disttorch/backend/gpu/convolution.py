"""Convolution and its two gradients on a GPU: by cuDNN, or by own kernels and matrix products.

cuDNN computes where it is installed, ``torch.backends.cudnn.enabled`` and knows the dtype (float16,
bfloat16, float32). Otherwise windows are gathered into the rows of a matrix (im2col) and multiplied
in one strided-batched product, one matrix a group; windows of one element need no gathering, and
groups of one channel have a kernel of their own. Products are summed in float32 (float64 for
float64) and rounded once.

Both take an array's layout as it is: where the input or the weight is channels last, so is the
result, as in PyTorch. Integers and complex numbers, and operands of different dtypes, are computed
by the plain formulas (``conv_kernels``).

Shape legend: N batch, C and O channels in and out, S spatial dims, K kernel dims, P output dims (one
to three each), G groups. x: N×C×S, w: O×(C/G)×K, g: N×O×P.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from .. import conv_kernels, layouts
from ..dtypes import bfloat16, float16, float32, float64
from . import cudnn
from .kernel import blocks, kernel

_OURS = (float32.np, bfloat16.np, float16.np, float64.np)
_HALF = (bfloat16.np, float16.np)
_CHUNK = 1 << 27  # elements of a matrix of windows
_THREADS = 256


def conv(xp, x, w, bias, stride, padding, dilation, groups):
    """Cross-correlation of x with w, plus ``bias`` (O or None): N×O×P."""
    if not _ours(x, w):
        return conv_kernels.conv(xp, x, w, bias, stride, padding, dilation, groups)
    size = xp.conv_output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    last = layouts.is_channels_last(x) or layouts.is_channels_last(w)
    shape = (x.shape[0], w.shape[0], *size)
    if x.size == 0 or w.size == 0 or 0 in shape:
        out = _zeros(xp, shape, x.dtype, last)
    else:
        out = _by_cudnn(xp, "conv_fprop", x, w, shape, last, stride, padding, dilation)
        if out is None:
            out = _forward(xp, x, w, shape, last, stride, padding, dilation, groups)
    if bias is not None and out.size:
        _add_bias(xp, out, bias, last)
    return out


def conv_input_grad(xp, g, w, size, stride, padding, dilation, groups):
    """The gradient of x (of spatial ``size`` S), also the transposed convolution of g."""
    last = layouts.is_channels_last(g) or layouts.is_channels_last(w)
    return _input_grad(xp, g, w, size, stride, padding, dilation, groups, last)


def conv_weight_grad(xp, x, g, kernel, stride, padding, dilation, groups):
    """The gradient of w: O×(C/G)×K."""
    last = layouts.is_channels_last(x) or layouts.is_channels_last(g)
    return _weight_grad(xp, x, g, kernel, stride, padding, dilation, groups, last)


def conv_grads(xp, g, x, w, needs, stride, padding, dilation, groups):
    """(gradient of x, of w, of the bias), None where ``needs`` says so. That of w has w's layout."""
    gx = gw = gb = None
    of_weight = layouts.is_channels_last(w)
    last = of_weight or layouts.is_channels_last(x)
    if last and not layouts.is_channels_last(g) and needs[0] and needs[1]:
        g = layouts.dense(xp, g, True)  # once for both
    if needs[0]:
        gx = _input_grad(xp, g, w, x.shape[2:], stride, padding, dilation, groups, last)
    if needs[1]:
        gw = _weight_grad(xp, x, g, w.shape[2:], stride, padding, dilation, groups, last)
        if last and not of_weight:
            gw = xp.ascontiguousarray(gw)
    if needs[2]:
        gb = xp.channel_sum(g)
    return gx, gw, gb


def _ours(a, b) -> bool:
    return a.dtype == b.dtype and a.dtype in _OURS and 3 <= a.ndim <= 5


def _zeros(xp, shape, dtype, last):
    out = layouts.empty(xp, shape, dtype, last)
    out.fill(0)
    return out


def _input_grad(xp, g, w, size, stride, padding, dilation, groups, last):
    if not _ours(g, w):
        return conv_kernels.conv_input_grad(xp, g, w, size, stride, padding, dilation, groups)
    shape = (g.shape[0], groups * w.shape[1], *size)
    if g.size == 0 or w.size == 0 or 0 in shape:
        return _zeros(xp, shape, g.dtype, last)
    out = _by_cudnn(xp, "conv_dgrad", g, w, shape, last, stride, padding, dilation)
    if out is None:
        out = _backward_input(xp, g, w, shape, last, stride, padding, dilation, groups)
    return out


def _weight_grad(xp, x, g, kernel, stride, padding, dilation, groups, last):
    if not _ours(x, g):
        return conv_kernels.conv_weight_grad(xp, x, g, kernel, stride, padding, dilation, groups)
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    if x.size == 0 or g.size == 0 or 0 in shape:
        return _zeros(xp, shape, x.dtype, last)
    out = _by_cudnn(xp, "conv_wgrad", x, g, shape, last, stride, padding, dilation)
    if out is None:
        out = _backward_weight(xp, x, g, shape, last, stride, padding, dilation, groups)
    return out


# ---- cuDNN ---------------------------------------------------------------------------------------
_OPERANDS = {"conv_fprop": ("image", "weight"), "conv_dgrad": ("loss", "filter"),
             "conv_wgrad": ("image", "loss")}


def _by_cudnn(xp, name, a, b, shape, last, stride, padding, dilation):
    """The operation ``name`` of cuDNN's, or None where cuDNN is absent, switched off or unable."""
    dtype = a.dtype
    if dtype == float64.np or not cudnn.enabled():
        return None
    key = (name, a.shape, b.shape, shape, last, stride, padding, dilation, dtype)
    exclude: tuple[str, ...] = ()
    if dtype == float32.np:
        exclude = cudnn.FULL_FLOAT32[1:] if cudnn.allow_tf32() else cudnn.FULL_FLOAT32
    try:
        plan = cudnn.plan(xp, key, lambda graph, library: describe(graph, *key), exclude)
    except cudnn.Unsupported as error:
        warnings.warn(f"{error}; own kernels compute it instead", stacklevel=2)
        return None
    a, b = _aligned(xp, layouts.dense(xp, a, last)), _aligned(xp, layouts.dense(xp, b, last))
    out = layouts.empty(xp, shape, dtype, last)
    cudnn.execute(xp, plan, {1: a.data.ptr, 2: b.data.ptr, 3: out.data.ptr})
    return out


def _aligned(xp, array):
    """cuDNN's plans are made for addresses that are multiples of 16."""
    return array if layouts.is_aligned(array) else array.copy()


def describe(graph, name, a, b, shape, last, stride, padding, dilation, dtype) -> None:
    """Put a convolution into a cuDNN graph: tensors 1 and 2 of shapes ``a`` and ``b``, the result 3.

    One spatial dim becomes two, as cuDNN wants at least that.
    """
    kind = cudnn.data_type(dtype.name)
    if len(shape) == 3:
        a, b, shape = ((*s[:2], 1, s[2]) for s in (a, b, shape))
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    operands = {
        label: graph.tensor(dim=list(s), stride=layouts.strides_of(s, last), data_type=kind, uid=uid)
        for label, s, uid in zip(_OPERANDS[name], (a, b), (1, 2))
    }
    out = getattr(graph, name)(**operands, padding=list(padding), stride=list(stride),
                               dilation=list(dilation))
    out.set_output(True).set_uid(3).set_data_type(kind)
    out.set_dim(list(shape)).set_stride(layouts.strides_of(shape, last))


# ---- own kernels ---------------------------------------------------------------------------------
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


def _forward(xp, x, w, shape, last, stride, padding, dilation, groups):
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


def _backward_input(xp, g, w, shape, last, stride, padding, dilation, groups):
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
        return _forward(xp, g, mirrored, shape, last, stride, pad, dilation, groups)
    if g.dtype in _HALF:  # a place's sum is over several windows: round it, not them
        wide = _backward_input(xp, g.astype(np.float32), w.astype(np.float32), shape, last, stride,
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


def _backward_weight(xp, x, g, shape, last, stride, padding, dilation, groups):
    kernel_size, size = shape[2:], g.shape[2:]
    if _is_depthwise(shape[1], groups):
        return _depthwise_weight_grad(xp, x, g, shape, stride, padding, dilation)
    if _is_direct(kernel_size, stride, padding, groups):
        a, b = (layouts.rows(layouts.dense(xp, t, True)) for t in (g, x))
        return layouts.from_rows(xp.matmul(a.T, b), shape) if last else (
            xp.matmul(a.T, b).reshape(shape))
    parts = _batches(x.shape[0], math.prod(size) * math.prod(kernel_size) * x.shape[1])
    if len(parts) > 1 and x.dtype in _HALF:  # sums of parts are rounded once
        wide = _backward_weight(xp, x.astype(np.float32), g.astype(np.float32), shape, last, stride,
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


def _add_bias(xp, out, bias, last):
    """out += bias, in place; out is dense."""
    inner = 1 if last else math.prod(out.shape[2:])
    _launch(xp, "add_bias", out.dtype, out.size, (
        out, xp.ascontiguousarray(bias), out.size, out.shape[1], inner))
