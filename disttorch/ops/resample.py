"""Resizing the spatial dims, and rearranging pixels and channels."""

from __future__ import annotations

import math

from ..backend import dtypes
from ..backend import resample_kernels as tables
from ..tensor import Tensor
from .core import REGISTRY
from .padding import resample_dim
from .pooling import adaptive_avg_pool

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}
_MODES = ("nearest", "nearest-exact", "area", *_LINEAR, "bicubic")


def _output_size(input, size, scale_factor, recompute):
    """(sizes, scales to compute with or None) of the spatial dims."""
    dims = input.ndim - 2
    shape = input._data.shape[2:]
    if size is not None and scale_factor is not None:
        raise ValueError("only one of size or scale_factor should be defined")
    if size is not None:
        if isinstance(size, (list, tuple)):
            if len(size) != dims:
                raise ValueError(
                    "Input and output must have the same number of spatial dimensions, but got "
                    f"input with spatial dimensions of {list(shape)} and output size of {size}. "
                    "Please provide input tensor in (N, C, d1, d2, ...,dK) format and output size "
                    "in (o1, o2, ...,oK) format."
                )
            return tuple(int(s) for s in size), (None,) * dims
        return (int(size),) * dims, (None,) * dims
    if scale_factor is None:
        raise ValueError("either size or scale_factor should be defined")
    if isinstance(scale_factor, (list, tuple)):
        if len(scale_factor) != dims:
            raise ValueError(
                "Input and scale_factor must have the same number of spatial dimensions, but got "
                f"input with spatial dimensions of {list(shape)} and scale_factor of shape "
                f"{scale_factor}. Please provide input tensor in (N, C, d1, d2, ...,dK) format and "
                "scale_factor in (s1, s2, ...,sK) format."
            )
        scales = tuple(float(s) for s in scale_factor)
    else:
        scales = (float(scale_factor),) * dims
    sizes = tuple(math.floor(n * s) for n, s in zip(shape, scales))
    return sizes, (None,) * dims if recompute else scales


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None,
                recompute_scale_factor=None, antialias=False) -> Tensor:
    """Resize the spatial dims of N×C×… (one to three).

    Args:
        size: of the output, one int or one per dim; or ``scale_factor`` instead.
        mode: "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear" or "area".
        align_corners: whether the outer pixels' centres, not edges, stay where they are.
        recompute_scale_factor: take the scale from the rounded sizes.
        antialias: widen the kernel when shrinking ("bilinear" and "bicubic").

    Raises:
        ValueError: if options contradict each other.
        NotImplementedError: if the mode does not exist for this number of dims.
    """
    if mode in ("nearest", "area", "nearest-exact") and align_corners is not None:
        raise ValueError(
            "align_corners option can only be set with the interpolating modes: linear | "
            "bilinear | bicubic | trilinear"
        )
    align_corners = bool(align_corners)
    if antialias and not (mode in ("bilinear", "bicubic") and input.ndim == 4):
        raise ValueError(
            "Anti-alias option is restricted to bilinear and bicubic modes and requires a 4-D "
            "tensor as input"
        )
    if recompute_scale_factor and size is not None:
        raise ValueError(
            "recompute_scale_factor is not meaningful with an explicit size."
        )
    sizes, scales = _output_size(input, size, scale_factor, recompute_scale_factor)
    _check_mode(input, mode)
    shape = input._data.shape
    if any(n <= 0 for n in (*shape[1:], *sizes)):
        raise RuntimeError(
            f"Input and output sizes should be greater than 0, but got input {list(shape)} and "
            f"output size {list(sizes)}"
        )
    if mode == "area":
        return adaptive_avg_pool(input, sizes)
    for i, (n, scale) in enumerate(zip(sizes, scales)):
        # PyTorch finds places in double precision for one dim of doubles, else in single
        double = len(sizes) == 1 and input.dtype is dtypes.float64
        taps = _taps(mode, shape[2 + i], n, scale, align_corners, antialias, double)
        if taps is not None:
            input = resample_dim.call(input, 2 + i, taps)
    return input if sizes != shape[2:] or input._data.shape[2:] != shape[2:] else input.clone()


def _check_mode(input, mode):
    if mode not in _MODES:
        raise NotImplementedError(
            "Input Error: Only 3D, 4D and 5D input Tensors supported (got "
            f"{input.ndim}D) for the modes: nearest | linear | bilinear | bicubic | trilinear | "
            f"area | nearest-exact (got {mode})"
        )
    need = 2 if mode == "bicubic" else _LINEAR.get(mode, input.ndim - 2)
    if input.ndim not in (3, 4, 5) or need != input.ndim - 2:
        raise NotImplementedError(
            f"Got {input.ndim}D input, but {mode} mode needs {need + 2}D input"
        )


def _taps(mode, size, n, scale, align_corners, antialias, double):
    if mode in ("nearest", "nearest-exact"):
        same = size == n and (scale is None or scale == 1.0)
        return None if same else tables.nearest_taps(
            size, n, scale, mode == "nearest-exact", double
        )
    if antialias:
        kind = "cubic" if mode == "bicubic" else "linear"
        return tables.smooth_taps(size, n, scale, align_corners, kind)
    if size == n and (scale is None or scale == 1.0 or align_corners):
        return None
    if mode == "bicubic":
        return tables.cubic_taps(size, n, scale, align_corners)
    return tables.linear_taps(size, n, scale, align_corners)


# ---------------------------------------------------------------- pixels and channels
def _reshape_permute(input, inner, order, outer):
    t = REGISTRY["permute"].call(REGISTRY["reshape"].call(input, inner), order)
    return REGISTRY["reshape"].call(t, outer)


def pixel_shuffle(input, upscale_factor) -> Tensor:
    """…×(C·r²)×H×W to …×C×(H·r)×(W·r) (Shi et al., arXiv:1609.05158).

    Raises:
        RuntimeError: if the channels are not a multiple of r².
    """
    r, shape = upscale_factor, input._data.shape
    if len(shape) < 3:
        raise RuntimeError(
            "pixel_shuffle expects input to have at least 3 dimensions, but got input with "
            f"{len(shape)} dimension(s)"
        )
    if r <= 0:
        raise RuntimeError(f"pixel_shuffle expects a positive upscale_factor, but got {r}")
    *lead, c, h, w = shape
    if c % (r * r):
        raise RuntimeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square "
            f"of upscale_factor, but input.size(-3)={c} is not divisible by {r * r}"
        )
    k = len(lead)
    order = (*range(k), k, k + 3, k + 1, k + 4, k + 2)
    return _reshape_permute(input, (*lead, c // (r * r), r, r, h, w), order,
                            (*lead, c // (r * r), h * r, w * r))


def pixel_unshuffle(input, downscale_factor) -> Tensor:
    """The inverse of ``pixel_shuffle``.

    Raises:
        RuntimeError: if height or width are not multiples of the factor.
    """
    r, shape = downscale_factor, input._data.shape
    if len(shape) < 3:
        raise RuntimeError(
            "pixel_unshuffle expects input to have at least 3 dimensions, but got input with "
            f"{len(shape)} dimension(s)"
        )
    if r <= 0:
        raise RuntimeError(f"pixel_unshuffle expects a positive downscale_factor, but got {r}")
    *lead, c, h, w = shape
    for size, word, dim in ((h, "height", -2), (w, "width", -1)):
        if size % r:
            raise RuntimeError(
                f"pixel_unshuffle expects {word} to be divisible by downscale_factor, but "
                f"input.size({dim})={size} is not divisible by {r}"
            )
    k = len(lead)
    order = (*range(k), k, k + 2, k + 4, k + 1, k + 3)
    return _reshape_permute(input, (*lead, c, h // r, r, w // r, r), order,
                            (*lead, c * r * r, h // r, w // r))


def channel_shuffle(input, groups) -> Tensor:
    """Interleave the channels of N×C×… of ``groups`` groups (Zhang et al., arXiv:1707.01083).

    Raises:
        RuntimeError: if the channels do not divide into groups.
    """
    shape = input._data.shape
    if len(shape) <= 2:
        raise RuntimeError(
            f"channel_shuffle expects input with > 2 dims, but got input with sizes {list(shape)}"
        )
    if groups <= 0:
        raise RuntimeError(
            f"Number of groups to divide channels in must be positive. Value of groups:{groups}"
        )
    n, c, *rest = shape
    if c % groups:
        raise RuntimeError(
            f"Number of channels must be divisible by groups. Got {c} channels and {groups} groups."
        )
    order = (0, 2, 1, *range(3, 3 + len(rest)))
    return _reshape_permute(input, (n, groups, c // groups, *rest), order, shape)


native_channel_shuffle = channel_shuffle

FUNCTIONS = {"pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
             "channel_shuffle": channel_shuffle,
             "native_channel_shuffle": native_channel_shuffle}
