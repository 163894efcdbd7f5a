"""Padding: with a number, by reflection, by the last element, or around the other end."""

from __future__ import annotations

from ..backend import resample_kernels
from ..tensor import Tensor
from .core import REGISTRY, op, wrap_dim
from .samples import case


@op(method=False, moves=True, samples=lambda m: [
    case(m(2, 3), (1, 2), 0.5), case(m(2, 3, 4), (0, 1, -1, 2)), case(m(3), (-1, -1), 2.0),
    case(m(2, 0), (1, 0, 0, 1), 1.0),
])
def constant_pad(xp, input, pad, value=0.0):
    """``pad`` holds (before, after) of the last dim, then of the one before it, ...; negative
    numbers cut off."""
    sides = list(zip(pad[::2], pad[1::2]))[::-1]
    sides = [(0, 0)] * (input.ndim - len(sides)) + sides
    shape = tuple(n + a + b for n, (a, b) in zip(input.shape, sides))
    if any(n < 0 for n in shape):
        bad = next(i for i, n in enumerate(shape) if n < 0)
        raise RuntimeError(
            f"The input size {input.shape[bad]}, plus negative padding {sides[bad][0]} and "
            f"{sides[bad][1]}, resulted in a negative output size, which is invalid. Check "
            f"dimension {bad} of your input."
        )
    kept = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(input.shape, sides))
    return xp.framed(input[kept], shape, tuple(max(a, 0) for a, _ in sides), value)


@constant_pad.grad("input")
def _(F, g, pad):
    return F.constant_pad(g, tuple(-p for p in pad))


def _taps_cases(m):
    from ..backend import resample_kernels as r

    return [
        case(m(2, 5), 1, r.linear_taps(5, 7, None, False)), case(m(4, 3), 0, r.average_taps(4, 3)),
        case(m(3, 4), -1, r.padding_taps(4, 2, -1, "reflect")),
        case(m(3, 6), -1, r.cubic_taps(6, 3, None, True)),
    ]


@op(method=False, fused=True, samples=_taps_cases)
def resample_dim(xp, input, dim, taps):
    """A linear map along one dim, given as a table of taps."""
    return xp.apply_taps(input, wrap_dim(dim, input.ndim), taps)


@resample_dim.grad("input")
def _(F, g, dim, taps):
    return F.resample_dim(g, dim, taps.transposed)


def _check_room(mode, input, sides):
    """Padding by reflection or around needs enough elements to copy."""
    for i, (a, b) in enumerate(sides):
        size = input._data.shape[input.ndim - 1 - i]
        if mode == "reflect" and (a >= size or b >= size):
            raise RuntimeError(
                "Argument #4: Padding size should be less than the corresponding input dimension, "
                f"but got: padding ({a}, {b}) at dimension {input.ndim - 1 - i} of input "
                f"{list(input._data.shape)}"
            )
        if mode == "circular" and (a > size or b > size):
            raise RuntimeError("Padding value causes wrapping around more than once.")
        if size + a + b <= 0 or size == 0:
            raise RuntimeError(
                f"Expected a non-empty output of padding, but got input {list(input._data.shape)} "
                f"with padding ({a}, {b}) at dimension {input.ndim - 1 - i}"
            )


def pad(input, pad, mode="constant", value=None) -> Tensor:
    """Make ``input`` larger at its ends.

    Args:
        pad: (before, after) for the last dim, then for the one before it, and so on; negative
            sizes cut off.
        mode: "constant" (with ``value``, default 0), "reflect" (without the edge), "replicate" or
            "circular"; the last three for the last 1, 2 or 3 dims of a 2-D to 5-D input.

    Raises:
        RuntimeError: if the sizes do not fit.
        NotImplementedError: for other numbers of dims in the last three modes.
    """
    pad = tuple(int(p) for p in pad)
    if len(pad) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) > 2 * input.ndim:
        raise RuntimeError(
            "Padding length should be less than or equal to two times the input dimension but got "
            f"padding length {len(pad)} and input of dimension {input.ndim}"
        )
    if mode == "constant":
        if not any(pad):
            return input.clone()
        return constant_pad.call(input, pad, 0.0 if value is None else value)
    if value is not None and value != 0:
        raise RuntimeError(f'Padding mode "{mode}" doesn\'t take in value argument')
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    dims = len(pad) // 2
    if dims > 3 or input.ndim not in (dims + 1, dims + 2):
        raise NotImplementedError(
            "Only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now"
        )
    sides = list(zip(pad[::2], pad[1::2]))
    _check_room(mode, input, sides)
    for i, (a, b) in enumerate(sides):
        if a or b:
            taps = resample_kernels.padding_taps(input._data.shape[-1 - i], a, b, mode)
            input = REGISTRY["resample_dim"].call(input, -1 - i, taps)
    return input if any(pad) else input.clone()


def constant_pad_nd(input, pad, value=0) -> Tensor:
    """``pad`` with a number."""
    return constant_pad.call(input, tuple(pad), value)


FUNCTIONS = {"constant_pad_nd": constant_pad_nd}
