"""Groups of some ranks, and what can be asked about groups."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

from collectives import local

from . import backends
from .process_group import (
    Group,
    GroupMember,
    ProcessGroup,
    belonging,
    default_group,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    job,
    resolve,
    seconds_of,
)

Timeout = datetime.timedelta | None


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: Timeout = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
    sort_ranks: bool = True,
) -> Any:
    """Make a group of some ranks. Every rank of the job must call this, in the same order.

    Args:
        ranks: global ranks; None: all.
        timeout: what one call of the group may wait; None: that of the default group.
        backend: None, or the default group's.
        pg_options: accepted as in PyTorch; what they say concerns its own libraries.
        use_local_synchronization: only the group's own ranks need to call, each group of the same
            ranks in the same order; others may call, too.
        device_id: kept as the group's `bound_device_id`; None: the default group's.
        sort_ranks: number the group's ranks by their global ranks; False: in the order given.

    Returns:
        The group, or `GroupMember.NON_GROUP_MEMBER` on ranks outside it.

    Raises:
        ValueError: not ranks of this job, or one twice; another backend than the job's.
    """
    world = default_group()
    members = _checked_members(ranks, world, sort_ranks)
    _check_backend(backend, world)
    if use_local_synchronization:
        return _by_themselves(world, members, timeout, group_desc, device_id)
    return _divide(world, [members], timeout, group_desc, device_id)[0]


def new_subgroups(
    group_size: int | None = None,
    group: Group = None,
    timeout: Timeout = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[Any, list[Any]]:
    """Divide a group into groups of `group_size` successive ranks. A call of every rank of the job.

    Args:
        group_size: None: the number of ranks on this node.

    Returns:
        This rank's subgroup, and the list of all (NON_GROUP_MEMBER for those of other ranks).

    Raises:
        ValueError: a size that does not divide the group's.
    """
    if group_size is None:
        if "LOCAL_WORLD_SIZE" not in os.environ:
            raise ValueError(
                "new_subgroups: LOCAL_WORLD_SIZE is not in the environment, so the ranks of this "
                "node cannot be counted: pass group_size"
            )
        group_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if group_size <= 0:
        raise ValueError(f"The arg 'group_size' ({group_size}) must be positive")
    size = get_world_size(group)
    if size < group_size:
        raise ValueError(
            f"The arg 'group_size' ({group_size}) must not exceed the world size ({size})"
        )
    if size % group_size:
        raise ValueError(f"The world size ({size}) must be divisible by 'group_size={group_size}'")
    ranks = get_process_group_ranks(group)  # type: ignore[arg-type]
    parts = [ranks[i : i + group_size] for i in range(0, size, group_size)]
    return new_subgroups_by_enumeration(parts, timeout, backend, pg_options, group_desc)


def new_subgroups_by_enumeration(
    ranks_per_subgroup_list: Sequence[Sequence[int]],
    timeout: Timeout = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[Any, list[Any]]:
    """Make groups of the ranks listed, with one call between the ranks for all of them.

    Returns:
        This rank's subgroup (None where it is in no list), and the list of all.

    Raises:
        ValueError: no list; a rank in two lists; no ranks of this job.
    """
    if not ranks_per_subgroup_list:
        raise ValueError("The arg 'ranks_per_subgroup_list' cannot be empty")
    world = default_group()
    _check_backend(backend, world)
    parts = [_checked_members(ranks, world, True) for ranks in ranks_per_subgroup_list]
    where: dict[int, list[int]] = {}
    for part in parts:
        for rank in part:
            if rank in where:
                raise ValueError(f"Rank {rank} has appeared in both subgroup {where[rank]} and {part}")
            where[rank] = part
    made = _divide(world, parts, timeout, group_desc, None)
    mine = [each for each in made if isinstance(each, ProcessGroup)]
    return (mine[0] if mine else None), made


def split_group(
    parent_pg: ProcessGroup | None = None,
    split_ranks: Sequence[Sequence[int]] | None = None,
    timeout: Timeout = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    backend: str | None = None,
) -> ProcessGroup | None:
    """Divide a group. A call of every rank of the parent.

    Args:
        split_ranks: the ranks of each part, as ranks of the parent.

    Returns:
        This rank's part; None where it is in none.

    Raises:
        ValueError: no parts; an empty one; a rank twice, or outside the parent.
    """
    if not split_ranks:
        raise ValueError("split_ranks cannot be None or empty")
    parent = belonging(parent_pg)
    _check_backend(backend, parent)
    seen: set[int] = set()
    for part in split_ranks:
        if not part:
            raise ValueError("the split group cannot be empty")
        if len(set(part)) < len(part) or seen.intersection(part):
            raise ValueError(f"the split group cannot have duplicate ranks, got {split_ranks}")
        if min(part) < 0 or max(part) >= parent.size():
            raise ValueError(
                f"split_ranks {split_ranks}: the parent's ranks are 0 to {parent.size() - 1}"
            )
        seen.update(part)
    desc = group_desc or f"{parent.group_desc}:split"
    parts = [[parent.members[r] for r in sorted(part)] for part in split_ranks]
    made = _divide(parent, parts, timeout, desc, parent.bound_device_id)
    return next((each for each in made if isinstance(each, ProcessGroup)), None)


def shrink_group(
    ranks_to_exclude: Sequence[int],
    group: Group = None,
    shrink_flags: int = 0,
    pg_options: Any = None,
) -> ProcessGroup:
    """Go on without some ranks; not built.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"shrink_group({list(ranks_to_exclude)}): going on without failed ranks is not built; "
        "restart the job from a checkpoint. Without failures, make the smaller group by new_group"
    )


def _divide(
    parent: ProcessGroup,
    parts: list[list[int]],
    timeout: Timeout,
    desc: str | None,
    device_id: Any,
) -> list[Any]:
    """The groups of some parts, which do not overlap, by one split of the parent.

    A part that is ordered otherwise than by rank keeps its order.
    """
    me = get_rank()
    color = next((i for i, part in enumerate(parts) if me in part), None)
    key = 0 if color is None else parts[color].index(me)
    ranks = parent.ranks.split(color, key)
    mine = job()
    first = mine.named + 1
    mine.named += len(parts)
    made: list[Any] = [GroupMember.NON_GROUP_MEMBER] * len(parts)
    if ranks is not None and color is not None:
        ranks.timeout = parent.timeout if timeout is None else seconds_of(timeout)
        pg = ProcessGroup(
            ranks, parts[color], parent.backend, str(first + color), desc or "undefined",
            parent.config, parent.bound_device_id if device_id is None else device_id,
        )  # fmt: skip
        mine.groups.append(pg)
        made[color] = pg
    return made


def _by_themselves(
    world: ProcessGroup, members: list[int], timeout: Timeout, desc: str | None, device_id: Any
) -> Any:
    """A group that only its own ranks make."""
    if get_rank() not in members:
        return GroupMember.NON_GROUP_MEMBER
    mine = job()
    name = "ranks " + ",".join(map(str, members))
    mine.alike[name] += 1
    name += f" #{mine.alike[name]}"
    ranks = world.ranks.subset(members, name)
    ranks.timeout = world.timeout if timeout is None else seconds_of(timeout)
    pg = ProcessGroup(
        ranks, members, world.backend, name, desc or "undefined", world.config,
        world.bound_device_id if device_id is None else device_id,
    )  # fmt: skip
    mine.groups.append(pg)
    return pg


def _checked_members(ranks: Sequence[int] | None, world: ProcessGroup, sort: bool) -> list[int]:
    if ranks is None:
        return list(world.members)
    members = sorted(ranks) if sort else list(ranks)
    if len(set(members)) < len(members):
        raise ValueError(f"new_group: ranks {list(ranks)} name a rank twice")
    if not members or min(members) < 0 or max(members) >= world.size():
        raise ValueError(
            f"new_group: ranks must be some of 0 to {world.size() - 1}, got {list(ranks)}"
        )
    return members


def _check_backend(backend: str | None, parent: ProcessGroup) -> None:
    wanted = backends.choose(backend)
    host = backends.BackendConfig(parent.config).device_backend_map["cpu"]
    if wanted.cpu not in (None, host):
        raise ValueError(f"new_group: backend {wanted.cpu!r} differs from the job's {str(host)!r}")


# ---- questions -----------------------------------------------------------------------------------


def get_backend(group: Group = None) -> backends.Backend:
    """The backend of the group: "mpi", "tcp" or "local", also where "gloo" was asked for."""
    return backends.Backend(belonging(group).backend)


def get_backend_config(group: Group = None) -> str:
    """The backend of each device type, as "cpu:mpi,cuda:mpi"."""
    return belonging(group).config


def get_pg_count() -> int:
    """How many groups this job has made and not destroyed."""
    return len(job().groups)


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """This rank's number on its node, from LOCAL_RANK; ranks that are threads share one node.

    Raises:
        RuntimeError: LOCAL_RANK is not set and there is no `fallback_rank`.
    """
    inside = local.current()
    if inside is not None:
        return inside.rank
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if fallback_rank is not None:
        return int(fallback_rank)
    raise RuntimeError(
        "LOCAL_RANK is not in the environment: call init_process_group first, start the job with "
        "disttorch-run, or pass fallback_rank"
    )


def is_torchelastic_launched() -> bool:
    """Whether torchrun's elastic agent started this process; disttorch-run does not say so."""
    return os.environ.get("TORCHELASTIC_RUN_ID") is not None


def set_group_timeout(timeout: datetime.timedelta, group: Group = None) -> None:
    """Set what calls of a group may wait from now on."""
    belonging(group).timeout = seconds_of(timeout)


def rank_not_in_group(group: Group) -> bool:
    """Whether this rank is outside the group."""
    return resolve(group) is None


__all__ = [
    "get_backend", "get_backend_config", "get_node_local_rank", "get_pg_count",
    "is_torchelastic_launched", "new_group", "new_subgroups", "new_subgroups_by_enumeration",
    "shrink_group", "split_group",
]
