"""The ranks that save or load together: steps that succeed on all of them or fail on all of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import collectives

from ..process_group import ProcessGroup, belonging, is_initialized
from .api import WRAPPED_EXCEPTION, CheckpointException, wrap_exception

T = TypeVar("T")
R = TypeVar("R")

NOT_DISTRIBUTED = (
    "torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to {} in a "
    "single process."
)


class _Failed:
    """Travels in the place of a result."""

    def __init__(self, error: BaseException) -> None:
        self.wrapped: WRAPPED_EXCEPTION = wrap_exception(error)


class Ranks:
    """Some ranks, of which one decides.

    Args:
        group: None: this rank alone.
        coordinator: its rank in the group.

    Raises:
        CheckpointException: from every step, on all ranks, if any of them failed in it.
    """

    def __init__(self, group: collectives.Group | None, coordinator: int = 0) -> None:
        self.group = group if group is not None and group.size > 1 else None
        self.rank = 0 if group is None else group.rank
        self.size = 1 if group is None else group.size
        self.coordinator = coordinator if self.size > 1 else self.rank
        self.is_coordinator = self.rank == self.coordinator

    def reduce_scatter(
        self, step: str, map_fun: Callable[[], T], reduce_fun: Callable[[list[T]], list[R]]
    ) -> R:
        """`map_fun` on all, `reduce_fun` of all results on the coordinator; to each its entry."""
        everyone = self._gather(_attempt(map_fun))
        answers: list | None = None
        if everyone is not None:
            outcome = self._reduced(step, everyone, reduce_fun)
            failed = isinstance(outcome, CheckpointException)
            answers = [outcome] * self.size if failed else outcome
        if self.group is not None:
            return _or_raise(self.group.scatter_object(answers, self.coordinator))
        assert answers is not None
        return _or_raise(answers[0])

    def all_reduce(
        self, step: str, map_fun: Callable[[], T], reduce_fun: Callable[[list[T]], R]
    ) -> R:
        """`map_fun` on all, `reduce_fun` of all results on the coordinator; its result to all."""
        everyone = self._gather(_attempt(map_fun))
        answer = None if everyone is None else self._reduced(step, everyone, reduce_fun)
        return _or_raise(self._from_coordinator(answer))

    def all_gather(self, step: str, map_fun: Callable[[], T]) -> list[T]:
        """`map_fun` on all; all results to all."""
        mine = _attempt(map_fun)
        everyone = [mine] if self.group is None else self.group.all_gather_object(mine)
        failures = _failures(everyone)
        if failures:
            raise CheckpointException(step, failures)
        return everyone

    def broadcast(self, step: str, map_fun: Callable[[], T]) -> T:
        """`map_fun` on the coordinator; its result to all."""
        answer: Any = None
        if self.is_coordinator:
            answer = _attempt(map_fun)
            if isinstance(answer, _Failed):
                answer = CheckpointException(step, {self.rank: answer.wrapped})
        return _or_raise(self._from_coordinator(answer))

    def _reduced(self, step: str, everyone: list, reduce_fun: Callable[[list], Any]) -> Any:
        failures = _failures(everyone)
        if not failures:
            outcome = _attempt(lambda: reduce_fun(everyone))
            if not isinstance(outcome, _Failed):
                return outcome
            failures = {self.rank: outcome.wrapped}
        return CheckpointException(step, failures)

    def _gather(self, value: Any) -> list | None:
        if self.group is None:
            return [value]
        return self.group.gather_object(value, self.coordinator)

    def _from_coordinator(self, value: Any) -> Any:
        if self.group is None:
            return value
        return self.group.broadcast_object(value, self.coordinator)


def _attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (Exception, CheckpointException) as error:
        return _Failed(error)


def _failures(everyone: list) -> dict[int, WRAPPED_EXCEPTION]:
    return {rank: r.wrapped for rank, r in enumerate(everyone) if isinstance(r, _Failed)}


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, CheckpointException):
        raise answer
    return answer


def group_of(process_group: ProcessGroup | None, no_dist: bool) -> collectives.Group | None:
    """The transport of a group (None: the default one); None without process groups."""
    if no_dist or not is_initialized():
        return None
    return belonging(process_group).ranks


_background: weakref.WeakKeyDictionary[ProcessGroup, collectives.Group] = weakref.WeakKeyDictionary()


def background_group_of(
    process_group: ProcessGroup | None, no_dist: bool
) -> collectives.Group | None:
    """The same ranks for calls from another thread, which must not mix with those of training.

    A call between the ranks the first time.
    """
    if no_dist or not is_initialized():
        return None
    group = belonging(process_group)
    if group.ranks.size == 1:
        return group.ranks
    made = _background.get(group)
    if made is None:
        made = _background[group] = group.ranks.split(0)
    return made


__all__ = ["NOT_DISTRIBUTED", "Ranks", "background_group_of", "group_of"]
