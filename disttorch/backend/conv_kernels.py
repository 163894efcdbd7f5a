"""Convolution and its two gradients, in any number of spatial dims, by windows and matrix products.

Data is brought to channels-last order once per call. There a window's kw·C elements of one row are
one contiguous run, so gathering windows into the rows of a matrix (im2col) copies long runs, and a
batch chunk whose matrix fits the cache is multiplied by the weights in one call of BLAS.

Each function takes the namespace ``xp`` first and becomes a method of it.

Shape legend: N batch, C and O channels in and out, S spatial dims, K kernel dims, P output
dims (the last three stand for one to three dims), G groups. x: N×C×S, w: O×(C/G)×K, g: N×O×P.
``stride``, ``padding`` and ``dilation`` are tuples with one int per spatial dim.
"""

from __future__ import annotations

import itertools
import math

_CHUNK = 1 << 20  # elements of a matrix of windows: a few MiB, within the last-level cache


def conv_output_size(xp, size, kernel, stride, padding, dilation) -> tuple:
    """P of a convolution over S."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )


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
    step, inner = last.strides[1:-1], last.strides[-1]
    strides = (
        last.strides[0],
        *(a * s for a, s in zip(step, stride)),
        *(a * d for a, d in zip(step, dilation)),
        inner,
    )
    shape = (last.shape[0], *size, *kernel, last.shape[-1])
    return xp.lib.stride_tricks.as_strided(last, shape, strides)


def _chunks(batch, each):
    """Slices of the batch whose matrices of ``each`` elements per sample keep to _CHUNK."""
    step = max(1, _CHUNK // max(1, each))
    for start in range(0, batch, step):
        yield slice(start, min(batch, start + step))


def _rows(xp, windows, groups):
    """Windows N×P×K×C as a matrix (N·P)×(K·C), or G of them: G×(N·P)×(K·C/G)."""
    n_rows = math.prod(windows.shape[: windows.ndim // 2])
    if groups == 1:
        return windows.reshape(n_rows, -1)
    kc = windows.shape[windows.ndim // 2 :]
    split = windows.reshape(*windows.shape[:-1], groups, kc[-1] // groups)
    moved = xp.moveaxis(split, -2, 0)
    return xp.ascontiguousarray(moved).reshape(groups, n_rows, -1)


def _weight_matrix(xp, w, groups):
    """w as (K·C)×O, or G×(K·C/G)×(O/G): the order of a window's elements."""
    if groups == 1:
        return xp.ascontiguousarray(w.transpose(*range(2, w.ndim), 1, 0)).reshape(-1, w.shape[0])
    split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    moved = split.transpose(0, *range(3, split.ndim), 2, 1)
    return xp.ascontiguousarray(moved).reshape(groups, -1, split.shape[1])


def _is_pointwise(kernel, padding):
    return all(k == 1 for k in kernel) and not any(padding)


def _strided(x, stride):
    return x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]


def conv(xp, x, w, bias, stride, padding, dilation, groups):
    """Cross-correlation of x with w, plus ``bias`` (O or None): N×O×P."""
    kernel, channels = w.shape[2:], w.shape[0]
    size = xp.conv_output_size(x.shape[2:], kernel, stride, padding, dilation)
    if groups == 1 and _is_pointwise(kernel, padding):
        flat = xp.ascontiguousarray(_strided(x, stride)).reshape(*x.shape[:2], -1)
        out = _product(xp, w.reshape(channels, -1), flat)
    elif groups > 1 and groups == x.shape[1]:
        out = _depthwise(xp, x, w, stride, padding, dilation, size)
    else:
        last = _channels_last(xp, x, padding)
        out = _conv_last(xp, last, w, stride, dilation, groups, size)
    out = out.reshape(x.shape[0], channels, *size)
    if bias is not None:
        out += bias.reshape(-1, *(1,) * len(size))
    return out


def _product(xp, matrix, flat):
    """matrix O×C times each sample of C×L; small samples side by side in one product."""
    n, c, length = flat.shape
    if length >= 64 or n == 1:
        return xp.matmul(matrix, flat)
    rows = xp.ascontiguousarray(flat.transpose(0, 2, 1)).reshape(n * length, c)
    out = xp.matmul(rows, matrix.T).reshape(n, length, -1)
    return xp.ascontiguousarray(out.transpose(0, 2, 1))


def _conv_last(xp, last, w, stride, dilation, groups, size):
    """The convolution of a padded channels-last array: N×O×(product of P)."""
    kernel, channels = w.shape[2:], w.shape[0]
    windows = _windows(xp, last, kernel, stride, dilation, size)
    matrix, length = _weight_matrix(xp, w, groups), math.prod(size)
    out = xp.empty((last.shape[0], channels, length), xp.result_type(last, w))
    for b in _chunks(last.shape[0], length * math.prod(kernel) * last.shape[-1]):
        product = xp.matmul(_rows(xp, windows[b], groups), matrix)
        if groups == 1:
            out[b] = product.reshape(-1, length, channels).transpose(0, 2, 1)
        else:
            by_group = product.reshape(groups, -1, length, channels // groups)
            out[b].reshape(-1, groups, channels // groups, length)[...] = (
                by_group.transpose(1, 0, 3, 2)
            )
    return out


def conv_input_grad(xp, g, w, size, stride, padding, dilation, groups):
    """The gradient of x (of spatial ``size`` S), also the transposed convolution of g."""
    kernel, inner = w.shape[2:], w.shape[1]
    if groups == 1 and _is_pointwise(kernel, padding):
        flat = xp.ascontiguousarray(g).reshape(*g.shape[:2], -1)
        out = _product(xp, w.reshape(w.shape[0], -1).T, flat)
        out = out.reshape(g.shape[0], inner, *g.shape[2:])
        if out.shape[2:] == tuple(size):
            return out
        full = xp.zeros((g.shape[0], inner, *size), out.dtype)
        _strided(full, stride)[...] = out
        return full
    if groups > 1 and inner == 1:
        return _depthwise_input_grad(xp, g, w, size, stride, padding, dilation, groups)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if all(s == 1 for s in stride) and all(
        p <= r for p, r in zip(padding, reach)
    ):
        # unit stride: a convolution with the mirrored kernel, channels in and out exchanged
        last = _channels_last(xp, g, [r - p for r, p in zip(reach, padding)])
        return _input_grad_last(xp, last, w, dilation, groups, size)
    return _scattered(xp, _channels_last(xp, g), w, size, stride, padding, dilation, groups)


def _input_grad_last(xp, last, w, dilation, groups, size):
    """Unit stride: ``last`` is the gradient, padded so that each input sees all its windows."""
    mirrored = w[(slice(None), slice(None), *(slice(None, None, -1) for _ in w.shape[2:]))]
    inner = w.shape[1]
    split = mirrored.reshape(groups, -1, inner, *w.shape[2:]).swapaxes(1, 2)
    exchanged = split.reshape(groups * inner, -1, *w.shape[2:])
    ones = (1,) * len(size)
    out = _conv_last(xp, last, exchanged, ones, dilation, groups, tuple(size))
    return out.reshape(last.shape[0], groups * inner, *size)


def _scattered(xp, last, w, size, stride, padding, dilation, groups):
    """Any stride: the gradient of each window's elements, added up where they came from."""
    kernel, inner, out_size = w.shape[2:], w.shape[1], last.shape[1:-1]
    channels, length = groups * inner, math.prod(out_size)
    matrix = _weight_matrix(xp, w, groups).swapaxes(-1, -2)
    padded = [n + 2 * p for n, p in zip(size, padding)]
    total = xp.zeros((last.shape[0], *padded, channels), xp.result_type(last, w))
    for b in _chunks(last.shape[0], length * math.prod(kernel) * channels):
        count = b.stop - b.start
        if groups == 1:
            cols = xp.matmul(last[b].reshape(count * length, -1), matrix)
            cols = cols.reshape(count, *out_size, *kernel, channels)
        else:
            rows = last[b].reshape(count * length, groups, -1).transpose(1, 0, 2)
            cols = xp.matmul(xp.ascontiguousarray(rows), matrix)
            cols = cols.reshape(groups, count, *out_size, *kernel, inner)
        _add_windows(xp, total[b], cols, kernel, stride, dilation, out_size, groups)
    inside = total[(slice(None), *(slice(p, p + n) for p, n in zip(padding, size)))]
    return xp.ascontiguousarray(xp.moveaxis(inside, -1, 1))


def _add_windows(xp, total, cols, kernel, stride, dilation, out_size, groups):
    every = (slice(None),) * (1 + len(kernel))
    if groups > 1:
        total = total.reshape(*total.shape[:-1], groups, -1)
    for offset, at in _offsets(kernel, stride, dilation, out_size):
        if groups == 1:
            total[(slice(None), *at)] += cols[(*every, *offset)]
        else:
            total[(slice(None), *at)] += xp.moveaxis(cols[(slice(None), *every, *offset)], 0, -2)


def conv_weight_grad(xp, x, g, kernel, stride, padding, dilation, groups):
    """The gradient of w: O×(C/G)×K."""
    if groups == 1 and _is_pointwise(kernel, padding):
        rows = [_channels_last(xp, a).reshape(-1, a.shape[1]) for a in (_strided(x, stride), g)]
        return xp.matmul(rows[1].T, rows[0]).reshape(g.shape[1], x.shape[1], *kernel)
    if groups > 1 and groups == x.shape[1]:
        return _depthwise_weight_grad(xp, x, g, kernel, stride, padding, dilation)
    last = _channels_last(xp, x, padding)
    return _weight_grad_last(xp, last, _channels_last(xp, g), kernel, stride, dilation, groups)


def _weight_grad_last(xp, last, g_last, kernel, stride, dilation, groups):
    """``last``: the padded input, ``g_last``: the gradient, both channels-last."""
    size, channels = g_last.shape[1:-1], g_last.shape[-1]
    windows = _windows(xp, last, kernel, stride, dilation, size)
    total = None
    for b in _chunks(last.shape[0], math.prod(size) * math.prod(kernel) * last.shape[-1]):
        rows = _rows(xp, windows[b], groups)
        g_rows = g_last[b].reshape(-1, channels)
        if groups > 1:
            g_rows = g_rows.reshape(-1, groups, channels // groups).transpose(1, 0, 2)
            g_rows = xp.ascontiguousarray(g_rows)
        part = xp.matmul(g_rows.swapaxes(-1, -2), rows)
        total = part if total is None else xp.add(total, part, out=total)
    inner = last.shape[-1] // groups
    if total is None:  # no sample
        return xp.zeros((channels, inner, *kernel), last.dtype)
    total = total.reshape(channels, *kernel, inner)
    return xp.ascontiguousarray(xp.moveaxis(total, -1, 1))


def conv_grads(xp, g, x, w, needs, stride, padding, dilation, groups):
    """(gradient of x, of w, of the bias), None where ``needs`` says so."""
    dims = (0, *range(2, g.ndim))
    gx = gw = gb = None
    if needs[0]:
        gx = xp.conv_input_grad(g, w, x.shape[2:], stride, padding, dilation, groups)
    if needs[1]:
        gw = xp.conv_weight_grad(x, g, w.shape[2:], stride, padding, dilation, groups)
    if needs[2]:
        gb = xp.sum(g, axis=dims)
    return gx, gw, gb


# ---------------------------------------------------------------- one input channel per group
def _offsets(kernel, stride, dilation, size):
    """(place in the kernel, slices of the padded input that it meets)."""
    for offset in itertools.product(*map(range, kernel)):
        yield offset, tuple(
            slice(o * d, o * d + s * (n - 1) + 1, s)
            for o, d, s, n in zip(offset, dilation, stride, size)
        )


def _padded(xp, x, padding):
    if not any(padding):
        return x
    shape = [n + 2 * p for n, p in zip(x.shape[2:], padding)]
    out = xp.zeros((*x.shape[:2], *shape), x.dtype)
    out[_inside(x.shape[2:], padding)] = x
    return out


def _inside(size, padding):
    return (slice(None), slice(None), *(slice(p, p + n) for p, n in zip(padding, size)))


def _depthwise_chunks(xp, x_shape, size):
    """Slices of the batch that keep a chunk of input and output near the cache."""
    return _chunks(x_shape[0], 16 * x_shape[1] * math.prod(size))


def _depthwise(xp, x, w, stride, padding, dilation, size):
    """Each of C channels has M = O/C outputs of its own: one product per place in the kernel."""
    channels, multiple = x.shape[1], w.shape[0] // x.shape[1]
    out = xp.zeros((x.shape[0], channels, multiple, *size), xp.result_type(x, w))
    taps = w.reshape(channels, multiple, *w.shape[2:], *(1,) * len(size))
    for b in _depthwise_chunks(xp, x.shape, size):
        padded = _padded(xp, x[b], padding)
        part = xp.empty((padded.shape[0], channels, *size), out.dtype)
        for offset, at in _offsets(w.shape[2:], stride, dilation, size):
            for m in range(multiple):
                seen, tap = padded[(slice(None), slice(None), *at)], taps[(slice(None), m, *offset)]
                xp.multiply(seen, tap, out=part)
                out[b, :, m] += part
    return out


def _depthwise_input_grad(xp, g, w, size, stride, padding, dilation, channels):
    multiple, out_size = w.shape[0] // channels, g.shape[2:]
    g = g.reshape(g.shape[0], channels, multiple, *out_size)
    taps = w.reshape(channels, multiple, *w.shape[2:], *(1,) * len(size))
    result = xp.empty((g.shape[0], channels, *size), xp.result_type(g, w))
    padded_size = [n + 2 * p for n, p in zip(size, padding)]
    for b in _depthwise_chunks(xp, result.shape, size):
        padded = xp.zeros((b.stop - b.start, channels, *padded_size), result.dtype)
        for offset, at in _offsets(w.shape[2:], stride, dilation, out_size):
            for m in range(multiple):
                padded[(slice(None), slice(None), *at)] += (
                    g[b, :, m] * taps[(slice(None), m, *offset)]
                )
        result[b] = padded[_inside(size, padding)]
    return result


def _depthwise_weight_grad(xp, x, g, kernel, stride, padding, dilation):
    channels, multiple = x.shape[1], g.shape[1] // x.shape[1]
    g = g.reshape(g.shape[0], channels, multiple, *g.shape[2:])
    axes = (0, *range(2, x.ndim))
    out = xp.zeros((channels, multiple, *kernel), xp.result_type(x, g))
    for b in _depthwise_chunks(xp, x.shape, g.shape[3:]):
        padded = _padded(xp, x[b], padding)
        for offset, at in _offsets(kernel, stride, dilation, g.shape[3:]):
            seen = padded[(slice(None), slice(None), *at)]
            for m in range(multiple):
                out[(slice(None), m, *offset)] += xp.sum(seen * g[b, :, m], axis=axes)
    return out.reshape(channels * multiple, 1, *kernel)
