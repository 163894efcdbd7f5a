"""Convolution and its two gradients on a GPU: by cuDNN, or by own kernels and matrix products.

cuDNN computes where it is installed, ``torch.backends.cudnn.enabled`` and knows the dtype (float16,
bfloat16, float32); the functions of ``convolution_own`` otherwise.

Both take an array's layout as it is: where the input or the weight is channels last, so is the
result, as in PyTorch. Integers and complex numbers, and operands of different dtypes, are computed
by the plain formulas (``conv_kernels``).

Shape legend: N batch, C and O channels in and out, S spatial dims, K kernel dims, P output dims (one
to three each), G groups. x: N×C×S, w: O×(C/G)×K, g: N×O×P.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from .. import conv_kernels, layouts
from ..dtypes import bfloat16, float16, float32, float64
from . import convolution_own as own
from . import cudnn

_OURS = (float32.np, bfloat16.np, float16.np, float64.np)

# What computes a convolution hangs on layouts, parameters and switches alone: it is decided once for
# each and kept as a function of the arrays.
_MOST_DECIDED = 8192
_decided: dict[tuple, Callable] = {}


def _keep(key, made):
    if len(_decided) >= _MOST_DECIDED:  # shapes that keep changing
        _decided.clear()
    if not cudnn.in_between():
        _decided[key] = made
    return made


def conv(xp, x, w, bias, stride, padding, dilation, groups):
    """Cross-correlation of x with w, plus ``bias`` (O or None): N×O×P."""
    key = (xp.index, x.shape, x.strides, x.dtype, w.shape, w.strides, w.dtype,
           None if bias is None else bias.dtype, stride, padding, dilation, groups, cudnn.switches())
    run = _decided.get(key) or _keep(
        key, _decide_forward(xp, x, w, bias, stride, padding, dilation, groups))
    return run(x, w, bias)


def conv_input_grad(xp, g, w, size, stride, padding, dilation, groups):
    """The gradient of x (of spatial ``size`` S), also the transposed convolution of g."""
    key = (xp.index, "input", size, g.shape, g.strides, g.dtype, w.shape, w.strides, w.dtype, stride,
           padding, dilation, groups, cudnn.switches())
    run = _decided.get(key)
    if run is None:
        last = layouts.is_channels_last(g) or layouts.is_channels_last(w)
        run = _keep(key, _input_grad(xp, g, w, size, last, stride, padding, dilation, groups))
    return run(g, w)


def conv_weight_grad(xp, x, g, kernel, stride, padding, dilation, groups):
    """The gradient of w: O×(C/G)×K."""
    key = (xp.index, "weight", kernel, x.shape, x.strides, x.dtype, g.shape, g.strides, g.dtype, stride,
           padding, dilation, groups, cudnn.switches())
    run = _decided.get(key)
    if run is None:
        last = layouts.is_channels_last(x) or layouts.is_channels_last(g)
        run = _keep(key, _weight_grad(xp, x, g, kernel, last, stride, padding, dilation, groups))
    return run(x, g)


def conv_grads(xp, g, x, w, needs, stride, padding, dilation, groups):
    """(gradient of x, of w, of the bias), None where ``needs`` says so. That of w has w's layout."""
    key = (xp.index, needs, g.shape, g.strides, g.dtype, x.shape, x.strides, x.dtype, w.shape,
           w.strides, w.dtype, stride, padding, dilation, groups, cudnn.switches())
    run = _decided.get(key) or _keep(
        key, _decide_backward(xp, g, x, w, needs, stride, padding, dilation, groups))
    return run(g, x, w)


# ---- decisions -----------------------------------------------------------------------------------
def _decide_forward(xp, x, w, bias, stride, padding, dilation, groups):
    """``f(x, w, bias)`` for arrays that lie like these."""
    options = stride, padding, dilation
    if not _ours(x, w):
        return lambda x, w, bias: conv_kernels.conv(xp, x, w, bias, *options, groups)
    size = xp.conv_output_size(x.shape[2:], w.shape[2:], *options)
    last = layouts.is_channels_last(x) or layouts.is_channels_last(w)
    shape = (x.shape[0], w.shape[0], *size)
    if x.size == 0 or w.size == 0 or 0 in shape:
        run = _zeros(xp, shape, x.dtype, last)
    else:
        run = _by_cudnn(xp, "conv_fprop", x, w, shape, last, *options) or (
            lambda x, w: own.forward(xp, x, w, shape, last, *options, groups))

    if bias is None or 0 in shape:
        return lambda x, w, bias: run(x, w)
    add = own.bias_adder(xp, shape, x.dtype, last)

    def biased(x, w, bias):
        out = run(x, w)
        add(out, bias)
        return out

    if cudnn.times_plans():  # in one kernel, where that takes less time
        fused = _by_cudnn(xp, "conv_fprop", x, w, shape, last, *options, bias)
        if fused is not None:
            return cudnn.faster(xp, (biased, fused), (x, w, bias))
    return biased


def _decide_backward(xp, g, x, w, needs, stride, padding, dilation, groups):
    """``f(g, x, w)`` for arrays that lie like these."""
    options = stride, padding, dilation, groups
    of_weight = layouts.is_channels_last(w)
    last = of_weight or layouts.is_channels_last(x)
    once = (_ours(g, w) and needs[0] and needs[1] and (last or cudnn.enabled())
            and not layouts.is_dense(g, last))
    if once:  # laid out for both at once; what follows is decided by the copy
        g = layouts.dense(xp, g, last)
    of_x = _input_grad(xp, g, w, x.shape[2:], last, *options) if needs[0] else None
    of_w = _weight_grad(xp, x, g, w.shape[2:], last, *options) if needs[1] else None
    to_rows, channel_sum = last and not of_weight, xp.channel_sum if needs[2] else None

    def run(g, x, w):
        if once:
            g = layouts.dense(xp, g, last)
        gx = gw = gb = None
        if of_x is not None:
            gx = of_x(g, w)
        if of_w is not None:
            gw = of_w(x, g)
            if to_rows:
                gw = xp.ascontiguousarray(gw)
        if channel_sum is not None:
            gb = channel_sum(g)
        return gx, gw, gb

    return run


def _ours(a, b) -> bool:
    return a.dtype == b.dtype and a.dtype in _OURS and 3 <= a.ndim <= 5


def _zeros(xp, shape, dtype, last):
    def run(a, b):
        out = layouts.empty(xp, shape, dtype, last)
        out.fill(0)
        return out

    return run


def _input_grad(xp, g, w, size, last, stride, padding, dilation, groups):
    """``f(g, w)``"""
    options = stride, padding, dilation
    if not _ours(g, w):
        return lambda g, w: conv_kernels.conv_input_grad(xp, g, w, size, *options, groups)
    shape = (g.shape[0], groups * w.shape[1], *size)
    if g.size == 0 or w.size == 0 or 0 in shape:
        return _zeros(xp, shape, g.dtype, last)
    return _by_cudnn(xp, "conv_dgrad", g, w, shape, last, *options) or (
        lambda g, w: own.input_grad(xp, g, w, shape, last, *options, groups))


def _weight_grad(xp, x, g, kernel, last, stride, padding, dilation, groups):
    """``f(x, g)``"""
    options = stride, padding, dilation
    if not _ours(x, g):
        return lambda x, g: conv_kernels.conv_weight_grad(xp, x, g, kernel, *options, groups)
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    if x.size == 0 or g.size == 0 or 0 in shape:
        return _zeros(xp, shape, x.dtype, last)
    return _by_cudnn(xp, "conv_wgrad", x, g, shape, last, *options) or (
        lambda x, g: own.weight_grad(xp, x, g, shape, last, *options, groups))


# ---- cuDNN ---------------------------------------------------------------------------------------
_OPERANDS = {"conv_fprop": ("image", "weight"), "conv_dgrad": ("loss", "filter"),
             "conv_wgrad": ("image", "loss")}


def _by_cudnn(xp, name, a, b, shape, last, stride, padding, dilation, bias=None):
    """``f(a, b)`` by the operation ``name`` of cuDNN's for arrays that lie like these, ``f(a, b, bias)``
    with a bias; None where cuDNN is absent, switched off or unable."""
    dtype = a.dtype
    if dtype == float64.np or not cudnn.enabled() or bias is not None and bias.dtype != dtype:
        return None
    key = (name, a.shape, b.shape, shape, last, stride, padding, dilation, dtype, bias is not None)
    exclude: tuple[str, ...] = ()
    if dtype == float32.np:
        exclude = cudnn.FULL_FLOAT32[1:] if cudnn.allow_tf32() else cudnn.FULL_FLOAT32
    make, as_it_is = layouts.maker(xp, shape, dtype, last), [layouts.is_dense(t, last) for t in (a, b)]
    dense_a, dense_b = as_it_is
    held = [_aligned(xp, layouts.dense(xp, t, last)) for t in (a, b)] + [make()]
    if bias is not None:
        held.append(_aligned(xp, xp.ascontiguousarray(bias)))
    try:
        plan = cudnn.plan(xp, key, lambda graph, library: describe(graph, *key), exclude,
                          [t.data.ptr for t in held])
    except cudnn.Unsupported as error:
        if bias is None:
            warnings.warn(f"{error}; own kernels compute it instead", stacklevel=2)
        return None
    put = plan.run

    def run(a, b):
        if not dense_a:
            a = layouts.dense(xp, a, last)
        if not dense_b:
            b = layouts.dense(xp, b, last)
        at, beside, out = a.data.ptr, b.data.ptr, make()
        if (at | beside) & 15:
            a, b = _aligned(xp, a), _aligned(xp, b)
            at, beside = a.data.ptr, b.data.ptr
        put([at, beside, out.data.ptr])
        return out

    def biased(a, b, bias):
        a, b = _aligned(xp, layouts.dense(xp, a, last)), _aligned(xp, layouts.dense(xp, b, last))
        bias, out = _aligned(xp, xp.ascontiguousarray(bias)), make()
        put([a.data.ptr, b.data.ptr, out.data.ptr, bias.data.ptr])
        return out

    return run if bias is None else biased


def _aligned(xp, array):
    """cuDNN's plans are made for addresses that are multiples of 16."""
    return array if layouts.is_aligned(array) else array.copy()


def describe(graph, name, a, b, shape, last, stride, padding, dilation, dtype, biased=False) -> None:
    """Put a convolution into a cuDNN graph: tensors 1 and 2 of shapes ``a`` and ``b``, the result 3; if
    ``biased``, 4 is a bias for each channel.

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
    if biased:
        row = (1, shape[1], *[1] * (len(shape) - 2))
        out = graph.bias(input=out, bias=graph.tensor(
            dim=list(row), stride=layouts.strides_of(row, last), data_type=kind, uid=4))
    out.set_output(True).set_uid(3).set_data_type(kind)
    out.set_dim(list(shape)).set_stride(layouts.strides_of(shape, last))
