"""Schedules that go up and down, the momentum the other way (arXiv:1506.01186, 1708.07120)."""

from __future__ import annotations

import math
import types
from functools import partial

from .base import LRScheduler, check_optimizer, per_group, set_momentum, set_option, uses_beta1


def _set_momentum_range(optimizer, base, top, beta1, start):
    """Note each group's momentum range and, at the start, set its upper end."""
    if not start:
        return
    for low, high, group in zip(base, top, optimizer.param_groups, strict=True):
        set_momentum(group, high, beta1)
        group["max_momentum"], group["base_momentum"] = high, low


# ---------------------------------------------------------------- one cycle
def _cosine(start, end, share):
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)


def _straight(start, end, share):
    return (end - start) * share + start


def _phase(end_step, lr, momentum):
    names = ("start_lr", "end_lr", "start_momentum", "end_momentum")
    return {"end_step": end_step, **dict(zip(names, (*lr, *momentum)))}


class OneCycleLR(LRScheduler):
    """One rise from max_lr/div_factor to ``max_lr`` and one fall far below where it began.

    Args:
        max_lr: the peak, or one for each group.
        total_steps: length; else ``epochs`` · ``steps_per_epoch``.
        pct_start: share of the rise.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: move the momentum from ``max_momentum`` to ``base_momentum`` and back.
        div_factor, final_div_factor: initial rate = max_lr/div_factor, last = initial/final.
        three_phase: fall back to the initial rate as long as it rose, then go on to the last.

    Raises:
        ValueError: for options out of range, or a step after the last.
    """

    def __init__(
        self, optimizer, max_lr, total_steps: int | None = None, epochs: int | None = None,
        steps_per_epoch: int | None = None, pct_start: float = 0.3, anneal_strategy: str = "cos",
        cycle_momentum: bool = True, base_momentum=0.85, max_momentum=0.95,
        div_factor: float = 25.0, final_div_factor: float = 1e4, three_phase: bool = False,
        last_epoch: int = -1,
    ):
        check_optimizer(optimizer)
        self.total_steps = self._length(total_steps, epochs, steps_per_epoch)
        self._schedule_phases = self._phases(pct_start, three_phase)
        if pct_start < 0 or pct_start > 1 or not isinstance(pct_start, float):
            raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                "anneal_strategy must be one of 'cos' or 'linear', instead got "
                f"{anneal_strategy}"
            )
        self._anneal_func_type = anneal_strategy
        if last_epoch == -1:
            peaks = per_group("max_lr", optimizer, max_lr)
            for peak, group in zip(peaks, optimizer.param_groups):
                group["initial_lr"] = peak / div_factor
                group["max_lr"] = peak
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.use_beta1 = uses_beta1(optimizer)
            top = per_group("max_momentum", optimizer, max_momentum)
            base = per_group("base_momentum", optimizer, base_momentum)
            _set_momentum_range(optimizer, base, top, self.use_beta1, last_epoch == -1)
        super().__init__(optimizer, last_epoch)

    @staticmethod
    def _length(total_steps, epochs, steps_per_epoch) -> int:
        if total_steps is None and (epochs is None or steps_per_epoch is None):
            raise ValueError("You must define either total_steps OR (epochs AND steps_per_epoch)")
        given = {"total_steps": total_steps} if total_steps is not None else {
            "epochs": epochs, "steps_per_epoch": steps_per_epoch
        }
        for name, value in given.items():
            if value <= 0 or not isinstance(value, int):
                raise ValueError(f"Expected positive integer {name}, but got {value}")
        return math.prod(given.values())

    def _phases(self, share: float, three: bool) -> list[dict]:
        up = ("initial_lr", "max_lr"), ("max_momentum", "base_momentum")
        rise = _phase(float(share * self.total_steps) - 1, *up)
        last = self.total_steps - 1
        if not three:
            return [rise, _phase(last, ("max_lr", "min_lr"), ("base_momentum", "max_momentum"))]
        return [
            rise,
            _phase(float(2 * share * self.total_steps) - 2, ("max_lr", "initial_lr"),
                   ("base_momentum", "max_momentum")),
            _phase(last, ("initial_lr", "min_lr"), ("max_momentum", "max_momentum")),
        ]

    def get_lr(self):
        self._present()
        step = self.last_epoch
        if step > self.total_steps:
            raise ValueError(
                f"Tried to step {step} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        anneal = _cosine if self._anneal_func_type == "cos" else _straight
        phase, share = self._at(step)
        rates = []
        for group in self.optimizer.param_groups:
            rates.append(anneal(group[phase["start_lr"]], group[phase["end_lr"]], share))
            if self.cycle_momentum:
                ends = group[phase["start_momentum"]], group[phase["end_momentum"]]
                set_momentum(group, anneal(*ends, share), self.use_beta1)
        return rates

    def _at(self, step):
        """(the phase that ``step`` is in, which share of it has passed)."""
        start = 0.0
        for phase in self._schedule_phases:
            end = phase["end_step"]
            if step <= end or phase is self._schedule_phases[-1]:
                return phase, (step - start) / (end - start)
            start = end
        raise AssertionError("a schedule has at least one phase")


# ---------------------------------------------------------------- many cycles
def _triangular(x):
    return 1.0


def _triangular2(x):
    return 1 / (2.0 ** (x - 1))


def _exponential(gamma, x):
    return gamma**x


class CyclicLR(LRScheduler):
    """Rises from ``base_lr`` to ``max_lr`` and falls back, again and again.

    Args:
        base_lr, max_lr: the range, one or one for each group.
        step_size_up, step_size_down: steps of the rise and of the fall (as many by default).
        mode: "triangular" keeps the height, "triangular2" halves it each cycle, "exp_range"
            scales it by gamma^step.
        scale_fn: the height as a function of the cycle (from 1) or, with
            ``scale_mode="iterations"``, of the step; replaces ``mode``.
        cycle_momentum: move the momentum the other way in [base_momentum, max_momentum].

    Raises:
        ValueError: for an unknown mode or an optimizer without momentum.
    """

    def __init__(
        self, optimizer, base_lr, max_lr, step_size_up: int = 2000,
        step_size_down: int | None = None, mode: str = "triangular", gamma: float = 1.0,
        scale_fn=None, scale_mode: str = "cycle", cycle_momentum: bool = True,
        base_momentum=0.8, max_momentum=0.9, last_epoch: int = -1,
    ):
        check_optimizer(optimizer)
        base_lrs = per_group("base_lr", optimizer, base_lr)
        if last_epoch == -1:
            for lr, group in zip(base_lrs, optimizer.param_groups):
                set_option(group, "lr", lr)
        self.max_lrs = per_group("max_lr", optimizer, max_lr)
        up = float(step_size_up)
        self.total_size = up + (up if step_size_down is None else float(step_size_down))
        self.step_ratio = up / self.total_size
        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise ValueError("mode is invalid and scale_fn is None")
        self.mode, self.gamma = mode, gamma
        self._scale_fn_custom, self.scale_mode = scale_fn, scale_mode
        if scale_fn is None:
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.use_beta1 = uses_beta1(optimizer)
            self.base_momentums = per_group("base_momentum", optimizer, base_momentum)
            self.max_momentums = per_group("max_momentum", optimizer, max_momentum)
            _set_momentum_range(optimizer, self.base_momentums, self.max_momentums,
                                self.use_beta1, last_epoch == -1)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    @property
    def scale_fn(self):
        """The height of a cycle: of its number or of the step, by ``scale_mode``."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom
        if self.mode == "exp_range":
            return partial(_exponential, self.gamma)
        return _triangular if self.mode == "triangular" else _triangular2

    def get_lr(self):
        self._present()
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        rising = x <= self.step_ratio
        height = x / self.step_ratio if rising else (x - 1) / (self.step_ratio - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            ranges = zip(self.base_momentums, self.max_momentums)
            for group, (low, high) in zip(self.optimizer.param_groups, ranges):
                set_momentum(group, high - (high - low) * height * scale, self.use_beta1)
        return [
            low + (high - low) * height * scale for low, high in zip(self.base_lrs, self.max_lrs)
        ]

    def state_dict(self) -> dict:
        """The state; of a scale function only what a callable object carries in attributes."""
        state = super().state_dict()
        custom = state.pop("_scale_fn_custom")
        plain = custom is None or isinstance(custom, types.FunctionType)
        state["_scale_fn_custom"] = None if plain else custom.__dict__.copy()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        state = dict(state_dict)
        attributes = state.pop("_scale_fn_custom")
        super().load_state_dict(state)
        if attributes is not None:
            self._scale_fn_custom.__dict__.update(attributes)
