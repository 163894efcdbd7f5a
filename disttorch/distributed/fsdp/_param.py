"""One parameter under sharding: a shard that lives on, and a whole that comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...backend import namespace_of
from ...nn import Module, Parameter
from ...tensor import Tensor, wrap
from ..tensor._api import DTensor, DTensorParameter, _spec_of
from ..tensor.placement_types import Placement, Shard


class ShardedParam:
    """One parameter of a unit.

    The whole is one Parameter object for good: graphs hold on to it, and when it is gathered again
    for backward it gets an array again. While it is not gathered its array is a placeholder of the
    right shape whose elements are all one nan, so that a use of it shows.

    Args:
        param: the original one, whole.
        places: the modules and attribute names that hold it (several if it is shared).
        placements: of the shard on `mesh`; exactly one is Shard, others Replicate.
        dtype: of the whole; None: the parameter's own.
        keep_on_host: keep the shard in host memory.

    Attributes:
        sharded: the DTensor that the module shows, the optimizer updates, the state dict holds.
        whole: the Parameter that forwards compute with.
        dim: the dim that is cut; rows, width: its size, and the elements of one row.
    """

    def __init__(
        self,
        param: Parameter,
        places: Sequence[tuple[Module, str]],
        name: str,
        mesh: Any,
        placements: tuple[Placement, ...],
        shard_axis: int | None,
        dtype: Any,
        keep_on_host: bool,
    ) -> None:
        self.name, self.places = name, list(places)
        self.shape = tuple(param.shape)
        array = param._data
        self.compute_dtype = (dtype.np if dtype is not None and param.is_floating_point()
                              else array.dtype)
        self.shard_axis = shard_axis
        placement = placements[shard_axis] if shard_axis is not None else Shard(0)
        assert isinstance(placement, Shard)
        self.dim = placement.dim
        self.rows = self.shape[self.dim]
        self.width = param.numel() // self.rows if self.rows else 0
        ranks, rank = (mesh.shape[shard_axis], mesh.get_coordinate()[shard_axis]) if (
            shard_axis is not None) else (1, 0)
        size, begin = placement.local_shard_size_and_offset(self.rows, ranks, rank)
        index = [slice(None)] * len(self.shape)
        index[self.dim] = slice(begin, begin + size)
        xp = namespace_of(array)
        part = array if ranks == 1 else xp.contiguous_copy(array[tuple(index)])
        if keep_on_host:
            part = xp.to_host(part)
        local = wrap(part)
        spec = _spec_of(mesh, placements, param.shape, local)
        self.sharded = DTensorParameter(DTensor._wrap(local, spec), param.requires_grad)
        for key, value in vars(param).items():  # what users hung on it
            if not key.startswith("_"):
                setattr(self.sharded, key, value)
        self.whole = Parameter(wrap(self._placeholder(xp)), param.requires_grad)
        self.accumulated: Any = None  # gradients not yet reduced, in the reduction's dtype
        # Who still holds the original holds no memory, computes nan, and an optimizer refuses it
        param.__dict__["_replaced_by"] = "fully_shard"
        param._data = self.placeholder
        param._grad = None

    def adopt(self) -> None:
        """Take the parameter that the modules show as the shard, if it was replaced by assignment.

        Raises:
            RuntimeError: it is no DTensor that lies as the shard did.
        """
        module, name = self.places[0]
        shown = module._parameters[name]
        if shown is self.sharded or shown is self.whole:
            return
        if (
            not isinstance(shown, DTensorParameter)
            or shown.shape != self.sharded.shape
            or shown.placements != self.sharded.placements
        ):
            raise RuntimeError(
                f"parameter {self.name!r} was replaced by a {type(shown).__name__}; a sharded module "
                f"takes a DTensor of shape {self.shape} with placements {self.sharded.placements} "
                "(load_state_dict without assign=True takes whole tensors too)"
            )
        self.sharded = shown
        self.show(shown)

    def refresh(self, dtype: Any, xp: Any) -> None:
        """Take over the shard's dtype and device, after they have changed."""
        local = self.sharded._local_tensor
        floating = local.is_floating_point()
        self.compute_dtype = dtype.np if dtype is not None and floating else local._data.dtype
        spec = self.sharded._spec
        self.sharded._spec = _spec_of(
            spec.mesh, spec.placements, spec.shape, local, spec.tensor_meta.stride
        )
        self.whole._data = self._placeholder(xp)

    def _placeholder(self, xp: Any) -> Any:
        kind = self.compute_dtype.kind
        value = float("nan") if kind in "fcV" else 0
        self.placeholder = xp.broadcast_to(xp.asarray(value).astype(self.compute_dtype), self.shape)
        return self.placeholder

    def show(self, param: Tensor) -> None:
        """Make the modules' attributes be this parameter (the shard or the whole)."""
        for module, name in self.places:
            module._parameters[name] = param  # type: ignore[assignment]

    def rows_first(self, array: Any) -> Any:
        """A view with the cut dim in front."""
        return array if self.dim == 0 else namespace_of(array).moveaxis(array, self.dim, 0)

    def local_rows(self) -> Any:
        """This rank's part with the cut dim in front."""
        return self.rows_first(self.sharded._local_tensor._data)

    def free(self) -> None:
        """Let go of the whole's elements."""
        self.whole._data = self.placeholder

    def add_gradient(self, rows: Any, keep_on_host: bool) -> None:
        """Add this rank's part of a reduced gradient (cut dim in front) to the shard's `.grad`."""
        local = self.sharded._local_tensor
        xp = namespace_of(rows)
        array = rows if self.dim == 0 else xp.contiguous_copy(xp.moveaxis(rows, 0, self.dim))
        if array.dtype != local._data.dtype:
            array = array.astype(local._data.dtype)
        if keep_on_host:
            array = xp.to_host(array)
        if local._grad is None:
            local._grad = wrap(array)
        else:
            local._grad._data[...] += array
        for hook in list((local._acc_hooks or {}).values()):
            hook(local)


__all__ = ["ShardedParam"]
