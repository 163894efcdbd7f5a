"""Convolution and its two gradients, in any number of spatial dims, by windows and matrix products.

Data is brought to channels-last order once per call. There a window's kw·C elements of one row are
one contiguous run, so gathering windows into the rows of a matrix (im2col) copies long runs, and a
batch chunk whose matrix fits the cache is multiplied by the weights in one call of BLAS. Groups are
convolved one after the other; groups of a single channel have kernels of their own
(``depthwise_kernels``).

Each function takes the namespace ``xp`` first and becomes a method of it.

Shape legend: N batch, C and O channels in and out, S spatial dims, K kernel dims, P output
dims (the last three stand for one to three dims), G groups. x: N×C×S, w: O×(C/G)×K, g: N×O×P.
``stride``, ``padding`` and ``dilation`` are tuples with one int per spatial dim.
"""

from __future__ import annotations

import itertools
import math

from .depthwise_kernels import depthwise, depthwise_input_grad, depthwise_weight_grad

_CHUNK = 1 << 20  # elements of a matrix of windows: a few MiB, within the last-level cache


def conv_output_size(xp, size, kernel, stride, padding, dilation) -> tuple:
    """P of a convolution over S."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )


def conv(xp, x, w, bias, stride, padding, dilation, groups):
    """Cross-correlation of x with w, plus ``bias`` (O or None): N×O×P."""
    size = xp.conv_output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    if groups == 1:
        out = _conv_group(xp, x, w, stride, padding, dilation, size)
    elif w.shape[1] == 1:
        out = depthwise(xp, x, w, stride, padding, dilation, size)
    else:
        out = xp.empty((x.shape[0], w.shape[0], *size), xp.result_type(x, w))
        for ins, outs in _group_slices(x.shape[1], w.shape[0], groups):
            out[:, outs] = _conv_group(xp, x[:, ins], w[outs], stride, padding, dilation, size)
    if bias is not None:
        out += bias.reshape(-1, *(1,) * len(size))
    return out


def conv_input_grad(xp, g, w, size, stride, padding, dilation, groups):
    """The gradient of x (of spatial ``size`` S), also the transposed convolution of g."""
    if groups == 1:
        return _input_grad_group(xp, g, w, size, stride, padding, dilation)
    if w.shape[1] == 1:
        return depthwise_input_grad(xp, g, w, size, stride, padding, dilation, groups)
    out = xp.empty((g.shape[0], groups * w.shape[1], *size), xp.result_type(g, w))
    for ins, outs in _group_slices(out.shape[1], w.shape[0], groups):
        out[:, ins] = _input_grad_group(xp, g[:, outs], w[outs], size, stride, padding, dilation)
    return out


def conv_weight_grad(xp, x, g, kernel, stride, padding, dilation, groups):
    """The gradient of w: O×(C/G)×K."""
    if groups == 1:
        return _weight_grad_group(xp, x, g, kernel, stride, padding, dilation)
    if groups == x.shape[1]:
        return depthwise_weight_grad(xp, x, g, kernel, stride, padding, dilation)
    out = xp.empty((g.shape[1], x.shape[1] // groups, *kernel), xp.result_type(x, g))
    for ins, outs in _group_slices(x.shape[1], g.shape[1], groups):
        out[outs] = _weight_grad_group(xp, x[:, ins], g[:, outs], kernel, stride, padding, dilation)
    return out


def conv_grads(xp, g, x, w, needs, stride, padding, dilation, groups):
    """(gradient of x, of w, of the bias), None where ``needs`` says so."""
    gx = gw = gb = None
    if needs[0]:
        gx = xp.conv_input_grad(g, w, x.shape[2:], stride, padding, dilation, groups)
    if needs[1]:
        gw = xp.conv_weight_grad(x, g, w.shape[2:], stride, padding, dilation, groups)
    if needs[2]:
        gb = xp.channel_sum(g)
    return gx, gw, gb


def _group_slices(channels, outputs, groups):
    """Which channels in and out belong together."""
    c, o = channels // groups, outputs // groups
    for i in range(groups):
        yield slice(i * c, (i + 1) * c), slice(i * o, (i + 1) * o)


# ---------------------------------------------------------------- layouts
def _channels_last(xp, x, padding=None):
    """N×C×S as a contiguous N×(S + 2·padding)×C."""
    moved = x.transpose(0, *range(2, x.ndim), 1)
    if padding is None or not any(padding):
        return xp.ascontiguousarray(moved)
    shape = [n + 2 * p for n, p in zip(x.shape[2:], padding)]
    out = xp.zeros((x.shape[0], *shape, x.shape[1]), x.dtype)
    out[(slice(None), *(slice(p, p + n) for p, n in zip(padding, x.shape[2:])))] = moved
    return out


def _windows(xp, last, kernel, stride, dilation, size):
    """A view N×P×K×C of a channels-last array."""
    step = last.strides[1:-1]
    strides = (
        last.strides[0],
        *(a * s for a, s in zip(step, stride)),
        *(a * d for a, d in zip(step, dilation)),
        last.strides[-1],
    )
    shape = (last.shape[0], *size, *kernel, last.shape[-1])
    return xp.lib.stride_tricks.as_strided(last, shape, strides)


def _chunks(batch, each):
    """Slices of the batch whose matrices of ``each`` elements per sample keep to _CHUNK."""
    step = max(1, _CHUNK // max(1, each))
    for start in range(0, batch, step):
        yield slice(start, min(batch, start + step))


def _weight_matrix(xp, w):
    """w as (K·C)×O: the order of a window's elements."""
    return xp.ascontiguousarray(w.transpose(*range(2, w.ndim), 1, 0)).reshape(-1, w.shape[0])


def _is_pointwise(kernel, padding):
    return all(k == 1 for k in kernel) and not any(padding)


def _strided(x, stride):
    return x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]


def _product(xp, matrix, flat):
    """matrix O×C times each sample of N×C×L; small samples side by side in one product."""
    n, c, length = flat.shape
    if length >= 64 or n == 1:
        return xp.matmul(matrix, flat)
    rows = xp.ascontiguousarray(flat.transpose(0, 2, 1)).reshape(n * length, c)
    out = xp.matmul(rows, matrix.T).reshape(n, length, matrix.shape[0])
    return xp.ascontiguousarray(out.transpose(0, 2, 1))


# ---------------------------------------------------------------- one group
def _conv_group(xp, x, w, stride, padding, dilation, size):
    if _is_pointwise(w.shape[2:], padding):
        flat = xp.ascontiguousarray(_strided(x, stride)).reshape(*x.shape[:2], math.prod(size))
        out = _product(xp, w.reshape(w.shape[:2]), flat)
    else:
        out = _conv_last(xp, _channels_last(xp, x, padding), w, stride, dilation, size)
    return out.reshape(x.shape[0], w.shape[0], *size)


def _conv_last(xp, last, w, stride, dilation, size):
    """The convolution of a padded channels-last array: N×O×(product of P)."""
    kernel, channels = w.shape[2:], w.shape[0]
    windows = _windows(xp, last, kernel, stride, dilation, size)
    matrix, length = _weight_matrix(xp, w), math.prod(size)
    out = xp.empty((last.shape[0], channels, length), xp.result_type(last, w))
    for b in _chunks(last.shape[0], length * matrix.shape[0]):
        product = xp.matmul(windows[b].reshape(-1, matrix.shape[0]), matrix)
        out[b] = product.reshape(-1, length, channels).transpose(0, 2, 1)
    return out


def _input_grad_group(xp, g, w, size, stride, padding, dilation):
    kernel, channels = w.shape[2:], w.shape[1]
    if _is_pointwise(kernel, padding):
        flat = xp.ascontiguousarray(g).reshape(*g.shape[:2], math.prod(g.shape[2:]))
        out = _product(xp, w.reshape(w.shape[:2]).T, flat)
        out = out.reshape(g.shape[0], channels, *g.shape[2:])
        if out.shape[2:] == tuple(size):
            return out
        full = xp.zeros((g.shape[0], channels, *size), out.dtype)
        at = tuple(slice(0, s * (n - 1) + 1, s) for s, n in zip(stride, g.shape[2:]))
        full[(slice(None), slice(None), *at)] = out
        return full
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    unit = all(s == 1 for s in stride)
    if unit and all(p <= r for p, r in zip(padding, reach)):
        # a convolution with the mirrored kernel, channels in and out exchanged
        last = _channels_last(xp, g, [r - p for r, p in zip(reach, padding)])
        mirrored = w[(slice(None), slice(None), *(slice(None, None, -1) for _ in kernel))]
        out = _conv_last(xp, last, mirrored.swapaxes(0, 1), stride, dilation, tuple(size))
        return out.reshape(g.shape[0], channels, *size)
    return _scattered(xp, _channels_last(xp, g), w, size, stride, padding, dilation)


def _scattered(xp, last, w, size, stride, padding, dilation):
    """Any stride: the gradient of each window's elements, added up where they came from."""
    kernel, channels, out_size = w.shape[2:], w.shape[1], last.shape[1:-1]
    length, matrix = math.prod(out_size), _weight_matrix(xp, w).T
    padded = [n + 2 * p for n, p in zip(size, padding)]
    total = xp.zeros((last.shape[0], *padded, channels), xp.result_type(last, w))
    every = (slice(None),) * (1 + len(kernel))
    for b in _chunks(last.shape[0], length * matrix.shape[1]):
        cols = xp.matmul(last[b].reshape(-1, last.shape[-1]), matrix)
        cols = cols.reshape(-1, *out_size, *kernel, channels)
        for offset in itertools.product(*map(range, kernel)):
            at = tuple(
                slice(o * d, o * d + s * (n - 1) + 1, s)
                for o, d, s, n in zip(offset, dilation, stride, out_size)
            )
            total[(b, *at)] += cols[(*every, *offset)]
    inside = total[(slice(None), *(slice(p, p + n) for p, n in zip(padding, size)))]
    return xp.ascontiguousarray(xp.moveaxis(inside, -1, 1))


def _weight_grad_group(xp, x, g, kernel, stride, padding, dilation):
    channels, outputs = x.shape[1], g.shape[1]
    g_last = _channels_last(xp, g)
    if _is_pointwise(kernel, padding):
        at = tuple(slice(0, s * (n - 1) + 1, s) for s, n in zip(stride, g.shape[2:]))
        rows = _channels_last(xp, x[(slice(None), slice(None), *at)]).reshape(-1, channels)
        return xp.matmul(g_last.reshape(-1, outputs).T, rows).reshape(outputs, channels, *kernel)
    size, width = g.shape[2:], math.prod(kernel) * channels
    windows = _windows(xp, _channels_last(xp, x, padding), kernel, stride, dilation, size)
    total = xp.zeros((outputs, width), xp.result_type(x, g))
    for b in _chunks(x.shape[0], math.prod(size) * width):
        rows = windows[b].reshape(-1, width)
        part = xp.matmul(g_last[b].reshape(-1, outputs).T, rows)
        total = part if b.start == 0 else xp.add(total, part, out=total)
    total = total.reshape(outputs, *kernel, channels)
    return xp.ascontiguousarray(xp.moveaxis(total, -1, 1))
