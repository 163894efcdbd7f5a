"""Elementwise operations of the GPU: one launch each, broadcasting and casts included.

``xp.fused`` has a function for every line of ``expressions.TABLE``: it takes arrays and numbers and
returns arrays, or NotImplemented for operands that no kernel takes (complex numbers, mixed dtypes, more
than six axes that do not join); the caller then goes by CuPy's functions. 16-bit floats are widened in
the kernel and rounded once.

The frequent calls (one array, two alike, an array and a number; without gaps, in row-major or any other
order of axes) find their launch in a dictionary by dtype; everything else goes through
``layout.plan_for``.
"""

from __future__ import annotations

import math
import re

import numpy as np

from ..dtypes import bfloat16
from .expressions import TABLE, Expression
from .kernel import kernel
from .layout import plan_for

BLOCK, STEPS = 256, 2  # as in csrc/elementwise.cu
_BOOL = np.dtype(np.bool_)

# dtype: what it is computed as
VALUES = {np.dtype(k): v for k, v in {
    "bool": "bool", "uint8": "i32", "int8": "i32", "int16": "i32", "int32": "i32", "int64": "i64",
    "float16": "float", "float32": "float", "float64": "double"}.items()} | {bfloat16.np: "float"}
_LETTERS = {d: "f" if v in ("float", "double") else "b" if v == "bool" else "i"
            for d, v in VALUES.items()}
_FLOATS = frozenset(d for d, letter in _LETTERS.items() if letter == "f")
_OPERAND = re.compile(r"\b[xyzw]\b")


class Fused:
    """The elementwise functions of one device: ``fused.tanh(array)``, ``fused.add(array, 2.5)``, …"""

    def __init__(self, cupy):
        self.cupy = cupy
        # (shape, strides, itemsize) of arrays without gaps whose axes lie in another order than
        # row-major: channels last, transposed, …
        self.permuted: set[tuple] = set()
        for name, spec in TABLE.items():
            setattr(self, name, Function(self, name, spec).call)
        self.pow = _power(self)

    def remember(self, array):
        """Note how an array lies that has no gaps and is not row-major."""
        if len(self.permuted) > 4096:  # shapes that keep changing
            self.permuted.clear()
        self.permuted.add((array.shape, array.strides, array.itemsize))

    def launch_of(self, results, value, arrays, result, numbers, plan):
        """The prepared launch of some expressions, and how many elements a block of it computes.

        Args:
            results: the expressions, with their operands named a, b, c, p, q.
            value: the computing type; ``result``: the results' dtype; ``arrays``: the operands' dtypes.
            numbers: how many numbers there are.
        """
        width = 16 // max(d.itemsize for d in (*arrays, result))
        names = {"VALUE": value, "RESULT": result.name, "NUMBERS": numbers, "NDIM": plan.axes}
        names |= dict(zip(("FIRST", "SECOND", "THIRD"), [d.name for d in arrays]))
        names |= dict(zip(("EXPR", "EXPR1"), results))
        function, per_thread = "elementwise", width * STEPS
        if plan.axes > 1:
            per_thread = width if plan.inner % width == 0 else 1
            function = "elementwise" if plan.inner % width == 0 else "elementwise_single"
            names["INDEX"] = "u32" if plan.size < 1 << 31 else "i64"
        made = kernel(self.cupy, "elementwise", function, **names)
        number = float if value in ("float", "double") else int
        types = ((self.cupy.ndarray,) * (len(arrays) + len(results)) + (int,) * (1 + len(plan.numbers))
                 + (number,) * numbers)
        return made.prepared(BLOCK, types), per_thread * BLOCK


class Function:
    """One line of the table on one device; ``call`` is what users get."""

    def __init__(self, fused: Fused, name: str, spec: Expression):
        self.fused, self.name, self.spec = fused, name, spec
        self.array = fused.cupy.ndarray
        self.launches: dict = {}
        self.alike: dict = {}  # launches for one array, or two alike; by dtype
        self.beside: dict = {}  # launches for an array and a number on its right
        simple = len(spec.results) == 1
        if simple and len(spec.operands) == 1:
            self.call = self._unary()
        elif simple and spec.operands in ("ee", "aa", "ae"):
            self.call = self._binary()
        else:
            self.call = self.general

    def _unary(self):
        array, alike, general, like = self.array, self.alike, self.general, self._maker()

        def call(x, out=None):
            found = alike.get(x.dtype)
            if found is None or out is not None:
                return general(x, out=out)
            launch, tile, dtype = found
            out = array(x.shape, dtype) if x._c_contiguous else like(x, dtype)
            if out is None:
                return general(x)
            n = x.size
            if n:
                launch(-(-n // tile), x, out, n)
            return out

        return call if hasattr(array, "_c_contiguous") else lambda x, out=None: general(x, out=out)

    def _maker(self):
        """``like(x, dtype)``: a new array that lies as x, whose axes are in another order than
        row-major; None if x may have gaps, or its elements another size."""
        array, permuted, alloc = self.array, self.fused.permuted, self.fused.cupy.cuda.alloc

        def like(x, dtype):
            shape, strides = x.shape, x.strides
            if dtype is not x.dtype or (shape, strides, x.itemsize) not in permuted:
                return None
            return array(shape, dtype, alloc(x.nbytes), strides)

        return like

    def _binary(self):
        array, alike, beside, general = self.array, self.alike, self.beside, self.general
        like, permuted = self._maker(), self.fused.permuted

        def call(x, y, out=None):
            if x.__class__ is not array:
                return general(x, y, out=out)
            shape, plain = x.shape, x._c_contiguous
            if y.__class__ is array:
                found = alike.get(x.dtype)
                if found is None or y.dtype is not x.dtype or y.shape != shape or not (
                        y._c_contiguous if plain else y.strides == x.strides):
                    return general(x, y, out=out)
            else:
                found = beside.get(x.dtype)
                if found is None or y.__class__ is not float and y.__class__ is not int:
                    return general(x, y, out=out)
            launch, tile, dtype = found
            if out is None:
                out = array(shape, dtype) if plain else like(x, dtype)
                if out is None:
                    return general(x, y)
            elif out.dtype is not dtype or out.shape != shape or not (
                    out._c_contiguous if plain else
                    out.strides == x.strides and (shape, x.strides, x.itemsize) in permuted):
                return general(x, y, out=out)
            n = x.size
            if n:
                if y.__class__ is array:
                    launch(-(-n // tile), x, y, out, n)
                else:
                    launch(-(-n // tile), x, out, n, float(y))
            return out

        return call if hasattr(array, "_c_contiguous") else (
            lambda x, y, out=None: general(x, y, out=out))

    def general(self, *operands, out=None, needs=None):
        """Any call. ``needs``: which of several results are wanted; the others are None."""
        taken = self._take(operands)
        if taken is None:
            return NotImplemented
        dtype, arrays, numbers, names = taken
        plan = plan_for(arrays, out)
        if plan is None:
            return NotImplemented
        dtypes = tuple([a.dtype for a in arrays])
        result = _BOOL if self.spec.result == "bool" else dtype
        if out is not None and out.dtype != result:
            return NotImplemented
        count = len(self.spec.results) if needs is None else sum(needs)
        outs = [out] if out is not None else [
            new_array(self.fused.cupy, plan, arrays, result) for _ in range(count)]
        if plan.size:
            key = (dtypes, names, needs, plan.axes > 1 and variant(plan))
            found = self.launches.get(key)
            if found is None:
                found = self.launches[key] = self._prepare(dtype, dtypes, names, needs, result, plan)
                if needs is None and plan.axes == 1 and all(d == dtype for d in dtypes):
                    if names in ("a", "ab"):
                        self.alike[dtype] = (*found, result)
                    elif names == "ap" and dtype in _FLOATS:
                        self.beside[dtype] = (*found, result)
            launch, tile = found
            launch(-(-plan.size // tile), *arrays, *outs, plan.size, *plan.numbers, *numbers)
            if plan.like is not None and plan.axes == 1:
                self.fused.remember(arrays[plan.like])
        if needs is not None:
            made = iter(outs)
            return tuple([next(made) if n else None for n in needs])
        return outs[0] if count == 1 else tuple(outs)

    def _take(self, operands):
        """(dtype, arrays, numbers, the variable of each operand), or None if there is no kernel."""
        dtype, arrays, numbers, names, array = None, [], [], "", self.array
        for kind, x in zip(self.spec.operands, operands, strict=True):
            if x.__class__ is array:
                if kind in "nlh" or len(arrays) == 3:
                    return None
                if kind == "c":
                    if x.dtype != _BOOL:
                        return None
                elif dtype is None:
                    dtype = x.dtype
                elif x.dtype != dtype:
                    return None
                names += "abc"[len(arrays)]
                arrays.append(x)
                continue
            if kind in "ac" or len(numbers) == 2:
                return None
            if kind in "lh":
                x = (-math.inf if kind == "l" else math.inf) if x is None else x
                if x != x:
                    return None  # limits that are no numbers make everything such
            if isinstance(x, np.generic):
                x = x.item()
            names += "pq"[len(numbers)]
            numbers.append(x)
        letter = _LETTERS.get(dtype)
        if letter is None or letter not in self.spec.types:
            return None
        for i, x in enumerate(numbers):
            if not isinstance(x, (int, float) if letter == "f" else int):
                return None
            numbers[i] = float(x) if letter == "f" else int(x)
        return dtype, arrays, numbers, names

    def _prepare(self, dtype, dtypes, names, needs, result, plan):
        variables = dict(zip("xyzw", names))
        results = [
            _OPERAND.sub(lambda m: variables[m[0]], text)
            for i, text in enumerate(self.spec.results) if needs is None or needs[i]]
        numbers = sum(n in "pq" for n in names)
        return self.fused.launch_of(results, VALUES[dtype], dtypes, result, numbers, plan)


def variant(plan):
    """What of a plan with several axes its kernel is compiled or chosen for."""
    return plan.axes, plan.inner & 15, plan.size < 1 << 31


def new_array(cupy, plan, arrays, dtype):
    """An array for a plan's result, its axes in the order that the plan says."""
    if plan.like is None:
        return cupy.ndarray(plan.shape, dtype)
    return cupy.empty_like(arrays[plan.like], dtype)


def _power(fused):
    """``pow`` of arrays and numbers: squares and roots have kernels of their own."""
    general, of_number, square, root = fused.pow, fused.pow_of_number, fused.square, fused.sqrt

    def pow(x, y):
        if y.__class__ is float or y.__class__ is int:
            if y == 2:
                return square(x)
            if y == 0.5:
                return root(x)
        return general(x, y) if x.__class__ is fused.cupy.ndarray else of_number(x, y)

    return pow
