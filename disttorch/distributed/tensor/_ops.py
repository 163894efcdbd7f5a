"""What a DTensor can compute: elementwise operations on the parts, and reductions to Partial.

An elementwise operation needs all DTensors to lie alike; numbers and 0-dim tensors go with any.
Values that are still to be summed (`Partial`) take part only where the operation is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import ops
from ...autograd import no_grad
from ...backend import namespace_of
from ...ops.inplace import check_inplace
from ...tensor import Tensor, wrap
from ._api import DTensor
from ._dtensor_spec import DTensorSpec, TensorMeta
from ._redistribute import redistribute_local
from ._utils import row_major_stride
from .placement_types import Partial, Placement, Replicate, Shard, _NormPartial

_LINEAR = [
    "add", "sub", "neg", "clone", "detach", "to", "type", "float", "double", "half", "bfloat16",
    "contiguous", "zero", "cpu", "cuda", "__add__", "__radd__", "__sub__", "__rsub__", "__neg__",
    "__iadd__", "__isub__",
]  # fmt: skip
_SCALING = [
    "mul", "div", "__mul__", "__rmul__", "__truediv__", "__imul__", "__itruediv__",
]  # fmt: skip
_ELEMENTWISE = [
    "abs", "sign", "sgn", "sqrt", "rsqrt", "square", "reciprocal", "exp", "expm1", "log", "log1p",
    "log2", "log10", "pow", "floor", "ceil", "round", "trunc", "sin", "cos", "tanh", "sigmoid",
    "erf", "relu", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "fmax", "fmin", "lerp",
    "addcmul", "addcdiv", "remainder", "floor_divide", "true_divide", "multiply", "divide",
    "subtract", "atan2", "nan_to_num", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "logical_not", "isnan", "isinf", "isfinite", "masked_fill", "copy", "fill",
    "bool", "int", "long", "__pow__", "__rpow__", "__rtruediv__", "__floordiv__", "__mod__",
    "__abs__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__",
    "__invert__", "__xor__",
]  # fmt: skip
_UNCHANGED = {
    "clone", "detach", "contiguous", "to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda",
}  # fmt: skip
_INPLACE_DUNDER = {"__iadd__", "__isub__", "__imul__", "__itruediv__"}


def _operand(name: str, self: DTensor, value: Any) -> Any:
    """The local form of an argument.

    Raises:
        RuntimeError: a DTensor that lies otherwise; an ordinary tensor of one or more dims.
    """
    if isinstance(value, DTensor):
        if value.ndim == 0 and self.ndim:
            return value.full_tensor()
        if (value.shape, value.placements) != (self.shape, self.placements) or (
            value.device_mesh != self.device_mesh
        ):
            raise RuntimeError(
                f"{name}: DTensors of shapes {tuple(self.shape)} and {tuple(value.shape)} lie as "
                f"{self.placements} and {value.placements}: redistribute one of them first"
            )
        return value._local_tensor
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(
            f"{name}: got mixed torch.Tensor and DTensor, need to convert all torch.Tensor to DTensor "
            f"before calling distributed operators! (a tensor of shape {tuple(value.shape)} and a "
            f"DTensor of {tuple(self.shape)} with {self.placements})"
        )
    return value


def _check_partial(name: str, self: DTensor, args: tuple, linear: bool, scaling: bool) -> None:
    if not any(p.is_partial() for p in self.placements):
        return
    several = any(isinstance(a, (int, float, complex, Tensor)) for a in args)
    sums = all(p.is_replicate() or p.is_partial("sum") or p.is_partial("avg") or p.is_shard()
               for p in self.placements)
    if linear and sums and not (several and not any(isinstance(a, DTensor) for a in args)):
        return
    if scaling and sums and not any(isinstance(a, DTensor) and a.ndim for a in args):
        return
    if name in _UNCHANGED:
        return
    raise RuntimeError(
        f"{name}: not for a DTensor with placements {self.placements}, whose values are still to be "
        "reduced: redistribute it to Replicate or Shard first"
    )


def _elementwise(name: str, linear: bool, scaling: bool, in_place: bool) -> Callable:
    plain = getattr(Tensor, name)

    def method(self: DTensor, *args: Any, **kwargs: Any) -> Any:
        _check_partial(name.rstrip("_") if in_place else name, self, args, linear, scaling)
        local_args = [_operand(name, self, a) for a in args]
        local_kwargs = {k: _operand(name, self, v) for k, v in kwargs.items()}
        result = plain(self._local_tensor, *local_args, **local_kwargs)
        if in_place:
            return self
        if not isinstance(result, Tensor):
            return result
        return DTensor._wrap(result, self._spec)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = plain.__doc__
    return method


def copy_(self: DTensor, src: Tensor, non_blocking: bool = False) -> DTensor:
    """Take over values: of a DTensor that lies anyhow, or of a whole tensor that every rank has."""
    with no_grad():
        if isinstance(src, DTensor):
            local = src.redistribute(self.device_mesh, self.placements)._local_tensor
        elif tuple(src.shape) == tuple(self.shape):
            whole: tuple[Placement, ...] = (Replicate(),) * self.device_mesh.ndim
            local = wrap(redistribute_local(src._data, self._spec.replaced(whole), self.placements))
        else:
            raise RuntimeError(
                f"copy_: a tensor of shape {tuple(src.shape)} into a DTensor of shape "
                f"{tuple(self.shape)}"
            )
    self._local_tensor.copy_(local)
    return self


def _fill_whole(self: DTensor, fill: Callable[[Tensor], Any]) -> DTensor:
    """Fill with what `fill` writes into a whole tensor; each rank keeps its part.

    Ranks whose generators agree draw what one process would draw; replicas take the values of the
    first of them, so they are equal even where generators differ.
    """
    with no_grad():
        local = self._local_tensor
        whole = wrap(namespace_of(local._data).empty(tuple(self.shape), local._data.dtype))
        fill(whole)
        for axis, placement in enumerate(self.placements):
            if placement.is_replicate() and not self.is_meta:
                self.device_mesh.get_group(axis).ranks.broadcast(whole._data, 0)
        return copy_(self, whole)


def _random(name: str) -> Callable:
    plain = getattr(Tensor, name)

    def method(self: DTensor, *args: Any, **kwargs: Any) -> DTensor:
        check_inplace(self._local_tensor, name)
        return _fill_whole(self, lambda whole: plain(whole, *args, **kwargs))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = plain.__doc__
    return method


# ---- reductions ----------------------------------------------------------------------------------


def _reduced(self: DTensor, value: Tensor, op: Partial) -> DTensor:
    placed = tuple(op if isinstance(p, Shard) else p for p in self.placements)
    meta = TensorMeta(value.shape, row_major_stride(value.shape), value.dtype)
    return DTensor._wrap(value, DTensorSpec(self.device_mesh, placed, meta))


def _whole_only(name: str, self: DTensor, dim: Any) -> None:
    if dim is not None:
        raise NotImplementedError(
            f"{name}(dim={dim}): reductions of a DTensor with placements {self.placements} are built "
            "over all elements only"
        )
    _check_partial(name, self, (), name in ("sum", "mean"), False)


def sum_(self: DTensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> DTensor:
    """The sum of all elements: Partial along the axes that cut the tensor."""
    _whole_only("sum", self, dim)
    return _reduced(self, self._local_tensor.sum(dtype=dtype), Partial("sum"))


def mean(self: DTensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> DTensor:
    """The mean of all elements: Partial along the axes that cut the tensor."""
    _whole_only("mean", self, dim)
    return _reduced(self, self._local_tensor.sum(dtype=dtype) / self.shape.numel(), Partial("sum"))


def _extreme(name: str, empty: float) -> Callable:
    def method(self: DTensor, dim: Any = None, keepdim: bool = False) -> DTensor:
        _whole_only(name, self, dim)
        local = self._local_tensor
        value = getattr(local, name)() if local.numel() else ops.full((), empty, dtype=local.dtype)
        return _reduced(self, value, Partial(name))

    method.__name__ = name
    return method


def _logical(name: str) -> Callable:
    def method(self: DTensor, dim: Any = None, keepdim: bool = False) -> DTensor:
        _whole_only(name, self, dim)
        value = getattr(self._local_tensor, name)()
        return _reduced(self, value, Partial("min" if name == "all" else "max"))

    method.__name__ = name
    return method


def norm(self: DTensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """The p-norm of all elements; the norms of the parts are combined when it is read."""
    _whole_only("norm", self, dim)
    p = 2.0 if p in ("fro", None) else float(p)
    local = self._local_tensor
    data = local._data if dtype is None else local.to(dtype)._data
    return _reduced(self, wrap(namespace_of(data).vector_norm(data, p)), _NormPartial(p))


def _read(name: str) -> Callable:
    plain = getattr(Tensor, name)

    def method(self: DTensor, *args: Any, **kwargs: Any) -> Any:
        if self.ndim and any(not p.is_replicate() for p in self.placements):
            raise RuntimeError(
                f"{name}: a DTensor with placements {self.placements} has other elements on other "
                "ranks: take full_tensor() or to_local() first"
            )
        return plain(self.full_tensor(), *args, **kwargs)

    method.__name__ = name
    return method


def _install() -> None:
    for name in (*_LINEAR, *_SCALING, *_ELEMENTWISE):
        linear, scaling = name in _LINEAR, name in _SCALING
        if hasattr(Tensor, name) and name not in DTensor.__dict__:
            in_place = name in _INPLACE_DUNDER
            setattr(DTensor, name, _elementwise(name, linear, scaling, in_place))
        if not name.startswith("__") and callable(getattr(Tensor, f"{name}_", None)):
            setattr(DTensor, f"{name}_", _elementwise(f"{name}_", linear, scaling, True))
    for name in ("uniform_", "normal_", "bernoulli_", "exponential_", "cauchy_", "log_normal_",
                 "geometric_", "random_"):
        if hasattr(Tensor, name):
            setattr(DTensor, name, _random(name))
    for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__array__",
                 "__index__"):
        if hasattr(Tensor, name):
            setattr(DTensor, name, _read(name))
    methods: dict[str, Any] = {
        "copy_": copy_, "sum": sum_, "mean": mean, "norm": norm, "all": _logical("all"),
        "any": _logical("any"), "max": _extreme("max", float("-inf")),
        "min": _extreme("min", float("inf")), "amax": _extreme("max", float("-inf")),
        "amin": _extreme("min", float("inf")),
        "size": lambda self, dim=None: self.shape if dim is None else self.shape[dim],
        "dim": lambda self: self.ndim, "numel": lambda self: self.shape.numel(),
        "nelement": lambda self: self.shape.numel(),
        "__len__": lambda self: self.shape[0],
        "element_size": lambda self: self._local_tensor.itemsize,
        "is_contiguous": lambda self, memory_format=None: self._local_tensor.is_contiguous(),
        "stride": lambda self, dim=None: (
            self._spec.tensor_meta.stride if dim is None else self._spec.tensor_meta.stride[dim]
        ),
        "is_floating_point": lambda self: self._local_tensor.is_floating_point(),
        "is_complex": lambda self: self._local_tensor.is_complex(),
        "data_ptr": lambda self: self._local_tensor.data_ptr(),
        "requires_grad_": _requires_grad_, "_fill_whole": _fill_whole,
    }
    for name, method in methods.items():
        setattr(DTensor, name, method)


def _requires_grad_(self: DTensor, requires_grad: bool = True) -> DTensor:
    self._local_tensor.requires_grad_(requires_grad)
    return self


_install()
__all__: list[str] = []
