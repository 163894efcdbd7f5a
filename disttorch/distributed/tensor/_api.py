"""DTensor: one tensor whose parts lie on the ranks of a mesh.

A DTensor wraps an ordinary tensor, this rank's part: gradients, graphs and in-place changes are that
tensor's. What concerns the part alone works on it (elementwise operations between tensors that lie
alike: `_ops`); what does not raises, instead of computing something of the part only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ...autograd import is_grad_enabled, no_grad
from ...nn import Parameter
from ...tensor import Size, Tensor, wrap
from ..device_mesh import DeviceMesh
from ._dtensor_spec import DTensorSpec, TensorMeta
from ._redistribute import Redistribute, redistribute_local
from ._utils import global_shape_of, local_part, normalize_placements, row_major_stride
from .placement_types import Placement, Replicate


class DTensor(Tensor):
    """A tensor that lies on a mesh of ranks; made by `from_local` and `distribute_tensor`.

    Attributes:
        shape, ndim: of the whole tensor.
        device_mesh: the ranks.
        placements: how it lies along each axis of the mesh.
        grad: a DTensor that lies alike, or None.
    """

    _spec: DTensorSpec
    _local_tensor: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("a DTensor is made by DTensor.from_local or distribute_tensor")

    @classmethod
    def _wrap(cls, local: Tensor, spec: DTensorSpec) -> DTensor:
        """A DTensor over a local tensor, its gradient and its place in the graph."""
        made = object.__new__(cls)
        made._local_tensor, made._spec = local, spec
        return made

    @staticmethod
    def from_local(
        local_tensor: Tensor,
        device_mesh: DeviceMesh | None = None,
        placements: Sequence[Placement] | None = None,
        *,
        run_check: bool = False,
        shape: Sequence[int] | None = None,
        stride: tuple[int, ...] | None = None,
        grad_placements: Sequence[Placement] | None = None,
    ) -> DTensor:
        """The tensor of which each rank holds `local_tensor`; nothing is sent unless `run_check`.

        Args:
            device_mesh: the ranks; None: all.
            placements: how the parts lie; None: replicated.
            run_check: along replicated axes, take rank 0's values.
            shape, stride: of the whole; None: all parts have the same shape.
            grad_placements: must be None, or `placements` themselves (their Partial replicated).

        Raises:
            RuntimeError: only one of shape and stride; a part that does not fit the shape.
        """
        mesh = device_mesh or _default_mesh(local_tensor)
        placed = normalize_placements(placements, mesh, local_tensor.ndim)
        if (shape is None) != (stride is None):
            raise RuntimeError(
                f"Found shape:{shape}, stride:{stride}. Please pass both shape and stride at the "
                "same time."
            )
        if grad_placements is not None:
            wanted = tuple(Replicate() if p.is_partial() else p for p in placed)
            if normalize_placements(grad_placements, mesh, local_tensor.ndim) != wanted:
                raise NotImplementedError(
                    f"DTensor.from_local: grad_placements {tuple(grad_placements)} other than the "
                    f"tensor's own {wanted} is not built: redistribute the gradient"
                )
        whole = global_shape_of(local_tensor.shape, mesh, placed) if shape is None else Size(shape)
        if shape is not None:
            part, _ = local_part(whole, mesh.shape, mesh.get_coordinate() or (), placed)
            if part != tuple(local_tensor.shape):
                raise RuntimeError(
                    f"DTensor.from_local: a part of shape {tuple(local_tensor.shape)} where "
                    f"{placed} of shape {tuple(whole)} gives rank {mesh.get_rank()} {part}"
                )
        if is_grad_enabled() and local_tensor.requires_grad:
            local = local_tensor.view_as(local_tensor)
        else:
            local = wrap(local_tensor._data)
        if run_check:
            with no_grad():
                for axis, placement in enumerate(placed):
                    if placement.is_replicate():
                        mesh.get_group(axis).ranks.broadcast(local._data, 0)
        return DTensor._wrap(local, _spec_of(mesh, placed, whole, local, stride))

    # ---- what it is --------------------------------------------------------------------------

    @property
    def device_mesh(self) -> DeviceMesh:
        return self._spec.mesh

    @property
    def placements(self) -> tuple[Placement, ...]:
        return self._spec.placements

    @property
    def shape(self) -> Size:
        return self._spec.shape

    @property
    def ndim(self) -> int:
        return len(self._spec.shape)

    @property
    def dtype(self) -> Any:
        return self._local_tensor.dtype

    @property
    def device(self) -> Any:
        return self._local_tensor.device

    @property
    def itemsize(self) -> int:
        return self._local_tensor.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.itemsize

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return self._local_tensor.is_meta

    @property
    def _data(self) -> Any:
        """Operations ask for it: none of them may take the part for the whole."""
        raise NotImplementedError(
            f"{_asked_by(sys._getframe(1))}: not built for a DTensor of "
            f"shape {tuple(self.shape)} with placements {self.placements} on {self.device_mesh}; "
            "take this rank's part with to_local(), or the whole with full_tensor()"
        )

    # ---- its place in the graph: the part's ----------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        return self._local_tensor.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._local_tensor.requires_grad = value

    @property
    def _rg(self) -> bool:  # type: ignore[override]
        return self._local_tensor.requires_grad

    @property
    def is_leaf(self) -> bool:
        return self._local_tensor.is_leaf

    @property
    def grad_fn(self) -> Any:
        return self._local_tensor.grad_fn

    @property
    def retains_grad(self) -> bool:
        return self._local_tensor.retains_grad

    @property
    def _version(self) -> int:
        return self._local_tensor._version

    @property
    def grad(self) -> Tensor | None:
        grad = self._local_tensor._grad
        return None if grad is None else DTensor._wrap(grad, self._spec)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, DTensor):
                raise TypeError(
                    f"the gradient of a DTensor must be a DTensor, got {type(value).__name__}: see "
                    "DTensor.from_local"
                )
            if value.placements != self.placements or value.device_mesh != self.device_mesh:
                raise RuntimeError(
                    f"a gradient with placements {value.placements} for a DTensor with "
                    f"{self.placements}: redistribute it first"
                )
            value = value._local_tensor
        self._local_tensor.grad = value

    @grad.deleter
    def grad(self) -> None:
        self._local_tensor._grad = None

    _grad = grad  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return DTensor._wrap(self._local_tensor.data, self._spec)

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, DTensor):
            raise TypeError(f"DTensor.data must be a DTensor, got {type(other).__name__}")
        self._local_tensor.data = other._local_tensor
        self._spec = other._spec

    def backward(self, gradient: Any = None, *args: Any, **kwargs: Any) -> None:
        """Backward from this rank's part; of a loss that is Partial or replicated."""
        if isinstance(gradient, DTensor):
            gradient = gradient._local_tensor
        self._local_tensor.backward(gradient, *args, **kwargs)

    def register_hook(self, hook: Callable) -> Any:
        """Call `hook(grad)` with the gradient as a DTensor; it may return another one."""

        def on_part(grad: Tensor) -> Tensor | None:
            result = hook(DTensor._wrap(grad, self._spec))
            return result._local_tensor if isinstance(result, DTensor) else result

        return self._local_tensor.register_hook(on_part)

    def register_post_accumulate_grad_hook(self, hook: Callable) -> Any:
        """Call `hook(self)` when a backward has added to the gradient."""
        return self._local_tensor.register_post_accumulate_grad_hook(lambda _: hook(self))

    # ---- its parts -----------------------------------------------------------------------------

    def to_local(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """This rank's part, over the same memory; gradients flow back.

        Args:
            grad_placements: how the gradient will lie; must be the tensor's own placements.
        """
        if grad_placements is not None:
            wanted = tuple(Replicate() if p.is_partial() else p for p in self.placements)
            if normalize_placements(grad_placements, self.device_mesh, self.ndim) != wanted:
                raise NotImplementedError(
                    f"to_local: grad_placements {tuple(grad_placements)} other than the tensor's "
                    f"own {wanted} is not built"
                )
        local = self._local_tensor
        return local.view_as(local) if is_grad_enabled() and local.requires_grad else local

    def redistribute(
        self,
        device_mesh: DeviceMesh | None = None,
        placements: Sequence[Placement] | None = None,
        *,
        async_op: bool = False,
        forward_dtype: Any = None,
        backward_dtype: Any = None,
    ) -> DTensor:
        """The same tensor lying otherwise; a call of all ranks of the mesh. Gradients flow back.

        Args:
            device_mesh: must be the tensor's own.
            placements: one for each axis; None is refused.
            async_op: accepted; the call has ended when it returns.
            forward_dtype, backward_dtype: not built.

        Raises:
            RuntimeError: no placements; to Partial.
            NotImplementedError: another mesh; a dtype.
        """
        if placements is None:
            raise RuntimeError("placements is needed for redistribute!")
        if device_mesh is not None and device_mesh != self.device_mesh:
            raise NotImplementedError("Cross device mesh comm not supported yet!")
        if forward_dtype is not None or backward_dtype is not None:
            raise NotImplementedError("redistribute: convert with .to(dtype) before or after")
        placed = normalize_placements(placements, self.device_mesh, self.ndim)
        for old, new in zip(self.placements, placed):
            if new.is_partial() and old != new:
                raise RuntimeError(
                    f"Can not redistribute from {old!r} to {new!r}: redistributing to Partial is for "
                    "internal use only!"
                )
        if placed == self.placements:
            return self
        local = self._local_tensor
        if is_grad_enabled() and local.requires_grad:
            moved = Redistribute.apply(local, self._spec, placed)
        else:
            moved = wrap(redistribute_local(local._data, self._spec, placed))
        return DTensor._wrap(moved, self._spec.replaced(placed))

    def full_tensor(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """The whole tensor on every rank; a call of all ranks of the mesh."""
        whole = self.redistribute(placements=[Replicate()] * self.device_mesh.ndim)
        return whole.to_local(grad_placements=grad_placements)

    # ---- text, copies, pickles -----------------------------------------------------------------

    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        return (
            f"DTensor(local_tensor={self._local_tensor!r}, device_mesh={self.device_mesh!r}, "
            f"placements={self.placements})"
        )

    __str__ = __repr__  # type: ignore[assignment]

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 and spec else repr(self)

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict) -> DTensor:
        if id(self) not in memo:
            local = self._local_tensor.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = type(self)._wrap(local, self._spec)
        return memo[id(self)]

    def __copy__(self) -> DTensor:
        return type(self)._wrap(self._local_tensor, self._spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            f"a DTensor with placements {self.placements} cannot be pickled: its parts are on "
            f"{self.device_mesh.size()} ranks; save with distributed.checkpoint, or full_tensor()"
        )


def _asked_by(frame: Any) -> str:
    """The name of the operation whose code asks for a DTensor's array."""
    seen = frame.f_locals
    for value in (seen.get("self"), *(getattr(v, "__self__", None) for v in seen.values())):
        name = getattr(value, "name", None)
        if isinstance(name, str) and not isinstance(value, Tensor):
            return name
    name = seen.get("name")
    return name if isinstance(name, str) else frame.f_code.co_name


class DTensorParameter(DTensor, Parameter):
    """A DTensor to be trained: assigned to a Module's attribute it joins `parameters()`.

    Args:
        data: a DTensor; its part's memory is shared.
        requires_grad: whether backward computes its gradient.
    """

    def __init__(self, data: DTensor, requires_grad: bool = True) -> None:
        local = wrap(data._local_tensor._data)
        self._local_tensor, self._spec = local, data._spec
        local.requires_grad_(requires_grad)

    def _spread_state(self, state: Any) -> Any:
        """An optimizer's state of this parameter, its tensors of the part's shape as DTensors."""
        if not isinstance(state, dict):
            return state
        shape = self._local_tensor._data.shape
        return {
            key: DTensor._wrap(value, self._spec)
            if isinstance(value, Tensor) and key != "step" and value.shape == shape
            else value
            for key, value in state.items()
        }

    def __deepcopy__(self, memo: dict) -> DTensor:
        return DTensor.__deepcopy__(self, memo)

    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        return "Parameter containing:\n" + DTensor.__repr__(self)

    __str__ = __repr__  # type: ignore[assignment]


DTensor._parameter_class = DTensorParameter  # type: ignore[attr-defined]


def _spec_of(
    mesh: DeviceMesh, placed: tuple[Placement, ...], shape: Size, local: Tensor, stride: Any = None
) -> DTensorSpec:
    stride = row_major_stride(shape) if stride is None else tuple(stride)
    return DTensorSpec(mesh, placed, TensorMeta(shape, stride, local.dtype))


def _default_mesh(tensor: Tensor) -> DeviceMesh:
    from ..device_mesh import init_device_mesh
    from ..process_group import get_world_size

    return init_device_mesh(tensor.device.type, (get_world_size(),))


__all__ = ["DTensor", "DTensorParameter"]
