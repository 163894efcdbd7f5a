"""A grid of ranks with named axes, each of which has a process group.

    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    mesh["tp"].get_group()      # the 4 ranks that differ from this one in "tp" only
    mesh["dp", "tp"]._flatten() # one axis of all 8
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backend import CPU, dtypes
from ..tensor import Tensor, wrap
from .begin import init_process_group
from .debug_level import DebugLevel, get_debug_level
from .groups import new_subgroups_by_enumeration
from .mesh_layout import Axis, check_axes, grid_of, lines
from .process_group import (
    ProcessGroup,
    default_group,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    is_initialized,
)


class DeviceMesh:
    """A grid of ranks of the job. Every rank of the job must make the same mesh.

    Args:
        device_type: "cpu" or "cuda".
        mesh: the global rank at each place of the grid: a tensor or nested lists.
        mesh_dim_names: a name for each axis.

    Attributes:
        mesh: int32 tensor of the ranks; of a slice, the part that this rank is in.
        shape, ndim, mesh_dim_names, device_type: as given.

    Raises:
        RuntimeError: more ranks than the job has.
        ValueError: a rank twice.
    """

    def __init__(
        self,
        device_type: str,
        mesh: Any = None,
        *,
        mesh_dim_names: Sequence[str] | None = None,
        backend_override: Any = None,
        _init_backend: bool = True,
    ) -> None:
        if mesh is None:
            raise TypeError("DeviceMesh: the mesh argument is required")
        shape, ranks = grid_of(mesh)
        if len(set(ranks)) < len(ranks):
            raise ValueError(f"DeviceMesh: mesh {ranks} of shape {shape} names a rank twice")
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        axes = [Axis.of([pair]) for pair in zip(shape, strides)]
        self._set_up(device_type, axes, ranks, mesh_dim_names, None)
        if _init_backend:
            self._connect(backend_override)

    def _set_up(
        self,
        device_type: str,
        axes: Sequence[Axis],
        ranks: Sequence[int],
        names: Sequence[str] | None,
        root: DeviceMesh | None,
    ) -> None:
        self.device_type = device_type
        self._axes = tuple(axes)
        self._ranks = tuple(ranks)
        self.mesh_dim_names = tuple(names) if names else None
        self._root = root
        self._flattened: dict[str, DeviceMesh] = {}
        self._groups: list[ProcessGroup] | None = None

    def _connect(self, backend_override: Any = None) -> None:
        if not is_initialized():
            init_process_group()
        if backend_override:
            raise NotImplementedError(
                "DeviceMesh: backend_override is not built; all groups of a job use its backend"
            )
        if len(self._ranks) > get_world_size():
            raise RuntimeError(
                f"Mesh should not be bigger than default world size {get_world_size()}, but found "
                f"{len(self._ranks)} ranks!"
            )
        self._groups = [
            group for i in range(self.ndim) if (group := self._make_group(i)) is not None
        ]

    def _make_group(self, dim: int) -> ProcessGroup | None:
        """The group along an axis that this rank is in; a call of all ranks of the job."""
        name = self.mesh_dim_names[dim] if self.mesh_dim_names else f"dim_{dim}"
        rows = self._lines([self._axes[dim]])
        if rows == [default_group().members]:
            return default_group()
        return new_subgroups_by_enumeration(rows, group_desc=f"mesh_{name}")[0]

    def _lines(self, axes: Sequence[Axis]) -> list[list[int]]:
        """The global ranks of each sub-mesh of these axes."""
        return [[self._ranks[i] for i in line] for line in lines(axes, len(self._ranks))]

    # ---- what it is --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self._axes)

    @property
    def ndim(self) -> int:
        return len(self._axes)

    def size(self, mesh_dim: int | None = None) -> int:
        """Number of ranks, of all axes or of one."""
        return math.prod(self.shape) if mesh_dim is None else self._axes[mesh_dim].size

    @property
    def mesh(self) -> Tensor:
        return wrap(CPU.array(self._line(), dtypes.int32.np).reshape(self.shape))

    def _line(self) -> list[int]:
        """The global ranks of the sub-mesh that this rank is in, in the order of its places.

        Raises:
            RuntimeError: a slice on a rank outside it.
        """
        parts = self._lines(self._axes)
        if len(parts) == 1:
            return parts[0]
        me = get_rank()
        for part in parts:
            if me in part:
                return part
        raise RuntimeError(f"rank {me} is not in {self!r}, so there is no part of it to show")

    def __repr__(self) -> str:
        if self.mesh_dim_names:
            named = zip(self.mesh_dim_names, self.shape)
            shape = f"({', '.join(f'{name}={size}' for name, size in named)})"
        else:
            shape = str(self.shape)
        # A tuple of one has a comma: PyTorch prints the tuple of the strides
        strides = ", ".join(map(str, self._axes)) + ("," if self.ndim == 1 else "")
        more = f", Mesh: {self.mesh.tolist()}" if get_debug_level() is DebugLevel.DETAIL else ""
        return f"DeviceMesh({shape}, '{self.device_type}', stride=({strides}){more})"

    def _key(self) -> tuple:
        return self._ranks, self._axes, self.device_type, self.mesh_dim_names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceMesh) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    # ---- where this rank is ------------------------------------------------------------------

    def get_rank(self) -> int:
        """This process's rank in the job."""
        return get_rank()

    def get_coordinate(self) -> tuple[int, ...] | None:
        """This rank's place along each axis; None outside the mesh."""
        me = get_rank()
        for ranks in self._lines(self._axes):
            if me in ranks:
                place, found = ranks.index(me), []
                for size in reversed(self.shape):
                    place, index = divmod(place, size)
                    found.append(index)
                return tuple(reversed(found))
        return None

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        """This rank's place along an axis, which may be left away if there is only one.

        Raises:
            RuntimeError: several axes and none named; this rank is outside the mesh.
        """
        return self.get_group(self._one_dim(mesh_dim)).rank()

    # ---- groups and parts --------------------------------------------------------------------

    def get_group(self, mesh_dim: int | str | None = None) -> ProcessGroup:
        """The ranks that differ from this one along an axis only.

        Raises:
            RuntimeError: several axes and none named; this rank is outside the mesh.
            KeyError: no axis of this name.
        """
        dim = self._one_dim(mesh_dim)
        if isinstance(dim, str):
            flattened = self._get_root_mesh()._flattened.get(dim)
            if flattened is not None:
                return flattened.get_group()
            dim = self._dim_of(dim)
        if not self._groups:
            raise RuntimeError(
                f"DeviceMesh process groups not initialized! rank {get_rank()} has no group in "
                f"{self!r}"
            )
        return self._groups[dim]

    def get_all_groups(self) -> list[ProcessGroup]:
        """The groups of all axes."""
        return [self.get_group(i) for i in range(self.ndim)]

    def __getitem__(self, mesh_dim_names: str | Sequence[str]) -> DeviceMesh:
        """The sub-mesh of some axes, in the order given; groups are shared with this mesh.

        Raises:
            RuntimeError: a mesh without names; axes that overlap.
            KeyError: no axis of this name; axes not from outer to inner.
        """
        if not self.mesh_dim_names:
            raise RuntimeError("Cannot slice a DeviceMesh without mesh_dim_names!")
        names = (mesh_dim_names,) if isinstance(mesh_dim_names, str) else tuple(mesh_dim_names)
        if names == self.mesh_dim_names:
            return self
        root = self._get_root_mesh()
        flattened = root._flattened if self is root else {}
        valid = [*self.mesh_dim_names, *flattened]
        if not all(name in valid for name in names):
            raise KeyError(
                f"Invalid mesh_dim_names {names} specified. Valid mesh_dim_names are {valid}."
            )
        axes, groups = [], []
        for name in names:
            mesh = self if name in self.mesh_dim_names else flattened[name]
            dim = mesh._dim_of(name)
            axes.append(mesh._axes[dim])
            groups += mesh._groups[dim : dim + 1] if mesh._groups else []
        check_axes(axes, names)
        return self._part(axes, names, groups)

    def _part(
        self, axes: Sequence[Axis], names: Sequence[str], groups: list[ProcessGroup]
    ) -> DeviceMesh:
        root = self._get_root_mesh()
        part = DeviceMesh.__new__(DeviceMesh)
        part._set_up(self.device_type, axes, root._ranks, names, root)
        part._groups = groups
        return part

    def _flatten(
        self, mesh_dim_name: str | None = None, backend_override: Any = None
    ) -> DeviceMesh:
        """A mesh of one axis with all ranks of this one's; a call of all ranks of the job.

        Args:
            mesh_dim_name: of the new axis; None: this mesh's names joined by "_".

        Raises:
            RuntimeError: a mesh without names.
            ValueError: a name that the root mesh or another flattened mesh has.
        """
        if not self.mesh_dim_names:
            raise RuntimeError("Cannot flatten a DeviceMesh without mesh_dim_names!")
        name = mesh_dim_name or "_".join(self.mesh_dim_names)
        if self.mesh_dim_names == (name,):
            return self
        root = self._get_root_mesh()
        if name in (root.mesh_dim_names or ()):
            raise ValueError(
                f"{name} already exists for submesh of the {root}. The mesh_dim_names of submesh "
                f"and flattened mesh are {root.mesh_dim_names}. Please specify another valid "
                "mesh_dim_name."
            )
        axis = Axis.of([pair for a in self._axes for pair in zip(a.sizes, a.strides)])
        known = root._flattened.get(name)
        if known is not None:
            if known._axes == (axis,):
                return known
            raise ValueError(
                f"Flatten mesh with mesh_dim_name {name} has been created before, Please specify "
                "another valid mesh_dim_name."
            )
        flat = self._part([axis], [name], [])
        flat._connect(backend_override)
        root._flattened[name] = flat
        return flat

    def _unflatten(
        self,
        dim: int | str,
        mesh_sizes: Sequence[int],
        mesh_dim_names: Sequence[str],
        backend_override: Any = None,
    ) -> DeviceMesh:
        """This mesh with one axis divided into several; a call of all ranks of the job.

        Raises:
            ValueError: no such axis; sizes whose product is not the axis's.
            RuntimeError: not one name for each size.
        """
        if isinstance(dim, str):
            if dim not in (self.mesh_dim_names or ()):
                raise ValueError(f"dim {dim} specified in `_unflatten` is not in {self.mesh_dim_names}")
            dim = self._dim_of(dim)
        if not 0 <= dim < self.ndim:
            raise ValueError(f"dim {dim} specified in `_unflatten` is out of range {self.ndim}")
        if len(mesh_sizes) != len(mesh_dim_names):
            raise RuntimeError("mesh_dim_names must have same length as mesh_sizes in _unflatten!")
        axis = self._axes[dim]
        if math.prod(mesh_sizes) != axis.size or len(axis.sizes) > 1:
            raise ValueError(
                f"mesh_sizes={tuple(mesh_sizes)} cannot divide the axis at dim={dim}, of sizes "
                f"{axis.sizes} and strides {axis.strides}: the product must be {axis.size}, and a "
                "flattened axis must lie evenly"
            )
        stride = axis.strides[0] if axis.strides else 1
        inner = [math.prod(mesh_sizes[i + 1 :]) * stride for i in range(len(mesh_sizes))]
        divided = [Axis.of([pair]) for pair in zip(mesh_sizes, inner)]
        names = list(self.mesh_dim_names or [f"dim_{i}" for i in range(self.ndim)])
        names[dim : dim + 1] = list(mesh_dim_names)
        made = self._part([*self._axes[:dim], *divided, *self._axes[dim + 1 :]], names, [])
        new = [made._make_group(dim + i) for i in range(len(divided))]
        groups = list(self._groups or [])
        groups[dim : dim + 1] = [group for group in new if group is not None]
        made._groups = groups
        return made

    def _get_root_mesh(self) -> DeviceMesh:
        return self if self._root is None else self._root

    def _one_dim(self, mesh_dim: int | str | None) -> int | str:
        if mesh_dim is not None:
            return mesh_dim
        if self.ndim > 1:
            raise RuntimeError(
                f"Found the DeviceMesh have {self.ndim} dimensions. Optional kwarg `mesh_dim` "
                "needs to be specified when device_mesh.ndim > 1."
            )
        return 0

    def _dim_of(self, name: str) -> int:
        if name not in (self.mesh_dim_names or ()):
            raise KeyError(
                f"Mesh dimension '{name}' does not exist. Available mesh dimensions are: "
                f"mesh_dim_names={self.mesh_dim_names}"
            )
        return self.mesh_dim_names.index(name)  # type: ignore[union-attr]

    @staticmethod
    def from_group(
        group: ProcessGroup | Sequence[ProcessGroup],
        device_type: str,
        mesh: Any = None,
        *,
        mesh_dim_names: Sequence[str] | None = None,
    ) -> DeviceMesh:
        """The mesh of groups that exist: one group, or one for each axis of `mesh`.

        Raises:
            ValueError: no groups; a mesh that does not fit them; several groups without mesh or
                names.
        """
        if isinstance(group, ProcessGroup):
            ranks = get_process_group_ranks(group)
            if mesh is not None and grid_of(mesh) != ((len(ranks),), ranks):
                raise ValueError(f"Invalid mesh {mesh} for ProcessGroup with ranks {ranks}")
            groups, mesh = [group], ranks
        else:
            groups = list(group)
            if not groups:
                raise ValueError("Expects at least one ProcessGroup to be passed")
            if mesh is None:
                raise ValueError("Must pass mesh if passing multiple ProcessGroups")
            if mesh_dim_names is None:
                raise ValueError("Must pass mesh_dim_names if passing multiple ProcessGroups")
            if len(grid_of(mesh)[0]) != len(groups):
                raise ValueError(
                    "Expects mesh with ndim equal to number of ProcessGroups but got mesh "
                    f"{mesh} and {len(groups)} ProcessGroups"
                )
        made = DeviceMesh(device_type, mesh, mesh_dim_names=mesh_dim_names, _init_backend=False)
        made._groups = groups
        return made


def init_device_mesh(
    device_type: str,
    mesh_shape: Sequence[int],
    *,
    mesh_dim_names: Sequence[str] | None = None,
    backend_override: Any = None,
) -> DeviceMesh:
    """The mesh of ranks 0, 1, 2, … in this shape, the last axis counting fastest.

    Initialises the default group if there is none. Every rank of the job must call it.

    Raises:
        RuntimeError: names that are not one for each axis, or repeated; a device type with an
            index; more ranks than the job has.
    """
    if mesh_dim_names is not None:
        if len(set(mesh_dim_names)) != len(mesh_dim_names):
            raise RuntimeError(
                "Each mesh_dim_name must be unique. Found repeated mesh_dim_name in mesh_dim_names "
                f"{mesh_dim_names}"
            )
        if len(mesh_shape) != len(mesh_dim_names):
            raise RuntimeError(
                "mesh_shape and mesh_dim_names should have same length! Found "
                f"len(mesh_dim_names): {len(mesh_dim_names)} and len(mesh_shape):{len(mesh_shape)}."
            )
    if device_type and not device_type.isalpha():
        raise RuntimeError(
            f"Device type with index is not supported but got {device_type}. If you maintained a "
            "'torch.device' object, it's recommended to pass in 'device.type'."
        )
    ranks = CPU.arange(math.prod(mesh_shape)).reshape(tuple(mesh_shape))
    return DeviceMesh(
        device_type, ranks, mesh_dim_names=mesh_dim_names, backend_override=backend_override
    )


__all__ = ["DeviceMesh", "init_device_mesh"]
