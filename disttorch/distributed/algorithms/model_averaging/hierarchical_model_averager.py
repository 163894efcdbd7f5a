"""Averages among few ranks often and among many ranks rarely."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from ...groups import new_subgroups
from ...process_group import ProcessGroup
from . import averagers, utils


class HierarchicalModelAverager(averagers.ModelAverager):
    """Replaces the weights by their mean over groups of sizes that depend on the step.

    At each step the largest period that divides it decides the group. (T. Lin et al., "Local SGD
    with Periodic Averaging on Hierarchies", arXiv:2010.12998.)

    Args:
        period_group_size_dict: the size of the groups for each period, both ascending; the last
            size is that of `process_group`.
        warmup_steps: steps without averages at first.
        process_group: all the ranks; None: of the job.

    Raises:
        ValueError: no periods, one below 1, a last size that is not the group's, or a negative
            number of steps.
    """

    def __init__(
        self,
        period_group_size_dict: Mapping[int, int] | None = None,
        warmup_steps: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(process_group)
        if not period_group_size_dict:
            raise ValueError("Arg ``period_group_size_dict`` must not be empty.")
        self._periods = list(period_group_size_dict)
        if self._periods[0] <= 0:
            raise ValueError(
                "The minimum period in arg ``period_group_size_dict`` must be a positive value."
            )
        if self._periods[-1] == 1:
            warnings.warn(
                "When the maximum period in arg ``period_group_size_dict`` is 1, no need to use "
                "model averaging: DistributedDataParallel communicates no more",
                stacklevel=2,
            )
        whole, sizes = self.process_group.size(), list(period_group_size_dict.values())
        if sizes[-1] != whole:
            raise ValueError(
                f"The last value in arg ``period_group_size_dict`` {sizes[-1]} must be equal to "
                f"the size of arg ``process_group`` {whole}."
            )
        if warmup_steps < 0:
            raise ValueError("Arg ``warmup_steps`` must be a non-negative number.")
        self.warmup_steps = warmup_steps
        self.period_process_group_dict: OrderedDict[int, Any] = OrderedDict()
        for period, size in period_group_size_dict.items():
            group = self.process_group
            if size != whole:
                group, _ = new_subgroups(group_size=size, group=self.process_group)
            self.period_process_group_dict[period] = group

    def _find_process_group(self) -> ProcessGroup | None:
        for period in reversed(self._periods):
            if self.step % period == 0:
                return self.period_process_group_dict[period]
        return None

    def average_parameters(self, params: Iterable[Any]) -> None:
        """Call after each optimizer step; averages over the group whose turn it is, if any."""
        if self.step >= self.warmup_steps:
            group = self._find_process_group()
            if group is not None:
                utils.average_parameters_or_parameter_groups(params, group)
        self.step += 1


__all__ = ["HierarchicalModelAverager"]
