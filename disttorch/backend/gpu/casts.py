"""Casts and fills on the GPU: elements are converted by the elementwise kernels, 16 bytes an access.

What keeps its dtype is moved without being looked at: ``copies.py``.
"""

from __future__ import annotations

import numpy as np

from .elementwise import VALUES, Fused, new_array, variant
from .layout import plan_for


class Caster:
    """Casts and fills on one device; its methods return NotImplemented where no kernel fits.

    Contiguous arrays, nearly all there are, find their launch in a dictionary by dtypes.
    """

    def __init__(self, fused: Fused, is_contiguous):
        self.fused, self.array, self.is_contiguous = fused, fused.cupy.ndarray, is_contiguous
        self.launches: dict[tuple, tuple] = {}
        self.flat: dict[tuple, tuple] = {}  # by the dtypes of source and target
        self.fills: dict = {}  # by the target's dtype: (launch, tile, class of its number)

    def cast(self, source, dtype):
        """A copy in another dtype; rounded once, integers wrap around, anything but 0 is True."""
        found = self.flat.get((source.dtype, dtype))
        if found is None or not self.is_contiguous(source):
            return self._move(source, None, dtype)
        out, n = self.array(source.shape, dtype), source.size
        if n:
            launch, tile = found
            launch(-(-n // tile), source, out, n)
        return out

    def assign(self, out, source):
        """``out[...] = source`` for an array, broadcast and cast."""
        found = self.flat.get((source.dtype, out.dtype))
        if found is None or source.shape != out.shape or not (
                self.is_contiguous(source) and self.is_contiguous(out)):
            return self._move(source, out, out.dtype)
        n = source.size
        if n:
            launch, tile = found
            launch(-(-n // tile), source, out, n)
        return out

    def fill(self, out, value):
        """``out[...] = value`` for a number."""
        found = self.fills.get(out.dtype)
        if found is not None and (value.__class__ is int or value.__class__ is float is found[2]) and (
                -(1 << 63) <= value < 1 << 63 or value.__class__ is float) and self.is_contiguous(out):
            n = out.size
            if n:
                launch, tile, number = found
                launch(-(-n // tile), out, n, number(value))
            return out
        return self._fill(out, value)

    def _fill(self, out, value):
        value = value.item() if isinstance(value, np.generic) else value
        kind = VALUES.get(out.dtype)
        number = float if kind in ("float", "double") else int
        if kind is None or not isinstance(value, (int, float) if number is float else int):
            return NotImplemented
        if number is int and not -(1 << 63) <= value < 1 << 63:
            return NotImplemented
        plan = plan_for((), out)
        if plan is None:
            return NotImplemented
        if plan.size:
            launch, tile = self._launch(plan, ("p",), kind, (), out.dtype, 1)
            if plan.axes == 1:
                self.fills[out.dtype] = launch, tile, number
            launch(-(-plan.size // tile), out, plan.size, *plan.numbers, number(value))
        return out

    def _move(self, source, out, dtype):
        have = source.dtype
        if have not in VALUES or dtype not in VALUES:
            return NotImplemented
        plan = plan_for((source,), out)
        if plan is None:
            return NotImplemented
        if out is None:
            out = new_array(self.fused.cupy, plan, (source,), dtype)
        if plan.size:
            launch, tile = self._launch(plan, ("a",), VALUES[have], (have,), dtype, 0)
            if plan.axes == 1:
                self.flat[have, dtype] = launch, tile
            launch(-(-plan.size // tile), source, out, plan.size, *plan.numbers)
        return out

    def _launch(self, plan, results, value, dtypes, result, numbers):
        key = (value, dtypes, result, plan.axes > 1 and variant(plan))
        found = self.launches.get(key)
        if found is None:
            found = self.launches[key] = self.fused.launch_of(
                results, value, dtypes, result, numbers, plan)
        return found
