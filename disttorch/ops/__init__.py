"""All operations by name, and their attachment to Tensor.

Importing this package registers every family, gives autograd its two faces of the ops (on tensors,
and on raw arrays), and makes the Tensor's operators, methods and in-place methods.
"""

from __future__ import annotations

import functools

from ..autograd import engine
from ..backend import CPU, namespace_of, ndarray
from ..tensor import Tensor
from . import (
    arithmetic,
    attention,
    attention_ops,
    autocast,
    bits,
    casts,
    channel_norms,
    compare,
    complex_numbers,
    conv,
    creation,
    ctc,
    cumulative,
    distances,
    einsum,
    factorizations,
    fft,
    geometry,
    getset,
    grid,
    indexing,
    inplace,
    join,
    linalg,
    linalg_functions,
    lu,
    matmul,
    nn,
    norms,
    padding,
    pointwise,
    pointwise_more,
    pooling,
    promotion,
    ranges,
    recurrent,
    reduce,
    reduce_more,
    resample,
    scatter,
    searching,
    shapes,
    sorting,
    special,
    stacks,
    tensor_methods,
    views,
    windows,
)
from . import random as _random
from . import random_gamma as _random_gamma
from .core import REGISTRY
from .getset import getitem, setitem
from .inplace import inplace_of, inplace_of_function
from .inplace_direct import quick_inplace

_FAMILIES = (
    arithmetic, pointwise, pointwise_more, bits, compare, casts, complex_numbers, special,
    reduce, promotion, reduce_more, cumulative, sorting, views, join, matmul, indexing,
    getset, factorizations, ranges, geometry, searching, windows, fft, einsum,
    linalg_functions, norms, lu, linalg, scatter, stacks, shapes, nn, attention_ops, attention,
    recurrent, ctc, conv, pooling, padding, channel_norms, resample, grid, distances, creation, _random,
    _random_gamma, inplace, tensor_methods,
)


class _TensorOps:
    """Every registered op as an attribute, on tensors: what rules see under ``create_graph``."""

    raw = False
    xp = None

    def __getattr__(self, name):
        try:
            call = REGISTRY[name].call
        except KeyError:
            raise AttributeError(f"no op is registered under the name {name!r}") from None
        setattr(self, name, call)
        return call

    @staticmethod
    def conj(value):
        """The conjugate of a tensor or number."""
        return pointwise.conj(value) if isinstance(value, Tensor) else value.conjugate()

    def fit_gradient(self, g, shape, dtype):
        """Shape and dtype of the value a gradient belongs to, as recorded operations."""
        from ..backend import dtypes

        if g._data.shape != shape:
            g = self.sum_to(g, shape)
        if g._data.dtype != dtype:
            g = self.to_dtype(g, dtypes.FROM_NP[dtype])
        return g


class _RawOps:
    """Every registered op as an attribute, on arrays of one namespace: ordinary backward."""

    raw: bool | str = True  # "fused" where backward asks ``xp.fused`` before a rule

    def __init__(self, xp):
        self.xp = xp
        if xp.fused is not None:
            self.raw = "fused"

    @staticmethod
    def conj(value):
        """The conjugate of an array or number."""
        dtype = getattr(value, "dtype", None)
        return value if dtype is not None and dtype.kind != "c" else value.conjugate()

    def __getattr__(self, name):
        try:
            op = REGISTRY[name]
        except KeyError:
            raise AttributeError(f"no op is registered under the name {name!r}") from None
        xp, raw, defaults = self.xp, op.raw, op.bind

        def call(*args, **kwargs):
            return raw(xp, *defaults(*args, **kwargs))

        setattr(self, name, call)
        return call


TENSOR_OPS = _TensorOps()
_cpu_ops = _RawOps(CPU)
_raw_ops: dict = {}


def _raw_ops_for(array) -> _RawOps:
    if array.__class__ is ndarray:
        return _cpu_ops
    xp = namespace_of(array)
    if xp is CPU:
        return _cpu_ops
    found = _raw_ops.get(id(xp))
    return _raw_ops.setdefault(id(xp), _RawOps(xp)) if found is None else found


engine.register_ops(TENSOR_OPS, _raw_ops_for, _cpu_ops)


# ---------------------------------------------------------------- functions and methods
def _public() -> dict:
    """Everything that is a function in PyTorch's top namespace."""
    found = {}
    for op in REGISTRY.values():
        if op.method:
            found[op.name] = op.call
    for family in _FAMILIES:
        found.update(getattr(family, "COMPOSITES", {}))
        found.update(getattr(family, "FUNCTIONS", {}))
    found["where"] = tensor_methods.where
    return found


# Functions that also take NumPy's words for their arguments: axis for dim, keepdims for keepdim
_NUMPY_WORDS = (
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "argsort", "cat", "concat",
    "count_nonzero", "cummax", "cummin", "cumprod", "cumsum", "diff", "flip", "gather",
    "index_select", "kthvalue", "log_softmax", "logsumexp", "max", "mean", "median", "min",
    "mode", "nanmean", "nanmedian", "nanquantile", "nansum", "norm", "prod", "quantile", "roll",
    "softmax", "sort", "squeeze", "stack", "std", "std_mean", "sum", "topk", "unsqueeze", "var",
    "var_mean",
)


def _with_numpy_words(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        if kwargs:
            if "axis" in kwargs:
                kwargs["dims" if function.__name__ in ("flip", "_flip", "roll") else "dim"] = (
                    kwargs.pop("axis"))
            if "keepdims" in kwargs:
                kwargs["keepdim"] = kwargs.pop("keepdims")
        return function(*args, **kwargs)

    return call


_OPERANDS = (Tensor, int, float, complex, CPU.generic)  # before ``complex`` names an operation
PUBLIC = _public()
PUBLIC |= {name: _with_numpy_words(PUBLIC[name]) for name in _NUMPY_WORDS}
PUBLIC |= autocast.points(PUBLIC)
# functional forms that live in nn.functional, not at the top
FUNCTIONAL = {
    name: getattr(nn, name)
    for name in ("softmax", "log_softmax", "layer_norm", "rms_norm", "nll_loss", "cross_entropy",
                 "dropout")
}
FUNCTIONAL["scaled_dot_product_attention"] = attention.scaled_dot_product_attention
FUNCTIONAL |= autocast.points(FUNCTIONAL)
FUNCTIONAL |= {"linear": matmul.linear.call, "embedding": indexing.embedding}
ONLY_FUNCTIONAL = ("gelu", "silu", "leaky_relu", "elu", "softplus", "log_sigmoid")
globals().update(PUBLIC)
globals().update(FUNCTIONAL)


autocast.close_lists(REGISTRY.values())


def _attach_methods() -> None:
    names = set(PUBLIC) - {"cat", "concat", "concatenate", "stack", "where", "native_dropout"}
    names -= set(ONLY_FUNCTIONAL)
    for family in _FAMILIES:
        names -= set(getattr(family, "FUNCTIONS", {}))
    for name in names:
        setattr(Tensor, name, PUBLIC[name])
    for op in REGISTRY.values():
        if op.inplace:
            setattr(Tensor, op.name + "_", inplace_of(op))
            PUBLIC.setdefault(op.name + "_", getattr(Tensor, op.name + "_"))
    for family in _FAMILIES:
        for name in getattr(family, "INPLACE", ()):
            setattr(Tensor, name + "_", inplace_of_function(name, family.COMPOSITES[name]))
            PUBLIC.setdefault(name + "_", getattr(Tensor, name + "_"))
        methods = getattr(family, "METHODS", {})
        for name, method in (methods | autocast.points(methods)).items():
            setattr(Tensor, name, method)


def _attach_quick_inplace() -> None:
    names = {"add_": "plain_add", "sub_": "plain_sub", "mul_": "mul", "div_": "true_divide"}
    for method, op in names.items():
        slow = getattr(Tensor, method)
        setattr(Tensor, method, quick_inplace(REGISTRY[op], slow, inplace.apply_inplace))


def _attach_operators() -> None:
    r = REGISTRY
    add, sub, mul, div = (r[n].call for n in ("plain_add", "plain_sub", "mul", "true_divide"))
    pairs = {
        "add": add, "sub": sub, "mul": mul, "truediv": div, "floordiv": r["floor_divide"].call,
        "mod": r["remainder"].call, "pow": r["pow"].call, "matmul": r["matmul"].call,
        "and": r["bitwise_and"].call, "or": r["bitwise_or"].call, "xor": r["bitwise_xor"].call,
    }
    for name, call in pairs.items():
        setattr(Tensor, f"__{name}__", _forward_operator(call))
        setattr(Tensor, f"__r{name}__", _reflected_operator(call))
    inplace_names = {"add": "add_", "sub": "sub_", "mul": "mul_", "truediv": "div_",
                     "floordiv": "floor_divide_", "mod": "remainder_", "pow": "pow_",
                     "and": "bitwise_and_", "or": "bitwise_or_", "xor": "bitwise_xor_"}
    for name, method in inplace_names.items():
        setattr(Tensor, f"__i{name}__", getattr(Tensor, method))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Tensor, f"__{name}__", _comparison_operator(name, r[name].call))
    Tensor.__neg__ = r["neg"].call
    Tensor.__abs__, Tensor.__invert__ = r["abs"].call, _invert
    Tensor.__getitem__, Tensor.__setitem__ = getitem, setitem


def _invert(input):
    if input.dtype.is_floating_point or input.dtype.is_complex:
        raise TypeError(
            "~ (operator.invert) is only implemented on integer and Boolean-type tensors, not "
            f"{input.dtype}"
        )
    return REGISTRY["bitwise_not"].call(input)


def _is_operand(other) -> bool:
    return isinstance(other, _OPERANDS)


def _forward_operator(call):
    def operator(self, other):
        if other.__class__ is Tensor or _is_operand(other):
            return call(self, other)
        if isinstance(other, CPU.ndarray):
            return call(self, creation.from_numpy(other))
        return NotImplemented

    return operator


def _reflected_operator(call):
    def operator(self, other):
        if _is_operand(other):
            return call(other, self)
        if isinstance(other, CPU.ndarray):
            return call(creation.from_numpy(other), self)
        return NotImplemented

    return operator


def _comparison_operator(name, call):
    def operator(self, other):
        if _is_operand(other):
            return call(self, other)
        if isinstance(other, CPU.ndarray):
            return call(self, creation.from_numpy(other))
        return NotImplemented

    operator.__name__ = f"__{name}__"
    return operator


_attach_methods()
_attach_quick_inplace()
_attach_operators()
Tensor.__hash__ = lambda self: id(self)
