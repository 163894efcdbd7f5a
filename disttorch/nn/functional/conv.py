"""Convolutions, and windows as columns. Shapes: input [N, C, ...] or [C, ...]."""

from __future__ import annotations

from ...ops import REGISTRY
from ...ops.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_tbc,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from ...tensor import Tensor


def _pair(name, label, value) -> tuple:
    values = (value, value) if isinstance(value, int) else tuple(value)
    values *= 2 if len(values) == 1 else 1
    if len(values) != 2:
        raise RuntimeError(f"{name}: {label} must be an int or 2 ints, but got {value}")
    return values


def _options(name, kernel_size, dilation, padding, stride):
    values = (kernel_size, dilation, padding, stride)
    labels = ("kernel_size", "dilation", "padding", "stride")
    pairs = tuple(_pair(name, n, v) for n, v in zip(labels, values))
    for label, pair in zip(labels, pairs):
        least = 0 if label == "padding" else 1
        if min(pair) < least:
            raise RuntimeError(
                f"{label} should be {'non-negative' if least == 0 else 'greater than zero'}, but "
                f"got {label}={pair}"
            )
    return pairs


def unfold(input: Tensor, kernel_size, dilation=1, padding=0, stride=1) -> Tensor:
    """Every window as a column: [N, C, H, W] -> [N, C·KH·KW, number of windows].

    Raises:
        RuntimeError: if no window fits.
    """
    kernel, dilation, padding, stride = _options("unfold", kernel_size, dilation, padding, stride)
    if input.ndim not in (3, 4):
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with possibly 0 batch size and other non-zero "
            f"dimensions for input, but got: {list(input.shape)}"
        )
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    if any(n + 2 * p < r for n, p, r in zip(input.shape[-2:], padding, reach)):
        raise RuntimeError(
            f"Given input with spatial size {tuple(input.shape[-2:])}, kernel_size={kernel}, "
            f"dilation={dilation}, padding={padding}, stride={stride}: no window fits; its array "
            "of sliding blocks has no positive size"
        )
    batched = input if input.ndim == 4 else input.unsqueeze(0)
    out = REGISTRY["im2col"].call(batched, kernel, dilation, padding, stride)
    return out if input.ndim == 4 else out.squeeze(0)


def fold(input: Tensor, output_size, kernel_size, dilation=1, padding=0, stride=1) -> Tensor:
    """Columns back to their windows, overlaps added: [N, C·KH·KW, L] -> [N, C, H, W].

    Raises:
        RuntimeError: if the sizes do not belong to ``output_size`` = (H, W).
    """
    kernel, dilation, padding, stride = _options("fold", kernel_size, dilation, padding, stride)
    size = _pair("fold", "output_size", output_size)
    if input.ndim not in (2, 3):
        raise RuntimeError(
            "Expected 2D or 3D (batch mode) tensor for input with possibly 0 batch size and "
            f"non-zero dimensions for input, but got: {list(input.shape)}"
        )
    if input.shape[-2] % (kernel[0] * kernel[1]):
        raise RuntimeError(
            "Expected size of input's dimension 1 to be divisible by the product of kernel_size, "
            f"but got input.size(1)={input.shape[-2]} and kernel_size={kernel}."
        )
    batched = input if input.ndim == 3 else input.unsqueeze(0)
    out = REGISTRY["col2im"].call(batched, size, kernel, dilation, padding, stride)
    return out if input.ndim == 3 else out.squeeze(0)


__all__ = ["conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d",
           "conv_transpose3d", "fold", "unfold"]
