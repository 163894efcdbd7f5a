"""DTensors made in place: each rank makes its part only, but for random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import ops
from ...tensor import Size
from ..device_mesh import DeviceMesh, init_device_mesh
from ..process_group import get_world_size
from ._api import DTensor, _spec_of
from ._utils import compute_local_shape_and_global_offset, normalize_placements
from .placement_types import Placement


def _made(
    make: Callable, size: tuple, mesh: DeviceMesh | None, placements: Any, options: dict
) -> DTensor:
    if len(size) == 1 and not isinstance(size[0], int):
        size = tuple(size[0])
    requires_grad = options.pop("requires_grad", False)
    options.pop("layout", None)
    mesh = mesh or init_device_mesh("cpu", (get_world_size(),))
    placed = normalize_placements(placements, mesh, len(size))
    shape, _ = compute_local_shape_and_global_offset(size, mesh, placed)
    local = make(shape, device=mesh.device_type, **options)
    made = DTensor._wrap(local, _spec_of(mesh, placed, Size(size), local))
    local.requires_grad_(requires_grad)
    return made


def zeros(
    *size: Any,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """Zeros of this (whole) size; options: dtype, requires_grad."""
    return _made(ops.zeros, size, device_mesh, placements, options)


def ones(
    *size: Any,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """Ones of this (whole) size; options: dtype, requires_grad."""
    return _made(ops.ones, size, device_mesh, placements, options)


def empty(
    *size: Any,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """Values not set, of this (whole) size; options: dtype, requires_grad."""
    return _made(ops.empty, size, device_mesh, placements, options)


def full(
    size: Sequence[int],
    fill_value: Any,
    *,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """`fill_value` everywhere; options: dtype, requires_grad."""

    def make(shape: Sequence[int], **given: Any) -> Any:
        return ops.full(shape, fill_value, **given)

    return _made(make, (size,), device_mesh, placements, options)


def rand(
    *size: Any,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """Uniform numbers in [0, 1): the whole is drawn on each rank, as one process would draw it."""
    requires_grad = options.pop("requires_grad", False)
    made = _made(ops.empty, size, device_mesh, placements, options)
    return made.uniform_(0.0, 1.0).requires_grad_(requires_grad)  # type: ignore[return-value]


def randn(
    *size: Any,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] | None = None,
    **options: Any,
) -> DTensor:
    """Normal numbers: the whole is drawn on each rank, as one process would draw it."""
    requires_grad = options.pop("requires_grad", False)
    made = _made(ops.empty, size, device_mesh, placements, options)
    return made.normal_(0.0, 1.0).requires_grad_(requires_grad)  # type: ignore[return-value]


__all__ = ["empty", "full", "ones", "rand", "randn", "zeros"]
