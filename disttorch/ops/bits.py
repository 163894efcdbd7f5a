"""Integers: shifts, greatest common divisors, and the operators `<<` and `>>`."""

from __future__ import annotations

from ..tensor import Tensor
from .elementwise_core import binary
from .samples import case


def _integers(name, function, doc, **options):
    def forward(xp, input, other):
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    return binary(lacks="bfc", inplace=True, samples=lambda m: [
        case(m.int(3, 4), m.int(4)), case(m.int(2, 1, low=-9), m.int(3)),
        case(m.int(0, 2), m.int(2)),
    ], **options)(forward)


gcd = _integers("gcd", "gcd", "The greatest common divisor, not negative.",
                tensor_only=("input", "other"))
lcm = _integers("lcm", "lcm", "The least common multiple, not negative.",
                tensor_only=("input", "other"))
bitwise_left_shift = _integers("bitwise_left_shift", "left_shift",
                               "input · 2^other, bits shifted out are lost.")
bitwise_right_shift = _integers("bitwise_right_shift", "right_shift",
                                "input / 2^other rounded down; the sign is kept.")


def _operator(op, symbol, reflected=False):
    def method(self, other):
        if not isinstance(other, (Tensor, int, float)):
            return NotImplemented
        return op.call(other, self) if reflected else op.call(self, other)

    method.__name__, method.__doc__ = symbol, op.call.__doc__
    return method


def _inplace_operator(name):
    return lambda self, other: getattr(self, name)(other)


METHODS = {
    "__lshift__": _operator(bitwise_left_shift, "__lshift__"),
    "__rshift__": _operator(bitwise_right_shift, "__rshift__"),
    "__rlshift__": _operator(bitwise_left_shift, "__rlshift__", True),
    "__rrshift__": _operator(bitwise_right_shift, "__rrshift__", True),
    "__ilshift__": _inplace_operator("bitwise_left_shift_"),
    "__irshift__": _inplace_operator("bitwise_right_shift_"),
}
