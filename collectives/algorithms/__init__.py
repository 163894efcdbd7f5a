"""Collectives as short functions over send and receive, one family a file.

`ALGORITHMS[call][name]` finds them; `collectives.selection` chooses. Conventions are those of the
backend methods in `collectives.group`: reductions work in place or from `buffer` into `out`, on flat
contiguous NumPy arrays of the same size on every rank, with a NumPy ufunc. All messages of one call
carry `tag`. A transport is anything like `Transport`.
"""

from __future__ import annotations

from collections.abc import Callable

from . import all_reduce, all_to_all, broadcast, gather, reduce, reduce_scatter
from .steps import Transport

ALGORITHMS: dict[str, dict[str, Callable[..., None]]] = {
    "all_reduce": {
        "ring": all_reduce.ring,
        "recursive_halving_doubling": all_reduce.recursive_halving_doubling,
        "recursive_doubling": all_reduce.recursive_doubling,
        "tree": all_reduce.tree,
        "direct": all_reduce.direct,
    },
    "reduce": {"binomial": reduce.binomial, "tree": reduce.tree, "direct": reduce.direct},
    "reduce_scatter": {
        "ring": reduce_scatter.ring,
        "halving": reduce_scatter.halving,
        "direct": reduce_scatter.direct,
    },
    "broadcast": {
        "binomial": broadcast.binomial,
        "scatter_all_gather": broadcast.scatter_all_gather,
    },
    "all_gather": {
        "ring": gather.ring_all_gather,
        "bruck": gather.bruck_all_gather,
        "recursive_doubling": gather.recursive_doubling_all_gather,
    },
    "gather": {"binomial": gather.binomial_gather, "linear": gather.linear_gather},
    "scatter": {"binomial": gather.binomial_scatter, "linear": gather.linear_scatter},
    "all_to_all": {"pairwise": all_to_all.pairwise, "bruck": all_to_all.bruck},
    "barrier": {"dissemination": all_to_all.dissemination},
}

#: Those whose bits are those of `collectives.tree.fold` over the ranks, whatever n and root are.
FIXED_TREE: dict[str, tuple[str, ...]] = {
    "all_reduce": ("tree", "direct"),
    "reduce": ("tree", "direct"),
    "reduce_scatter": ("direct",),
}

#: Those that take parts of unequal sizes.
UNEQUAL: dict[str, tuple[str, ...]] = {
    "reduce_scatter": ("ring", "halving", "direct"),
    "all_gather": ("ring", "bruck", "recursive_doubling"),
    "gather": ("linear",),
    "scatter": ("linear",),
    "all_to_all": ("pairwise",),
}

#: Those that need a power of two of ranks.
POWER_OF_TWO: dict[str, tuple[str, ...]] = {"all_gather": ("recursive_doubling",)}

__all__ = ["ALGORITHMS", "FIXED_TREE", "POWER_OF_TWO", "UNEQUAL", "Transport"]
