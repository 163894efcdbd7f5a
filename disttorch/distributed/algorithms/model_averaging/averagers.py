"""When to average: every so many steps (local SGD), or by an outer optimizer (DiLoCo)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from .... import optim
from ....autograd import no_grad
from ....autograd.graph import bump_version
from ....tensor import Tensor
from ...process_group import ProcessGroup, belonging
from . import utils


class ModelAverager(ABC):
    """Base of what brings the ranks' weights together.

    Args:
        process_group: the ranks; None: all.

    Attributes:
        step: number of calls of `average_parameters` so far.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        self.process_group = belonging(process_group)
        self.step = 0

    @abstractmethod
    def average_parameters(self, params: Iterable[Any]) -> None:
        """Call after each optimizer step; averages when it is time.

        Args:
            params: the model's parameters, or an optimizer's groups of them.
        """


class PeriodicModelAverager(ModelAverager):
    """Replaces the weights by their mean over the ranks at every `period`-th step.

    Local SGD (S. U. Stich, "Local SGD Converges Fast and Communicates Little", arXiv:1805.09767);
    after `warmup_steps` of plain data parallelism post-local SGD (arXiv:1808.07217).

    Args:
        period: steps from one average to the next.
        warmup_steps: steps without; the first one after them averages.
        process_group: the ranks; None: all.

    Raises:
        ValueError: a negative number of steps; a period below 1.
    """

    def __init__(
        self, period: int, warmup_steps: int = 0, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__(process_group)
        if warmup_steps < 0:
            raise ValueError("Arg ``warmup_steps`` must be a non-negative number.")
        if period < 1:
            raise ValueError("Arg ``period`` must be a positive value.")
        if period == 1:
            warnings.warn(
                "When period is 1, no need to use model averaging because the communication cost "
                "of all-reducing parameters will be no less than the cost of all-reducing "
                "gradients by DistributedDataParallel in the backward pass. Therefore, only "
                "DistributedDataParallel should be used for this case.",
                stacklevel=2,
            )
        self.period, self.warmup_steps = period, warmup_steps

    def average_parameters(self, params: Iterable[Any]) -> None:
        since = self.step - self.warmup_steps
        if since >= 0 and since % self.period == 0:
            utils.average_parameters_or_parameter_groups(params, self.process_group)
        self.step += 1


class DiLoCoAverager(ModelAverager):
    """Moves the common weights by an outer optimizer, along the mean of what the ranks changed.

    Every rank trains alone for `period` steps from the common weights w. Then all ranks compute

        g = w - mean over ranks of their weights,      w ← w - lr·(g + momentum·v),  v ← momentum·v + g

    (SGD with Nesterov's momentum on g as a gradient) and go on from w. One average of the model in
    `period` steps is all that travels. A. Douillard et al., "DiLoCo: Distributed Low-Communication
    Training of Language Models", arXiv:2311.08105; lr 1 and momentum 0 is local SGD.

    Args:
        params: the model's parameters, the same on all ranks now.
        period: steps from one average to the next; the first after `period` of them.
        lr, momentum, nesterov: of the outer SGD; the defaults are the paper's.
        process_group: the ranks; None: all.

    Raises:
        ValueError: a period below 1; no parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        period: int,
        lr: float = 0.7,
        momentum: float = 0.9,
        nesterov: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(process_group)
        if period < 1:
            raise ValueError(f"DiLoCoAverager: period must be at least 1, got {period}")
        self.period = period
        self.params = [p for p in params if p.requires_grad]
        self.common = [p.detach().clone().requires_grad_() for p in self.params]
        self.optimizer = optim.SGD(self.common, lr=lr, momentum=momentum, nesterov=nesterov)

    @no_grad()
    def average_parameters(self, params: Iterable[Any] = ()) -> None:
        """Call after each optimizer step.

        Args:
            params: not used; the parameters given at construction are meant.
        """
        self.step += 1
        if self.step % self.period:
            return
        utils.average_parameters(self.params, self.process_group)
        for common, p in zip(self.common, self.params):
            common.grad = common.detach() - p.detach()
        self.optimizer.step()
        for common, p in zip(self.common, self.params):
            p._data[...] = common._data
            bump_version(p)
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the steps, the common weights and the outer momentum."""
        return {
            "step": self.step,
            "common": [c.detach().clone() for c in self.common],
            "optimizer": self.optimizer.state_dict(),
        }

    @no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.step = state_dict["step"]
        for common, saved in zip(self.common, state_dict["common"], strict=True):
            common.copy_(saved)
        self.optimizer.load_state_dict(state_dict["optimizer"])


__all__ = ["DiLoCoAverager", "ModelAverager", "PeriodicModelAverager"]
