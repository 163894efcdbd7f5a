"""Ranks that must have the same model: checked at the start, and whenever asked."""

from __future__ import annotations

import hashlib

from ...autograd.graph import bump_version
from ...nn import Module
from ...tensor import Tensor
from ..process_group import ProcessGroup

__all__ = ["check_modules", "compare", "copy_from_first", "digests", "is_cut"]


def is_cut(tensor: Tensor) -> bool:
    """Whether it is a part of a tensor over ranks (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def digests(module: Module) -> dict[str, str]:
    found = {}
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        if is_cut(t):
            t = t.full_tensor()  # type: ignore[operator]
        raw = t.detach().cpu().contiguous()._data.tobytes()
        found[name] = hashlib.sha256(raw).hexdigest()
    return found


def check_modules(module: Module) -> None:
    for name, each in module.named_modules():
        if type(each).__name__ == "SyncBatchNorm":
            raise RuntimeError(
                f"ExactDataParallel: {name!r} is a SyncBatchNorm, whose statistics span the ranks "
                "and so depend on their number; use BatchNorm, which has statistics per virtual "
                "shard here"
            )


def copy_from_first(module: Module, group: ProcessGroup) -> None:
    """Check that ranks have the same model; give all of them the state of the first."""
    named = [*module.named_parameters(), *module.named_buffers()]
    mine = [(name, list(t.shape), str(t.dtype), t.requires_grad) for name, t in named]
    for rank, theirs in enumerate(group.ranks.all_gather_object(mine)):
        if theirs != mine:
            odd = next(
                (a, b) for a, b in zip([*mine, None], [*theirs, None], strict=False) if a != b
            )
            raise RuntimeError(
                f"ExactDataParallel: the models of ranks {group.members[group.rank()]} and "
                f"{group.members[rank]} differ: {odd[0]} here, {odd[1]} there; build the same on all"
            )
    for _, t in named:
        if not is_cut(t):  # parts come from each rank's own whole, which was the same on all
            group.ranks.broadcast(t._data, 0)
            bump_version(t)


def compare(module: Module, group: ProcessGroup, step: int) -> None:
    """Raise RuntimeError on every rank if the bits of a tensor differ between two of them."""
    everyone = group.ranks.all_gather_object(digests(module))
    for rank, theirs in enumerate(everyone):
        odd = [name for name, value in everyone[0].items() if theirs.get(name) != value]
        if odd:
            raise RuntimeError(
                f"ExactDataParallel: {odd[0]!r} and {len(odd) - 1} more tensors differ between "
                f"ranks {group.members[0]} and {group.members[rank]} before step {step}: something "
                "has changed them outside of the loop on one rank only"
            )
