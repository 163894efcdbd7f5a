"""Convolution of groups of one channel: a few multiplications along long rows for each tap.

The padded input is split into one *phase* per residue of the stride, each a grid of its own. Seen
as flat rows, what one tap of the kernel meets is a phase shifted by a fixed number of elements, for
all outputs at once: no short inner loops. The grid's last columns hold values that no output needs.

Shape legend: N batch, C channels, M outputs per channel, Q grid of a phase, F its elements.
"""

from __future__ import annotations

import itertools
import math

_BLOCK = 1 << 16  # elements of a block of the batch: it and a temporary fit in the L2 cache


class _Grid:
    """The geometry: which phase and which shift each tap has, where the outputs lie."""

    def __init__(self, size, kernel, stride, padding, dilation, out_size):
        self.size, self.stride, self.padding = size, stride, padding
        reach = (d * (k - 1) + s * (n - 1) + 1
                 for d, k, s, n in zip(dilation, kernel, stride, out_size))
        self.shape = tuple(-(-max(r, n + 2 * p) // s)
                           for r, n, p, s in zip(reach, size, padding, stride))
        self.elements = math.prod(self.shape)
        self.length = self._flat([n - 1 for n in out_size]) + 1
        self.out_size = out_size
        self.taps = []  # (place in the kernel, phase, shift)
        for place in itertools.product(*map(range, kernel)):
            at = [o * d for o, d in zip(place, dilation)]
            phase = tuple(a % s for a, s in zip(at, stride))
            self.taps.append((place, phase, self._flat([a // s for a, s in zip(at, stride)])))

    def _flat(self, place):
        index = 0
        for i, n in zip(place, self.shape):
            index = index * n + i
        return index

    def phases(self, xp, x):
        """N×C×S padded and split: {phase: N×C×F}."""
        full = xp.zeros((*x.shape[:2], *(q * s for q, s in zip(self.shape, self.stride))), x.dtype)
        full[self._inside()] = x
        if all(s == 1 for s in self.stride):
            return {(0,) * len(self.stride): full.reshape(*x.shape[:2], self.elements)}
        return {
            phase: xp.ascontiguousarray(full[self._of_phase(phase)]).reshape(*x.shape[:2], -1)
            for phase in {phase for _, phase, _ in self.taps}
        }

    def join(self, xp, phases):
        """The adjoint of ``phases``."""
        some = next(iter(phases.values()))
        full = xp.zeros(
            (*some.shape[:2], *(q * s for q, s in zip(self.shape, self.stride))), some.dtype
        )
        for phase, flat in phases.items():
            full[self._of_phase(phase)] = flat.reshape(*some.shape[:2], *self.shape)
        return full[self._inside()]

    def _inside(self):
        return (slice(None), slice(None),
                *(slice(p, p + n) for p, n in zip(self.padding, self.size)))

    def _of_phase(self, phase):
        return (slice(None), slice(None), *(slice(p, None, s) for p, s in zip(phase, self.stride)))

    def outputs(self, flat):
        """The outputs P of N×C×F."""
        grid = flat.reshape(*flat.shape[:2], *self.shape)
        return grid[(slice(None), slice(None), *map(slice, self.out_size))]

    def spread(self, xp, g):
        """N×C×P on the grid, zeros elsewhere, up to the last output: N×C×length."""
        flat = xp.zeros((*g.shape[:2], self.elements), g.dtype)
        self.outputs(flat)[...] = g
        return flat[:, :, : self.length]


def _blocks(batch, channels, grid):
    step = max(1, _BLOCK // max(1, channels * grid.elements))
    for start in range(0, batch, step):
        yield slice(start, min(batch, start + step))


def depthwise(xp, x, w, stride, padding, dilation, size):
    """x N×C×S with w (C·M)×1×K: N×(C·M)×P, P = ``size``."""
    channels, multiple = x.shape[1], w.shape[0] // x.shape[1]
    grid = _Grid(x.shape[2:], w.shape[2:], stride, padding, dilation, size)
    taps = w.reshape(channels, multiple, -1)
    out = xp.empty((x.shape[0], channels * multiple, *size), xp.result_type(x, w))
    for b in _blocks(x.shape[0], channels, grid):
        phases, count = grid.phases(xp, x[b]), b.stop - b.start
        # what each tap meets, one below the other: a small product for each channel
        seen = xp.empty((count, channels, len(grid.taps), grid.length), x.dtype)
        for i, (_, phase, shift) in enumerate(grid.taps):
            seen[:, :, i] = phases[phase][:, :, shift : shift + grid.length]
        total = xp.empty((count, channels, multiple, grid.elements), out.dtype)
        total[..., : grid.length] = xp.matmul(taps, seen)
        out[b] = grid.outputs(total.reshape(count, channels * multiple, grid.elements))
    return out


def depthwise_input_grad(xp, g, w, size, stride, padding, dilation, channels):
    """The adjoint in x: g N×(C·M)×P to N×C×S, S = ``size``."""
    multiple, out_size = w.shape[0] // channels, g.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:])]
    if multiple == 1 and set(stride) == {1} and all(p <= r for p, r in zip(padding, reach)):
        mirrored = w[(slice(None), slice(None), *(slice(None, None, -1) for _ in reach))]
        rest = [r - p for r, p in zip(reach, padding)]
        return depthwise(xp, g, mirrored, stride, rest, dilation, tuple(size))
    grid = _Grid(size, w.shape[2:], stride, padding, dilation, out_size)
    g = g.reshape(g.shape[0], channels, multiple, *out_size)
    taps = w.reshape(channels, multiple, *w.shape[2:])
    out = xp.empty((g.shape[0], channels, *size), xp.result_type(g, w))
    for b in _blocks(g.shape[0], channels, grid):
        shape = (b.stop - b.start, channels)
        phases = {phase: xp.zeros((*shape, grid.elements), out.dtype) for _, phase, _ in grid.taps}
        part = xp.empty((*shape, grid.length), out.dtype)
        for m in range(multiple):
            spread = grid.spread(xp, g[b, :, m])
            for place, phase, shift in grid.taps:
                xp.multiply(spread, taps[(slice(None), m, *place, None)], out=part)
                phases[phase][:, :, shift : shift + grid.length] += part
        out[b] = grid.join(xp, phases)
    return out


def depthwise_weight_grad(xp, x, g, kernel, stride, padding, dilation):
    """The adjoint in w: x N×C×S with g N×(C·M)×P to (C·M)×1×K."""
    channels, multiple = x.shape[1], g.shape[1] // x.shape[1]
    grid = _Grid(x.shape[2:], kernel, stride, padding, dilation, g.shape[2:])
    g = g.reshape(g.shape[0], channels, multiple, *g.shape[2:])
    out = xp.zeros((channels, multiple, *kernel), xp.result_type(x, g))
    for b in _blocks(x.shape[0], channels, grid):
        phases = grid.phases(xp, x[b])
        for m in range(multiple):
            spread = grid.spread(xp, g[b, :, m])[:, :, :, None]
            for place, phase, shift in grid.taps:
                seen = phases[phase][:, :, None, shift : shift + grid.length]
                dots = xp.matmul(seen, spread)
                out[(slice(None), m, *place)] += dots[:, :, 0, 0].sum(axis=0)
    return out.reshape(channels * multiple, 1, *kernel)
