"""Padding of the last one to three dims of [N, C, ...] or [C, ...].

``padding``: one int for all sides, or (before, after) of the last dim, then of the one before it.
"""

from __future__ import annotations

from .. import functional as F
from .conv import per_dim
from .module import Module


class _PadNd(Module):
    """``_dims`` last dims padded in ``_mode``."""

    _dims, _mode = 1, "constant"

    def __init__(self, padding):
        super().__init__()
        self.padding = per_dim(padding, 2 * self._dims)

    def forward(self, input):
        return F.pad(input, self.padding, self._mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPadNd(_PadNd):
    def __init__(self, padding, value: float):
        super().__init__(padding)
        self.value = value

    def forward(self, input):
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class _ZeroPadNd(_ConstantPadNd):
    def __init__(self, padding):
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class ConstantPad1d(_ConstantPadNd):
    """[N, C, L] padded with ``value``."""

    _dims = 1


class ConstantPad2d(_ConstantPadNd):
    """[N, C, H, W] padded with ``value``."""

    _dims = 2


class ConstantPad3d(_ConstantPadNd):
    """[N, C, D, H, W] padded with ``value``."""

    _dims = 3


class ZeroPad1d(_ZeroPadNd):
    """[N, C, L] padded with 0."""

    _dims = 1


class ZeroPad2d(_ZeroPadNd):
    """[N, C, H, W] padded with 0."""

    _dims = 2


class ZeroPad3d(_ZeroPadNd):
    """[N, C, D, H, W] padded with 0."""

    _dims = 3


class ReflectionPad1d(_PadNd):
    """[N, C, L] padded mirrored at the edge, without it."""

    _dims, _mode = 1, "reflect"


class ReflectionPad2d(_PadNd):
    """[N, C, H, W] padded mirrored at the edge, without it."""

    _dims, _mode = 2, "reflect"


class ReflectionPad3d(_PadNd):
    """[N, C, D, H, W] padded mirrored at the edge, without it."""

    _dims, _mode = 3, "reflect"


class ReplicationPad1d(_PadNd):
    """[N, C, L] padded with copies of the edge."""

    _dims, _mode = 1, "replicate"


class ReplicationPad2d(_PadNd):
    """[N, C, H, W] padded with copies of the edge."""

    _dims, _mode = 2, "replicate"


class ReplicationPad3d(_PadNd):
    """[N, C, D, H, W] padded with copies of the edge."""

    _dims, _mode = 3, "replicate"


class CircularPad1d(_PadNd):
    """[N, C, L] padded with the other end."""

    _dims, _mode = 1, "circular"


class CircularPad2d(_PadNd):
    """[N, C, H, W] padded with the other end."""

    _dims, _mode = 2, "circular"


class CircularPad3d(_PadNd):
    """[N, C, D, H, W] padded with the other end."""

    _dims, _mode = 3, "circular"


__all__ = [
    "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d", "ConstantPad2d",
    "ConstantPad3d", "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d",
    "ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d", "ZeroPad1d", "ZeroPad2d",
    "ZeroPad3d",
]
