"""Bytes that this rank was asked to move, over all its groups."""

from __future__ import annotations

from .process_group import Group, ProcessGroup, default_group, job, resolve


def ledger(group: Group = None) -> dict[str, dict[str, float]]:
    """What this rank was asked to move since `init_process_group` or `reset_ledger`.

    Args:
        group: None: all groups together.

    Returns:
        {call: {"calls", "payload_bytes", "transport_bytes", "lower_bound_bytes"}}; see
        `collectives.ledger` for what each figure means.
    """
    total: dict[str, dict[str, float]] = {}
    for each in _counted(group):
        for call, figures in each.ranks.ledger().items():
            entry = total.setdefault(call, dict.fromkeys(figures, 0))
            for name, value in figures.items():
                entry[name] += value
    return total


def reset_ledger(group: Group = None) -> None:
    """Start counting again from zero; None: in all groups."""
    for each in _counted(group):
        each.ranks.reset_ledger()


def _counted(group: Group) -> list[ProcessGroup]:
    default_group()
    if group is None:
        return job().groups
    chosen = resolve(group)
    return [] if chosen is None else [chosen]
