"""Derivatives of a function at a point: ``jacobian``, ``hessian`` and their products with vectors.

A Jacobian's product with a vector from the right (``jvp``) takes two backwards: the gradient
``u -> uᵀJ`` is linear in u, so its own gradient is J.
"""

from __future__ import annotations

from ..backend import namespace_of
from ..tensor import Tensor, wrap
from . import grad as _grad
from .modes import enable_grad


def _as_tuple(value, what, name):
    several = isinstance(value, tuple)
    values = value if several else (value,)
    for i, t in enumerate(values):
        if not isinstance(t, Tensor):
            where = f"value at index {i} has" if several else f"given {what} has"
            raise TypeError(
                f"The {what} given to {name} must be either a Tensor or a tuple of Tensors but the "
                f"{where} type {type(t)}."
            )
    return values, several


def _fresh(t: Tensor, connected: bool) -> Tensor:
    """The input as the function sees it: part of the caller's graph, or the root of its own."""
    if connected and t.requires_grad:
        return t.view_as(t)
    return t.detach().requires_grad_()


def _run(func, inputs, name, connected, strict):
    given, several_in = _as_tuple(inputs, "inputs", name)
    given = tuple(_fresh(t, connected) for t in given)
    outputs, several_out = _as_tuple(func(*given), "outputs of the user-provided function", name)
    if strict:
        for i, o in enumerate(outputs):
            if not o.requires_grad:
                raise RuntimeError(
                    f"Output {i} of the user-provided function does not require gradients. The "
                    "outputs must be computed in a differentiable manner from the input when "
                    "running in strict mode."
                )
    return given, several_in, outputs, several_out


def _vector(v, like, several, name):
    """The given vector(s), checked against the tensors they multiply; ones for a scalar."""
    if v is None:
        if len(like) != 1 or like[0].numel() != 1:
            raise RuntimeError(
                f"The vector v can only be None if the {name} is a single Tensor with one element"
            )
        return (_ones(like[0]),)
    v, _ = _as_tuple(v, "v", name)
    if len(v) != len(like):
        raise RuntimeError(
            f"v is a tuple of invalid length: should be {len(like)} but got {len(v)}."
            if several else "The given v should contain a single Tensor."
        )
    for i, (a, b) in enumerate(zip(v, like)):
        if a.shape != b.shape:
            entry = f"Entry {i} in " if len(v) > 1 else ""
            raise RuntimeError(
                f"{entry}v has invalid size: should be {b.shape} but got {a.shape}."
            )
    return v


def _ones(t):
    return wrap(namespace_of(t._data).ones_like(t._data))


def _zeros(t):
    return wrap(namespace_of(t._data).zeros_like(t._data))


def _pull(outputs, inputs, seeds, create_graph, strict=False):
    """Gradients of the inputs; zeros where the outputs do not depend on them."""
    used = [(o, s) for o, s in zip(outputs, seeds) if o.requires_grad]
    found = [None] * len(inputs)
    if used:
        found = _grad([o for o, _ in used], inputs, [s for _, s in used], retain_graph=True,
                      create_graph=create_graph, allow_unused=True)
    if strict and None in found:
        raise RuntimeError(
            f"The output of the user-provided function is independent of input "
            f"{found.index(None)}. This is not allowed in strict mode."
        )
    return tuple(_zeros(t) if g is None else g for g, t in zip(found, inputs))


def _result(values, several, keep_graph):
    values = tuple(v if keep_graph else v.detach() for v in values)
    return values if several else values[0]


def vjp(func, inputs, v=None, create_graph=False, strict=False):
    """``(func(inputs), vᵀJ)``: a vector times the Jacobian.

    Args:
        func: takes tensors, returns one or a tuple.
        inputs: a tensor or a tuple of them.
        v: in the shapes of the outputs; may be left out for an output of one element.
        create_graph: make the results differentiable.
        strict: raise if an output does not depend on an input, instead of giving zeros.
    """
    with enable_grad():
        given, many_in, outputs, many_out = _run(func, inputs, "vjp", create_graph, strict)
        seeds = _vector(v, outputs, many_out, "vjp")
        grads = _pull(outputs, given, seeds, create_graph, strict)
    return _result(outputs, many_out, create_graph), _result(grads, many_in, create_graph)


def _push(outputs, inputs, tangents, create_graph, strict=False):
    """J times tangents, by differentiating ``u -> uᵀJ`` with respect to u."""
    seeds = tuple(_zeros(o).requires_grad_() for o in outputs)
    pulled = _pull(outputs, inputs, seeds, True, strict)
    return _pull(pulled, seeds, tangents, create_graph)


def jvp(func, inputs, v=None, create_graph=False, strict=False):
    """``(func(inputs), J v)``: the Jacobian times a vector in the shapes of the inputs."""
    with enable_grad():
        given, many_in, outputs, many_out = _run(func, inputs, "jvp", create_graph, strict)
        tangents = _vector(v, given, many_in, "jvp")
        pushed = _push(outputs, given, tangents, create_graph, strict)
    return _result(outputs, many_out, create_graph), _result(pushed, many_out, create_graph)


def _scalar_gradient(func, inputs, name, create_graph, strict):
    given, many, outputs, several = _run(func, inputs, name, create_graph, strict)
    if several or outputs[0].numel() != 1:
        raise RuntimeError(f"The function given to {name} should return a single Tensor with one "
                           "element")
    return given, many, outputs[0], _pull(outputs, given, (_ones(outputs[0]),), True, strict)


def vhp(func, inputs, v=None, create_graph=False, strict=False):
    """``(func(inputs), vᵀH)``: a vector times the Hessian of a scalar function."""
    with enable_grad():
        given, many, out, first = _scalar_gradient(func, inputs, "vhp", create_graph, strict)
        seeds = _vector(v, given, many, "vhp")
        second = _pull(first, given, seeds, create_graph)
    return _result((out,), False, create_graph), _result(second, many, create_graph)


def hvp(func, inputs, v=None, create_graph=False, strict=False):
    """``(func(inputs), H v)``: the Hessian of a scalar function times a vector."""
    with enable_grad():
        given, many, out, first = _scalar_gradient(func, inputs, "hvp", create_graph, strict)
        tangents = _vector(v, given, many, "hvp")
        used = tuple(g for g in first)
        second = _push(used, given, tangents, create_graph)
    return _result((out,), False, create_graph), _result(second, many, create_graph)


def jacobian_rows(output, inputs, create_graph):
    """For each input, d output / d input of shape ``output.shape + input.shape``."""
    from .. import ops

    n = output.numel()
    rows = []
    for i in range(n):
        seed = namespace_of(output._data).zeros(n, output._data.dtype)
        seed[i] = 1
        rows.append(
            _pull((output,), inputs, (wrap(seed.reshape(output._data.shape)),), create_graph)
        )
    out = []
    for k, t in enumerate(inputs):
        shape = (*output.shape, *t.shape)
        if not rows:
            out.append(wrap(namespace_of(t._data).zeros(shape, t._data.dtype)))
        else:
            out.append(ops.stack([r[k] for r in rows]).reshape(shape))
    return tuple(out)


def jacobian(func, inputs, create_graph=False, strict=False, vectorize=False,
             strategy="reverse-mode"):
    """All first derivatives.

    Args:
        func: takes tensors, returns one or a tuple.
        inputs: a tensor or a tuple of them.
        create_graph: make the result differentiable.
        strict: raise if an output does not depend on an input.
        vectorize, strategy: accepted; the result is always computed row by row, in reverse.

    Returns:
        ``J[i][j]`` of shape ``output_i.shape + input_j.shape``; a level of nesting is missing where
        there is one output or one input only.
    """
    if strategy not in ("reverse-mode", "forward-mode"):
        raise AssertionError(f"strategy is 'reverse-mode' or 'forward-mode', got {strategy!r}")
    with enable_grad():
        given, many_in, outputs, many_out = _run(func, inputs, "jacobian", create_graph, strict)
        if strict:
            for o in outputs:
                _pull((o,), given, (_ones(o),), False, strict)
        rows = [jacobian_rows(o, given, create_graph) for o in outputs]
    table = tuple(_result(r, many_in, create_graph) for r in rows)
    return table if many_out else table[0]


def hessian(func, inputs, create_graph=False, strict=False, vectorize=False,
            outer_jacobian_strategy="reverse-mode"):
    """All second derivatives of a function that returns one element.

    Returns:
        ``H[i][j]`` of shape ``input_i.shape + input_j.shape``; a tensor for a single input.
    """
    _, several = _as_tuple(inputs, "inputs", "hessian")

    def first(*given):
        out = func(*given)
        if not isinstance(out, Tensor) or out.numel() != 1:
            raise RuntimeError(
                "The function given to hessian should return a single Tensor with a single element"
            )
        return tuple(
            j.reshape(t.shape)
            for j, t in zip(_pull((out,), given, (_ones(out),), True, strict), given)
        )

    table = jacobian(first, inputs, create_graph, strict)
    return table if several else table[0]


__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]
