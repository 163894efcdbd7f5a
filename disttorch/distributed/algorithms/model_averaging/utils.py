"""Averaging parameters over ranks, in a few flat arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import collectives

from ....autograd.graph import bump_version
from ....nn import Parameter
from ....tensor import Tensor
from ...buckets import MIB, Bucket, assign
from ...process_group import ProcessGroup, resolve

_CAP = 25 * MIB


def average_parameters(params: Iterable[Tensor], process_group: ProcessGroup | None) -> None:
    """Replace parameters by their mean over the group (None: all ranks), in place.

    A rank outside the group keeps its own.
    """
    group = resolve(process_group)
    tensors = list(params)
    if group is None or group.size() == 1:
        return
    buckets = [Bucket(members, tensors) for members in assign(range(len(tensors)), tensors, [_CAP])]
    for bucket in buckets:
        for i, view in zip(bucket.members, bucket.views):
            view[...] = tensors[i]._data
        bucket.work = group.ranks.all_reduce(
            bucket.flat, collectives.ReduceOp.AVG, async_op=True
        )
    for bucket in buckets:
        bucket.work.wait(group.timeout)
        for i, view in zip(bucket.members, bucket.views):
            tensors[i]._data[...] = view
            bump_version(tensors[i])


def get_params_to_average(params: Iterable[Any]) -> list[Tensor]:
    """The parameters that have a gradient.

    Args:
        params: parameters, or an optimizer's groups of them.

    Raises:
        NotImplementedError: something else in `params`.
    """
    found: list[Tensor] = []
    for entry in params:
        if isinstance(entry, Parameter):
            found.append(entry)
        elif isinstance(entry, dict):
            found += entry["params"]
        else:
            raise NotImplementedError(f"Parameter input of type {type(entry)} is not supported")
    return [p for p in found if p.grad is not None]


def average_parameters_or_parameter_groups(
    params: Iterable[Any], process_group: ProcessGroup | None
) -> None:
    """`average_parameters` of those that have a gradient, given as they are or in groups."""
    average_parameters(get_params_to_average(params), process_group)


__all__ = [
    "average_parameters", "average_parameters_or_parameter_groups", "get_params_to_average",
]
