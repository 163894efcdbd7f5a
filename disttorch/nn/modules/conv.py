"""Convolutions. Shapes: [N, C, spatial dims] or [C, spatial dims] -> the same with O channels."""

from __future__ import annotations

import math

from ... import ops
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .module import Module

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def per_dim(value, dims: int) -> tuple:
    """One value for all dims, or a sequence of them, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


class _ConvNd(Module):
    """What convolutions and transposed convolutions share: options, parameters, text."""

    def __init__(self, dims, transposed, in_channels, out_channels, kernel_size, stride, padding,
                 dilation, output_padding, groups, bias, padding_mode, device, dtype):
        super().__init__()
        _check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_dim(kernel_size, dims)
        self.stride, self.dilation = per_dim(stride, dims), per_dim(dilation, dims)
        self.padding = padding if isinstance(padding, str) else per_dim(padding, dims)
        self.transposed, self.output_padding = transposed, per_dim(output_padding, dims)
        self._check_padding(padding_mode)
        self.padding_mode = padding_mode
        self._reversed_padding_repeated_twice = self._sides()
        channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        where = {"device": device, "dtype": dtype}
        shape = (channels[0], channels[1] // groups, *self.kernel_size)
        self.weight = Parameter(ops.empty(shape, **where))
        if bias:
            self.bias = Parameter(ops.empty(out_channels, **where))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _check_padding(self, padding_mode):
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ValueError(
                    f"Invalid padding string {self.padding!r}, should be one of "
                    "{'valid', 'same'}"
                )
            if self.padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                "padding_mode must be one of {'zeros', 'reflect', 'replicate', 'circular'}, but "
                f"got padding_mode='{padding_mode}'"
            )

    def _sides(self) -> list:
        """(before, after) of each dim, the last dim first, as ``functional.pad`` takes them."""
        if self.padding == "valid":
            return [0] * (2 * len(self.kernel_size))
        sides = []
        if self.padding == "same":
            for d, k in zip(reversed(self.dilation), reversed(self.kernel_size)):
                total = d * (k - 1)
                sides += [total // 2, total - total // 2]
            return sides
        return [p for p in reversed(self.padding) for _ in range(2)]

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1/√(C/groups · kernel elements)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            if fan_in:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        dims = len(self.kernel_size)
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        if self.padding != (0,) * dims:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * dims:
            text += f", dilation={self.dilation}"
        if self.output_padding != (0,) * dims:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


def _check_channels(in_channels, out_channels, groups):
    if groups <= 0:
        raise ValueError(f"groups must be a positive integer, but got groups={groups}")
    for label, n in (("in_channels", in_channels), ("out_channels", out_channels)):
        if n % groups:
            raise ValueError(f"{label} must be divisible by groups, but got {label}={n} and "
                             f"groups={groups}")


class _Conv(_ConvNd):
    """Cross-correlation; ``_function`` is the functional form."""

    def _conv_forward(self, input, weight, bias):
        function, padding = getattr(F, self._function), self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return function(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, input):
        return self._conv_forward(input, self.weight, self.bias)


class Conv1d(_Conv):
    """Cross-correlation over [N, C, L] (or [C, L]).

    Args:
        in_channels, out_channels: C and O.
        kernel_size, stride, padding, dilation: ints or one per dim; padding may be "same" or
            "valid".
        groups: channels in and out are split into this many independent groups.
        bias: whether to add one, [O].
        padding_mode: what to pad with: "zeros", "reflect", "replicate" or "circular".
        device, dtype: of the parameters.

    Raises:
        ValueError: if channels do not divide into groups, or for an unknown padding.
    """

    _function = "conv1d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(1, False, in_channels, out_channels, kernel_size, stride, padding,
                         dilation, 0, groups, bias, padding_mode, device, dtype)


class Conv2d(_Conv):
    """Cross-correlation over [N, C, H, W]; arguments as of Conv1d."""

    _function = "conv2d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(2, False, in_channels, out_channels, kernel_size, stride, padding,
                         dilation, 0, groups, bias, padding_mode, device, dtype)


class Conv3d(_Conv):
    """Cross-correlation over [N, C, D, H, W]; arguments as of Conv1d."""

    _function = "conv3d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(3, False, in_channels, out_channels, kernel_size, stride, padding,
                         dilation, 0, groups, bias, padding_mode, device, dtype)


class _ConvTransposeNd(_ConvNd):
    """The adjoint of a cross-correlation; ``_function`` is the functional form."""

    def __init__(self, dims, in_channels, out_channels, kernel_size, stride, padding,
                 output_padding, groups, bias, dilation, padding_mode, device, dtype):
        if padding_mode != "zeros":
            raise ValueError(
                f'Only "zeros" padding mode is supported for {type(self).__name__}'
            )
        super().__init__(dims, True, in_channels, out_channels, kernel_size, stride, padding,
                         dilation, output_padding, groups, bias, padding_mode, device,
                         dtype)

    def _output_padding(self, input, output_size) -> tuple:
        """What to add at the ends to arrive at ``output_size`` (None: as configured)."""
        if output_size is None:
            return self.output_padding
        dims = len(self.kernel_size)
        size = list(output_size)
        if len(size) == input.ndim and input.ndim > dims:
            size = size[-dims:]
        if len(size) != dims:
            raise ValueError(
                f"ConvTranspose{dims}D: for {input.ndim}D input, output_size must have {dims} or "
                f"{input.ndim} elements (got {len(output_size)})"
            )
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(input.shape[-dims:], self.stride, self.padding, self.dilation,
                                     self.kernel_size)
        ]
        most = [n + s - 1 for n, s in zip(least, self.stride)]
        if any(not a <= n <= b for n, a, b in zip(size, least, most)):
            raise ValueError(
                f"requested an output size of {size}, but valid sizes range from {least} to {most} "
                f"(for an input of {input.shape[2:]})"
            )
        return tuple(n - a for n, a in zip(size, least))

    def forward(self, input, output_size=None):
        extra = self._output_padding(input, output_size)
        return getattr(F, self._function)(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups,
            self.dilation,
        )


class ConvTranspose1d(_ConvTransposeNd):
    """The adjoint of Conv1d ("deconvolution") over [N, C, L].

    Args:
        in_channels, out_channels: C and O.
        kernel_size, stride, padding, dilation, groups: of the convolution it is the adjoint of.
        output_padding: added to one end of the output, below the stride or dilation. ``forward``
            takes an ``output_size`` instead, which decides between the sizes a stride allows.
        bias: whether to add one, [O].

    Raises:
        ValueError: if channels do not divide into groups, or for a padding_mode but "zeros".
    """

    _function = "conv_transpose1d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0,
        output_padding=0, groups: int = 1, bias: bool = True, dilation=1,
        padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(1, in_channels, out_channels, kernel_size, stride, padding, output_padding,
                         groups, bias, dilation, padding_mode, device, dtype)


class ConvTranspose2d(_ConvTransposeNd):
    """The adjoint of Conv2d over [N, C, H, W]; arguments as of ConvTranspose1d."""

    _function = "conv_transpose2d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0,
        output_padding=0, groups: int = 1, bias: bool = True, dilation=1,
        padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(2, in_channels, out_channels, kernel_size, stride, padding, output_padding,
                         groups, bias, dilation, padding_mode, device, dtype)


class ConvTranspose3d(_ConvTransposeNd):
    """The adjoint of Conv3d over [N, C, D, H, W]; arguments as of ConvTranspose1d."""

    _function = "conv_transpose3d"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0,
        output_padding=0, groups: int = 1, bias: bool = True, dilation=1,
        padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(3, in_channels, out_channels, kernel_size, stride, padding, output_padding,
                         groups, bias, dilation, padding_mode, device, dtype)


__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
