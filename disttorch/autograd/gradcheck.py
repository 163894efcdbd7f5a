"""Gradients checked against finite differences."""

from __future__ import annotations

import warnings

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from . import grad
from .modes import enable_grad, no_grad


class GradcheckError(RuntimeError):
    """A gradient that does not agree with its finite difference."""


def _outputs(out) -> list:
    out = [out] if isinstance(out, Tensor) else list(out)
    return [o for o in out if isinstance(o, Tensor) and o.dtype.category >= dtypes.FLOAT]


def _numerical(fn, inputs, i, eps, direction):
    """Derivative of every output along ``direction`` of each element of ``inputs[i]``.

    One matrix per output: elements of the input × elements of the output, by central differences.
    """
    array = inputs[i]._data
    xp = namespace_of(array)
    rows: list = []
    for at in list(xp.ndindex(array.shape)) if array.ndim else [()]:
        kept = array[at].copy()
        sides = []
        for step in (eps, -eps):
            array[at] = kept + step * direction
            with no_grad():
                sides.append([o._data.copy() for o in _outputs(fn(*inputs))])
        array[at] = kept
        rows.append([((h - b) / (2 * eps)).reshape(-1) for h, b in zip(*sides)])
    count = len(rows[0]) if rows else len(_outputs(fn(*inputs)))
    empty = xp.zeros((0, 0), array.dtype)
    return [xp.stack([r[k] for r in rows]) if rows else empty for k in range(count)]


def _analytical(fn, inputs, i, k, weight):
    """Gradients of ``inputs[i]`` for output k, one backward (seeded ``weight``) per element of it.

    A matrix: elements of the input × elements of the output.
    """
    out = _outputs(fn(*inputs))[k]
    xp = namespace_of(out._data)
    array = inputs[i]._data
    columns = []
    for j in range(out._data.size):
        seed = xp.zeros(out._data.size, out._data.dtype)
        seed[j] = weight
        g = None
        if out.requires_grad:
            (g,) = grad(out, (inputs[i],), wrap(seed.reshape(out._data.shape)), retain_graph=True,
                        allow_unused=True)
        columns.append(xp.zeros(array.size, array.dtype) if g is None else g._data.reshape(-1))
    return xp.stack(columns, axis=1) if columns else xp.zeros((array.size, 0), array.dtype)


def _units(array):
    """The directions to look along: a complex number has two."""
    return (1, 1j) if array.dtype.kind == "c" else (1,)


def _mismatches(func, inputs, i, eps, atol, rtol):
    """(output, numerical, analytical) wherever the two disagree.

    Backward of a real-valued L gives dL/dRe + i·dL/dIm. With L = Re(conj(w)·out), the derivative
    along d must be Re(conj(g)·d) for the gradient g that backward computes from the seed w.
    """
    for d in _units(inputs[i]._data):
        numerical = _numerical(func, inputs, i, eps, d)
        for k, n in enumerate(numerical):
            for w in _units(n):
                a = _analytical(func, inputs, i, k, w)
                xp = namespace_of(a)
                if not a.size and not n.size:
                    continue
                a, want = xp.real(xp.conjugate(a) * d), xp.real(n * (1 if w == 1 else -1j))
                if not bool(xp.allclose(a, want, rtol, atol)):
                    yield k, want, a


def gradcheck(func, inputs, *, eps=1e-6, atol=1e-5, rtol=1e-3, raise_exception=True,
              nondet_tol=0.0, check_undefined_grad=True, check_grad_dtypes=False,
              check_batched_grad=False, check_batched_forward_grad=False, check_forward_ad=False,
              check_backward_ad=True, fast_mode=False, masked=None) -> bool:
    """Compare the gradients of ``func`` at ``inputs`` with central differences.

    Args:
        func: takes the tensors, returns one or several.
        inputs: tensors; those that require grad must be of double precision for the tolerances to
            make sense.
        eps: half the step of the difference.
        atol, rtol: |a − n| <= atol + rtol·|n| must hold.
        raise_exception: raise instead of returning False.
        nondet_tol: two backwards may differ by so much.
        Others: accepted for PyTorch's sake.

    Raises:
        GradcheckError: naming input, output and the two Jacobians.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not _outputs(func(*inputs)):
        raise GradcheckError("the function returns no tensor that could have a gradient")
    if not checked:
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, but none of the "
            "them have requires_grad=True."
        )
    for i in checked:
        if inputs[i].dtype not in (dtypes.float64, dtypes.complex128):
            warnings.warn(
                f"Input #{i} requires gradient and is not a double precision floating point or "
                "complex. This check will likely fail if all the inputs are not of double "
                "precision floating point or complex.",
                stacklevel=2,
            )
    try:
        _check_repeats(func, inputs, checked, nondet_tol)
        for i in checked:
            for k, n, a in _mismatches(func, inputs, i, eps, atol, rtol):
                raise GradcheckError(
                    f"Jacobian mismatch for output {k} with respect to input {i},\n"
                    f"numerical:{n}\nanalytical:{a}\n"
                )
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _check_repeats(func, inputs, checked, tolerance):
    """Two backwards over one graph must give the same."""
    outs = [o for o in _outputs(func(*inputs)) if o.requires_grad]
    if not outs:
        return
    seeds = [wrap(namespace_of(o._data).ones_like(o._data)) for o in outs]
    wanted = [inputs[i] for i in checked]
    runs = [grad(outs, wanted, seeds, retain_graph=True, allow_unused=True) for _ in range(2)]
    for i, a, b in zip(checked, *runs):
        if a is not None and a.numel():
            xp = namespace_of(a._data)
            difference = float(xp.max(xp.abs(a._data - b._data)))
            if difference > tolerance:
                raise GradcheckError(
                    f"Backward is not reentrant, i.e., running backward with same input and "
                    f"grad_output multiple times gives different values for input {i}, although "
                    f"analytical gradient matches numerical gradient. The tolerance for "
                    f"nondeterminism was {tolerance}, the difference {difference}."
                )


def gradgradcheck(func, inputs, grad_outputs=None, *, eps=1e-6, atol=1e-5, rtol=1e-3,
                  gen_non_contig_grad_outputs=False, raise_exception=True, nondet_tol=0.0,
                  check_undefined_grad=True, check_grad_dtypes=False, check_batched_grad=False,
                  fast_mode=False, masked=False) -> bool:
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
        with enable_grad():  # the differences are taken under no_grad
            outs = _outputs(func(*given))
            used = [(o, s) for o, s in zip(outs, seeds_now) if o.requires_grad]
            got = grad([o for o, _ in used], [given[i] for i in wanted], [s for _, s in used],
                       create_graph=True, allow_unused=True)
        return tuple(g for g in got if g is not None)

    if not first(*inputs, *seeds):
        return True  # the function is constant: there is no gradient to differentiate
    return gradcheck(first, (*inputs, *seeds), eps=eps, atol=atol, rtol=rtol,
                     raise_exception=raise_exception)
