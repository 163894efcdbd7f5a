"""Limits on gradients: on their common norm, or on each element."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ... import ops
from ...autograd import no_grad
from ...autograd.graph import bump_version
from ...backend import gpu_arrays, namespace_of
from ...ops.inplace import check_inplace
from ...tensor import Tensor, wrap


def _as_list(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _grads(parameters) -> list[Tensor]:
    return [p.grad for p in _as_list(parameters) if p.grad is not None]


@no_grad()
def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all tensors seen as one vector.

    Args:
        norm_type: the p of the norm, also ``inf``.
        error_if_nonfinite: raise if it is nan or infinite.
        foreach: accepted for compatibility.

    Returns:
        a 0-dim tensor on the device of the first; a replicated DTensor if one of them is a DTensor,
        whose parts on all ranks count.

    Raises:
        RuntimeError: for a nan or infinite norm, if asked for.
    """
    tensors, p = _as_list(tensors), float(norm_type)
    if not tensors:
        return ops.tensor(0.0)
    spread = next((t for t in tensors if t._local_tensor is not None), None)
    if spread is not None:  # ranks hold parts of it
        total = spread._total_norm(tensors, p)  # type: ignore[attr-defined]
    else:
        total = _norm_of_norms(tensors, p)
    known = total if spread is None else total.full_tensor()
    if error_if_nonfinite and not bool(ops.isfinite(known)):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )
    return total


def _norm_of_norms(tensors: list[Tensor], p: float) -> Tensor:
    totals = [wrap(xp.total_norm(arrays, p)) for xp, arrays in _by_device(tensors).items()]
    if len(totals) > 1:
        first = totals[0]
        stacked = ops.stack([t.to(first.device, first.dtype) for t in totals])._data
        return wrap(namespace_of(stacked).vector_norm(stacked, p))
    return totals[0]


def _by_device(tensors: list[Tensor]) -> dict:
    """The arrays of the tensors on each device, by its namespace."""
    arrays = [t._data for t in tensors]
    kind = type(arrays[0]) if arrays else None
    if kind in gpu_arrays and set(map(type, arrays)) == {kind}:  # the frequent case
        return {namespace_of(arrays[0]): arrays}
    found: dict = {}
    for a in arrays:
        found.setdefault(namespace_of(a), []).append(a)
    return found


def _in_place(grads: list[Tensor], change) -> None:
    """``change(xp, arrays)`` for the gradients of each device; distributed ones by their parts."""
    mine = [g if g._local_tensor is None else g._local_tensor for g in grads]
    for g in mine:
        a = g._data
        if g._inference or a.__class__ not in gpu_arrays or not a.flags.c_contiguous:
            check_inplace(g, "clip_grad")  # a contiguous array on a GPU may always be written
    for xp, arrays in _by_device(mine).items():
        change(xp, arrays)
    for g in mine:
        bump_version(g)


@no_grad()
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scale gradients by max_norm / total_norm where that is below 1, in place."""
    if total_norm._local_tensor is not None:
        total_norm = total_norm.full_tensor()  # type: ignore[attr-defined]
    norm = total_norm._data
    coefficient = wrap(namespace_of(norm).clip_factor(norm, float(max_norm)))
    on: dict = {}

    def scale(xp, arrays):
        if xp not in on:
            on[xp] = coefficient.to(xp.device_of(arrays[0]))._data
        xp.scale_all(arrays, on[xp])

    _in_place(_grads(parameters), scale)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0,
    error_if_nonfinite: bool = False, foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients together so that their common norm is at most ``max_norm``, in place.

    Arguments as of ``get_total_norm``.

    Returns:
        the norm before clipping, a 0-dim tensor.
    """
    parameters = _as_list(parameters)
    total = get_total_norm(_grads(parameters), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(parameters, max_norm, total)
    return total


@no_grad()
def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit every element of the gradients to [−clip_value, clip_value], in place."""
    limit = float(clip_value)
    _in_place(_grads(parameters), lambda xp, arrays: xp.clip_all(arrays, -limit, limit))


def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0,
    error_if_nonfinite: bool = False, foreach: bool | None = None,
) -> Tensor:
    """The older name of ``clip_grad_norm_``."""
    warnings.warn(
        "`torch.nn.utils.clip_grad_norm` is now deprecated in favor of "
        "`torch.nn.utils.clip_grad_norm_`.",
        FutureWarning,
        stacklevel=2,
    )
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
