"""Sample inputs: every op brings its own, and the tests run all checks over all of them."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One call of an op: positional and keyword arguments."""

    args: tuple
    kwargs: dict


def case(*args, **kwargs) -> Case:
    """A call of an op, as it would be written."""
    return Case(args, kwargs)


# Shapes for elementwise ops: scalar, vector, matrix, empty, and (for two operands) broadcasts
SHAPES = [(), (5,), (3, 4), (2, 0, 3)]
PAIRS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1, 3), (4, 1)), ((), (3,)), ((2, 3), ()),
         ((0, 3), (1, 3))]


def unary_cases(low=-2.0, high=2.0, avoid=()):
    """Samples of an elementwise op of one operand, drawn from [low, high] away from ``avoid``."""
    return lambda m: [case(m(*s, low=low, high=high, avoid=avoid)) for s in SHAPES]


def binary_cases(low=-2.0, high=2.0, avoid=(), numbers=(2.5,)):
    """Samples of an elementwise op of two operands, with broadcasting and Python numbers."""

    def make(m):
        cases = [
            case(m(*a, low=low, high=high, avoid=avoid), m(*b, low=low, high=high, avoid=avoid))
            for a, b in PAIRS
        ]
        return cases + [case(m(3, 4, low=low, high=high, avoid=avoid), n) for n in numbers]

    return make
