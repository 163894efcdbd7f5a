"""Reverse-mode automatic differentiation: the graph, backward, grad modes, custom functions."""

from __future__ import annotations

import importlib

from ..tensor import Tensor
from . import graph
from .anomaly import detect_anomaly, set_detect_anomaly
from .engine import run_backward
from .function import Function, once_differentiable
from .modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
    state,
)


def _tuple(value) -> tuple:
    return (value,) if isinstance(value, Tensor) or value is None else tuple(value)


def backward(tensors, grad_tensors=None, retain_graph=None, create_graph=False,
             grad_variables=None, inputs=None) -> None:
    """Add the gradient of ``tensors`` to the ``.grad`` of the leaves they came from.

    Args:
        tensors: one or several tensors that require grad.
        grad_tensors: their gradients; None for tensors of one element (1).
        retain_graph: keep saved values for another backward; default ``create_graph``.
        create_graph: record the gradients' own computation, for higher derivatives.
        inputs: collect only in these tensors.
    """
    tensors = _tuple(tensors)
    grads = (None,) * len(tensors) if grad_tensors is None else _tuple(grad_tensors)
    if len(grads) != len(tensors):
        raise RuntimeError(f"got {len(tensors)} tensors and {len(grads)} gradients")
    if inputs is not None:
        inputs = _tuple(inputs)
        if not inputs:
            raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    keep = create_graph if retain_graph is None else retain_graph
    run_backward(tensors, grads, keep, create_graph, inputs)


def grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False,
         only_inputs=True, allow_unused=None, is_grads_batched=False,
         materialize_grads=False) -> tuple:
    """The gradients of ``outputs`` with respect to ``inputs``, as a tuple; ``.grad`` is untouched.

    Args:
        allow_unused: give None for inputs that take no part instead of raising.
        materialize_grads: give zeros for them.
        is_grads_batched: ``grad_outputs`` have a leading batch dim; one backward runs per entry.
        Others as in ``backward``.

    Raises:
        RuntimeError: if an input does not require grad, or is unused without ``allow_unused``.
    """
    outputs, inputs = _tuple(outputs), _tuple(inputs)
    grads = (None,) * len(outputs) if grad_outputs is None else _tuple(grad_outputs)
    if is_grads_batched:
        return _batched_grad(outputs, inputs, grads, create_graph, allow_unused, materialize_grads)
    if not inputs:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    for t in inputs:
        if not isinstance(t, Tensor):
            raise RuntimeError(f"all inputs have to be Tensors, but got {type(t).__name__}")
        if not t.requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    keep = create_graph if retain_graph is None else retain_graph
    found = run_backward(outputs, grads, keep, create_graph, inputs, accumulate=False)
    result = []
    for i, t in enumerate(inputs):
        g = found.get(i)
        if g is None:
            if materialize_grads:
                from .. import ops

                g = ops.zeros_like(t)
            elif not allow_unused:
                raise RuntimeError(
                    f"The differentiated Tensor at index {i} appears to not have been used in the "
                    "graph. "
                    "Set allow_unused=True if this is the desired behavior."
                )
        result.append(g)
    return tuple(result)


def _batched_grad(outputs, inputs, grads, create_graph, allow_unused, materialize):
    from .. import ops

    count = next(g for g in grads if g is not None)._data.shape[0]
    rows = [
        grad(outputs, inputs, tuple(None if g is None else g[i] for g in grads), True,
             create_graph, allow_unused=allow_unused, materialize_grads=materialize)
        for i in range(count)
    ]
    return tuple(None if r[0] is None else ops.stack(list(r)) for r in zip(*rows))


def _backward_method(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    """Add this tensor's gradient to the leaves it came from; see ``autograd.backward``."""
    backward(self, gradient, retain_graph, create_graph, inputs=inputs)


_backward_method.__name__ = "backward"
Tensor.backward = _backward_method  # type: ignore[method-assign]


class _VariableType(type):
    def __instancecheck__(cls, value):
        return isinstance(value, Tensor)


class Variable(metaclass=_VariableType):
    """The tensor's name of old: ``Variable(tensor)`` is the same memory as a new leaf.

    Args:
        data: a tensor.
        requires_grad: ask for its gradient.
    """

    def __new__(cls, data=None, requires_grad=False, volatile=None):
        from .. import ops

        t = ops.creation.empty(0) if data is None else data.detach()
        return t.requires_grad_() if requires_grad else t


def __getattr__(name):
    if name == "functional":
        return importlib.import_module(".functional", __name__)
    if name == "profiler":
        return importlib.import_module(".profiler", __name__)
    if name == "grad_mode":
        return importlib.import_module(".modes", __name__)
    raise AttributeError(f"module 'torch.autograd' has no attribute {name!r} (disttorch lacks it)")


# gradcheck is the name of a function and of the module it is in: the function must win
from .gradcheck import GradcheckError, gradcheck, gradgradcheck  # noqa: E402

__all__ = [
    "Function", "GradcheckError", "Variable", "backward", "detect_anomaly", "enable_grad", "grad",
    "gradcheck", "gradgradcheck", "graph", "inference_mode", "is_grad_enabled",
    "is_inference_mode_enabled", "no_grad", "once_differentiable", "set_detect_anomaly",
    "set_grad_enabled", "state",
]
