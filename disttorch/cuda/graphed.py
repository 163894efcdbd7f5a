"""Functions and modules whose forward and backward are CUDA graphs (``make_graphed_callables``).

A callable's forward is captured into one graph and its backward into another; between them they share a
memory pool, in which the values that forward saves for backward stay. An ``autograd.Function`` replays
them: so the graphed callable takes part in any larger computation, graphed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import autograd
from ..amp.autocast_mode import is_autocast_cache_enabled, is_autocast_enabled
from ..tensor import Tensor, wrap
from . import streams
from .which import require

_HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks")


class _Captured(NamedTuple):
    """What one callable became."""

    forward: Any  # CUDAGraph
    backward: Any  # CUDAGraph, or None if nothing requires a gradient
    inputs: tuple  # static: the flat arguments, then the parameters
    given: int  # how many of them are arguments
    outputs: tuple  # static, flat
    grad_outputs: tuple  # static; None for outputs without a gradient
    grad_inputs: tuple  # static; None for inputs without a gradient
    arguments: Any  # the tree of the arguments, to compare calls with
    result: Any  # the tree of the outputs


class _Replay(autograd.Function):
    """Replays a callable's graphs; its tensors are the arguments and the parameters."""

    @staticmethod
    def forward(ctx, captured, *tensors):
        ctx.captured = captured
        for static, t in zip(captured.inputs[: captured.given], tensors):
            if static.data_ptr() != t.data_ptr():
                static.detach().copy_(t.detach())
        captured.forward.replay()
        # new arrays over the static memory: the Function's own outputs, and no owners of it
        outputs = tuple(wrap(o._data.view()) for o in captured.outputs)
        ctx.mark_non_differentiable(
            *(t for t, g in zip(outputs, captured.grad_outputs) if g is None)
        )
        ctx.set_materialize_grads(True)
        return outputs

    @staticmethod
    @autograd.once_differentiable
    def backward(ctx, *grads):
        captured = ctx.captured
        for static, g in zip(captured.grad_outputs, grads):
            if static is not None and static.data_ptr() != g.data_ptr():
                static.copy_(g)
        captured.backward.replay()
        # as views: a gradient that is kept must be a copy, or the next replay would change it
        found = (None if g is None else wrap(g._data.view()) for g in captured.grad_inputs)
        return None, *found


def make_graphed_callables(callables, sample_args, num_warmup_iters: int = 3,
                           allow_unused_input: bool = False, pool=None):
    """Capture forward and backward of functions or modules into CUDA graphs.

    Args:
        callables: one function or Module, or a tuple of them in the order in which they will run.
        sample_args: the tuple of arguments of each (for a tuple of callables: a tuple of such tuples),
            tensors on the GPU in containers as they like; shapes, dtypes and ``requires_grad`` are
            those of every later call.
        num_warmup_iters: eager runs before the capture.
        allow_unused_input: inputs that get no gradient are no error.
        pool: memory to share with other graphs.

    Returns:
        The same Modules with graphed forwards (used while ``training`` is as it was now), and
        functions in place of functions. An output is overwritten by the next call.

    Raises:
        RuntimeError: under autocast with its cache, or for a Module with hooks or with buffers that
            require grad.
    """
    require()
    if is_autocast_enabled("cuda") and is_autocast_cache_enabled():
        raise RuntimeError(
            "make_graphed_callables does not support the autocast caching: casts of weights would be "
            "captured once and kept. Please set `cache_enabled=False` in autocast."
        )
    single = not isinstance(callables, tuple)
    if single:
        callables, sample_args = (callables,), (sample_args,)
    if len(callables) != len(sample_args):
        raise RuntimeError(
            f"{len(callables)} callables, but {len(sample_args)} tuples of sample arguments: give one "
            "tuple for each"
        )
    for function in callables:
        _check(function)
    surfaces = [_surface(f, args) for f, args in zip(callables, sample_args)]
    _warm_up(callables, sample_args, surfaces, num_warmup_iters, allow_unused_input)
    captured = _capture(callables, sample_args, surfaces, allow_unused_input, pool)
    made = tuple(_wrapped(f, c) for f, c in zip(callables, captured))
    return made[0] if single else made


# ---- before -------------------------------------------------------------------------------------


def _check(function) -> None:
    if not hasattr(function, "parameters"):
        return
    for hooks in _HOOKS:
        if getattr(function, hooks, None):
            raise RuntimeError(
                f"make_graphed_callables takes Modules without hooks, but this "
                f"{type(function).__name__} has {hooks}: register them on the graphed module"
            )
    if any(b.requires_grad for b in function.buffers()):
        raise RuntimeError(
            f"make_graphed_callables trains parameters only, but a buffer of this "
            f"{type(function).__name__} has requires_grad=True: make it a Parameter"
        )


def _flat(tree) -> tuple[list, Any]:
    from ..utils._pytree import tree_flatten

    return tree_flatten(tree)


def _surface(function, args) -> tuple:
    """All tensors that gradients may be asked for: the flat arguments, then the parameters."""
    leaves, _ = _flat(args)
    for leaf in leaves:
        if not (isinstance(leaf, Tensor) and leaf.is_cuda):
            raise TypeError(
                "sample_args of make_graphed_callables must contain only Tensors on a GPU, not "
                f"{leaf.device if isinstance(leaf, Tensor) else type(leaf).__name__}: bind other "
                "arguments with functools.partial"
            )
    parameters = tuple(function.parameters()) if hasattr(function, "parameters") else ()
    return tuple(leaves) + parameters


def _wanted(tensors: Sequence[Tensor]) -> tuple:
    return tuple(t for t in tensors if t.requires_grad)


def _warm_up(callables, sample_args, surfaces, iterations: int, allow_unused: bool) -> None:
    """Run all eagerly in a stream of their own: kernels are compiled, workspaces and tables made."""
    side, current = streams.Stream(), streams.current_stream()
    side.wait_stream(current)
    with streams.stream(side):
        for function, args, surface in zip(callables, sample_args, surfaces):
            for _ in range(iterations):
                outputs = _wanted(_flat(function(*args))[0])
                if outputs and _wanted(surface):
                    autograd.grad(outputs, _wanted(surface),
                                  tuple(_like(o) for o in outputs), allow_unused=allow_unused)
    current.wait_stream(side)


def _like(t: Tensor) -> Tensor:
    """A new tensor for the gradient of an output; 1 everywhere, so that all is finite."""
    from ..ops.creation import ones_like

    return ones_like(t.detach())


# ---- the captures -------------------------------------------------------------------------------


def _capture(callables, sample_args, surfaces, allow_unused: bool, pool) -> list[_Captured]:
    """Forwards in order, then backwards in reverse: the order of the replays, in which memory that one
    has freed may serve the next."""
    from .graphs import CUDAGraph, graph, graph_pool_handle

    handle = graph_pool_handle() if pool is None else pool
    forwards = []
    for function, args in zip(callables, sample_args):
        recorded = CUDAGraph()
        with graph(recorded, pool=handle):
            result = function(*args)
        forwards.append((recorded, *_flat(result)))
    made: list = [None] * len(forwards)
    for i in reversed(range(len(forwards))):
        recorded, outputs, result = forwards[i]
        surface, args = surfaces[i], sample_args[i]
        grad_outputs = tuple(_like(o) if o.requires_grad else None for o in outputs)
        backward, grad_inputs = None, (None,) * len(surface)
        if _wanted(outputs) and _wanted(surface):
            backward = CUDAGraph()
            with graph(backward, pool=handle):
                found = autograd.grad(
                    _wanted(outputs), _wanted(surface), tuple(g for g in grad_outputs if g is not None),
                    allow_unused=allow_unused)
            rest = iter(found)
            grad_inputs = tuple(next(rest) if t.requires_grad else None for t in surface)
        leaves, arguments = _flat(args)
        made[i] = _Captured(recorded, backward, surface, len(leaves),
                            tuple(o.detach() for o in outputs), grad_outputs, grad_inputs,
                            arguments, result)
    return made


# ---- afterwards ---------------------------------------------------------------------------------


def _wrapped(function, captured: _Captured):
    from ..utils._pytree import tree_unflatten

    parameters = captured.inputs[captured.given :]

    def graphed(*args):
        leaves, tree = _flat(args)
        if tree != captured.arguments:
            raise TypeError(
                "a graphed callable takes arguments of the same structure as its sample arguments: "
                f"{captured.arguments}, got {tree}"
            )
        for leaf, static in zip(leaves, captured.inputs):
            if leaf.shape != static.shape or leaf.dtype != static.dtype:
                raise ValueError(
                    f"a graphed callable takes tensors like its sample arguments: {static.dtype} of "
                    f"shape {list(static.shape)}, got {leaf.dtype} of shape {list(leaf.shape)}"
                )
        return tree_unflatten(list(_Replay.apply(captured, *leaves, *parameters)), captured.result)

    if not hasattr(function, "parameters"):
        return graphed
    eager, training = function.forward, function.training

    def forward(*args, **kwargs):
        if function.training == training and not kwargs:
            return graphed(*args)
        return eager(*args, **kwargs)

    function.forward = forward
    return function


__all__ = ["make_graphed_callables"]
