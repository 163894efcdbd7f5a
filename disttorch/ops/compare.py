"""Comparisons, logic, bits, selection by a mask."""

from __future__ import annotations

from .core import op
from .elementwise_core import binary, broadcast_error, elementwise, unary
from .samples import binary_cases, case


def _comparison(name, function, doc, numbers=(2.5,), lacks=""):
    def forward(xp, input, other):
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    only = ("input",) if numbers else ("input", "other")
    return binary(ufunc=function, kind="compare", kernel=name, samples=binary_cases(numbers=numbers),
                  inplace=True, lacks=lacks, tensor_only=only)(forward)


eq = _comparison("eq", "equal", "input == other, elementwise.")
ne = _comparison("ne", "not_equal", "input != other, elementwise.")
lt = _comparison("lt", "less", "input < other, elementwise.", lacks="c")
le = _comparison("le", "less_equal", "input <= other, elementwise.", lacks="c")
gt = _comparison("gt", "greater", "input > other, elementwise.", lacks="c")
ge = _comparison("ge", "greater_equal", "input >= other, elementwise.", lacks="c")
logical_and = _comparison("logical_and", "logical_and", "Both are nonzero.", ())
logical_or = _comparison("logical_or", "logical_or", "At least one is nonzero.", ())
logical_xor = _comparison("logical_xor", "logical_xor", "Exactly one is nonzero.", ())


def _predicate(name, doc):
    def forward(xp, input):
        return getattr(xp, name)(input)

    forward.__name__, forward.__doc__ = name, doc
    return unary(kind="compare", kernel=name, samples=lambda m: [case(m(3, 4)), case(m())],
                 inplace=name == "logical_not")(forward)


logical_not = _predicate("logical_not", "The element is zero.")
isnan = _predicate("isnan", "The element is not a number.")
isinf = _predicate("isinf", "The element is +inf or −inf.")
isfinite = _predicate("isfinite", "The element is neither infinite nor NaN.")


def _bitwise(name, function, doc):
    def forward(xp, input, other):
        return getattr(xp, function)(input, other)

    forward.__name__, forward.__doc__ = name, doc
    return binary(inplace=True, lacks="fc", kernel=name, samples=lambda m: [
        case(m.int(3, 4), m.int(4)), case(m.int(3, 4), 5), case(m.bool(5), m.bool(5))
    ])(forward)


bitwise_and = _bitwise("bitwise_and", "bitwise_and", "input & other.")
bitwise_or = _bitwise("bitwise_or", "bitwise_or", "input | other.")
bitwise_xor = _bitwise("bitwise_xor", "bitwise_xor", "input ^ other.")


@unary(inplace=True, lacks="fc", samples=lambda m: [case(m.int(3, 4)), case(m.bool(5))])
def bitwise_not(xp, input):
    """~input; logical for bool."""
    return xp.invert(input)


@elementwise(("condition", "input", "other"), free=("condition",), method=False, kernel="where",
             samples=lambda m: [
    case(m.bool(3, 4), m(3, 4), m(3, 4)), case(m.bool(3, 1), m(3, 4), m(4)),
    case(m.bool(4), m(2, 4), m(1)), case(m.bool(3), m(3), 0.5), case(m.bool(3), 1.0, m(2, 3)),
])
def where(xp, condition, input, other):
    """input where the condition holds, else other."""
    if condition.dtype.kind != "b":
        if condition.dtype.kind != "u":
            raise RuntimeError(
                "where expected condition to be a boolean tensor, but got a tensor with dtype "
                f"{condition.dtype.name}"
            )
        condition = condition.astype(bool)
    return xp.where(condition, input, other)


@where.grad("input")
def _(F, g, condition):
    return F.where(condition, g, F.zeros_like(g))


@where.grad("other")
def _(F, g, condition):
    return F.where(condition, F.zeros_like(g), g)


where.fused_grad("input", lambda fused, g, condition: fused.where(condition, g, 0))
where.fused_grad("other", lambda fused, g, condition: fused.where(condition, 0, g))
where.fused_grads(("input", "other"), "where_backward", ("condition",))


@op(tensors=("input", "mask", "value"), inplace=True, samples=lambda m: [
    case(m(3, 4), m.bool(3, 4), 1.5), case(m(3, 4), m.bool(4), m()), case(m(4), m.bool(2, 4), 0),
], numbers=("value",), kernel="masked_fill")
def masked_fill(xp, input, mask, value):
    """input with ``value`` (a number or a 0-dim tensor) where mask is True."""
    if mask.dtype.kind != "b":
        raise RuntimeError(
            f"masked_fill_ only supports boolean masks, but got mask with dtype {mask.dtype.name}"
        )
    if getattr(value, "ndim", 0):
        raise RuntimeError(
            "masked_fill only supports a 0-dimensional value tensor, but got tensor with "
            f"{value.ndim} dimension(s)."
        )
    try:
        return xp.where(mask, xp.asarray(value).astype(input.dtype), input)
    except ValueError as error:
        raise broadcast_error([mask, input], error) from None


@masked_fill.grad("input")
def _(F, g, mask):
    return F.where(mask, F.zeros_like(g), g)


masked_fill.fused_grad("input", lambda fused, g, mask: fused.where(mask, 0, g))


@masked_fill.grad("value")
def _(F, g, mask):
    return F.sum(F.where(mask, g, F.zeros_like(g)))


COMPOSITES = {
    "less": lt.call, "less_equal": le.call, "greater": gt.call,
    "greater_equal": ge.call, "not_equal": ne.call,
}
INPLACE = tuple(COMPOSITES)
