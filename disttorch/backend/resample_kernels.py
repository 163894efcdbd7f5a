"""Linear maps along one dim in which each output is a weighted sum of a few inputs.

Interpolation, padding by copies and averaging over uneven windows are such maps, and so are their
gradients: a map's transpose is again a table of taps.
"""

from __future__ import annotations

import functools

import numpy as np


class Taps:
    """A map from ``size`` inputs to n outputs: output j is Σ_k weight[k, j]·input[index[k, j]].

    Attributes:
        size: number of inputs.
        index: int64 [K, n].
        weight: float64 [K, n], or None for copies (K = 1).
    """

    def __init__(self, size: int, index: np.ndarray, weight: np.ndarray | None = None):
        self.size, self.index, self.weight = size, np.atleast_2d(index).astype(np.int64), weight
        self._on_device: dict = {}

    @functools.cached_property
    def transposed(self) -> Taps:
        """The transposed map, from n to ``size``."""
        taps, n = self.index.shape
        weight = np.ones((taps, n)) if self.weight is None else self.weight
        source, target = self.index.ravel(), np.tile(np.arange(n), taps)
        used = weight.ravel() != 0
        source, target, weight = source[used], target[used], weight.ravel()[used]
        order = np.argsort(source, kind="stable")
        source, target, weight = source[order], target[order], weight[order]
        count = np.bincount(source, minlength=self.size)
        slot = np.arange(len(source)) - (np.cumsum(count) - count)[source]
        shape = (max(int(count.max(initial=0)), 1), self.size)
        index, weights = np.zeros(shape, np.int64), np.zeros(shape)
        index[slot, source], weights[slot, source] = target, weight
        result = Taps(n, index, weights)
        result.__dict__["transposed"] = self
        return result

    def arrays(self, xp, dtype):
        """(index, weight) as arrays of the namespace, weights in ``dtype``."""
        key = id(xp), dtype
        if key not in self._on_device:
            weight = None if self.weight is None else xp.asarray(self.weight.astype(dtype))
            self._on_device[key] = xp.asarray(self.index), weight
        return self._on_device[key]


def apply_taps(xp, x, axis, taps):
    """The map along one axis."""
    index, weight = taps.arrays(xp, x.dtype)
    if weight is None:
        return xp.take(x, index[0], axis=axis)
    if taps.size == 0:
        shape = list(x.shape)
        shape[axis] = index.shape[1]
        return xp.zeros(shape, x.dtype)
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    total = None
    for k in range(len(index)):
        part = xp.take(x, index[k], axis=axis)
        part *= weight[k].reshape(shape)
        total = part if total is None else xp.add(total, part, out=total)
    return total


# ---------------------------------------------------------------- tables
def _source(n, size, scale, align_corners):
    """Where the outputs lie among the inputs."""
    at = np.arange(n, dtype=np.float64)
    if align_corners:
        return at * ((size - 1) / (n - 1) if n > 1 else 0.0)
    return (at + 0.5) * _ratio(n, size, scale) - 0.5


def _ratio(n, size, scale):
    return 1.0 / scale if scale is not None and scale > 0 else size / n


@functools.lru_cache(512)
def nearest_taps(size, n, scale, exact, double) -> Taps:
    """The input nearest to each output; rounding (of single precision or ``double``) decides ties."""
    real = np.float64 if double else np.float32
    ratio = real(1.0 / scale) if scale else real(size) / real(n)
    at = np.arange(n, dtype=real) + real(0.5 if exact else 0.0)
    places = np.floor((at * ratio).astype(np.float32)).astype(np.int64)
    return Taps(size, np.minimum(places, size - 1))


@functools.lru_cache(512)
def linear_taps(size, n, scale, align_corners) -> Taps:
    """Between the two neighbours."""
    at = np.maximum(_source(n, size, scale, align_corners), 0.0)
    low = np.minimum(at.astype(np.int64), size - 1)
    part = np.minimum(at - low, 1.0)
    return Taps(size, np.stack([low, np.minimum(low + 1, size - 1)]), np.stack([1 - part, part]))


def _cubic(t, a):
    """Keys' convolution kernel (IEEE ASSP 29, 1981)."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


@functools.lru_cache(512)
def cubic_taps(size, n, scale, align_corners) -> Taps:
    """Keys' kernel with a = −0.75 over four neighbours, the ends repeated."""
    at = _source(n, size, scale, align_corners)
    low = np.floor(at).astype(np.int64)
    offsets = np.arange(-1, 3)[:, None]
    weight = _cubic(at - low - offsets, -0.75)
    return Taps(size, np.clip(low + offsets, 0, size - 1), weight)


@functools.lru_cache(512)
def smooth_taps(size, n, scale, align_corners, kind) -> Taps:
    """Antialiased: the kernel ("linear", or "cubic" with a = −0.5) is widened when shrinking."""
    if align_corners:
        ratio = (size - 1) / (n - 1) if n > 1 else 0.0
    else:
        ratio = _ratio(n, size, scale)
    stretch = max(ratio, 1.0)
    support = (1.0 if kind == "linear" else 2.0) * stretch
    centre = ratio * (np.arange(n) + 0.5)
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), size)
    places = low + np.arange(max(int((high - low).max(initial=1)), 1))[:, None]
    t = (places - centre + 0.5) / stretch
    weight = np.maximum(1 - np.abs(t), 0.0) if kind == "linear" else _cubic(t, -0.5)
    weight = np.where(places < high, weight, 0.0)
    return Taps(size, np.minimum(places, size - 1), weight / weight.sum(0))


@functools.lru_cache(512)
def average_taps(size, n) -> Taps:
    """Means over ``n`` windows of nearly equal length that cover the dim.

    A shorter window repeats its last place with half the weight and half of the rest again: no
    weight is 0, so an infinity elsewhere cannot turn into a NaN.
    """
    k = np.arange(n)
    starts, ends = k * size // n, -(-(k + 1) * size // n)
    length = ends - starts
    column = np.arange(int(length.max(initial=1)))[:, None]
    extra = len(column) - length
    back = np.minimum(column - length + 1, extra)  # 0 for the last place, then its repeats
    share = np.where(back < 0, 1.0, 0.5 ** np.minimum(back + 1, extra))
    return Taps(size, np.minimum(starts + column, ends - 1), share / length)


@functools.lru_cache(512)
def padding_taps(size, left, right, mode) -> Taps:
    """Copies beyond the ends: "reflect", "replicate" or "circular"; negative sizes cut off."""
    at = np.arange(-left, size + right)
    if mode == "replicate":
        at = np.clip(at, 0, size - 1)
    elif mode == "circular":
        # what is cut off takes no part in going around
        kept = np.arange(max(-left, 0), size - max(-right, 0))
        at = kept[np.arange(-max(left, 0), len(kept) + max(right, 0)) % len(kept)]
    elif size > 1:
        period = 2 * (size - 1)
        at = at % period
        at = np.minimum(at, period - at)
    else:
        at = np.zeros_like(at)
    return Taps(size, at)
