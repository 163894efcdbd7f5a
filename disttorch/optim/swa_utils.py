"""Averages of weights over training: stochastic averaging and exponential moving averages."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy

from .. import ops
from ..autograd import no_grad
from ..backend import dtypes
from ..nn.modules.module import Module
from .lr_scheduler.base import LRScheduler, check_optimizer, per_group


# ---------------------------------------------------------------- how to average
def _check_decay(decay: float) -> None:
    if decay < 0.0 or decay > 1.0:
        raise ValueError(
            f"Invalid decay value {decay} provided. Please provide a value in [0,1] range."
        )


def get_ema_avg_fn(decay=0.999):
    """``f(average, parameter, count)``: decay·average + (1 − decay)·parameter."""
    _check_decay(decay)

    @no_grad()
    def ema_update(ema_param, current_param, num_averaged):
        return decay * ema_param + (1 - decay) * current_param

    return ema_update


def get_swa_avg_fn():
    """``f(average, parameter, count)``: the mean of all parameters so far."""

    @no_grad()
    def swa_update(averaged_param, current_param, num_averaged):
        return averaged_param + (current_param - averaged_param) / (num_averaged + 1)

    return swa_update


def get_ema_multi_avg_fn(decay=0.999):
    """The exponential moving average of lists: ``f(averages, parameters, count)``, in place."""
    _check_decay(decay)

    @no_grad()
    def ema_update(ema_param_list, current_param_list, _):
        for average, p in zip(ema_param_list, current_param_list, strict=True):
            if average.is_floating_point() or average.is_complex():
                average.lerp_(p, 1 - decay)
            else:
                average.copy_(average * decay + p * (1 - decay))

    return ema_update


def get_swa_multi_avg_fn():
    """The mean of lists: ``f(averages, parameters, count)``, in place."""

    @no_grad()
    def swa_update(averaged_param_list, current_param_list, num_averaged):
        for average, p in zip(averaged_param_list, current_param_list, strict=True):
            weight = float(1 / (num_averaged + 1))
            if average.is_floating_point() or average.is_complex():
                average.lerp_(p, weight)
            else:
                average.copy_(average + (p - average) * weight)

    return swa_update


class AveragedModel(Module):
    """A copy of a model whose parameters are averages of the model's (arXiv:1803.05407).

    Call ``update_parameters(model)`` when the present weights shall count; the first call copies.

    Args:
        model: the model to average.
        device: where to keep the averages.
        avg_fn: ``f(average, parameter, count)`` gives the new average; the mean if None.
        multi_avg_fn: the same on lists, in place.
        use_buffers: average buffers too; otherwise they are copied.

    Raises:
        AssertionError: if both functions are given.
    """

    def __init__(self, model, device=None, avg_fn=None, multi_avg_fn=None, use_buffers=False):
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", ops.tensor(0, dtype=dtypes.int64, device=device))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers

    def forward(self, *args, **kwargs):
        """The copy's output."""
        return self.module(*args, **kwargs)

    def _averaged(self, model):
        return itertools.chain(model.parameters(), model.buffers() if self.use_buffers else ())

    @no_grad()
    def update_parameters(self, model) -> None:
        """Take the model's present weights into the averages."""
        averages = [p.detach() for p in self._averaged(self.module)]
        present = [p.detach().to(a.device) for a, p in zip(averages, self._averaged(model))]
        if self.n_averaged.item() == 0:
            for average, p in zip(averages, present):
                average.copy_(p)
        elif self.multi_avg_fn is not None:
            _for_each_kind(self.multi_avg_fn, averages, present, self.n_averaged)
        else:
            avg_fn = self.avg_fn or get_swa_avg_fn()
            for average, p in zip(averages, present):
                average.copy_(avg_fn(average, p, self.n_averaged.to(average.device)))
        if not self.use_buffers:
            for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
                mine.detach().copy_(theirs.detach().to(mine.device))
        self.n_averaged.add_(1)


def _for_each_kind(function, averages, present, count) -> None:
    """Call ``function`` once for the tensors of each device and dtype."""
    kinds: dict = {}
    for average, p in zip(averages, present):
        lists = kinds.setdefault((average.device, average.dtype), ([], []))
        lists[0].append(average)
        lists[1].append(p)
    for (device, _), (mine, theirs) in kinds.items():
        function(mine, theirs, count.to(device))


# ---------------------------------------------------------------- running statistics
def _is_batch_norm(module) -> bool:
    return any(c.__name__ == "_BatchNorm" for c in type(module).__mro__)


@no_grad()
def update_bn(loader, model, device=None) -> None:
    """Compute the running statistics of batch norm layers anew, in one pass over the data.

    Args:
        loader: yields inputs, or tuples or lists that begin with one.
        model: runs in training mode meanwhile.
        device: where to move the inputs.
    """
    momenta = {m: m.momentum for m in model.modules() if _is_batch_norm(m)}
    if not momenta:
        return
    was_training = model.training
    model.train()
    for module in momenta:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
    for batch in loader:
        if isinstance(batch, (list, tuple)):
            batch = batch[0]
        model(batch if device is None else batch.to(device))
    for module, momentum in momenta.items():
        module.momentum = momentum
    model.train(was_training)


# ---------------------------------------------------------------- the schedule
class SWALR(LRScheduler):
    """Anneals each group's rate to a fixed one, for averaging at the end of training.

    Args:
        optimizer: whose groups' ``lr`` is changed.
        swa_lr: the final rate, for all groups or for each.
        anneal_epochs: steps until it is reached.
        anneal_strategy: "cos" or "linear".
        last_epoch: the last step that was made; -1 starts anew.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, optimizer, swa_lr: float, anneal_epochs=10, anneal_strategy="cos", last_epoch=-1
    ):
        check_optimizer(optimizer)
        rates = per_group("swa_lr", optimizer, swa_lr)
        for rate, group in zip(rates, optimizer.param_groups):
            group["swa_lr"] = rate
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        self._anneal_strategy, self.anneal_epochs = anneal_strategy, anneal_epochs
        super().__init__(optimizer, last_epoch)

    def _progress(self, step: int) -> float:
        t = max(0, min(1, step / max(1, self.anneal_epochs)))
        return (1 - math.cos(math.pi * t)) / 2 if self._anneal_strategy == "cos" else t

    def get_lr(self) -> list:
        """The rates of the present step, one for each group."""
        present = self._present()
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._progress(step - 1), self._progress(step)
        rates = []
        for lr, group in zip(present, self.optimizer.param_groups):
            final = group["swa_lr"]
            start = final if before == 1 else (lr - before * final) / (1 - before)
            rates.append(final * now + start * (1 - now))
        return rates


__all__ = [
    "SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn",
    "get_swa_multi_avg_fn", "update_bn",
]
