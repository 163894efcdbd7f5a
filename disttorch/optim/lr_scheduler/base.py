"""The base of all schedules: counts steps and writes the learning rates into the groups.

Most schedules derive the new rate from the group's present one. That makes them chainable: several
act on one optimizer, and a rate that was changed by hand is kept. A schedule that jumps to another
step uses the closed form instead.
"""

from __future__ import annotations

import contextlib
import warnings

from ...tensor import Tensor
from ..optimizer import Optimizer


def set_option(group: dict, name: str, value) -> None:
    """Set an option of a group; one that is a tensor is filled in place."""
    if isinstance(group[name], Tensor):
        group[name].fill_(float(value))
    else:
        group[name] = value


def group_values(optimizer, name: str) -> list:
    """The value of one option in every group; tensors are copied."""
    values = [group[name] for group in optimizer.param_groups]
    return [v.clone() if isinstance(v, Tensor) else v for v in values]


def per_group(name: str, optimizer, value) -> list:
    """One value for each group, from a list of that length or one value for all.

    Raises:
        ValueError: if the list has another length.
    """
    n = len(optimizer.param_groups)
    if isinstance(value, (list, tuple)):
        if len(value) != n:
            raise ValueError(
                f"{name} must have the same length as optimizer.param_groups. {name} has "
                f"{len(value)} values, param_groups has {n}."
            )
        return list(value)
    return [value] * n


def uses_beta1(optimizer) -> bool:
    """Whether the optimizer's momentum is its first beta.

    Raises:
        ValueError: if it has no momentum.
    """
    if "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults:
        raise ValueError(
            "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
        )
    return "betas" in optimizer.defaults


def set_momentum(group: dict, value: float, beta1: bool) -> None:
    """Set a group's momentum, which is the first of its betas if ``beta1``."""
    if beta1:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group["momentum"] = value


def check_optimizer(optimizer) -> None:
    """Raise a TypeError unless it is an Optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")


class LRScheduler:
    """Base of schedules: subclasses define ``get_lr``.

    Args:
        optimizer: whose groups' ``lr`` is changed.
        last_epoch: the last step that was made; -1 starts anew.

    Raises:
        TypeError: if ``optimizer`` is none.
        KeyError: when resuming with groups that lack ``initial_lr``.
    """

    _get_lr_called_within_step = False
    _is_initial = False

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        check_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                lr = group["lr"]
                group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    "scheduler with last_epoch >= 0. Load the optimizer's state dict first, or "
                    "use last_epoch=-1 for a new run"
                )
        self.base_lrs = group_values(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        self._initial_step()

    def _initial_step(self) -> None:
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def get_last_lr(self) -> list:
        """The rates last written, one for each group."""
        return self._last_lr

    def get_lr(self) -> list:
        """The rates of the present step, one for each group."""
        raise NotImplementedError

    def step(self, epoch: int | None = None) -> None:
        """Go one step on and write the new rates.

        Args:
            epoch: jump there instead (deprecated).
        """
        if self._step_count == 1 and not getattr(self.optimizer, "_opt_called", False):
            warnings.warn(
                "Detected call of `lr_scheduler.step()` before `optimizer.step()`. You should "
                "call them in the opposite order: `optimizer.step()` before "
                "`lr_scheduler.step()`. Failure to do this will skip the first value of the "
                "learning rate schedule.",
                UserWarning,
                stacklevel=2,
            )
        self._step_count += 1
        if epoch is not None:
            warnings.warn(
                "The epoch parameter in `scheduler.step()` is deprecated. Use "
                "`scheduler.step()` without it to go one step on.",
                UserWarning,
                stacklevel=2,
            )
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        with self._getting():
            if epoch is None:
                self.last_epoch += 1
                values = self.get_lr()
            else:
                self.last_epoch = epoch
                closed = getattr(self, "_get_closed_form_lr", None)
                values = self.get_lr() if closed is None else closed()
        self._write(values)

    @contextlib.contextmanager
    def _getting(self):
        self._get_lr_called_within_step = True
        try:
            yield
        finally:
            self._get_lr_called_within_step = False

    def _write(self, values) -> None:
        for group, lr in zip(self.optimizer.param_groups, values, strict=True):
            set_option(group, "lr", lr)
        self._last_lr = group_values(self.optimizer, "lr")

    def _present(self) -> list:
        """The groups' present rates; ``get_lr`` called by a user shows the next ones, so warn."""
        if not self._get_lr_called_within_step:
            warnings.warn(
                "To get the last learning rate computed by the scheduler, please use "
                "`get_last_lr()`.",
                UserWarning,
                stacklevel=3,
            )
        return group_values(self.optimizer, "lr")

    def state_dict(self) -> dict:
        """Everything but the optimizer."""
        state = {k: v for k, v in self.__dict__.items() if k != "optimizer"}
        state.setdefault("_is_initial", False)
        state.setdefault("_get_lr_called_within_step", False)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what ``state_dict`` gave; the optimizer's own state is loaded separately."""
        self.__dict__.update(state_dict)
