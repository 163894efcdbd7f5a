"""Training where some ranks run out of input before others.

A rank that has joined (has no input any more) makes the calls of the others' iterations in their
stead, through the hooks of everything that communicates. Before each iteration all ranks add up who
is still there: ranks with input contribute 1 (`Join.notify_join_context`), ranks without wait for
the sum. At zero all have joined, and the hooks' last part runs.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from ... import ops
from .. import process_group
from ..reductions import all_reduce

_MANY = 1000


class JoinHook:
    """What a rank without input does for one `Joinable`; the base class does nothing."""

    def main_hook(self) -> None:
        """Make the calls of one iteration; called again and again while a rank has input."""

    def post_hook(self, is_last_joiner: bool) -> None:
        """Called once when no rank has input any more.

        Args:
            is_last_joiner: whether this rank was among the last that had.
        """


class _JoinConfig(NamedTuple):
    """What a Joinable knows of the context that it is in."""

    enable: bool
    throw_on_early_termination: bool
    is_first_joinable: bool

    @staticmethod
    def construct_disabled_join_config() -> _JoinConfig:
        return _JoinConfig(False, False, False)


class Joinable(ABC):
    """Something that communicates in every iteration and can be shadowed.

    A subclass calls `Joinable.__init__` and, before its calls of each iteration,
    `Join.notify_join_context(self)`.
    """

    @abstractmethod
    def __init__(self) -> None:
        super().__init__()
        self._join_config = _JoinConfig.construct_disabled_join_config()

    @abstractmethod
    def join_hook(self, **kwargs: Any) -> JoinHook:
        """The hook of this object; `kwargs` are those given to `Join`, for all alike."""

    @property
    @abstractmethod
    def join_device(self) -> Any:
        """The device of the tensors that `Join` itself communicates."""

    @property
    @abstractmethod
    def join_process_group(self) -> Any:
        """The ranks among which it communicates."""


class Join:
    """Context around a training loop whose ranks may have different numbers of inputs.

        with Join([ddp, zero]):
            for x in inputs: ...

    Args:
        joinables: what communicates in the loop, in the order of its calls in an iteration.
        enable: False makes the context do nothing.
        throw_on_early_termination: raise RuntimeError on all ranks once one has no input, instead
            of going on without it.
        kwargs: for the joinables' hooks.

    Raises:
        ValueError: no joinables; joinables of different process groups.
    """

    def __init__(
        self,
        joinables: Sequence[Joinable],
        enable: bool = True,
        throw_on_early_termination: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(joinables) == 0:
            raise ValueError("The join context manager requires at least one joinable")
        self._joinables = list(joinables)
        self._join_hooks = [each.join_hook(**kwargs) for each in self._joinables]
        self._enable, self._throw = enable, throw_on_early_termination
        for i, each in enumerate(self._joinables):
            each._join_config = _JoinConfig(enable, throw_on_early_termination, i == 0)
        groups = [each.join_process_group for each in self._joinables]
        if any(group is not groups[0] for group in groups):
            raise ValueError("Using join context manager with multiple process groups")
        self._process_group = groups[0]
        self._device = self._joinables[0].join_device
        self._rank = process_group.get_rank(self._process_group)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        try:
            if self._enable and kind is None:
                self._shadow()
        finally:
            for each in self._joinables:
                each._join_config = _JoinConfig.construct_disabled_join_config()

    def _shadow(self) -> None:
        """Go along with the others until none of them has input."""
        last, iterations = True, 0
        while self._still_there() > 0:
            if self._throw:
                _sum_of(1, self._process_group, self._device)
                raise RuntimeError(f"Rank {self._rank} exhausted all inputs.")
            for hook in self._join_hooks:
                hook.main_hook()
            last = False
            iterations += 1
            if iterations == _MANY:
                warnings.warn(
                    f"rank {self._rank} has had no input for {_MANY} iterations of other ranks: "
                    "cut the data more evenly, its processor only waits",
                    stacklevel=3,
                )
        for hook in self._join_hooks:
            hook.post_hook(last)

    def _still_there(self) -> int:
        return _sum_of(0, self._process_group, self._device)

    @staticmethod
    def notify_join_context(joinable: Joinable) -> Any:
        """Tell the ranks without input that this one begins an iteration.

        Args:
            joinable: the object about to communicate; only the first of a `Join` does anything.

        Returns:
            The handle of the all-reduce under way, whose result is the number of ranks with input;
            None where there is nothing to tell.

        Raises:
            RuntimeError: a rank has no input, and the context was told to raise then.
        """
        config = joinable._join_config
        if not config.is_first_joinable or not config.enable:
            return None
        device, group = joinable.join_device, joinable.join_process_group
        work = all_reduce(ops.ones(1, device=device), group=group, async_op=True)
        if config.throw_on_early_termination and _sum_of(0, group, device):
            raise RuntimeError(
                "Detected at least one rank that exhausted inputs. Throwing across all ranks."
            )
        return work


def _sum_of(value: float, group: Any, device: Any) -> int:
    total = ops.full((1,), float(value), device=device)
    all_reduce(total, group=group)
    return int(total.item())


__all__ = ["Join", "JoinHook", "Joinable"]
