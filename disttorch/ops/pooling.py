"""Pooling over windows of the last one to three dims, its inverses, and windows as columns."""

from __future__ import annotations

import math

from ..backend import pool_kernels as tables
from ..backend.dtypes import int64
from ..tensor import Tensor
from .core import REGISTRY, op
from .padding import resample_dim
from .samples import case


# ---------------------------------------------------------------- operations
def _max_cases(m):
    regular, adaptive = tables.regular_windows, tables.adaptive_windows
    return [
        case(m(2, 3, 6), (regular(6, 3, 2, 2, 0, 1),)),
        case(m(2, 5, 6), (regular(5, 3, 3, 2, 1, 1), regular(6, 4, 2, 1, 0, 2))),
        case(m(1, 5, 7), (adaptive(5, 3), adaptive(7, 2))),
        case(m(2, 4, 4, 3), (regular(4, 2, 2, 2, 0, 1),) * 2 + (regular(3, 2, 2, 1, 0, 1),)),
    ]


@op(nout=2, method=False, fused=True, node_name="MaxPoolWithIndices", samples=_max_cases)
def max_pool(xp, input, windows):
    """(largest elements of the windows, their flat places in the pooled dims)."""
    return xp.max_pool(input, windows)


@max_pool.grad("input")
def _(F, g, input_shape, out1, windows):
    size = tuple(input_shape[len(input_shape) - len(windows) :])
    unique = not any(w.overlap for w in windows)
    return F.unpool(g[0], out1, size, unique)


@max_pool.fast_grad("input")
def _(F, g, needs, input_shape, out1, windows):
    return (F.xp.max_pool_backward(g[0], out1, windows, input_shape),)


def _unpool_cases(m):
    places = m.permutation(12).reshape(3, 2, 2)
    return [case(m(3, 2, 2), places, (3, 4), True),
            case(m(2, 3, 2), m.index(5, 2, 3, 2), (5,), False)]


@op(tensors=("input", "places"), method=False, moves=True, samples=_unpool_cases)
def unpool(xp, input, places, size, unique):
    """Zeros …×``size`` with ``input`` …×P added at the flat ``places``."""
    return xp.unpool(input, places, size, unique)


@unpool.grad("input")
def _(F, g, places, size):
    lead, kept = g.shape[: g.ndim - len(size)], places.shape
    flat = F.reshape(g, (*lead, math.prod(size)))
    return F.reshape(F.gather(flat, -1, F.reshape(places, (*lead, -1))), tuple(kept))


_SUMS = [((2, 3, 6), (2,), (2,), (0,), (3,)), ((2, 5, 6), (3, 2), (2, 1), (1, 1), (4, 7)),
         ((1, 2, 4, 4, 3), (2, 2, 3), (2, 1, 3), (0, 0, 1), (2, 3, 2))]


@op(method=False, fused=True, samples=lambda m: [case(m(*s[0]), *s[1:]) for s in _SUMS])
def pooled_sum(xp, input, kernel, stride, padding, size):
    """Sums over ``size`` windows, with zeros around the input."""
    return xp.pooled_sum(input, kernel, stride, padding, size)


@pooled_sum.grad("input")
def _(F, g, input_shape, kernel, stride, padding):
    size = tuple(input_shape[len(input_shape) - len(kernel) :])
    return F.spread_sum(g, kernel, stride, padding, size)


@op(method=False, fused=True, samples=lambda m: [
    case(m(*s[0][: -len(s[1])], *s[4]), *s[1:4], s[0][-len(s[1]) :]) for s in _SUMS])
def spread_sum(xp, input, kernel, stride, padding, size):
    """The adjoint of ``pooled_sum``."""
    return xp.spread_sum(input, kernel, stride, padding, size)


@spread_sum.grad("input")
def _(F, g, input_shape, kernel, stride, padding):
    size = tuple(input_shape[len(input_shape) - len(kernel) :])
    return F.pooled_sum(g, kernel, stride, padding, size)


@op(method=False, moves=True, samples=lambda m: [
    case(m(2, 3, 4, 5), (2, 3), (1, 1), (0, 0), (1, 1)),
    case(m(1, 2, 5, 6), (2, 2), (2, 1), (1, 2), (2, 1))])
def im2col(xp, input, kernel, dilation, padding, stride):
    """N×C×H×W to N×(C·KH·KW)×(number of windows)."""
    return xp.im2col(input, kernel, dilation, padding, stride)


@im2col.grad("input")
def _(F, g, input_shape, kernel, dilation, padding, stride):
    return F.col2im(g, tuple(input_shape[2:]), kernel, dilation, padding, stride)


@op(method=False, samples=lambda m: [
    case(m(2, 8, 9), (4, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    case(m(1, 8, 27), (6, 6), (2, 2), (2, 1), (1, 2), (2, 1)),
])
def col2im(xp, input, size, kernel, dilation, padding, stride):
    """The adjoint of ``im2col``: N×(C·KH·KW)×L to N×C×``size``."""
    want = math.prod(xp.conv_output_size(size, kernel, stride, padding, dilation))
    if input.shape[2] != want:
        raise RuntimeError(
            f"Given output_size={tuple(size)}, kernel_size={kernel}, dilation={dilation}, "
            f"padding={padding}, stride={stride}, expected size of input's dimension 2 to match "
            f"the calculated number of sliding blocks {want}, but got "
            f"input.size(2)={input.shape[2]}."
        )
    return xp.col2im(input, size, kernel, dilation, padding, stride)


@col2im.grad("input")
def _(F, g, kernel, dilation, padding, stride):
    return F.im2col(g, kernel, dilation, padding, stride)


# ---------------------------------------------------------------- arguments
def _ints(name, label, value, dims):
    values = (value,) * dims if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) == 1:
        values *= dims
    if len(values) != dims:
        raise RuntimeError(
            f"{name}: {label} must either be a single int, or a tuple of {dims} ints, but got "
            f"{value}"
        )
    return values


def _geometry(name, input, dims, kernel, stride, padding, dilation, ceil_mode):
    """(kernel, stride, padding, dilation, number of windows), checked."""
    if input.ndim not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{name}: Expected {dims + 1}D or {dims + 2}D tensor as input, but got input of size "
            f"{list(input._data.shape)}"
        )
    kernel = _ints(name, "kernel_size", kernel, dims)
    if stride is None or isinstance(stride, (tuple, list)) and not stride:
        stride = kernel
    stride = _ints(name, "stride", stride, dims)
    padding = _ints(name, "padding", padding, dims)
    dilation = _ints(name, "dilation", dilation, dims)
    if min(stride) <= 0:
        raise RuntimeError(f"{name}: stride should be greater than zero, but got {stride}")
    if min(kernel) <= 0:
        raise RuntimeError(f"{name}: kernel size should be greater than zero, but got {kernel}")
    if min(dilation) <= 0:
        raise RuntimeError(f"{name}: dilation should be greater than zero, but got {dilation}")
    if min(padding) < 0:
        raise RuntimeError(f"pad must be non-negative, but got pad: {min(padding)}")
    for p, k, d in zip(padding, kernel, dilation):
        if p > ((k - 1) * d + 1) // 2:
            raise RuntimeError(
                "pad should be at most half of effective kernel size, but got "
                f"pad={p}, kernel_size={k} and dilation={d}"
            )
    shape = input._data.shape[-dims:]
    size = tuple(map(_window_count, shape, kernel, stride, padding, dilation, (ceil_mode,) * dims))
    if min(size) < 1:
        raise RuntimeError(
            f"Given input size: {list(input._data.shape[-dims - 1:])}. Calculated output size: "
            f"{[input._data.shape[-dims - 1], *size]}. Output size is too small"
        )
    return kernel, stride, padding, dilation, size


def _window_count(n, k, s, p, d, ceil_mode):
    room = n + 2 * p - d * (k - 1) - 1
    count = (-(-room // s) if ceil_mode else room // s) + 1
    if ceil_mode and (count - 1) * s >= n + p:  # a window must begin inside the input
        count -= 1
    return count


# ---------------------------------------------------------------- maximum
def _max_pool(dims, input, kernel, stride, padding, dilation, ceil_mode):
    name = f"max_pool{dims}d"
    kernel, stride, padding, dilation, size = _geometry(
        name, input, dims, kernel, stride, padding, dilation, ceil_mode
    )
    windows = tuple(
        tables.regular_windows(*w)
        for w in zip(input._data.shape[-dims:], size, kernel, stride, padding, dilation)
    )
    return max_pool.call(input, windows)


def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Tensor:
    """The largest element of each window of the last dim.

    Args:
        input: N×C×L or C×L.
        stride: the kernel size by default.
        padding: −∞ put on both sides, at most half a window.
        ceil_mode: also take a last window that reaches beyond the end.

    Raises:
        RuntimeError: if shapes or options do not fit.
    """
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Tensor:
    """The largest element of each window of the last two dims; see max_pool1d."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Tensor:
    """The largest element of each window of the last three dims; see max_pool1d."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool1d_with_indices(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False
) -> tuple[Tensor, Tensor]:
    """``max_pool1d`` and the places of the elements, int64."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d_with_indices(input, kernel_size, stride=None, padding=0, dilation=1,
                            ceil_mode=False):
    """``max_pool2d`` and the places of the elements in H·W, int64."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d_with_indices(input, kernel_size, stride=None, padding=0, dilation=1,
                            ceil_mode=False):
    """``max_pool3d`` and the places of the elements in D·H·W, int64."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode)


def _adaptive_size(name, input, output_size, dims):
    if input.ndim not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{name}: Expected {dims + 1}D or {dims + 2}D tensor, but got {list(input._data.shape)}"
        )
    shape = input._data.shape[-dims:]
    if isinstance(output_size, int) or output_size is None:
        output_size = (output_size,) * dims
    sizes = tuple(n if o is None else int(o) for o, n in zip(output_size, shape))
    if len(tuple(output_size)) != dims:
        raise RuntimeError(f"{name}: output_size must be {dims}, but got {list(output_size)}")
    if min(sizes) < 0:
        raise RuntimeError(
            f"{name}: elements of output_size must be greater than or equal to 0 but received "
            f"{list(sizes)}"
        )
    if min(shape) == 0:
        raise RuntimeError(
            f"{name}: Expected input to have non-zero size for non-batch dimensions, but input has "
            f"sizes {list(input._data.shape)}"
        )
    return sizes


def adaptive_max_pool(input, output_size, dims):
    """(values, places) of the maxima of ``output_size`` windows that cover the last ``dims``."""
    sizes = _adaptive_size(f"adaptive_max_pool{dims}d", input, output_size, dims)
    windows = tuple(tables.adaptive_windows(n, o) for n, o in zip(input._data.shape[-dims:], sizes))
    return max_pool.call(input, windows)


def adaptive_max_pool1d(input, output_size) -> tuple[Tensor, Tensor]:
    """``adaptive_max_pool`` of N×C×L: (values, places)."""
    return adaptive_max_pool(input, output_size, 1)


def max_unpool(input, indices, size) -> Tensor:
    """Zeros …×``size`` with ``input`` put at the flat places that max pooling gave.

    Raises:
        RuntimeError: for indices of another type or shape, or outside.
    """
    dims, area = len(size), math.prod(size)
    if indices.dtype is not int64:
        raise RuntimeError(
            f"elements in indices should be type int64 but got: {indices.dtype.name}"
        )
    if indices._data.shape != input._data.shape:
        raise RuntimeError(
            f"Expected shape of indices to be same as that of the input tensor "
            f"({list(input._data.shape)}) but got indices tensor with shape: "
            f"{list(indices._data.shape)}"
        )
    if indices._data.size and not 0 <= int(indices.min()) <= int(indices.max()) < area:
        raise RuntimeError(
            f"Found an invalid max index: {int(indices.max())} (output volumes are of size "
            f"{'x'.join(map(str, size))})"
        )
    lead = input._data.shape[:-dims]
    reshape = REGISTRY["reshape"].call
    flat = reshape(input, (*lead, math.prod(input._data.shape[-dims:])))
    zeros = REGISTRY["zeros_shaped"].call(input.detach(), (*lead, area))
    out = REGISTRY["scatter_into"].call(zeros, -1, reshape(indices, tuple(flat._data.shape)), flat)
    return reshape(out, (*lead, *size))


def fractional_max_pool(input, kernel, size, samples, dims):
    """(values, places) of maxima over windows whose starts are spread pseudo-randomly.

    Graham, "Fractional max-pooling", arXiv:1412.6071. ``samples``: N×C×dims in [0, 1).
    """
    shape = input._data.shape
    lead, spatial = shape[:-dims], shape[-dims:]
    for n, k, o in zip(spatial, kernel, size):
        if o + k - 1 > n:
            raise RuntimeError(
                f"fractional_max_pool{dims}d(): pool size {k} is too large relative to input size "
                f"{n}, with output size {o}"
            )
    values = samples.detach().reshape(math.prod(lead), dims).tolist()
    rows = REGISTRY["reshape"].call(input, (math.prod(lead), *spatial))
    parts = []
    for r, drawn in enumerate(values):
        drawn = drawn[::-1] if dims == 2 else drawn  # PyTorch's samples are (W, H) or (D, H, W)
        windows = tuple(
            tables.windows_at(_fractional_starts(u, n, o, k), n, k)
            for u, n, o, k in zip(drawn, spatial, size, kernel)
        )
        parts.append(max_pool.call(rows[r : r + 1], windows))
    cat = REGISTRY["cat"].call
    both = [cat([p[i] for p in parts], 0) for i in (0, 1)]
    return tuple(REGISTRY["reshape"].call(t, (*lead, *size)) for t in both)


def _fractional_starts(u, size, count, kernel):
    alpha = (size - kernel) / (count - 1) if count > 1 else 0.0
    starts = [int((i + u) * alpha) - int(u * alpha) for i in range(count - 1)]
    return (*starts, size - kernel)


# ---------------------------------------------------------------- mean
def _avg_pool(dims, input, kernel, stride, padding, ceil_mode, include_pad, divisor):
    name = f"avg_pool{dims}d"
    if divisor == 0:
        raise RuntimeError("divisor must be not zero")
    kernel, stride, padding, _, size = _geometry(
        name, input, dims, kernel, stride, padding, 1, ceil_mode
    )
    total = pooled_sum.call(input, kernel, stride, padding, size)
    if divisor is not None:
        return total / divisor
    from ..backend import namespace_of

    xp = namespace_of(input._data)
    count = xp.pool_divisor(total._data.dtype, kernel, stride, padding, input._data.shape[-dims:],
                            size, include_pad)
    return total / (_constant(count) if count.ndim else float(count))


def _constant(array):
    from ..tensor import wrap

    return wrap(array)


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True) -> Tensor:
    """The mean of each window of the last dim.

    Args:
        input: N×C×L or C×L.
        stride: the kernel size by default.
        padding: zeros put on both sides.
        ceil_mode: also take a last window that reaches beyond the end.
        count_include_pad: whether the zeros count as elements.
    """
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True, divisor_override=None) -> Tensor:
    """The mean of each window of the last two dims; ``divisor_override`` divides the sums."""
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                     divisor_override)


def avg_pool3d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True, divisor_override=None) -> Tensor:
    """The mean of each window of the last three dims; see avg_pool2d."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                     divisor_override)


def adaptive_avg_pool(input, output_size, dims=None) -> Tensor:
    """Means of ``output_size`` windows that cover the last ``dims``."""
    from ..backend.resample_kernels import average_taps

    dims = len(output_size) if dims is None else dims
    sizes = _adaptive_size(f"adaptive_avg_pool{dims}d", input, output_size, dims)
    shape = input._data.shape[-dims:]
    if all(o == 1 for o in sizes):
        return REGISTRY["mean"].call(input, tuple(range(-dims, 0)), True)
    if all(o and n % o == 0 for n, o in zip(shape, sizes)):
        kernel = tuple(n // o for n, o in zip(shape, sizes))
        return pooled_sum.call(input, kernel, kernel, (0,) * dims, sizes) / math.prod(kernel)
    for i, (n, o) in enumerate(zip(shape, sizes)):
        if n != o:
            input = resample_dim.call(input, i - dims, average_taps(n, o))
    return input


def adaptive_avg_pool1d(input, output_size) -> Tensor:
    """``adaptive_avg_pool`` of N×C×L."""
    return adaptive_avg_pool(input, output_size, 1)


FUNCTIONS = {f.__name__: f for f in (
    max_pool1d, max_pool2d, max_pool3d, max_pool1d_with_indices, adaptive_max_pool1d, avg_pool1d,
    adaptive_avg_pool1d)}
