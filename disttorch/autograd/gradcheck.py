"""Gradients checked against finite differences."""

from __future__ import annotations

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from . import grad
from .modes import no_grad


class GradcheckError(RuntimeError):
    """A gradient that does not agree with its finite difference."""


def _outputs(out) -> list:
    out = [out] if isinstance(out, Tensor) else list(out)
    return [o for o in out if isinstance(o, Tensor) and o.dtype.category >= dtypes.FLOAT]


def _numerical(fn, inputs, i, eps):
    """Jacobian of every output with respect to ``inputs[i]``, by central differences.

    One matrix per output: elements of the input × elements of the output.
    """
    array = inputs[i]._data
    xp = namespace_of(array)
    flat_index = list(xp.ndindex(array.shape)) if array.ndim else [()]
    rows: list = []
    for at in flat_index:
        kept = array[at].copy() if hasattr(array[at], "copy") else array[at]
        array[at] = kept + eps
        with no_grad():
            high = [o._data.copy() for o in _outputs(fn(*inputs))]
        array[at] = kept - eps
        with no_grad():
            low = [o._data.copy() for o in _outputs(fn(*inputs))]
        array[at] = kept
        rows.append([((h - b) / (2 * eps)).reshape(-1) for h, b in zip(high, low)])
    count = len(rows[0]) if rows else len(_outputs(fn(*inputs)))
    empty = xp.zeros((0, 0), array.dtype)
    return [xp.stack([r[k] for r in rows]) if rows else empty for k in range(count)]


def _analytical(fn, inputs, i, k, create_graph=False):
    """Jacobian of output k with respect to ``inputs[i]``, one backward per output element."""
    out = _outputs(fn(*inputs))[k]
    xp = namespace_of(out._data)
    columns = []
    for j in range(out._data.size):
        seed = xp.zeros(out._data.size, out._data.dtype)
        seed[j] = 1
        (g,) = grad(out, (inputs[i],), wrap(seed.reshape(out._data.shape)), retain_graph=True,
                    allow_unused=True)  # fmt: skip
        columns.append(
            xp.zeros(inputs[i]._data.size, inputs[i]._data.dtype) if g is None
            else g._data.reshape(-1)
        )  # fmt: skip
    if not columns:
        return xp.zeros((inputs[i]._data.size, 0), out._data.dtype)
    return xp.stack(columns, axis=1)


def gradcheck(func, inputs, *, eps=1e-6, atol=1e-5, rtol=1e-3, raise_exception=True,
              nondet_tol=0.0, check_undefined_grad=True, check_grad_dtypes=False,
              check_batched_grad=False, fast_mode=False, masked=None) -> bool:  # fmt: skip
    """Compare the gradients of ``func`` at ``inputs`` with central differences.

    Args:
        func: takes the tensors, returns one or several.
        inputs: tensors; those that require grad must be float64 for the tolerances to make sense.
        eps: half the step of the difference.
        atol, rtol: |a − n| <= atol + rtol·|n| must hold.
        raise_exception: raise instead of returning False.

    Raises:
        GradcheckError: naming input, output and the two Jacobians.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, but none of the "
            "them have requires_grad=True."
        )
    for i in checked:
        numerical = _numerical(func, inputs, i, eps)
        for k, n in enumerate(numerical):
            if not _outputs(func(*inputs))[k].requires_grad:
                a = n * 0
            else:
                a = _analytical(func, inputs, i, k)
            xp = namespace_of(a)
            if a.shape != n.shape and a.size == n.size == 0:
                continue
            if a.dtype.kind == "c" or n.dtype.kind == "c":
                a = xp.conjugate(a)  # Wirtinger convention for real-valued differences
            if not bool(xp.allclose(a, n, rtol, atol)):
                if not raise_exception:
                    return False
                raise GradcheckError(
                    f"Jacobian mismatch for output {k} with respect to input {i},\n"
                    f"numerical:{n}\nanalytical:{a}\n"
                )
    return True


def gradgradcheck(func, inputs, grad_outputs=None, *, eps=1e-6, atol=1e-5, rtol=1e-3,
                  gen_non_contig_grad_outputs=False, raise_exception=True, nondet_tol=0.0,
                  check_undefined_grad=True, check_grad_dtypes=False, check_batched_grad=False,
                  fast_mode=False, masked=False) -> bool:  # fmt: skip
    """``gradcheck`` of the gradient of ``func``: its second derivatives."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    outs = _outputs(func(*inputs))
    if grad_outputs is None:
        seeds = []
        for o in outs:
            xp = namespace_of(o._data)
            values = xp.cos(xp.arange(o._data.size, dtype=o._data.real.dtype) * 1.7 + 0.3)
            seeds.append(wrap(values.reshape(o._data.shape).astype(o._data.dtype)))
    else:
        seeds = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    for s in seeds:
        s.requires_grad_(True)
    wanted = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]

    def first(*args):
        given, seeds_now = args[: len(inputs)], args[len(inputs):]
        outs = [o for o in _outputs(func(*given))]
        used = [(o, s) for o, s in zip(outs, seeds_now) if o.requires_grad]
        got = grad([o for o, _ in used], [given[i] for i in wanted], [s for _, s in used],
                   create_graph=True, allow_unused=True)  # fmt: skip
        return tuple(g for g in got if g is not None)

    return gradcheck(first, (*inputs, *seeds), eps=eps, atol=atol, rtol=rtol,
                     raise_exception=raise_exception)  # fmt: skip
