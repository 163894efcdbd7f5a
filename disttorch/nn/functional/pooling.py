"""Pooling. Shapes: input [N, C, ...] or [C, ...]; the last one to three dims are pooled over."""

from __future__ import annotations

from ... import ops
from ...ops import pooling
from ...ops.pooling import avg_pool1d, avg_pool2d, avg_pool3d
from ...tensor import Tensor


def _max_pool(dims: int):
    pool = getattr(pooling, f"max_pool{dims}d_with_indices")

    def call(
        input: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False,
        return_indices: bool = False,
    ):
        values, indices = pool(input, kernel_size, stride, padding, dilation, ceil_mode)
        return (values, indices) if return_indices else values

    call.__name__ = call.__qualname__ = f"max_pool{dims}d"
    call.__doc__ = f"""The largest element of each window of the last {dims} dim(s).

    Args:
        kernel_size, stride, padding, dilation: ints or {dims} of them; stride is the kernel size
            by default, padding (−∞) at most half a window.
        ceil_mode: also take a last window that reaches beyond the end.
        return_indices: give (values, int64 flat places in the pooled dims).
    """
    return call


max_pool1d, max_pool2d, max_pool3d = _max_pool(1), _max_pool(2), _max_pool(3)


def _max_pool_with_indices(dims: int):
    pool = (max_pool1d, max_pool2d, max_pool3d)[dims - 1]

    def call(
        input: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False,
        return_indices: bool = False,
    ):
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, True)

    call.__name__ = call.__qualname__ = f"max_pool{dims}d_with_indices"
    call.__doc__ = f"``max_pool{dims}d`` with ``return_indices=True``."
    return call


max_pool1d_with_indices = _max_pool_with_indices(1)
max_pool2d_with_indices = _max_pool_with_indices(2)
max_pool3d_with_indices = _max_pool_with_indices(3)


def _adaptive_max_pool(dims: int):
    def call(input: Tensor, output_size, return_indices: bool = False):
        values, indices = pooling.adaptive_max_pool(input, output_size, dims)
        return (values, indices) if return_indices else values

    call.__name__ = call.__qualname__ = f"adaptive_max_pool{dims}d"
    call.__doc__ = f"""The maxima of ``output_size`` windows that cover the last {dims} dim(s).

    Args:
        output_size: an int or {dims} of them; None keeps a dim's size.
        return_indices: give (values, int64 flat places in the pooled dims).
    """
    return call


adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_adaptive_max_pool, (1, 2, 3))


def _adaptive_max_pool_with_indices(dims: int):
    pool = (adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d)[dims - 1]

    def call(input: Tensor, output_size, return_indices: bool = False):
        return pool(input, output_size, True)

    call.__name__ = call.__qualname__ = f"adaptive_max_pool{dims}d_with_indices"
    call.__doc__ = f"``adaptive_max_pool{dims}d`` with ``return_indices=True``."
    return call


adaptive_max_pool1d_with_indices = _adaptive_max_pool_with_indices(1)
adaptive_max_pool2d_with_indices = _adaptive_max_pool_with_indices(2)
adaptive_max_pool3d_with_indices = _adaptive_max_pool_with_indices(3)


def adaptive_avg_pool1d(input: Tensor, output_size) -> Tensor:
    """Means of ``output_size`` windows that cover the last dim."""
    return pooling.adaptive_avg_pool(input, output_size, 1)


def adaptive_avg_pool2d(input: Tensor, output_size) -> Tensor:
    """Means of ``output_size`` windows that cover the last two dims; None keeps a dim."""
    return pooling.adaptive_avg_pool(input, output_size, 2)


def adaptive_avg_pool3d(input: Tensor, output_size) -> Tensor:
    """Means of ``output_size`` windows that cover the last three dims; None keeps a dim."""
    return pooling.adaptive_avg_pool(input, output_size, 3)


# ---------------------------------------------------------------- back to the places
def _unpool_size(dims, input, kernel_size, stride, padding, output_size):
    """The size asked for, or the smallest that max pooling would have made this of."""
    def spread(v):
        return (v,) * dims if isinstance(v, int) else tuple(v)

    kernel, padding = spread(kernel_size), spread(padding)
    stride = kernel if stride is None or stride == [] else spread(stride)
    default = [
        (n - 1) * s + k - 2 * p
        for n, s, k, p in zip(input.shape[-dims:], stride, kernel, padding)
    ]
    if output_size is None:
        return default
    size = list(output_size)
    if len(size) == dims + 2:
        size = size[2:]
    if len(size) != dims:
        raise ValueError(
            f"output_size should be a sequence containing {dims} or {dims + 2} elements, but it "
            f"has a length of '{len(size)}'"
        )
    for got, want, s in zip(size, default, stride):
        if not want - s < got < want + s:
            raise ValueError(
                f"invalid output_size {size}: each size must be within one stride of {default}"
            )
    return size


def _max_unpool(dims: int):
    def call(input: Tensor, indices: Tensor, kernel_size, stride=None, padding=0, output_size=None):
        size = _unpool_size(dims, input, kernel_size, stride, padding, output_size)
        if input.ndim not in (dims + 1, dims + 2):
            raise RuntimeError(
                f"Input to max_unpooling{dims}d should be a {dims + 1}d or {dims + 2}d Tensor, but "
                f"got a tensor with dim = {input.ndim}"
            )
        return pooling.max_unpool(input, indices, tuple(size))

    call.__name__ = call.__qualname__ = f"max_unpool{dims}d"
    call.__doc__ = f"""Put pooled values back to where ``max_pool{dims}d`` found them, 0 elsewhere.

    Args:
        indices: from ``max_pool{dims}d`` with ``return_indices``.
        output_size: of the last {dims} dim(s), within one stride of the default.

    Raises:
        ValueError: for an output_size that pooling could not have come from.
        RuntimeError: if indices do not fit.
    """
    return call


max_unpool1d, max_unpool2d, max_unpool3d = map(_max_unpool, (1, 2, 3))


# ---------------------------------------------------------------- windows at random places
def _fractional(dims: int):
    def with_indices(
        input: Tensor, kernel_size, output_size=None, output_ratio=None,
        return_indices: bool = False, _random_samples: Tensor | None = None,
    ):
        name = f"fractional_max_pool{dims}d"
        if output_size is None and output_ratio is None:
            raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
        if input.ndim not in (dims + 1, dims + 2):
            raise RuntimeError(
                f"{name}(): Expected {dims + 1}D or {dims + 2}D tensor, but got: "
                f"{list(input.shape)}"
            )
        if output_size is None:
            ratios = (output_ratio,) * dims if isinstance(output_ratio, float) else output_ratio
            output_size = [int(n * r) for n, r in zip(input.shape[-dims:], ratios)]
        size = (output_size,) * dims if isinstance(output_size, int) else tuple(output_size)
        kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else tuple(kernel_size)
        if _random_samples is None:
            lead = input.shape[:-dims] if input.ndim == dims + 2 else (1, input.shape[0])
            _random_samples = ops.rand(*lead, dims, dtype=input.dtype, device=input.device)
        return pooling.fractional_max_pool(input, kernel, size, _random_samples, dims)

    def call(
        input: Tensor, kernel_size, output_size=None, output_ratio=None,
        return_indices: bool = False, _random_samples: Tensor | None = None,
    ):
        both = with_indices(
            input, kernel_size, output_size, output_ratio, return_indices, _random_samples
        )
        return both if return_indices else both[0]

    for function, suffix in ((call, ""), (with_indices, "_with_indices")):
        function.__name__ = function.__qualname__ = f"fractional_max_pool{dims}d{suffix}"
        function.__doc__ = f"""Maxima over windows at pseudo-random distances (arXiv:1412.6071).

    Args:
        kernel_size: of the windows of the last {dims} dims.
        output_size: number of windows; or ``output_ratio``, the share of the input's size.
        return_indices: give (values, int64 flat places).
        _random_samples: [N, C, {dims}] in [0, 1), drawn by default.

    Raises:
        ValueError: without output_size and output_ratio.
        RuntimeError: if the windows do not fit.
    """
    return call, with_indices


fractional_max_pool2d, fractional_max_pool2d_with_indices = _fractional(2)
fractional_max_pool3d, fractional_max_pool3d_with_indices = _fractional(3)


# ---------------------------------------------------------------- p-norms of windows
def _lp_pool(average, input, norm_type, count, *args):
    total = average(input.pow(norm_type), *args)
    return (ops.sign(total) * ops.relu(total.abs())).mul(count).pow(1.0 / norm_type)


def lp_pool1d(
    input: Tensor, norm_type: float, kernel_size: int, stride=None, ceil_mode: bool = False
) -> Tensor:
    """(Σ xᵖ)^(1/p) over each window of the last dim, p = ``norm_type``."""
    return _lp_pool(avg_pool1d, input, norm_type, kernel_size, kernel_size, stride, 0, ceil_mode)


def lp_pool2d(
    input: Tensor, norm_type: float, kernel_size, stride=None, ceil_mode: bool = False
) -> Tensor:
    """(Σ xᵖ)^(1/p) over each window of the last two dims, p = ``norm_type``."""
    kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
    count = kernel[0] * kernel[1]
    return _lp_pool(avg_pool2d, input, norm_type, count, kernel, stride, 0, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: float, kernel_size, stride=None, ceil_mode: bool = False
) -> Tensor:
    """(Σ xᵖ)^(1/p) over each window of the last three dims, p = ``norm_type``."""
    kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
    count = kernel[0] * kernel[1] * kernel[2]
    return _lp_pool(avg_pool3d, input, norm_type, count, kernel, stride, 0, ceil_mode)


__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d", "adaptive_max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "fractional_max_pool2d", "fractional_max_pool2d_with_indices", "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices", "lp_pool1d", "lp_pool2d", "lp_pool3d", "max_pool1d",
    "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices", "max_unpool1d", "max_unpool2d", "max_unpool3d",
]
