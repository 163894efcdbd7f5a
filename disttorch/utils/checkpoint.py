"""Activation checkpointing: keep a block's inputs, not its activations, and compute them again.

While the block runs forward, everything it saves for backward is packed to a mere number by
``saved_tensors_hooks``. When backward first asks for one of them, the block runs once more from its
inputs, and what it saves this time is handed out under the same numbers (Chen et al., "Training
deep nets with sublinear memory cost", 2016). The second run sees the same random numbers and stops
as soon as everything wanted is there.
"""

from __future__ import annotations

import contextlib
import functools
import warnings

from ..autograd import enable_grad
from ..autograd.autocast import DEVICES
from ..autograd.autocast import state as autocast_state
from ..autograd.autocast import switch as autocast_switch
from ..autograd.function import Function
from ..autograd.graph import saved_tensors_hooks
from ..autograd.modes import state
from ..tensor import Tensor


class CheckpointError(RuntimeError):
    """The second run of a checkpointed block saved other tensors than the first."""


class _Enough(Exception):
    """Ends the second run: all that backward needs has been computed again."""


class _Holder:
    """Stands for one saved tensor between forward and backward."""

    __slots__ = ("index", "about")

    def __init__(self, index, about):
        self.index, self.about = index, about


class _KeepInputs(Function):
    """Saves the block's input tensors, through the hooks of an enclosing checkpoint if any."""

    @staticmethod
    def forward(ctx, *tensors):
        ctx.save_for_backward(*tensors)
        return tensors[0].detach().reshape(-1)[:0]

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("the output of _KeepInputs takes no part in the graph")


class _Frame:
    """One checkpointed call: how to run it again, and what has been computed again."""

    def __init__(self, function, args, kwargs, recompute_context, preserve_rng, check, early_stop):
        self.function, self.kwargs = function, kwargs
        self.recompute_context, self.check, self.early_stop = recompute_context, check, early_stop
        self.count, self.found, self.running = 0, {}, False
        self.rng = _rng_states(args, kwargs) if preserve_rng else None
        self.autocast = _autocast_regions()
        self._keep(args)

    def _keep(self, args):
        tensors = [a for a in args if isinstance(a, Tensor)]
        self.rest = [None if isinstance(a, Tensor) else a for a in args]
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.wants_grad = [t.requires_grad for t in tensors]
        if any(self.wants_grad) and state.saved_hooks:
            self.node, self.tensors = _KeepInputs.apply(*tensors).grad_fn, None
        else:
            self.node, self.tensors = None, tensors

    def inputs(self):
        """The arguments again; tensors as roots of a graph of their own."""
        tensors = self.tensors if self.node is None else self.node.saved_tensors
        args = list(self.rest)
        for place, t, wants in zip(self.places, tensors, self.wants_grad):
            args[place] = t.detach().requires_grad_(wants)
        return args

    # ------------------------------------------------------------- the hooks of the two runs
    def pack(self, t: Tensor) -> _Holder:
        holder = _Holder(self.count, self.check(t))
        self.count += 1
        return holder

    def unpack(self, holder: _Holder) -> Tensor:
        if holder.index not in self.found:
            self._recompute()
        if holder.index not in self.found:
            raise CheckpointError(
                "torch.utils.checkpoint: A different number of tensors was saved during the "
                f"original forward and recomputation.\nNumber of tensors saved during forward: "
                f"{self.count}\nNumber of tensors saved during recomputation: {self.recounted}."
            )
        t = self.found.pop(holder.index)
        if self.check(t) != holder.about:
            raise CheckpointError(
                "torch.utils.checkpoint: Recomputed values for the following tensors have "
                "different metadata than during the forward pass.\ntensor at position "
                f"{holder.index}:\nsaved metadata: {holder.about}\nrecomputed metadata: "
                f"{self.check(t)}"
            )
        return t

    def _collect(self, t: Tensor):
        self.found[self.recounted] = t.detach()
        self.recounted += 1
        if self.early_stop and self.recounted == self.count:
            raise _Enough
        return self.recounted - 1

    def _recompute(self):
        self.found, self.recounted = {}, 0
        hooks, before = (self._collect, self._unused), state.saved_hooks
        with contextlib.ExitStack() as stack:
            if self.rng is not None:
                stack.enter_context(_restored(self.rng))
            for region in self.autocast:
                stack.enter_context(region())
            stack.enter_context(self.recompute_context())
            stack.enter_context(enable_grad())
            stack.enter_context(saved_tensors_hooks(*hooks))
            try:
                self.function(*self.inputs(), **self.kwargs)
            except _Enough:
                state.saved_hooks = before

    def _unused(self, index):
        """A backward inside the block (its second run) needs what the first one saved."""
        try:
            return self.found[index]
        except KeyError:
            raise CheckpointError(
                "torch.utils.checkpoint: a backward inside the checkpointed function needs tensors "
                "that were already handed out; use early_stop=False"
            ) from None


def _metadata(t: Tensor) -> dict:
    return {"shape": t.shape, "dtype": t.dtype, "device": t.device}


_CHECKS = {"default": _metadata, "none": lambda t: None}


def _rng_states(args, kwargs):
    """The default generators' states: the CPU's, and those of the GPUs that the inputs are on."""
    from ..backend import devices
    from ..ops.random import default_generator
    from ._pytree import tree_leaves

    found = {devices.cpu}
    found.update(t.device for t in tree_leaves((list(args), kwargs)) if isinstance(t, Tensor))
    return [(d, default_generator(d).get_state()) for d in found]


def _autocast_regions() -> list:
    """Makers of the autocast regions that are in force now: backward runs outside of them."""
    if not autocast_switch.on:
        return []
    from ..amp import autocast

    return [
        functools.partial(autocast, d, dtype=autocast_state.dtypes[d],
                          enabled=d in autocast_state.enabled,
                          cache_enabled=autocast_state.cache_enabled)
        for d in DEVICES
    ]


@contextlib.contextmanager
def _restored(states):
    """Run with these generator states; afterwards the generators are as before."""
    from ..ops.random import default_generator

    before = [(d, default_generator(d).get_state()) for d, _ in states]
    try:
        for d, s in states:
            default_generator(d).set_state(s)
        yield
    finally:
        for d, s in before:
            default_generator(d).set_state(s)


_early_stop = [True]


@contextlib.contextmanager
def set_checkpoint_early_stop(enable: bool):
    """Whether second runs stop once everything wanted is there; for checkpoints made inside."""
    before, _early_stop[0] = _early_stop[0], bool(enable)
    try:
        yield
    finally:
        _early_stop[0] = before


def noop_context_fn():
    """Two contexts that do nothing: the default for forward and recomputation."""
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpoint(function, *args, use_reentrant=None, context_fn=noop_context_fn,
               determinism_check="default", debug=False, early_stop=True,
               preserve_rng_state=True, **kwargs):
    """Run ``function(*args, **kwargs)`` and keep its inputs only; backward runs it again.

    Args:
        function: any function of tensors; its second run must do the same as its first.
        use_reentrant: accepted; both values run the same, non-reentrant way.
        context_fn: returns two context managers, for the first and for the second run.
        determinism_check: "default" compares shapes, dtypes and devices of what the two runs
            save; "none" does not.
        preserve_rng_state: give the second run the random numbers of the first.
        early_stop: end the second run as soon as everything wanted is there.

    Raises:
        CheckpointError: in backward, if the second run saved other tensors.
    """
    if determinism_check not in _CHECKS:
        raise ValueError(
            f"determinism_check should be one of {list(_CHECKS)}, got {determinism_check}"
        )
    if debug:
        raise NotImplementedError("checkpoint(debug=True) needs operator traces: use anomaly mode")
    if not state.enabled:
        return function(*args, **kwargs)
    first, second = context_fn()
    frame = _Frame(function, args, kwargs, lambda: second, preserve_rng_state,
                   _CHECKS[determinism_check], early_stop and _early_stop[0])
    with first, saved_tensors_hooks(frame.pack, frame.unpack):
        return function(*args, **kwargs)


def checkpoint_sequential(functions, segments, input, use_reentrant=None, **kwargs):
    """Run modules one after another in ``segments`` pieces, all but the last checkpointed.

    Args:
        functions: an ``nn.Sequential`` or a list of modules or functions.
        segments: how many pieces.
        input: the argument of the first.
    """
    if use_reentrant is None:
        warnings.warn(
            "torch.utils.checkpoint.checkpoint_sequential: the use_reentrant parameter should be "
            "passed explicitly.",
            stacklevel=2,
        )
    functions = list(functions.children() if hasattr(functions, "children") else functions)
    if not 1 <= segments <= max(len(functions), 1):
        raise ValueError(f"segments must lie between 1 and {len(functions)}, got {segments}")

    def run(start, end):
        def piece(x):
            for f in functions[start:end]:
                x = f(x)
            return x

        return piece

    size, end = len(functions) // segments, 0
    for start in range(0, size * (segments - 1), size):
        end = start + size
        input = checkpoint(run(start, end), input, use_reentrant=False, **kwargs)
    return run(end, len(functions))(input)


__all__ = [
    "CheckpointError", "checkpoint", "checkpoint_sequential", "noop_context_fn",
    "set_checkpoint_early_stop",
]
