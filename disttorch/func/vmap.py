"""``vmap``: a function of one example as a function of a batch, by a loop and a stack."""

from __future__ import annotations

import functools

from ..autograd.modes import state
from ..tensor import Tensor
from ..utils._pytree import broadcast_prefix, tree_flatten, tree_unflatten


def vmap(func, in_dims=0, out_dims=0, randomness="error", *, chunk_size=None):
    """A function that maps ``func`` over one dim of its arguments.

    Args:
        func: takes and returns nests of tensors.
        in_dims: the dim of each argument to map over, None for those shared by all; an int, or a
            nest shaped like the top of the arguments.
        out_dims: where the mapped dim stands in each output.
        randomness: "error" forbids random numbers in ``func``; "different" draws anew for every
            element; "same" gives every element the same numbers.
        chunk_size: accepted; elements are always taken one at a time.

    Raises:
        ValueError: if nothing is mapped, or the mapped dims differ in size.
        RuntimeError: for random numbers under "error".
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(
            f"Only allowed values for randomness are 'error', 'different', or 'same'. Got "
            f"{randomness}"
        )

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        if not args:
            raise ValueError(
                f"vmap({getattr(func, '__name__', func)})(<inputs>): got no inputs. Maybe you "
                "forgot to add inputs, or you are trying to vmap over a function with no inputs. "
                "The latter is unsupported."
            )
        leaves, spec = tree_flatten(args)
        dims = broadcast_prefix(tuple(in_dims) if isinstance(in_dims, list) else in_dims, args)
        dims = [_checked_dim(t, d) for t, d in zip(leaves, dims)]
        size = _batch_size(leaves, dims)
        columns = [
            t.unbind(d) if d is not None else [t] * size for t, d in zip(leaves, dims)
        ]
        runs = _loop(func, spec, columns, kwargs, size, randomness)
        return _stacked(runs, out_dims)

    return wrapper


def _checked_dim(value, dim):
    if dim is None:
        return None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"vmap: got in_dim={dim} for an input that is no Tensor ({type(value).__name__}); use "
            "None for it"
        )
    if value.ndim == 0 or not -value.ndim <= dim < value.ndim:
        raise ValueError(
            f"vmap: got in_dim={dim} for a tensor of {value.ndim} dims, {tuple(value.shape)}"
        )
    return dim


def _batch_size(leaves, dims) -> int:
    sizes = {t.shape[d] for t, d in zip(leaves, dims) if d is not None}
    if not sizes:
        raise ValueError("vmap: at least one input must be mapped (in_dims other than None)")
    if len(sizes) > 1:
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes "
            f"{sorted(sizes)} for the mapped dimension"
        )
    return sizes.pop()


def _loop(func, spec, columns, kwargs, size, randomness):
    from ..ops.random import default_generator

    if size == 0:
        raise ValueError("vmap: the mapped dim has size 0, so there is no element to run")
    before, runs = state.randomness, []
    state.randomness = "error" if randomness == "error" else None
    try:
        start = None
        for i in range(size):
            args = tree_unflatten([c[i] for c in columns], spec)
            if randomness == "same":
                source = default_generator(_device(columns))
                if start is None:
                    start = source.get_state()
                else:
                    source.set_state(start)
            runs.append(func(*args, **kwargs))
    finally:
        state.randomness = before
    return runs


def _device(columns):
    return next(c[0].device for c in columns if isinstance(c[0], Tensor))


def _stacked(runs, out_dims):
    from .. import ops

    leaves = [tree_flatten(r) for r in runs]
    spec = leaves[0][1]
    dims = broadcast_prefix(tuple(out_dims) if isinstance(out_dims, list) else out_dims, runs[0])
    out = []
    for k, dim in enumerate(dims):
        values = [found[k] for found, _ in leaves]
        if not isinstance(values[0], Tensor):
            raise ValueError(
                f"vmap: the function must return only Tensors, got type {type(values[0])}"
            )
        out.append(values[0] if dim is None else ops.stack(values, dim))
    return tree_unflatten(out, spec)
