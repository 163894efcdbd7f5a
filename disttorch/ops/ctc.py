"""Connectionist temporal classification: the loss of a label sequence without an alignment.

Graves et al., ICML 2006. The labels get a blank between each two and at both ends; a path goes on
by 0 or 1 places at a step, or by 2 between two different labels. All in logarithms.

Shape legend: T steps, N batch, C classes, S labels (padded), L = 2S + 1 places.
"""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor, wrap
from .core import REGISTRY, op
from .samples import case

_NOTHING = -math.inf  # the logarithm of probability 0
_FLOOR = -1e30  # its stand-in where the loss is written with differentiable ops: inf − inf is nan


def _places(xp, targets, blank):
    """(class at each place N×L, whether a path may come from two places before N×L)."""
    n, labels = targets.shape
    places = xp.full((n, 2 * labels + 1), blank, targets.dtype)
    places[:, 1::2] = targets
    skip = xp.zeros(places.shape, bool)
    skip[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    return places, skip


def _at_places(xp, log_probs, places):
    index = xp.broadcast_to(places[None], (log_probs.shape[0], *places.shape))
    return xp.take_along_axis(log_probs, index, 2)


def _shifted(xp, a, by):
    """``a`` (N×L) moved by places to the right."""
    out = xp.full_like(a, _NOTHING)
    out[:, by:] = a[:, :-by]
    return out


def _forward_sums(xp, at, skip, lengths):
    """Log-probability of all beginnings that are at a place at a step, T×N×L.

    After a sequence's end its last row is repeated.
    """
    sums = xp.full_like(at, _NOTHING)
    sums[0, :, :2] = at[0, :, :2]
    for t in range(1, at.shape[0]):
        before = sums[t - 1]
        two = xp.where(skip, _shifted(xp, before, 2), at.dtype.type(_NOTHING))
        new = xp.logaddexp(xp.logaddexp(before, _shifted(xp, before, 1)), two) + at[t]
        sums[t] = xp.where((t < lengths)[:, None], new, before)
    return sums


def _ends(xp, last, target_lengths):
    """The places where a path may end: of the last label (−inf without one) and of the blank."""
    index = 2 * target_lengths[:, None]
    on_blank = xp.take_along_axis(last, index, 1)[:, 0]
    on_label = xp.take_along_axis(last, xp.maximum(index - 1, 0), 1)[:, 0]
    return xp.where(target_lengths > 0, on_label, last.dtype.type(_NOTHING)), on_blank


@op(tensors=("log_probs", "targets"), method=False, aux=True, samples=lambda m: [
    case(m(5, 2, 4), m.int(2, 2, low=1, high=4), (5, 4), (2, 1), 0, False),
    case(m(4, 3, 3), m.int(3, 2, low=0, high=2), (4, 4, 3), (2, 2, 0), 2, True)])
def ctc_rows(xp, log_probs, targets, input_lengths, target_lengths, blank, zero_infinity):
    """The loss of each sequence, N. log_probs: T×N×C, targets: N×S, lengths: tuples of N."""
    places, skip = _places(xp, targets, blank)
    at = _at_places(xp, log_probs, places)
    lengths, labels = xp.asarray(input_lengths), xp.asarray(target_lengths)
    sums = _forward_sums(xp, at, skip, lengths)
    loss = -xp.logaddexp(*_ends(xp, sums[-1], labels))
    loss = xp.where((lengths == 0) & (labels == 0), loss.dtype.type(0), loss)
    loss = xp.where((lengths == 0) & (labels > 0), loss.dtype.type(math.inf), loss)
    if zero_infinity:
        loss = xp.where(xp.isinf(loss), loss.dtype.type(0), loss)
    return loss, (sums,)


@ctc_rows.fast_grad("log_probs")
def _(F, g, needs, log_probs, targets, aux, input_lengths, target_lengths, blank):
    xp, (sums,) = F.xp, aux
    places, skip = _places(xp, targets, blank)
    at = _at_places(xp, log_probs, places)
    lengths, labels = xp.asarray(input_lengths), xp.asarray(target_lengths)
    total = xp.logaddexp(*_ends(xp, sums[-1], labels))
    share = xp.zeros_like(at)  # the probability that a path of this loss is at a place
    place = xp.arange(at.shape[2])[None]
    end = (place == 2 * labels[:, None]) | (place == 2 * labels[:, None] - 1)
    at_end = xp.where(end, at.dtype.type(0), at.dtype.type(_NOTHING))
    rest = xp.full_like(at[0], _NOTHING)  # log-probability of all ends after this place
    for t in range(at.shape[0] - 1, -1, -1):
        rest = xp.where((t == lengths - 1)[:, None], at_end, rest)
        inside = (t < lengths) & xp.isfinite(total)
        share[t] = xp.where(inside[:, None], xp.exp(sums[t] + rest - total[:, None]), 0)
        coming = (rest + at[t])[:, ::-1]
        two = xp.where(skip[:, ::-1], coming, at.dtype.type(_NOTHING))
        rest = xp.logaddexp(
            xp.logaddexp(coming, _shifted(xp, coming, 1)), _shifted(xp, two, 2)
        )[:, ::-1]
    index = xp.broadcast_to(places[None], at.shape)
    return (xp.add_along_axis(xp.zeros_like(log_probs), index, share * -g[:, None], 2),)


@ctc_rows.compose
def _(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity):
    from ..backend import namespace_of

    F = {n: REGISTRY[n].call for n in ("cat", "gather", "logaddexp", "where", "expand")}
    xp = namespace_of(log_probs._data)
    places, skip = _places(xp, targets._data, blank)
    steps, (n, width) = log_probs._data.shape[0], places.shape
    at = F["gather"](log_probs, 2, F["expand"](wrap(places[None]), (steps, n, width)))
    floor = wrap(xp.full((n, width + 2), _FLOOR, log_probs._data.dtype))
    sums = F["cat"]([at[0][:, :2], floor[:, 2:width]], 1)
    lengths, labels = xp.asarray(input_lengths), xp.asarray(target_lengths)
    for t in range(1, steps):
        one, two = (F["cat"]([floor[:, :k], sums[:, :-k]], 1)[:, :width] for k in (1, 2))
        new = F["logaddexp"](sums, one)
        new = F["where"](wrap(skip), F["logaddexp"](new, two), new) + at[t]
        sums = F["where"](wrap((t < lengths)[:, None]), new, sums)
    ends = 2 * labels[:, None]
    on_blank = F["gather"](sums, 1, wrap(ends))[:, 0]
    on_label = F["gather"](sums, 1, wrap(xp.maximum(ends - 1, 0)))[:, 0]
    some = wrap(labels > 0)
    return -F["where"](some, F["logaddexp"](on_blank, on_label), on_blank)


def ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=0, reduction="mean",
             zero_infinity=False) -> Tensor:
    """The CTC loss (Graves et al., ICML 2006).

    Args:
        log_probs: T×N×C or T×C, logarithms of probabilities.
        targets: N×S, or all labels in a row; integers without the blank.
        input_lengths, target_lengths: N each, tensors or sequences of ints.
        blank: the class of the blank.
        reduction: "mean" (of the losses over their numbers of labels), "sum" or "none".
        zero_infinity: count sequences without any possible path as 0.

    Raises:
        RuntimeError: if lengths, sizes or the blank do not fit.
    """
    alone = log_probs.ndim == 2
    if alone:
        log_probs = REGISTRY["unsqueeze"].call(log_probs, 1)
    inputs, labels = _ints(input_lengths), _ints(target_lengths)
    steps, batch, classes = log_probs._data.shape
    _check(steps, batch, classes, inputs, labels, blank, targets)
    rows = _padded_targets(targets, labels, classes)
    loss = ctc_rows.call(log_probs, rows, inputs, labels, blank, zero_infinity)
    if reduction == "sum":
        return REGISTRY["sum"].call(loss)
    if reduction == "mean":
        sizes = REGISTRY["to_dtype"].call(rows.new_tensor([max(n, 1) for n in labels]), loss.dtype)
        return REGISTRY["mean"].call(loss / sizes)
    if reduction != "none":
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return REGISTRY["squeeze"].call(loss, 0) if alone else loss


def _ints(lengths) -> tuple:
    values = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    return tuple(int(v) for v in (values if isinstance(values, (list, tuple)) else (values,)))


def _check(steps, batch, classes, inputs, labels, blank, targets):
    for name, given in (("input_lengths", inputs), ("target_lengths", labels)):
        if len(given) != batch:
            raise RuntimeError(f"{name} must be of size batch_size")
        if min(given, default=0) < 0:
            raise RuntimeError(f"{name} must not be negative, got {list(given)}")
    if not 0 <= blank < classes:
        raise RuntimeError("blank must be in label range")
    if max(inputs, default=0) > steps:
        raise RuntimeError(
            f"Expected input_lengths to have value at most {steps}, but got value {max(inputs)} "
            "(while checking arguments for ctc_loss_allocate_outputs)"
        )
    if targets.dtype.category != dtypes.INT:
        raise RuntimeError(f"ctc_loss takes integer targets, got {targets.dtype}")
    shape = targets._data.shape
    dim, size, want = 0, shape[0], sum(labels) if targets.ndim == 1 else batch
    if targets.ndim == 2 and size == want and shape[1] < max(labels, default=0):
        dim, size, want = 1, shape[1], max(labels)
    if size != want:
        raise RuntimeError(
            f"Expected tensor to have size {'at least ' * dim}{want} at dimension {dim}, but got "
            f"size {size} for argument #2 'targets' (while checking arguments for "
            "ctc_loss_allocate_outputs)"
        )


def _padded_targets(targets, labels, classes) -> Tensor:
    """N×S, S the longest; what lies after a sequence's labels is never looked at."""
    from ..backend import namespace_of

    a, longest = targets._data, max(labels, default=0)
    if a.ndim == 1:
        xp, flat = namespace_of(a), a
        a, start = xp.zeros((len(labels), longest), flat.dtype), 0
        for i, n in enumerate(labels):
            a[i, :n] = flat[start : start + n]
            start += n
    a = a[:, :longest]
    if a.size and not 0 <= int(a.min()) <= int(a.max()) < classes:
        inside = [a[i, :n] for i, n in enumerate(labels) if n]
        bad = [int(v) for row in inside for v in row.tolist() if not 0 <= v < classes]
        if bad:
            raise RuntimeError(f"ctc_loss: target {bad[0]} is not one of the {classes} classes")
        a = a.clip(0, classes - 1)  # padding of any value
    return wrap(a.astype("int64"))


FUNCTIONS = {"ctc_loss": ctc_loss}
