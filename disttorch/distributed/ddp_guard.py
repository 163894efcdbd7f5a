"""Fails loudly where gradients that should have been averaged over the ranks were not.

Two ways lead there without an error: every backward of a step was in `no_sync()` (or the wrapped
module was called directly after one), and the wrapper was thrown away while its module trains on.
The first shows at the optimizer's step: a gradient that was accumulated and never reduced. The
second shows in backward: a hook whose wrapper is gone.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from ..optim import optimizer as optimizers
from ..tensor import Tensor
from .process_group import job

ACTIONS = ("raise", "warn", "ignore")


class Guard:
    """Watches the optimizer steps over one wrapper's parameters.

    Args:
        reducer: knows which gradients were left local.
        module_name: for messages.
        action: "raise", "warn" or "ignore"; None: "warn" once where every backward since the last
            reduction was inside `no_sync()`, as in local SGD, and "raise" otherwise.

    Raises:
        ValueError: another action.
    """

    def __init__(self, reducer: Any, module_name: str, action: str | None) -> None:
        if action not in (None, *ACTIONS):
            raise ValueError(f"unreduced must be one of {ACTIONS}, got {action!r}")
        self.reducer, self.module_name, self.action = reducer, module_name, action
        self.on_purpose = True  # all that stayed local did so inside `no_sync()`
        self._warned = False
        if action != "ignore" and reducer.group.size() > 1:
            _guards.add(self)
            _watch_steps()

    def check(self, optimizer: Any) -> None:
        """Complain if `optimizer` is about to use a gradient of this rank alone."""
        reducer = self.reducer
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [
            reducer.names[i]
            for i, grad in sorted(reducer.local.copy().items(), key=lambda entry: entry[0])
            if id(reducer.parameters[i]) in mine
            and grad() is not None
            and grad() is reducer.parameters[i]._grad
        ]
        if not names:
            return
        text = (
            f"{type(optimizer).__name__}.step on rank {reducer.group.rank()}: the gradients of "
            f"{len(names)} parameter(s) of {self.module_name} (first: {names[0]!r}) were "
            "accumulated on this rank alone and never averaged, so the ranks would go different "
            "ways. Run forward, through the DistributedDataParallel wrapper and not the module "
            "inside it, and backward of the last micro-batch outside no_sync(); "
            'DistributedDataParallel(..., unreduced="ignore") if you average by other means'
        )
        action = self.action or ("warn" if self.on_purpose else "raise")
        if action == "raise":
            raise RuntimeError(text)
        if self.action is None and self._warned:
            return
        self._warned = True
        warnings.warn(text, RuntimeWarning, stacklevel=4)


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_watching: list[Any] = []


def _watch_steps() -> None:
    if not _watching:
        _watching.append(optimizers.register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: Any, args: tuple, kwargs: dict) -> None:
    for guard in list(_guards):
        if guard.reducer.local:
            guard.check(optimizer)


# ---- hooks of parameters -------------------------------------------------------------------------


def gradient_hook(ddp: Any, i: int, name: str) -> Callable[[Tensor], None]:
    """What a parameter calls when its gradient is whole.

    It holds the wrapper weakly: the parameters outlive it if the model is wrapped again, and two
    wrappers would reduce the same gradients.
    """
    wrapper = weakref.ref(ddp)
    module_name = type(ddp.module).__name__

    def hook(parameter: Tensor) -> None:
        ddp = wrapper()
        if ddp is None:
            _orphaned(name, module_name)
        elif ddp._reduce_next_backward:
            ddp.reducer.gradient_ready(i)
        else:
            ddp._gradient_stays(i)

    hook.wrapper = wrapper  # type: ignore[attr-defined]
    return hook


def drop_orphans(parameter: Tensor) -> None:
    """Remove the hooks of wrappers that are gone, since another one takes over."""
    hooks = parameter._acc_hooks or {}
    for key, hook in list(hooks.items()):
        wrapper = getattr(hook, "wrapper", None)
        if wrapper is not None and wrapper() is None:
            del hooks[key]


def _orphaned(name: str, module_name: str) -> None:
    world = job().world
    if world is None or world.size() == 1:
        return
    raise RuntimeError(
        f"the gradient of parameter {name!r} of {module_name} is not averaged over the ranks: its "
        "DistributedDataParallel wrapper is gone. Keep the wrapper and call it instead of its "
        "module; to train this rank's copy alone, call ddp._remove_autograd_hooks() before "
        "dropping it"
    )
