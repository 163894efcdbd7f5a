"""CuPy's ufuncs: NumPy's functions of elements, with CuPy's loops and refusals."""

from __future__ import annotations

import numpy as np

from . import arrays, order
from .arrays import ndarray, produce
from .calls import BFLOAT16, NAMES, host, inputs_of, settle


class ufunc:
    """A function of elements; ``types`` are CuPy's loops."""

    def __init__(self, name: str, function, facts: dict):
        self.__name__ = self.name = name
        self._np, self.types, self._at = function, facts["types"], facts["at"]
        ins, outs = self.types[0].split("->")
        self.nin, self.nout = len(ins), len(outs)
        self._has_bfloat16 = any("E" in t for t in self.types)

    def __repr__(self):
        return f"<ufunc 'cupy_{self.name}'>"

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", where=True):
        outs = out if isinstance(out, tuple) else (out,)
        args, extra = args[: self.nin], args[self.nin:]
        if extra:
            outs = extra
        for a in args:
            if isinstance(a, (list, tuple, np.ndarray)) or a is None:
                raise TypeError(f"Unsupported type {type(a)}")
            if not isinstance(a, (ndarray, int, float, complex, np.generic)) and not hasattr(
                    a, "__cuda_array_interface__"):
                raise TypeError(f"Unsupported type {type(a)}")
        if any(isinstance(o, np.ndarray) for o in outs) or isinstance(where, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        inputs = inputs_of(args, (where,))
        compute = self._compute(args, dtype, casting, host(where), outs)
        target = outs[0] if outs else None
        if all(o is None for o in outs):
            shape = np.broadcast_shapes(*(a.shape for a in inputs)) if inputs else ()
            got = produce(self.name, inputs, compute, arrays.result_order(inputs, shape))
            return got
        self._into(inputs, outs, compute, casting)
        return target if self.nout == 1 else tuple(outs)

    def _compute(self, args, dtype, casting, where, outs):
        given = [host(a) for a in args]
        if not self._has_bfloat16:  # bfloat16 casts safely to float32 only
            given = [g.astype(np.float32) if getattr(g, "dtype", None) == BFLOAT16 else g for g in given]
        kwargs = {"dtype": dtype} if dtype is not None else {}
        if where is not True:
            kwargs |= {"where": where, "out": tuple(
                o._np.copy() if o is not None else None for o in outs)} if outs else {"where": where}
        function = self._np

        def compute():
            with np.errstate(all="ignore"):
                return function(*given, **kwargs)

        return compute

    def _into(self, inputs, outs, compute, casting):
        values = compute()
        values = values if isinstance(values, tuple) else (values,)
        targets = [o._np for o in outs]
        for t, v in zip(targets, values):
            if np.broadcast_shapes(t.shape, np.shape(v)) != t.shape:
                raise ValueError(f"non-broadcastable output operand with shape {t.shape}, {np.shape(v)}")
            if not np.can_cast(np.asarray(v).dtype, t.dtype, casting):
                raise TypeError(
                    f"output (typecode {np.asarray(v).dtype}) could not be coerced to provided output "
                    f"parameter (typecode {t.dtype}) according to the casting rule {casting!r}")

        def now():
            for t, v in zip(targets, values):
                t[...] = v

        def replay():
            again = compute()
            for t, v in zip(targets, again if isinstance(again, tuple) else (again,)):
                t[...] = v

        order.give(self.name, arrays.spans_of([*inputs]), arrays.spans_of(outs), now, replay)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.name not in ("add", "multiply", "maximum", "minimum", "logical_and", "logical_or",
                             "bitwise_and", "bitwise_or", "bitwise_xor"):
            raise NotImplementedError(f"reduce of {self.name}")
        source = array._np
        return settle(self.name, [array],
                      lambda: self._np.reduce(source, axis=axis, dtype=dtype, keepdims=keepdims))

    def accumulate(self, array, axis=0, dtype=None, out=None):
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"accumulate is not implemented for {self.name}")
        source = array._np
        return settle(self.name, [array], lambda: self._np.accumulate(source, axis=axis, dtype=dtype))

    def outer(self, A, B, **kwargs):
        a, b = A._np, B._np
        return settle(self.name, [A, B], lambda: self._np.outer(a, b, **kwargs))

    def at(self, a, indices, b=None):
        if self._at is None:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if a.dtype.name not in ("int32", "int64", "uint32", "uint64", "float16", "float32", "float64",
                                "complex64", "complex128"):
            raise TypeError(f"cupy.{self.name}.at does not support {a.dtype}")
        if isinstance(b, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        indices, target, value = arrays._index(indices), a._np, host(b)
        places = arrays._unwrap(indices)
        arrays.mutate(f"{self.name}.at", a, inputs_of(indices, (b,)),
                      lambda: self._np.at(target, places, value))


ufuncs = {name: ufunc(name, getattr(np, name), facts)
          for name, facts in NAMES["ufuncs"].items() if hasattr(np, name)}
for _name, _alias in (("nan_to_num_", None), ("isneginf", np.isneginf), ("isposinf", np.isposinf),
                      ("angle", np.angle), ("real_if_close", None), ("sinc", np.sinc), ("i0", np.i0)):
    if _name in NAMES["ufuncs"] and _alias is not None:
        ufuncs[_name] = ufunc(_name, _alias, NAMES["ufuncs"][_name])
