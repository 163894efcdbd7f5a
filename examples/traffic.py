"""Bytes that gradient reduction moves, beside the least that any algorithm must move.

To all-reduce S bytes, each of n ranks has to send at least 2 S (n-1)/n bytes, which a ring does
(Patarasuk and Yuan 2009). The least for one step of data-parallel training is that bound for the
P bytes of all gradients; reducing a gradient twice, or in pieces with padding, shows as more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import disttorch.distributed as dist
from disttorch import nn


class Traffic:
    """Counts what the all_reduce calls inside :meth:`step` were given."""

    def __init__(self) -> None:
        self.steps = 0
        self.calls = 0.0
        self.bytes = 0.0  # handed over, by this rank
        self.bound = 0.0  # the least this rank must send for them

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Count what is reduced inside this block as one step."""
        before = _reduced_so_far()
        yield
        after = _reduced_so_far()
        self.steps += 1
        self.calls += after["calls"] - before["calls"]
        self.bytes += after["transport_bytes"] - before["transport_bytes"]
        self.bound += after["lower_bound_bytes"] - before["lower_bound_bytes"]

    def bytes_per_step(self) -> float:
        """Return the bytes that a rank handed to all_reduce, mean over the steps so far."""
        return self.bytes / max(self.steps, 1)

    def report(self, gradients: int, ranks: int) -> str:
        """Return one line: what was reduced per step beside the minimum for ``gradients`` bytes."""
        if ranks == 1:
            return "reduced per step: nothing, one rank has all gradients"
        steps, megabyte = max(self.steps, 1), 1e6
        least = 2 * gradients * (ranks - 1) / ranks
        return (
            f"reduced per step: {self.bytes / steps / megabyte:.3f} MB in {self.calls / steps:g} "
            f"all_reduce calls, which send at least {self.bound / steps / megabyte:.3f} MB per "
            f"rank; theoretical minimum 2P(n-1)/n = {least / megabyte:.3f} MB for "
            f"P = {gradients / megabyte:.3f} MB of gradients"
        )


def _reduced_so_far() -> dict[str, float]:
    nothing = {"calls": 0, "transport_bytes": 0, "lower_bound_bytes": 0.0}
    return dist.ledger().get("all_reduce", nothing)


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of all gradients of ``model``: a parameter that is used twice has one."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
