"""An optimizer that averages the model now and then: post-local SGD (arXiv:1808.07217)."""

from __future__ import annotations

import warnings
from typing import Any

from ...optim import Optimizer
from ..algorithms.model_averaging.averagers import ModelAverager


class PostLocalSGDOptimizer(Optimizer):
    """Steps with `optim` and then lets `averager` bring the ranks' weights together, if it is time.

    Args:
        optim: the optimizer of this rank's weights.
        averager: as `PeriodicModelAverager`; goes with `post_localSGD_hook`.
    """

    def __init__(self, optim: Optimizer, averager: ModelAverager) -> None:
        self.optim, self.averager = optim, averager
        self.param_groups = optim.param_groups
        self.defaults = optim.defaults
        for name in vars(optim):
            if name.startswith("_optimizer_"):  # the hooks of the base class, of one's own
                setattr(self, name, type(getattr(optim, name))())

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of `optim`."""
        return self.optim.state

    def __repr__(self) -> str:
        return repr(self.optim)

    def state_dict(self) -> dict[str, Any]:
        """That of `optim`, with the averager's step under "step"."""
        return {**self.optim.state_dict(), "step": self.averager.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; warns and begins at step 0 where it has no step."""
        self.optim.load_state_dict(state_dict)
        self.param_groups = self.optim.param_groups
        if "step" not in state_dict:
            warnings.warn(
                "Loaded state dict does not contain a step counter for an averager. Setting step "
                "counter to 0.",
                stacklevel=2,
            )
        self.averager.step = state_dict.get("step", 0)

    def step(self, closure: Any = None) -> Any:
        """Update this rank's weights, and average them if it is time."""
        loss = self.optim.step() if closure is None else self.optim.step(closure)
        self.averager.average_parameters(params=self.param_groups)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of `optim`."""
        self.optim.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of `optim`."""
        self.optim.add_param_group(param_group)
