"""Bytes that gradient reduction moves, beside the least that any algorithm must move.

Each of n ranks has to send and receive 2 * P * (n - 1) / n bytes to all-reduce P bytes (Patarasu
and Yuan 2009): a ring does exactly that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import disttorch.distributed as dist
from disttorch import nn


class Traffic:
    """Counts the bytes per rank of the collectives that run inside :meth:`step`."""

    def __init__(self) -> None:
        self.bytes = 0
        self.steps = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Count what moves inside this block as one step."""
        before = _bytes_so_far()
        yield
        self.bytes += _bytes_so_far() - before
        self.steps += 1

    def bytes_per_step(self) -> float:
        """Return the mean over the steps so far, in bytes."""
        return self.bytes / max(self.steps, 1)

    def report(self, payload: int, ranks: int) -> str:
        """Return one line: what moved per step beside the minimum for ``payload`` bytes."""
        least = 2 * payload * (ranks - 1) / ranks
        return (
            f"reduced per step and rank: {self.bytes_per_step() / 1e6:.3f} MB; "
            f"theoretical minimum 2P(n-1)/n = {least / 1e6:.3f} MB "
            f"(P = {payload / 1e6:.3f} MB of gradients, n = {ranks})"
        )


def _bytes_so_far() -> int:
    return sum(entry["wire_bytes"] for entry in dist.ledger().values())


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of all gradients of ``model``: a parameter that is used twice has one."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
