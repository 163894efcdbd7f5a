"""Complex tensors: parts and angles, and their views as pairs of real numbers."""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor
from .arithmetic import is_complex
from .core import op, type_name
from .elementwise_core import binary, no_kernel, unary
from .inplace import copy_
from .pointwise import conjugate
from .samples import case

_COMPLEX_CASES = lambda m: [  # noqa: E731
    case(m.complex(3, 4)), case(m.complex()), case(m.complex(0, 2))]


@binary(method=False, name="complex", lacks="bic", moves=True, tensor_only=("input", "other"),
        samples=lambda m: [
            case(m(3, 4), m(3, 4)), case(m(), m()), case(m(3, 1), m(4))])
def _complex(xp, input, other):
    if input.dtype.itemsize < 4:
        raise no_kernel("complex", dtypes.FROM_NP[input.dtype])
    dtype = dtypes.FROM_NP[input.dtype].to_complex().np
    out = xp.empty(xp.broadcast_shapes(input.shape, other.shape), dtype)
    out.real[...], out.imag[...] = input, other
    return out


@_complex.grad("input")
def _(F, g):
    return F.real_part(g)


@_complex.grad("other")
def _(F, g):
    return F.imag_part(g)


def complex(real, imag, *, out=None) -> Tensor:
    """real + i·imag.

    Raises:
        RuntimeError: unless both are float32 or both are float64.
    """
    for t in (real, imag):
        if t.dtype not in (dtypes.float32, dtypes.float64):
            raise RuntimeError(
                "Expected both inputs to be Half, Float or Double tensors but got "
                f"{type_name(real.dtype)} and {type_name(imag.dtype)}"
            )
    if real.dtype is not imag.dtype:
        raise RuntimeError(
            f"Expected object of scalar type {type_name(real.dtype)} but got scalar type "
            f"{type_name(imag.dtype)} for second argument"
        )
    return _complex.call(real, imag, out=out)


def polar(abs, angle, *, out=None) -> Tensor:
    """abs·(cos angle + i·sin angle)."""
    for t in (abs, angle):
        if t.dtype not in (dtypes.float32, dtypes.float64):
            raise RuntimeError(
                "Expected both inputs to be Half, Float or Double tensors but got "
                f"{type_name(abs.dtype)} and {type_name(angle.dtype)}"
            )
    result = complex(abs * angle.cos(), abs * angle.sin())
    if out is None:
        return result
    return copy_(out, result)


@op(view=True, method=False, node_name="Real", samples=_COMPLEX_CASES)
def real_part(xp, input):
    return input.real


@real_part.grad("input")
def _(F, g):
    return F.complex(g, F.zeros_like(g))


@op(view=True, method=False, node_name="Imag", samples=_COMPLEX_CASES)
def imag_part(xp, input):
    return input.imag


@imag_part.grad("input")
def _(F, g):
    return F.complex(F.zeros_like(g), g)


def real(input) -> Tensor:
    """The real part, a view; a real tensor itself."""
    return real_part.call(input) if is_complex(input) else input


def imag(input) -> Tensor:
    """The imaginary part, a view.

    Raises:
        RuntimeError: for real tensors.
    """
    if not is_complex(input):
        raise RuntimeError("imag is not implemented for tensors with non-complex dtypes.")
    return imag_part.call(input)


@op(view=True, method=False, samples=_COMPLEX_CASES)
def view_as_real(xp, input):
    """The real and imaginary parts as a last dim of size 2, a view."""
    if input.dtype.kind != "c":
        raise RuntimeError("view_as_real is only supported for complex tensors")
    return input[..., None].view(input.real.dtype)


@view_as_real.grad("input")
def _(F, g):
    return F.complex(F.slice(g, (..., 0)), F.slice(g, (..., 1)))


@op(view=True, method=False, samples=lambda m: [case(m(3, 4, 2)), case(m(2)), case(m(3, 1, 2))])
def view_as_complex(xp, input):
    """A last dim of size 2 as real and imaginary parts, a view.

    Raises:
        RuntimeError: if that dim's elements are no neighbouring pairs in memory.
    """
    if input.dtype.kind != "f" or input.dtype.itemsize < 4:
        raise RuntimeError(
            "view_as_complex is only supported for half, float and double tensors, but got a "
            f"tensor of scalar type: {type_name(dtypes.FROM_NP[input.dtype])}"
        )
    if not input.ndim:
        raise RuntimeError("Input tensor must have one or more dimensions")
    if input.shape[-1] != 2:
        raise RuntimeError("Tensor must have a last dimension of size 2")
    dtype, size = dtypes.FROM_NP[input.dtype].to_complex().np, input.dtype.itemsize
    if not input.size:  # strides of an empty array mean nothing
        return xp.empty(input.shape[:-1], dtype)
    if input.strides[-1] != size:
        raise RuntimeError("Tensor must have a last dimension with stride 1")
    if any(s % (2 * size) for s in input.strides[:-1]):
        raise RuntimeError("Tensor must have a stride divisible by 2 for all but last dimension")
    return input.view(dtype)[..., 0]


@view_as_complex.grad("input")
def _(F, g):
    return F.view_as_real(g)


@unary(kind="float", samples=lambda m: [
    case(m(3, 4, avoid=(0.0,))), case(m.complex(3, 4)), case(m.complex())])
def angle(xp, input):
    """The argument of a complex number; 0 or π of a real one."""
    if input.dtype.kind == "c":
        return xp.angle(input)
    half_turn = xp.where(input < 0, input.dtype.type(math.pi), input.dtype.type(0))
    return xp.where(xp.isnan(input), input, half_turn)


@angle.grad("input")
def _(F, g, input):
    if not is_complex(input):
        return F.zeros_like(g)
    size = F.abs(input)
    size = F.where(F.eq(size, 0), F.ones_like(size), size)
    return g * (input * 1j) / (size * size)


def resolve(input) -> Tensor:
    """The tensor itself: conjugates and negatives are never stored lazily here."""
    return input


def is_conj(input) -> bool:
    """False: conjugates are computed at once."""
    return False


def is_neg(input) -> bool:
    """False: negatives are computed at once."""
    return False


def _part(getter, name):
    def assign(self, value):
        part = getter(self)
        if isinstance(value, Tensor):
            copy_(part, value)
        else:
            part.fill_(value)

    return property(getter, assign, doc=f"The {name} part, a view; assigning writes into it.")


FUNCTIONS = {
    "complex": complex, "polar": polar, "real": real, "imag": imag,
    "view_as_real": view_as_real.call, "view_as_complex": view_as_complex.call,
}
COMPOSITES = {
    "conj_physical": conjugate.call, "resolve_conj": resolve, "resolve_neg": resolve,
    "is_conj": is_conj, "is_neg": is_neg,
}
INPLACE = ("conj_physical",)
METHODS = {"real": _part(real, "real"), "imag": _part(imag, "imaginary")}
