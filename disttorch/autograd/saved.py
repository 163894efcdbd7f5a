"""What users may do with the graph: pack saved tensors, watch several gradients, look at edges."""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

from ..tensor import Tensor
from .modes import state


class saved_tensors_hooks:
    """Inside this context, tensors saved for backward pass through a pair of functions.

    Args:
        pack_hook: ``(tensor) -> anything``, called when an operation saves a tensor.
        unpack_hook: ``(what pack_hook returned) -> tensor`` of the same values, called when
            backward needs it.

    Raises:
        RuntimeError: on entry, inside ``disable_saved_tensors_hooks``.
    """

    def __init__(self, pack_hook, unpack_hook):
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook

    def __enter__(self):
        if state.saved_hooks_disabled is not None:
            raise RuntimeError(state.saved_hooks_disabled)
        state.saved_hooks = (*state.saved_hooks, (self.pack_hook, self.unpack_hook))

    def __exit__(self, *exc):
        state.saved_hooks = state.saved_hooks[:-1]


class save_on_cpu(saved_tensors_hooks):
    """Keep saved tensors in host memory between forward and backward.

    Args:
        pin_memory: take page-locked memory, for a faster way back to a GPU.
        device_type: the kind of device that tensors come from.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda"):
        def pack(t):
            if t.device.type == "cpu" and not pin_memory:
                return t.device, t.clone()
            host = t.cpu()
            return t.device, host.pin_memory() if pin_memory and t.is_cuda else host

        def unpack(packed):
            device, host = packed
            return host.to(device, non_blocking=pin_memory)

        super().__init__(pack, unpack)


class disable_saved_tensors_hooks:
    """Inside this context, entering ``saved_tensors_hooks`` is an error.

    Args:
        error_message: what the error says.
    """

    def __init__(self, error_message: str):
        self.message = error_message

    def __enter__(self):
        if state.saved_hooks:
            raise RuntimeError(self.message)
        self.previous = state.saved_hooks_disabled
        state.saved_hooks_disabled = self.message

    def __exit__(self, *exc):
        state.saved_hooks_disabled = self.previous

    def __call__(self, function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with disable_saved_tensors_hooks(self.message):
                return function(*args, **kwargs)

        return wrapped


class GradientEdge(NamedTuple):
    """A place in the graph: output ``output_nr`` of ``node``."""

    node: object
    output_nr: int
    ownership_token: object = None


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """Where the gradient of ``tensor`` arrives.

    Raises:
        RuntimeError: if it does not require grad.
    """
    from .graph import accumulator, edge_to

    if not tensor.requires_grad:
        raise RuntimeError(
            "It is not possible to get the gradient edge for a Tensor that does not require "
            "gradients"
        )
    target, nr = edge_to(tensor)
    return GradientEdge(accumulator(target) if isinstance(target, Tensor) else target, nr)


def increment_version(tensor) -> None:
    """Note that one tensor or several were changed in a way that autograd could not see."""
    from .graph import bump_version

    for t in (tensor,) if isinstance(tensor, Tensor) else tensor:
        bump_version(t)


class _MultiHandle:
    """Removes a hook from all tensors that it watches."""

    def __init__(self, handles):
        self.handles = tuple(handles)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def register_multi_grad_hook(tensors, fn, *, mode: str = "all") -> _MultiHandle:
    """Call ``fn`` when the gradients of several tensors are computed.

    Args:
        tensors: tensors that require grad.
        fn: in mode "all" gets a list with every tensor's gradient (None for those that the
            backward does not reach), once per backward after the last has arrived; in mode "any"
            gets the first gradient, once per backward.

    Returns:
        A handle with ``remove()``.
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    tensors = list(tensors)
    for t in tensors:
        if not t.requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    watch = _watch_any if mode == "any" else _watch_all
    return _MultiHandle(watch(tensors, fn))


def _watch_any(tensors, fn):
    from . import engine

    lock, seen = threading.Lock(), [None]

    def hook(grad):
        with lock:
            running = engine.current_backward()
            if seen[0] is running:
                return
            seen[0] = running
        fn(grad)

    return [t.register_hook(hook) for t in tensors]


def _watch_all(tensors, fn):
    from . import engine

    lock, pending = threading.Lock(), {}

    def hook_of(i):
        def hook(grad):
            with lock:
                running = engine.current_backward()
                if pending.get("backward") is not running:
                    reached = [engine.backward_reaches(t) for t in tensors]
                    pending.update(backward=running, left=sum(reached), grads=[None] * len(tensors))
                pending["grads"][i] = grad
                pending["left"] -= 1
                grads = pending["grads"] if pending["left"] == 0 else None
                if grads is not None:
                    pending.clear()
            if grads is not None:
                fn(grads)

        return hook

    return [t.register_hook(hook_of(i)) for i, t in enumerate(tensors)]
