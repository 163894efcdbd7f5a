"""Loss scaling: float16 gradients kept in range (Micikevicius et al., arXiv:1710.03740)."""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from typing import Any

from .. import ops
from ..autograd import no_grad
from ..autograd.graph import bump_version
from ..backend import dtypes, namespace_of
from ..tensor import Tensor


class OptState(Enum):
    """What has been done for an optimizer since the last ``update``."""

    READY = 0
    UNSCALED = 1
    STEPPED = 2


def _fresh_state() -> dict:
    return {"stage": OptState.READY, "found_inf_per_device": {}}


class GradScaler:
    """Scales the loss up and the gradients down again, and skips steps with overflow.

    ::

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)      # if gradients are to be clipped or looked at
        scaler.step(optimizer)          # skipped if a gradient is infinite or nan
        scaler.update()

    Args:
        device: "cuda" or "cpu".
        init_scale: where the scale begins.
        growth_factor: its factor after ``growth_interval`` steps without overflow.
        backoff_factor: its factor after a step with overflow.
        enabled: False makes all methods pass through.

    Raises:
        AssertionError: for factors on the wrong side of 1.
    """

    def __init__(
        self, device: str = "cuda", init_scale: float = 2.0**16, growth_factor: float = 2.0,
        backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
    ):
        self._device, self._enabled = device, enabled
        if device == "cuda" and enabled:
            from .. import cuda

            if not cuda.is_available():
                warnings.warn(
                    "torch.cuda.amp.GradScaler is enabled, but CUDA is not available.  Disabling.",
                    stacklevel=2,
                )
                self._enabled = False
        if not self._enabled:
            return
        if growth_factor <= 1.0:
            raise AssertionError("The growth factor must be > 1.0.")
        if backoff_factor >= 1.0:
            raise AssertionError("The backoff factor must be < 1.0.")
        self._init_scale, self._growth_interval = init_scale, growth_interval
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        # tensors on the device of the first scaled loss, made when it is known
        self._scale: Any = None
        self._growth_tracker: Any = None
        self._init_growth_tracker = 0
        self._per_optimizer_states: defaultdict = defaultdict(_fresh_state)

    # ---------------------------------------------------------------- scaling
    def _start(self, device) -> None:
        self._scale = ops.full((), self._init_scale, dtype=dtypes.float32, device=device)
        self._growth_tracker = ops.full(
            (), self._init_growth_tracker, dtype=dtypes.int32, device=device
        )

    def _check_started(self, what: str) -> None:
        if self._scale is None:
            raise AssertionError(
                f"Attempted {what} but _scale is None.  This may indicate your script did not use "
                "scaler.scale(loss or outputs) earlier in the iteration."
            )

    def scale(self, outputs):
        """A tensor, or (nested) iterables of tensors, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            if self._scale is None:
                self._start(outputs.device)
            return outputs * self._scale.to(outputs.device)
        if isinstance(outputs, Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    @no_grad()
    def _unscale_grads_(self, optimizer, scale: Tensor | None, allow_fp16: bool) -> dict:
        """Divide gradients by ``scale`` in place; 1.0 per device if one is not finite.

        Nothing waits for a GPU here.
        """
        grads: dict = {}  # of each device
        spread: dict = {}  # a distributed gradient on each mesh
        for group in optimizer.param_groups:
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad._local_tensor is not None:
                    spread[grad.device_mesh] = grad
                    grad = grad._local_tensor
                if not allow_fp16 and grad.dtype is dtypes.float16:
                    raise ValueError("Attempting to unscale FP16 gradients.")
                grads.setdefault(grad.device, []).append(grad)
        found = {d: ops.full((), 0.0, dtype=dtypes.float32, device=d) for d in grads}
        for device, given in grads.items():
            on_device = None if scale is None else scale.to(device)._data
            namespace_of(given[0]._data).unscale_all(
                [g._data for g in given], on_device, found[device]._data)
            if scale is not None:
                for grad in given:
                    bump_version(grad)
        for grad in spread.values():  # ranks hold parts: all skip the step, or none
            for flag in found.values():
                grad._max_over_ranks(flag)
        return found

    def unscale_(self, optimizer) -> None:
        """Divide the gradients of ``optimizer`` by the scale, before clipping them.

        Raises:
            RuntimeError: if it was done already since the last ``update``, or after ``step``.
            ValueError: for float16 gradients.
        """
        if not self._enabled:
            return
        self._check_started("unscale_")
        opt = self._per_optimizer_states[id(optimizer)]
        if opt["stage"] is OptState.UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if opt["stage"] is OptState.STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        opt["found_inf_per_device"] = self._unscale_grads_(optimizer, self._scale, False)
        opt["stage"] = OptState.UNSCALED

    # ---------------------------------------------------------------- stepping
    def step(self, optimizer, *args, **kwargs):
        """``optimizer.step(*args, **kwargs)`` with unscaled gradients, unless one is not finite.

        Returns:
            what the optimizer's step returned, or None if it was skipped.

        Raises:
            RuntimeError: if it stepped already since the last ``update``, or for a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        self._check_started("step")
        opt = self._per_optimizer_states[id(optimizer)]
        if opt["stage"] is OptState.STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            result = self._step_by_itself(optimizer, opt, args, kwargs)
        else:
            if opt["stage"] is OptState.READY:
                self.unscale_(optimizer)
            if not opt["found_inf_per_device"]:
                raise AssertionError("No inf checks were recorded for this optimizer.")
            overflow = any(v.item() for v in opt["found_inf_per_device"].values())
            result = None if overflow else optimizer.step(*args, **kwargs)
        opt["stage"] = OptState.STEPPED
        return result

    def _step_by_itself(self, optimizer, opt, args, kwargs):
        """For optimizers that unscale and skip by ``grad_scale`` and ``found_inf`` themselves."""
        if "grad_scaler" in inspect.signature(optimizer.step).parameters:
            return optimizer.step(*args, grad_scaler=self, **kwargs)
        if opt["stage"] is OptState.READY:
            opt["found_inf_per_device"] = self._unscale_grads_(optimizer, None, True)
        optimizer.grad_scale = None if opt["stage"] is OptState.UNSCALED else self._scale
        optimizer.found_inf = sum(
            t.to(self._scale.device) for t in opt["found_inf_per_device"].values()
        )
        try:
            return optimizer.step(*args, **kwargs)
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Grow or shrink the scale by what this iteration's steps found; call it last.

        Args:
            new_scale: set it to this instead.

        Raises:
            AssertionError: if no step was made, or ``new_scale`` is of the wrong kind.
        """
        if not self._enabled:
            return
        self._check_started("update")
        if new_scale is not None:
            self._set_scale(new_scale)
        else:
            found = [
                t for s in self._per_optimizer_states.values()
                for t in s["found_inf_per_device"].values()
            ]
            if not found:
                raise AssertionError("No inf checks were recorded prior to update.")
            overflow = found[0].to(self._scale.device)
            for other in found[1:]:
                overflow = ops.maximum(overflow, other.to(overflow.device))
            namespace_of(self._scale._data).update_scale(
                self._scale._data, self._growth_tracker._data, overflow._data, self._growth_factor,
                self._backoff_factor, self._growth_interval)
        self._per_optimizer_states = defaultdict(_fresh_state)

    def _set_scale(self, value) -> None:
        if isinstance(value, float):
            self._scale.fill_(value)
            return
        if value.device.type != self._device or value.numel() != 1 or value.requires_grad:
            raise AssertionError(
                "new_scale should be a float or a 1-element torch.cuda.FloatTensor or "
                "torch.FloatTensor with requires_grad=False."
            )
        self._scale.copy_(value.reshape(()))

    # ---------------------------------------------------------------- settings and state
    def get_scale(self) -> float:
        """The present scale; 1.0 if disabled."""
        if not self._enabled:
            return 1.0
        return self._init_scale if self._scale is None else self._scale.item()

    def get_growth_factor(self) -> float:
        """The factor by which the scale grows."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the factor by which the scale grows."""
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """The factor by which the scale shrinks."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the factor by which the scale shrinks."""
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """After how many steps without overflow the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set after how many steps without overflow the scale grows."""
        self._growth_interval = new_interval

    def _get_growth_tracker(self) -> int:
        if not self._enabled:
            return 0
        tracker = self._growth_tracker
        return self._init_growth_tracker if tracker is None else tracker.item()

    def is_enabled(self) -> bool:
        """Whether it scales at all."""
        return self._enabled

    def state_dict(self) -> dict:
        """Scale, factors, interval and the count of good steps; empty if disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(), "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor, "growth_interval": self._growth_interval,
            "_growth_tracker": self._get_growth_tracker(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            RuntimeError: for the empty state of a disabled scaler.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled "
                "instance of GradScaler."
            )
        self._init_scale = state_dict["scale"]
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._init_growth_tracker = state_dict["_growth_tracker"]
        if self._scale is not None:
            self._scale.fill_(self._init_scale)
            self._growth_tracker.fill_(self._init_growth_tracker)

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        if self._enabled:
            if self._per_optimizer_states:
                raise AssertionError(
                    "A GradScaler instance may only be pickled at the beginning of an iteration, "
                    "or at the end after scaler.update()."
                )
            state["_init_scale"] = self.get_scale()
            state["_init_growth_tracker"] = self._get_growth_tracker()
            state["_scale"] = state["_growth_tracker"] = None
        return state


__all__ = ["GradScaler", "OptState"]
