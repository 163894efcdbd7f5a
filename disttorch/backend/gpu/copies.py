"""Copies, casts, fills and GELU of the GPU.

What keeps its dtype is moved bit by bit: one stretch of memory by the driver's copy (the fastest there
is, and no kernel to choose), anything else by ``csrc/copies.cu`` as ``moves.plan`` says. Casts, fills
and GELU are expressions over elements (``casts.py``, ``elementwise.py``).

Source and target may be the same memory, element by element; where they overlap otherwise, the caller
makes a copy first (``ops/inplace.py``).
"""

from __future__ import annotations

import operator

from .. import plain_copies, plain_kernels
from . import moves
from .kernel import blocks as blocks_for
from .kernel import kernel

_TO_DEVICE = 3  # cudaMemcpyDeviceToDevice


def contiguity(cupy):
    """A function that tells whether an array lies without gaps in row-major order."""
    if hasattr(cupy.ndarray, "_c_contiguous"):  # ``flags`` makes an object first
        return operator.attrgetter("_c_contiguous")
    return lambda a: a.flags.c_contiguous


class Copier:
    """Copies without a cast on one device. Decisions are kept by shapes, strides and alignment."""

    def __init__(self, cupy):
        self.cupy, self.array = cupy, cupy.ndarray
        self._copy, self._stream = cupy.cuda.runtime.memcpyAsync, cupy.cuda.get_current_stream
        self._plans: dict[tuple, tuple | int] = {}

    def flat(self, target, source, size: int) -> None:
        """Copy one stretch of ``size`` bytes."""
        self._copy(target.data.ptr, source.data.ptr, size, _TO_DEVICE, self._stream().ptr)

    def move(self, target, source) -> None:
        """``target[...] = source`` for arrays of one dtype; the source may be broadcast.

        Raises:
            ValueError: if its shape does not broadcast to the target's.
        """
        shape = target.shape
        key = (shape, source.shape, target.strides, source.strides, source.dtype,
               source.data.ptr & 15, target.data.ptr & 15)
        found = self._plans.get(key)
        if found is None:
            found = self._plan(key, target, source)
        if isinstance(found, int):
            if found:
                self.flat(target, source, found)
            return
        for launch, blocks, places, more in found:
            launch(blocks, source, target, places, *more)

    def _plan(self, key, target, source):
        lead = target.ndim - source.ndim
        if lead < 0 or any(n not in (1, m) for n, m in zip(source.shape, target.shape[lead:])):
            raise ValueError(
                f"an array of shape {source.shape} cannot be broadcast to the shape {target.shape}")
        strides = (0,) * lead + tuple([
            0 if n == 1 else s for n, s in zip(source.shape, source.strides)])
        plan = moves.plan(target.shape, strides, target.strides, target.itemsize, key[-2], key[-1])
        found: tuple | int = plan if isinstance(plan, int) else tuple([
            (self._prepared(m), m.blocks, m.places, m.more) for m in plan])
        if len(self._plans) > 8192:  # shapes that keep changing
            self._plans.clear()
        self._plans[key] = found
        return found

    def _prepared(self, move: moves.Launch):
        made = kernel(self.cupy, "copies", move.name, UNIT=move.unit)
        types = (self.array, self.array, type(move.places), *[int] * len(move.more))
        return made.prepared(moves.BLOCK, types)


def contiguous_copy(xp, a):
    """A row-major copy."""
    out = xp.ndarray(a.shape, a.dtype)
    if a.size:
        if xp.is_contiguous(a):
            xp.copier.flat(out, a, a.nbytes)
        else:
            xp.copier.move(out, a)
    return out


def duplicate(xp, a):
    """A copy without gaps whose axes lie in the order of the array's."""
    if xp.is_contiguous(a):
        return contiguous_copy(xp, a)
    out = xp.cupy.empty_like(a)
    if a.size:
        xp.copier.move(out, a)
    return out


def ascontiguousarray(xp, a, dtype=None):
    """The array row-major, of at least one axis; itself if it is that."""
    if a.__class__ is not xp.ndarray:
        return xp.cupy.ascontiguousarray(a, dtype)
    if dtype is not None and a.dtype != dtype:
        a = xp.cast(a, xp.cupy.dtype(dtype))
    if not xp.is_contiguous(a):
        return contiguous_copy(xp, a)
    return a if a.ndim else a.reshape(1)


def asfortranarray(xp, a, dtype=None):
    """The array with its first axis innermost; itself if it is that."""
    if dtype is not None and a.dtype != dtype:
        a = xp.cast(a, xp.cupy.dtype(dtype))
    return a if a.flags.f_contiguous else contiguous_copy(xp, a.T).T


def reshaped(xp, a, shape: tuple):
    """``a`` in another shape of as many elements: a view where the memory allows it, else a copy."""
    if not xp.is_contiguous(a) and not moves.is_viewable(a.shape, a.strides, shape):
        a = contiguous_copy(xp, a)
    return a.reshape(shape)


def cast(xp, a, dtype):
    """A copy of ``a`` in another dtype."""
    if a.dtype == dtype:
        return duplicate(xp, a)
    out = xp.caster.cast(a, dtype)
    return plain_copies.cast(xp, a, dtype) if out is NotImplemented else out


def assign(xp, out, source):
    """``out[...] = source``; returns ``out``."""
    if source.dtype == out.dtype:
        xp.copier.move(out, source)
        return out
    done = xp.caster.assign(out, source)
    return plain_copies.assign(xp, out, source) if done is NotImplemented else done


def fill_with(xp, out, value):
    """``out[...] = value`` for a number, cast like NumPy's ``full``; returns ``out``."""
    done = xp.caster.fill(out, value)
    if done is NotImplemented:
        xp.copier.move(out, xp.cupy.full((), value, out.dtype))
    return out


def full(xp, shape, value, dtype=None):
    """``numpy.full``."""
    if dtype is None:
        return xp.cupy.full(shape, value)
    return fill_with(xp, xp.cupy.empty(shape, dtype), value)


def ones(xp, shape, dtype=float):
    """``numpy.ones``."""
    return fill_with(xp, xp.cupy.empty(shape, dtype), 1)


def ones_like(xp, a, dtype=None):
    """``numpy.ones_like``."""
    return fill_with(xp, xp.cupy.empty_like(a, dtype), 1)


def full_like(xp, a, value, dtype=None):
    """``numpy.full_like`` for a number."""
    return fill_with(xp, xp.cupy.empty_like(a, dtype), value)


def ramp(xp, start, step, count, dtype):
    """``start + i·step`` for i below ``count``, computed as int64 or, if one is a float, as float64."""
    as_float = isinstance(start, float) or isinstance(step, float)
    value, number = ("float64", float) if as_float else ("int64", int)
    if dtype.name not in _RAMPS or not as_float and not (
            min(start, step) >= -_LONG and max(start, step) < _LONG):
        return plain_copies.ramp(xp, start, step, count, dtype)
    out = xp.ndarray((count,), dtype)
    if count:
        kernel(xp.cupy, "ramp", "ramp", VALUE=value, RESULT=dtype.name)(
            (blocks_for(count, 256, 4096),), (256,), (out, count, number(start), number(step)))
    return out


_LONG = 1 << 63
_RAMPS = frozenset((
    "int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"))


def gelu(xp, x, approximate="none"):
    """x·Φ(x), or its tanh form; 16-bit floats are rounded once."""
    fused = xp.fused
    out = (fused.gelu if approximate == "none" else fused.gelu_with_tanh)(x)
    return plain_kernels.gelu(xp, x, approximate) if out is NotImplemented else out


def gelu_backward(xp, g, x, approximate="none"):
    """g times the derivative of gelu at x."""
    fused = xp.fused
    out = (fused.gelu_backward if approximate == "none" else fused.gelu_with_tanh_backward)(g, x)
    return plain_kernels.gelu_backward(xp, g, x, approximate) if out is NotImplemented else out
