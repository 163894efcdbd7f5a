"""How a tensor lies along one axis of a mesh: cut along a dim, whole, or still to be reduced."""

from __future__ import annotations

from typing import Any


class Placement:
    """What one axis of a mesh does with a tensor: `Shard`, `Replicate` or `Partial`."""

    def is_shard(self, dim: int | None = None) -> bool:
        """Whether it is a `Shard`, of this dim if one is given."""
        return False

    def is_replicate(self) -> bool:
        """Whether every rank holds the whole."""
        return False

    def is_partial(self, reduce_op: str | None = None) -> bool:
        """Whether ranks hold values still to be reduced (with this operation, if given)."""
        return False

    def _key(self) -> tuple:
        return ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._key()))


class Shard(Placement):
    """The tensor is cut along `dim`, rank r holds part r.

    Parts have ceil(size / ranks) rows; the last ones have fewer, or none (as `Tensor.chunk` cuts).

    Args:
        dim: of the tensor; negative ones count from the end, and are resolved when it is placed.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def is_shard(self, dim: int | None = None) -> bool:
        return dim is None or dim == self.dim

    def _key(self) -> tuple:
        return (self.dim,)

    def __repr__(self) -> str:
        return f"Shard(dim={self.dim})"

    def __str__(self) -> str:
        return f"S({self.dim})"

    def local_shard_size_and_offset(self, curr_local_size: int, num_chunks: int, rank: Any) -> tuple:
        """(rows of `rank`'s part, where it begins) of `curr_local_size` rows in `num_chunks` parts."""
        rows = -(-curr_local_size // num_chunks)
        begin = min(rows * rank, curr_local_size)
        return min(rows, curr_local_size - begin), begin


class Replicate(Placement):
    """Every rank along the axis holds the whole tensor."""

    def is_replicate(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Replicate()"

    def __str__(self) -> str:
        return "R"


class Partial(Placement):
    """Ranks along the axis hold values whose reduction is the tensor.

    Args:
        reduce_op: "sum", "avg", "product", "max" or "min".
    """

    def __init__(self, reduce_op: str = "sum") -> None:
        self.reduce_op = reduce_op

    def is_partial(self, reduce_op: str | None = None) -> bool:
        return reduce_op is None or reduce_op == self.reduce_op

    def _key(self) -> tuple:
        return (self.reduce_op,)

    def __repr__(self) -> str:
        return f"Partial({self.reduce_op})"

    def __str__(self) -> str:
        return f"P({self.reduce_op})"


class _NormPartial(Partial):
    """Ranks hold the norms of their parts; the tensor is the norm of all parts.

    Args:
        norm_type: the p of the norm, also ±inf and 0.
    """

    def __init__(self, norm_type: float = 2.0) -> None:
        super().__init__("norm")
        self.norm_type = float(norm_type)

    def _key(self) -> tuple:
        return (self.norm_type,)

    def __repr__(self) -> str:
        return f"_NormPartial(norm_type={self.norm_type})"


__all__ = ["Partial", "Placement", "Replicate", "Shard"]
