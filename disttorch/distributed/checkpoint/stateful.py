"""Objects that give and take their own state, and values that every rank has its own of."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from ...tensor import Tensor


@runtime_checkable
class Stateful(Protocol):
    """What `save` asks for its state, and `load` hands the loaded one: modules, optimizers, …"""

    def state_dict(self) -> dict[str, Any]:
        """The state. `load` calls it, too: to know the tensors to load into."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state."""
        ...


def is_stateful(obj: Any) -> bool:
    """Whether it gives and takes a state. Tensors, of which there are many, are told at once."""
    return not isinstance(obj, Tensor) and isinstance(obj, Stateful)


StatefulT = TypeVar("StatefulT", bound=Stateful)


class RankLocal:
    """A value in a state dict that each rank has its own of, as the state of its random numbers.

    Everything else under one key is the same on all ranks, or a part of one tensor. This is saved
    by every rank under a key of its own and loaded by the rank of the same number.

    Args:
        value: what `values.encode` can write.
        rank: this rank's number; by default that in the job.

    Attributes:
        value: after loading, the saved one.
        found: whether loading found one; False where there were fewer ranks when it was saved.
    """

    def __init__(self, value: Any = None, rank: int | None = None) -> None:
        if rank is None:
            from ..process_group import get_rank, is_initialized

            rank = get_rank() if is_initialized() else 0
        self.value, self.rank = value, rank
        self.found = False

    def __repr__(self) -> str:
        return f"RankLocal({self.value!r}, rank={self.rank})"


__all__ = ["RankLocal", "Stateful", "StatefulT"]
