"""Evenly spaced values, and tensors made with given strides."""

from __future__ import annotations

from ..backend import dtypes, namespace_for
from ..tensor import Tensor, wrap
from .core import write_out
from .creation import _checked, _finish, _place, full
from .views import sizes


def linspace(start, end, steps, *, out=None, dtype=None, layout=None, device=None,
             requires_grad=False) -> Tensor:
    """``steps`` values from start to end, both included.

    Raises:
        RuntimeError: if ``steps`` is negative.
    """
    xp, values, dtype = _steps(start, end, steps, dtype, device)
    result = wrap(values.astype(dtype.np, copy=False))
    return _finish(result, requires_grad) if out is None else write_out(result, out, "linspace")


def logspace(start, end, steps, base=10.0, *, out=None, dtype=None, layout=None, device=None,
             requires_grad=False) -> Tensor:
    """``steps`` powers of ``base``, from baseˢᵗᵃʳᵗ to baseᵉⁿᵈ, their exponents evenly spaced.

    Raises:
        RuntimeError: if ``steps`` is negative.
    """
    xp, values, dtype = _steps(start, end, steps, dtype, device)
    result = wrap(xp.power(values.dtype.type(base), values).astype(dtype.np, copy=False))
    return _finish(result, requires_grad) if out is None else write_out(result, out, "logspace")


def _steps(start, end, steps, dtype, device):
    """(namespace, the values in the type they are computed in, the type asked for)."""
    steps = int(steps)
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    for name, v in (("start", start), ("end", end)):
        if isinstance(v, Tensor) and v.ndim:
            raise RuntimeError(
                "linspace only supports 0-dimensional start and end tensors, but got "
                f"{name} with {v.ndim} dimension(s)."
            )
    start, end = (v.item() if isinstance(v, Tensor) else v for v in (start, end))
    if dtype is None:
        dtype = dtypes.get_default_dtype()
        if isinstance(start, complex) or isinstance(end, complex):
            dtype = dtype.to_complex()
    if dtype.category < dtypes.FLOAT:
        start, end = int(start), int(end)
    # Computed in the type itself, from both ends to the middle: the last bits are PyTorch's
    wide = dtype.category < dtypes.FLOAT or dtype.itemsize == 2
    kind = dtypes.float64.np if wide else dtype.np
    xp, number = namespace_for(_place(device)), kind.type
    first, last = number(start), number(end)
    step = (last - first) / number(max(steps - 1, 1))
    i = xp.arange(steps)
    rising = first + step * i.astype(kind)
    falling = last - step * (steps - 1 - i).astype(kind)
    values = xp.where(i < steps // 2, rising, falling)
    return xp, (values if steps > 1 else xp.full(steps, first, kind)), dtype


def empty_strided(size, stride, *, dtype=None, layout=None, device=None, requires_grad=False,
                  pin_memory=False) -> Tensor:
    """Uninitialised memory of this size with these strides (in elements)."""
    size, stride = _checked(sizes((size,)), "empty_strided"), sizes((stride,))
    if len(size) != len(stride):
        raise RuntimeError("mismatch in length of strides and shape")
    xp = namespace_for(_place(device))
    length = 1 + sum((n - 1) * s for n, s in zip(size, stride)) if 0 not in size else 0
    memory = xp.empty(length, (dtype or dtypes.get_default_dtype()).np)
    return _finish(wrap(xp.strided_window(memory, size, stride, 0)), requires_grad)


def scalar_tensor(s, *, dtype=None, layout=None, device=None, requires_grad=False) -> Tensor:
    """A 0-dim tensor of a number, in the default dtype unless one is given."""
    return full((), s, dtype=dtype or dtypes.get_default_dtype(), device=device,
                requires_grad=requires_grad)


def _new_empty_strided(self, size, stride, *, dtype=None, device=None, requires_grad=False):
    """``empty_strided`` with this tensor's dtype and device."""
    return empty_strided(size, stride, dtype=dtype or self.dtype, device=device or self.device,
                         requires_grad=requires_grad)


FUNCTIONS = {"linspace": linspace, "logspace": logspace, "empty_strided": empty_strided,
             "scalar_tensor": scalar_tensor}
METHODS = {"new_empty_strided": _new_empty_strided}
