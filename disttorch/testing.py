"""Comparisons for tests."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence

from .backend import dtypes, namespace_of
from .tensor import Tensor

# (relative, absolute) by dtype; anything else must be equal
_TOLERANCES = {
    "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7), "complex64": (1.3e-6, 1e-5), "complex128": (1e-7, 1e-7),
}


def assert_close(actual, expected, *, allow_subclasses=True, rtol=None, atol=None, equal_nan=False,
                 check_device=True, check_dtype=True, check_layout=True, check_stride=False,
                 msg=None) -> None:
    """|actual − expected| <= atol + rtol·|expected| everywhere.

    Args:
        actual, expected: tensors, numbers, arrays, or sequences and mappings of such.
        rtol, atol: both or neither; the default depends on the wider of the two dtypes.
        equal_nan: NaN equals NaN.
        check_device, check_dtype, check_stride: these must agree too.
        msg: the error's text, or a function of the text it would have.

    Raises:
        AssertionError: where they differ, with how much and where.
        ValueError: if only one of rtol and atol is given.
    """
    if (rtol is None) != (atol is None):
        missing = "rtol" if rtol is None else "atol"
        raise ValueError(
            f"rtol and atol must both be specified or both be unspecified; {missing} is missing"
        )
    options = {"rtol": rtol, "atol": atol, "equal_nan": equal_nan, "check_device": check_device,
               "check_dtype": check_dtype, "check_stride": check_stride}
    problem = _difference(actual, expected, "", options)
    if problem is not None:
        raise AssertionError(msg(problem) if callable(msg) else msg or problem)


def _difference(a, b, at, options):
    """What is wrong, or None."""
    where = f"\nThe failure occurred for item {at}" if at else ""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            return f"The keys of the mappings do not match: {sorted(a)} != {sorted(b)}{where}"
        return next(filter(None, (_difference(a[k], b[k], f"{at}[{k!r}]", options) for k in a)),
                    None)
    if _is_sequence(a) and _is_sequence(b):
        if len(a) != len(b):
            return f"The length of the sequences mismatch: {len(a)} != {len(b)}{where}"
        return next(filter(None, (_difference(x, y, f"{at}[{i}]", options)
                                  for i, (x, y) in enumerate(zip(a, b)))), None)
    if a is None and b is None:
        return None
    x, y = _tensor(a), _tensor(b)
    if x is None or y is None:
        return (f"No comparison pair was able to handle inputs of type {type(a)} and {type(b)}."
                f"{where}")
    numbers_only = isinstance(a, numbers.Number) and isinstance(b, numbers.Number)
    problem = _tensor_difference(x, y, options, numbers_only)
    return None if problem is None else problem + where


def _is_sequence(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _tensor(value):
    from .ops import creation

    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, numbers.Number) or hasattr(value, "__array__"):
        try:
            return creation.tensor(value)
        except TypeError:
            return None
    return None


def _tensor_difference(a, b, options, numbers_only):
    what = "Scalars" if numbers_only else "Tensor-likes"
    if a.shape != b.shape:
        return f"The values for attribute 'shape' do not match: {a.shape} != {b.shape}."
    if options["check_device"] and a.device != b.device:
        return f"The values for attribute 'device' do not match: {a.device} != {b.device}."
    if not numbers_only and options["check_dtype"] and a.dtype is not b.dtype:
        return f"The values for attribute 'dtype' do not match: {a.dtype} != {b.dtype}."
    if options["check_stride"] and a.stride() != b.stride():
        return f"The values for attribute 'stride()' do not match: {a.stride()} != {b.stride()}."
    rtol, atol = options["rtol"], options["atol"]
    if rtol is None:
        pairs = [_TOLERANCES.get(t.dtype.name, (0.0, 0.0)) for t in (a, b)]
        rtol, atol = max(p[0] for p in pairs), max(p[1] for p in pairs)
    wide = dtypes.promote_types(a.dtype, b.dtype)
    kind = dtypes.complex128 if wide.is_complex else (
        dtypes.float64 if wide.is_floating_point else dtypes.int64)
    x, y = (t.cpu().to(kind)._data for t in (a, b))
    xp = namespace_of(x)
    off = ~xp.isclose(x, y, rtol, atol, options["equal_nan"])
    if not off.any():
        return None
    return _report(xp, x, y, off, rtol, atol, what)


def _report(xp, x, y, off, rtol, atol, what):
    difference = xp.where(off, xp.abs(x - y), 0)
    relative = xp.where(off, difference / xp.abs(y), 0)
    difference, relative = (xp.nan_to_num(d, nan=xp.inf, posinf=xp.inf)
                            for d in (difference, relative))
    worst = xp.argmax(difference)
    at = tuple(int(i) for i in xp.unravel_index(worst, x.shape)) if x.ndim else ()
    exact = rtol == atol == 0
    head = f"{what} are not {'equal' if exact else 'close'}!\n\n"
    if x.size > 1:
        count = int(off.sum())
        head += f"Mismatched elements: {count} / {x.size} ({100 * count / x.size:.1f}%)\n"
    return head + (
        f"Greatest absolute difference: {float(xp.max(difference))} at index {at} (up to {atol} "
        f"allowed)\nGreatest relative difference: {float(xp.max(relative))} (up to {rtol} "
        "allowed)"
    )


__all__ = ["assert_close"]
