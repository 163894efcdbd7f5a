"""Pooling. Shapes: [N, C, spatial dims] or [C, spatial dims]; see the functional forms."""

from __future__ import annotations

from .. import functional as F
from .conv import per_dim
from .module import Module


class _MaxPoolNd(Module):
    def __init__(
        self, kernel_size, stride=None, padding=0, dilation=1, return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size, self.padding, self.dilation = kernel_size, padding, dilation
        self.stride = stride if stride is not None else kernel_size
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input):
        return getattr(F, self._function)(
            input, self.kernel_size, self.stride, self.padding, self.dilation,
            ceil_mode=self.ceil_mode, return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPoolNd):
    """The largest element of each window of [N, C, L].

    Args:
        kernel_size, stride, padding, dilation: ints or one per dim; the stride is the kernel size
            by default, the padding (−∞) at most half a window.
        return_indices: give (values, int64 flat places in the pooled dims).
        ceil_mode: also take a last window that reaches beyond the end.
    """

    _function = "max_pool1d"


class MaxPool2d(_MaxPoolNd):
    """The largest element of each window of [N, C, H, W]; arguments as of MaxPool1d."""

    _function = "max_pool2d"


class MaxPool3d(_MaxPoolNd):
    """The largest element of each window of [N, C, D, H, W]; arguments as of MaxPool1d."""

    _function = "max_pool3d"


class _MaxUnpoolNd(Module):
    def __init__(self, kernel_size, stride=None, padding=0):
        super().__init__()
        dims = int(self._function[-2])
        self.kernel_size = per_dim(kernel_size, dims)
        self.stride = per_dim(stride if stride is not None else kernel_size, dims)
        self.padding = per_dim(padding, dims)

    def forward(self, input, indices, output_size=None):
        return getattr(F, self._function)(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpoolNd):
    """Puts pooled values back to their places, 0 elsewhere.

    Args:
        kernel_size, stride, padding: of the MaxPool1d whose indices ``forward`` is given.
    """

    _function = "max_unpool1d"


class MaxUnpool2d(_MaxUnpoolNd):
    """Puts the values of MaxPool2d back to their places; arguments as of MaxUnpool1d."""

    _function = "max_unpool2d"


class MaxUnpool3d(_MaxUnpoolNd):
    """Puts the values of MaxPool3d back to their places; arguments as of MaxUnpool1d."""

    _function = "max_unpool3d"


class _AvgPoolNd(Module):
    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPoolNd):
    """The mean of each window of [N, C, L].

    Args:
        kernel_size, stride, padding: ints or one per dim; the stride is the kernel size by default.
        ceil_mode: also take a last window that reaches beyond the end.
        count_include_pad: whether the zeros of the padding count as elements.
    """

    def __init__(
        self, kernel_size, stride=None, padding=0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__()
        self.kernel_size = per_dim(kernel_size, 1)
        self.stride = per_dim(stride if stride is not None else kernel_size, 1)
        self.padding = per_dim(padding, 1)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, input):
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
                            self.count_include_pad)


class _AvgPoolWithDivisor(_AvgPoolNd):
    def __init__(
        self, kernel_size, stride=None, padding=0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ):
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = stride if stride is not None else kernel_size
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input):
        return getattr(F, self._function)(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )


class AvgPool2d(_AvgPoolWithDivisor):
    """The mean of each window of [N, C, H, W]; arguments as of AvgPool1d.

    Args:
        divisor_override: divide the sums by this instead of the number of elements.
    """

    _function = "avg_pool2d"


class AvgPool3d(_AvgPoolWithDivisor):
    """The mean of each window of [N, C, D, H, W]; arguments as of AvgPool2d."""

    _function = "avg_pool3d"


class _AdaptiveAvgPoolNd(Module):
    def __init__(self, output_size):
        super().__init__()
        self.output_size = output_size

    def forward(self, input):
        return getattr(F, self._function)(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPoolNd):
    """Means of ``output_size`` windows that cover L of [N, C, L]."""

    _function = "adaptive_avg_pool1d"


class AdaptiveAvgPool2d(_AdaptiveAvgPoolNd):
    """Means of ``output_size`` windows that cover H and W; None keeps a dim's size."""

    _function = "adaptive_avg_pool2d"


class AdaptiveAvgPool3d(_AdaptiveAvgPoolNd):
    """Means of ``output_size`` windows that cover D, H and W; None keeps a dim's size."""

    _function = "adaptive_avg_pool3d"


class _AdaptiveMaxPoolNd(Module):
    def __init__(self, output_size, return_indices: bool = False):
        super().__init__()
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, input):
        return getattr(F, self._function)(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPoolNd):
    """Maxima of ``output_size`` windows that cover L of [N, C, L].

    Args:
        return_indices: give (values, int64 flat places in the pooled dims).
    """

    _function = "adaptive_max_pool1d"


class AdaptiveMaxPool2d(_AdaptiveMaxPoolNd):
    """Maxima of ``output_size`` windows that cover H and W; arguments as of AdaptiveMaxPool1d."""

    _function = "adaptive_max_pool2d"


class AdaptiveMaxPool3d(_AdaptiveMaxPoolNd):
    """Maxima of ``output_size`` windows over D, H and W; arguments as of AdaptiveMaxPool1d."""

    _function = "adaptive_max_pool3d"


class _FractionalMaxPoolNd(Module):
    def __init__(
        self, kernel_size, output_size=None, output_ratio=None, return_indices: bool = False,
        _random_samples=None,
    ):
        super().__init__()
        dims = int(self._function[-2])
        if output_size is None and output_ratio is None:
            raise ValueError(
                f"{type(self).__name__} requires specifying either an output size, or a pooling "
                "ratio"
            )
        if output_size is not None and output_ratio is not None:
            raise ValueError("only one of output_size and output_ratio may be specified")
        self.kernel_size = per_dim(kernel_size, dims)
        self.output_size = None if output_size is None else per_dim(output_size, dims)
        self.output_ratio = None if output_ratio is None else per_dim(output_ratio, dims)
        if self.output_ratio is not None and not all(0 < r < 1 for r in self.output_ratio):
            raise ValueError(f"output_ratio must be between 0 and 1 (got {output_ratio})")
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)

    def forward(self, input):
        return getattr(F, self._function)(
            input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool2d(_FractionalMaxPoolNd):
    """Maxima over windows at pseudo-random distances of [N, C, H, W] (arXiv:1412.6071).

    Args:
        kernel_size: of the windows.
        output_size: number of windows; or ``output_ratio``, the share of the input's size.
        return_indices: give (values, int64 flat places in H·W).
        _random_samples: [N, C, 2] in [0, 1), drawn by default.

    Raises:
        ValueError: without exactly one of output_size and output_ratio.
    """

    _function = "fractional_max_pool2d"


class FractionalMaxPool3d(_FractionalMaxPoolNd):
    """The same over [N, C, D, H, W]; arguments as of FractionalMaxPool2d."""

    _function = "fractional_max_pool3d"


class _LPPoolNd(Module):
    def __init__(self, norm_type: float, kernel_size, stride=None, ceil_mode: bool = False):
        super().__init__()
        self.norm_type, self.kernel_size = norm_type, kernel_size
        self.stride, self.ceil_mode = stride, ceil_mode

    def forward(self, input):
        return getattr(F, self._function)(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"ceil_mode={self.ceil_mode}"
        )


class LPPool1d(_LPPoolNd):
    """(Σ xᵖ)^(1/p) over each window of [N, C, L], p = ``norm_type``."""

    _function = "lp_pool1d"


class LPPool2d(_LPPoolNd):
    """(Σ xᵖ)^(1/p) over each window of [N, C, H, W], p = ``norm_type``."""

    _function = "lp_pool2d"


class LPPool3d(_LPPoolNd):
    """(Σ xᵖ)^(1/p) over each window of [N, C, D, H, W], p = ``norm_type``."""

    _function = "lp_pool3d"


__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "FractionalMaxPool2d", "FractionalMaxPool3d", "LPPool1d", "LPPool2d", "LPPool3d", "MaxPool1d",
    "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
]
