"""``grad``, ``vjp``, ``jvp``, ``jacrev`` and kin: functions in, functions out.

Inside a transform the chosen arguments become inputs of their own. Whether the result stays in a
graph depends on what else took part: tensors outside the transform that require grad (also those
of an enclosing transform) keep it connected, so transforms nest; otherwise it is a plain value.
"""

from __future__ import annotations

import functools

from ..autograd import enable_grad
from ..autograd.functional import _ones, _pull, _push, jacobian_rows
from ..tensor import Tensor, current_node
from ..utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def _fresh(t):
    """An argument as an input of its own, still part of the graph it came from."""
    if not isinstance(t, Tensor):
        return t
    if not (t.dtype.is_floating_point or t.dtype.is_complex):
        raise RuntimeError(
            f"only Tensors of floating point and complex dtype can be differentiated, got {t.dtype}"
        )
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _outside(outputs, inputs) -> bool:
    """Whether something beside ``inputs`` that requires grad took part in ``outputs``."""
    own_leaves = {id(t) for t in inputs if current_node(t) is None}
    own_nodes = {id(current_node(t)) for t in inputs}
    if any(current_node(t) is not None for t in inputs):
        return True
    seen, stack = set(), [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    nodes = []
    for t in stack:
        node = current_node(t)
        if node is None:
            if id(t) not in own_leaves:
                return True
        else:
            nodes.append(node)
    while nodes:
        node = nodes.pop()
        if id(node) in seen or id(node) in own_nodes:
            continue
        seen.add(id(node))
        for target, _ in node.edges:
            if not isinstance(target, Tensor):
                nodes.append(target)
            elif id(target) not in own_leaves:
                return True
    return False


def _chosen(args, argnums):
    """Positions to differentiate, counted from the front."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers:
        raise RuntimeError("argnums must be non-empty")
    for n in numbers:
        if not -len(args) <= n < len(args):
            raise RuntimeError(
                f"Got argnum={n}, but only {len(args)} positional inputs: argnums must be in range"
            )
    return [n % len(args) for n in numbers]


def _with_fresh(args, positions):
    args, inputs = list(args), []
    for p in positions:
        args[p] = tree_map(_fresh, args[p])
        inputs += [t for t in tree_leaves(args[p]) if isinstance(t, Tensor)]
    return args, inputs


def _shaped(values, args, positions, single):
    """Flat results in the nests of the chosen arguments."""
    values = iter(values)
    nests = []
    for p in positions:
        leaves, spec = tree_flatten(args[p])
        nests.append(
            tree_unflatten([next(values) if isinstance(t, Tensor) else None for t in leaves], spec)
        )
    return nests[0] if single else tuple(nests)


def _left(value, connected):
    """What leaves the transform: still in the graph only if something outside is in it too."""
    return tree_map(lambda t: t if connected or not isinstance(t, Tensor) else t.detach(), value)


def _split_aux(out, has_aux, name):
    if not has_aux:
        return out, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise RuntimeError(f"{name}: with has_aux=True the function returns (output, aux), got "
                           f"{type(out).__name__}")
    return out


def grad_and_value(func, argnums=0, has_aux=False):
    """A function that returns ``(gradient, value)`` of ``func``, which returns one element.

    Args:
        func: the function; the arguments chosen by ``argnums`` may be nests of tensors.
        argnums: the position, or a tuple of positions, to differentiate.
        has_aux: ``func`` returns ``(output, aux)``; the result is ``(gradient, (value, aux))``.
    """

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        with enable_grad():
            positions = _chosen(args, argnums)
            args, inputs = _with_fresh(args, positions)
            out, aux = _split_aux(func(*args, **kwargs), has_aux, "grad")
            if not isinstance(out, Tensor):
                raise RuntimeError(
                    "Expected f in grad(f) to return a Tensor, got " + type(out).__name__
                )
            if out.ndim:
                raise RuntimeError(
                    "Expected f(*args) to return a scalar tensor, got tensor with "
                    f"{out.ndim} dims. Maybe you meant to use the vjp or jacrev APIs instead?"
                )
            connected = _outside([out], inputs)
            found = _pull((out,), inputs, (_ones(out),), connected)
        result = _shaped(found, args, positions, isinstance(argnums, int))
        value = _left(out, connected)
        if has_aux:
            value = (value, _left(aux, connected))
        return _left(result, connected), value

    return wrapper


def grad(func, argnums=0, has_aux=False):
    """A function that returns the gradient of ``func`` (and aux); see ``grad_and_value``."""
    both = grad_and_value(func, argnums, has_aux)

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        gradient, value = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapper


def vjp(func, *primals, has_aux=False):
    """``(func(*primals), f)``, where ``f(cotangents)`` gives their product with the Jacobian.

    Returns:
        The output, a function that returns a tuple with one gradient nest per primal, and aux if
        ``has_aux``.
    """
    with enable_grad():
        positions = list(range(len(primals)))
        args, inputs = _with_fresh(primals, positions)
        out, aux = _split_aux(func(*args), has_aux, "vjp")
        outputs, spec = tree_flatten(out)
        connected = _outside(outputs, inputs)

    def vjp_fn(cotangents, retain_graph=True, create_graph=None):
        seeds, given = tree_flatten(cotangents)
        if given != spec:
            raise RuntimeError(f"Expected cotangents in the output's nest, {spec}, got {given}")
        keep = connected or any(s.requires_grad for s in seeds)
        with enable_grad():
            found = _pull(outputs, inputs, seeds, keep if create_graph is None else create_graph)
        return _left(_shaped(found, args, positions, False), keep)

    value = _left(out, connected)
    return (value, vjp_fn, _left(aux, connected)) if has_aux else (value, vjp_fn)


def jvp(func, primals, tangents, *, strict=False, has_aux=False):
    """``(func(*primals), J·tangents)``.

    Args:
        primals, tangents: tuples of nests of equal shapes.
    """
    if not isinstance(primals, tuple) or not isinstance(tangents, tuple):
        raise RuntimeError("jvp: primals and tangents are tuples of inputs and of vectors")
    vectors, spec = tree_flatten(tangents)
    if spec != tree_flatten(primals)[1]:
        raise RuntimeError("jvp: tangents must have the nest of primals")
    with enable_grad():
        args, inputs = _with_fresh(primals, list(range(len(primals))))
        out, aux = _split_aux(func(*args), has_aux, "jvp")
        outputs, out_spec = tree_flatten(out)
        connected = _outside(outputs, inputs) or any(v.requires_grad for v in vectors)
        pushed = _push(outputs, inputs, vectors, connected)
    result = _left(out, connected), _left(tree_unflatten(pushed, out_spec), connected)
    return (*result, _left(aux, connected)) if has_aux else result


def linearize(func, *primals):
    """``(func(*primals), f)``, where ``f(*tangents)`` is the derivative there in a direction."""

    def derivative(*tangents):
        return jvp(func, primals, tangents)[1]

    return func(*primals), derivative


def jacrev(func, argnums=0, *, has_aux=False, chunk_size=None, _preallocate_and_copy=False):
    """A function that returns the Jacobian of ``func``.

    Returns:
        In the nest of the output, for each of its tensors the nest of the chosen arguments, with
        tensors of shape ``output.shape + argument.shape``.
    """

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        with enable_grad():
            positions = _chosen(args, argnums)
            args, inputs = _with_fresh(args, positions)
            out, aux = _split_aux(func(*args, **kwargs), has_aux, "jacrev")
            outputs, spec = tree_flatten(out)
            connected = _outside(outputs, inputs)
            rows = [jacobian_rows(o, inputs, connected) for o in outputs]
        single = isinstance(argnums, int)
        table = tree_unflatten([_shaped(r, args, positions, single) for r in rows], spec)
        table = _left(table, connected)
        return (table, _left(aux, connected)) if has_aux else table

    return wrapper


def jacfwd(func, argnums=0, has_aux=False, *, randomness="error", chunk_size=None):
    """The same as ``jacrev``: disttorch has no forward mode, which would only change the cost."""
    return jacrev(func, argnums, has_aux=has_aux)


def hessian(func, argnums=0):
    """A function that returns the second derivatives of ``func``."""
    return jacrev(jacrev(func, argnums), argnums)


__all__ = ["grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp",
           "linearize", "vjp"]
