"""Sampling at given places, and the places of an affine map."""

from __future__ import annotations

import math
import warnings

from ..backend import dtypes
from ..tensor import Tensor
from .core import REGISTRY


def affine_grid(theta, size, align_corners=None) -> Tensor:
    """Places for ``grid_sample`` under affine maps (Jaderberg et al., arXiv:1506.02025).

    Args:
        theta: N×2×3 or N×3×4.
        size: of the output, (N, C, H, W) or (N, C, D, H, W).
        align_corners: whether −1 and 1 are the centres of the outer pixels, or their edges.

    Returns:
        N×H×W×2 or N×D×H×W×3, in [−1, 1] for the identity.
    """
    if align_corners is None:
        warnings.warn(
            "Default grid_sample and affine_grid behavior has changed to align_corners=False "
            "since 1.3.0. Please specify align_corners=True if the old behavior is desired. See "
            "the documentation of grid_sample for details.",
            stacklevel=2,
        )
        align_corners = False
    if theta.dtype.category < dtypes.FLOAT:
        raise ValueError(
            f"Expected theta to have floating point type, but got {theta.dtype}"
        )
    size = tuple(int(s) for s in size)
    dims = len(size) - 2
    if dims not in (2, 3):
        raise NotImplementedError(
            "affine_grid only supports 4D and 5D sizes, for 2D and 3D affine transforms, "
            f"respectively. Got size {size}."
        )
    if theta._data.shape[1:] != (dims, dims + 1):
        raise ValueError(
            f"Expected a batch of {dims}D affine matrices of shape Nx{dims}x{dims + 1} for size "
            f"{size}. Got {tuple(theta._data.shape)}."
        )
    if min(size) <= 0:
        raise ValueError(f"Expected non-zero, positive output size. Got {size}")
    from .ranges import linspace

    axes = []
    for n in size[:1:-1]:  # x first
        edge = 1.0 if align_corners else (n - 1) / n
        ends = (0.0, 0.0) if n == 1 else (-edge, edge)
        axes.append(linspace(*ends, n, dtype=theta.dtype, device=theta.device))
    shape = size[2:]
    expanded = []
    for i, axis in enumerate(axes):
        view = [1] * dims
        view[dims - 1 - i] = -1
        expanded.append(REGISTRY["expand"].call(REGISTRY["reshape"].call(axis, tuple(view)), shape))
    expanded.append(REGISTRY["ones_like"].call(expanded[0]))
    base = REGISTRY["reshape"].call(REGISTRY["stack"].call(expanded, -1), (1, -1, dims + 1))
    grid = REGISTRY["matmul"].call(base, REGISTRY["transpose"].call(theta, 1, 2))
    return REGISTRY["reshape"].call(grid, (size[0], *shape, dims))


def _unnormalise(x, size, align_corners):
    """[−1, 1] to places of pixels."""
    if align_corners:
        return (x + 1) * ((size - 1) / 2)
    return ((x + 1) * size - 1) / 2


def _reflect(x, low, high):
    """Fold places at ``low`` and ``high`` until they lie between."""
    if low == high:
        return x * 0
    span = high - low
    distance = REGISTRY["abs"].call(x - low)
    turns = REGISTRY["floor"].call(distance.detach() / span)
    rest = distance - turns * span
    odd = turns % 2 == 1
    return REGISTRY["where"].call(odd, high - rest, rest + low)


def _keep_inside(x, size, padding_mode, align_corners):
    if padding_mode == "reflection":
        x = _reflect(x, 0.0, size - 1.0) if align_corners else _reflect(x, -0.5, size - 0.5)
    if padding_mode in ("border", "reflection"):
        x = REGISTRY["clamp"].call(x, 0.0, size - 1.0)
    return x


def _pick(flat, places, sizes, inside):
    """Elements of N×C×(product of sizes) at int64 places (one N×P tensor per dim), 0 outside."""
    index = None
    for place, n in zip(places, sizes):
        place = place.clamp(0, n - 1)
        index = place if index is None else index * n + place
    n, c = flat._data.shape[:2]
    index = REGISTRY["expand"].call(index.unsqueeze(1), (n, c, index._data.shape[-1]))
    values = REGISTRY["gather"].call(flat, 2, index)
    return REGISTRY["where"].call(inside.unsqueeze(1), values, 0.0)


def _is_inside(places, sizes):
    ok = None
    for place, n in zip(places, sizes):
        here = (place >= 0).logical_and(place < n)
        ok = here if ok is None else ok.logical_and(here)
    return ok


def _sample_linear(flat, at, sizes):
    """Between the 2^d neighbours."""
    lows = [x.detach().floor() for x in at]
    total = None
    for corner in range(1 << len(at)):
        places, weight = [], None
        for i, (x, low) in enumerate(zip(at, lows)):
            up = corner >> i & 1
            part = x - low if up else (low + 1) - x
            weight = part if weight is None else weight * part
            places.append((low + up).to(dtypes.int64))
        value = _pick(flat, places, sizes, _is_inside(places, sizes)) * weight.unsqueeze(1)
        total = value if total is None else total + value
    return total


def _sample_nearest(flat, at, sizes):
    places = [x.detach().round().to(dtypes.int64) for x in at]
    return _pick(flat, places, sizes, _is_inside(places, sizes))


def _cubic_weights(t):
    """Keys' kernel (a = −0.75) at the distances of the four neighbours of a place."""
    a = -0.75

    def far(x):
        return ((x - 5) * x + 8) * x * a - 4 * a

    def near(x):
        return ((a + 2) * x - (a + 3)) * x * x + 1

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _sample_cubic(flat, at, sizes, padding_mode, align_corners):
    lows = [x.detach().floor() for x in at]
    weights = [_cubic_weights(x - low) for x, low in zip(at, lows)]
    total = None
    for i in range(4):
        for j in range(4):
            places = [
                _keep_inside(low + k - 1, n, padding_mode, align_corners).to(dtypes.int64)
                for low, k, n in zip(lows, (i, j), sizes)
            ]
            value = _pick(flat, places, sizes, _is_inside(places, sizes))
            value = value * (weights[0][i] * weights[1][j]).unsqueeze(1)
            total = value if total is None else total + value
    return total


def _check_grid(input, grid, mode, padding_mode):
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(
            "nn.functional.grid_sample(): expected mode to be 'bilinear', 'nearest' or 'bicubic', "
            f"but got: '{mode}'"
        )
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            "nn.functional.grid_sample(): expected padding_mode to be 'zeros', 'border', or "
            f"'reflection', but got: '{padding_mode}'"
        )
    x, g = input._data.shape, grid._data.shape
    text = f"but got input with sizes {list(x)} and grid with sizes {list(g)}"
    if len(x) not in (4, 5) or len(x) != len(g):
        raise RuntimeError(
            "grid_sampler(): expected 4D or 5D input and grid with same number of dimensions, "
            + text
        )
    if x[0] != g[0]:
        raise RuntimeError(
            f"grid_sampler(): expected grid and input to have same batch size, {text}"
        )
    if g[-1] != len(x) - 2:
        raise RuntimeError(
            f"grid_sampler(): expected grid to have size {len(x) - 2} in last dimension, but got "
            f"grid with sizes {list(g)}"
        )
    if input.dtype is not grid.dtype:
        raise RuntimeError(
            "grid_sampler(): expected input and grid to have same dtype, but input has "
            f"{input.dtype.name} and grid has {grid.dtype.name}"
        )
    if min(x[2:]) == 0:
        raise RuntimeError(
            f"grid_sampler(): expected input to have non-empty spatial dimensions, {text}"
        )
    if mode == "bicubic" and len(x) == 5:
        raise RuntimeError("grid_sampler(): bicubic interpolation only supports 4D input")


def grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=None) -> Tensor:
    """Values of ``input`` at places given in [−1, 1].

    Args:
        input: N×C×H×W or N×C×D×H×W.
        grid: N×P×2 (x, y) with P one or more dims as many as input's, or …×3 (x, y, z).
        mode: "bilinear" (trilinear in 3-D), "nearest" or "bicubic" (2-D).
        padding_mode: outside is 0 ("zeros"), the edge ("border"), or mirrored ("reflection").
        align_corners: whether −1 and 1 are the centres of the outer pixels, or their edges.

    Returns:
        N×C×P.
    """
    _check_grid(input, grid, mode, padding_mode)
    if align_corners is None:
        warnings.warn(
            "Default grid_sample and affine_grid behavior has changed to align_corners=False "
            "since 1.3.0. Please specify align_corners=True if the old behavior is desired. See "
            "the documentation of grid_sample for details.",
            stacklevel=2,
        )
        align_corners = False
    shape = input._data.shape
    sizes, places = shape[2:], grid._data.shape[1:-1]
    flat = REGISTRY["reshape"].call(input, (*shape[:2], math.prod(sizes)))
    points = REGISTRY["reshape"].call(grid, (shape[0], math.prod(places), len(sizes)))
    columns = REGISTRY["unbind"].call(points, -1)[::-1]  # x is the last dim
    at = [_unnormalise(x, n, align_corners) for x, n in zip(columns, sizes)]
    if mode == "bicubic":
        out = _sample_cubic(flat, at, sizes, padding_mode, align_corners)
    else:
        at = [_keep_inside(x, n, padding_mode, align_corners) for x, n in zip(at, sizes)]
        sample = _sample_nearest if mode == "nearest" else _sample_linear
        out = sample(flat, at, sizes)
    return REGISTRY["reshape"].call(out, (*shape[:2], *places))


def grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners) -> Tensor:
    """``grid_sample`` with PyTorch's numbers for the modes."""
    return grid_sample(input, grid, ("bilinear", "nearest", "bicubic")[interpolation_mode],
                       ("zeros", "border", "reflection")[padding_mode], align_corners)


def affine_grid_generator(theta, size, align_corners) -> Tensor:
    """``affine_grid`` under its other name."""
    return affine_grid(theta, size, align_corners)


FUNCTIONS = {"grid_sampler": grid_sampler, "grid_sampler_2d": grid_sampler,
             "grid_sampler_3d": grid_sampler,
             "affine_grid_generator": affine_grid_generator}
