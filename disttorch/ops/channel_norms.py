"""Normalisation over the batch, over groups of channels and over single samples' channels.

Ioffe & Szegedy, "Batch normalization", arXiv:1502.03167; Wu & He, "Group normalization",
arXiv:1803.08494; Ulyanov et al., "Instance normalization", arXiv:1607.08022.
"""

from __future__ import annotations

import math

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .core import F32, REGISTRY, device_error, op, share_version
from .samples import case


def _batch_norm_cases(m):
    def stats(c):
        return m.constant(c), m.constant(c, low=0.5)

    return [
        case(m(4, 3), m(3), m(3), None, None, True, 1e-3),
        case(m(2, 3, 4), m(3), m(3), None, None, True, 1e-5),
        case(m(2, 2, 3, 2), None, None, None, None, True, 1e-3),
        case(m(2, 3, 4), m(3), m(3), *stats(3), False, 1e-3),
        case(m(2, 2, 3, 2), None, m(2), *stats(2), False, 1e-3),
    ]


@op(tensors=("input", "weight", "bias", "mean", "var"), optional=("weight", "bias", "mean", "var"),
    method=False, fused=True, name="batch_norm_nd", node_name="NativeBatchNorm",
    samples=_batch_norm_cases)
def _batch_norm(xp, input, weight, bias, mean, var, training, eps):
    """N×C×… normalised per channel. In training the statistics are the batch's own, whether given
    or not, and gradients flow through them; in evaluation they are constants."""
    if mean is None:
        mean, var = xp.batch_stats(input)
    return xp.normalize_channels(input, weight, bias, mean, var, eps)


@_batch_norm.fast_grad("input", "weight", "bias")
def _(F, g, needs, input, weight, mean, var, training, eps):
    if mean is None:
        mean, var = F.xp.batch_stats(input)
    return F.xp.normalize_channels_backward(g, input, weight, mean, var, eps, training, needs)


@_batch_norm.compose
def _(input, weight, bias, mean, var, training, eps):
    dims = (0, *range(2, input.ndim))
    average = REGISTRY["mean"].call
    column = (-1, *(1,) * (input.ndim - 2))
    if training:
        centred = input - average(input, dims, True)
        var = average(centred * centred, dims, True)
    else:
        centred = input - REGISTRY["reshape"].call(mean, column)
        var = REGISTRY["reshape"].call(var, column)
    return _affine(centred * REGISTRY["rsqrt"].call(var + eps), weight, bias)


def _affine(out, weight, bias):
    column = (-1, *(1,) * (out.ndim - 2))
    if weight is not None:
        out = out * REGISTRY["reshape"].call(weight, column)
    return out if bias is None else out + REGISTRY["reshape"].call(bias, column)


def batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps,
               cudnn_enabled=False, *, seen=None) -> Tensor:
    """Zero mean and unit variance per channel of N×C×…, then scale and shift.

    Args:
        weight, bias: C, or None.
        running_mean, running_var: C, or None; used in evaluation, moved towards the batch's (the
            variance unbiased) in training: new = (1 − momentum)·old + momentum·batch.
        training: normalise by the batch's own statistics.
        seen: an integer tensor of no dims that goes up by one in training, or None: layers count
            batches, and on a GPU that takes no launch of its own here.

    Raises:
        RuntimeError: if shapes do not fit.
        ValueError: in training with a single value per channel.
    """
    shape = input._data.shape
    if len(shape) < 2:
        raise RuntimeError(
            f"batch_norm expects at least 2 dims, but got input of size {list(shape)}"
        )
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight,
             "bias": bias}
    for name, t in named.items():
        if t is not None and t._data.size != shape[1]:
            raise RuntimeError(
                f"{name} should contain {shape[1]} elements not {t._data.size}"
            )
        if t is not None and t._data.__class__ is not input._data.__class__:
            raise device_error("batch_norm", input._data, t._data)
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("running_mean and running_var must be defined in evaluation mode")
    mean, var = running_mean, running_var
    if training:
        mean, var = _batch_stats(input, running_mean, running_var, momentum, seen)
    return _batch_norm.call(input, weight, bias, mean, var, training, eps)


def _batch_stats(input, running_mean=None, running_var=None, momentum=0.0, seen=None):
    """(mean, biased variance) per channel, in float32 for 16-bit types. The running statistics,
    where given, move towards them in place, and the count ``seen`` goes up."""
    a, xp = input._data, namespace_of(input._data)
    kept = None if seen is None else seen._data
    if kept is not None and not (kept.__class__ is a.__class__ and kept.dtype == dtypes.int64.np):
        seen.add_(1)  # a count that is kept elsewhere
        seen = None
    changed = running_mean, running_var, seen
    mean, var, count = [None if t is None else t._data for t in changed]
    stats = xp.batch_stats(a, mean, var, momentum, count)
    for t in changed:
        if t is not None and (t is seen or a.shape[0]):
            share_version(t)[0] += 1
    return tuple(map(wrap, stats))


def instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,
                  cudnn_enabled=False) -> Tensor:
    """``batch_norm`` with every sample's channel on its own (N·C channels of one sample).

    Running statistics are the means over the batch.
    """
    if not use_input_stats and (running_mean is None or running_var is None):
        raise ValueError(
            "Expected running_mean and running_var to be defined when use_input_stats is False"
        )
    shape = input._data.shape
    n, c = shape[:2]

    def repeated(t):
        if t is None:
            return None
        return REGISTRY["reshape"].call(
            REGISTRY["expand"].call(REGISTRY["unsqueeze"].call(t, 0), (n, c)), (n * c,)
        )

    stats = (running_mean, running_var)
    mean, var = (None if t is None else repeated(t.detach()).clone() for t in stats)
    flat = REGISTRY["reshape"].call(input, (1, n * c, *shape[2:]))
    weight, bias = repeated(weight), repeated(bias)
    out = batch_norm(flat, weight, bias, mean, var, use_input_stats, momentum, eps)
    if use_input_stats:
        for running, new in ((running_mean, mean), (running_var, var)):
            if running is not None and new is not None:
                running._data[...] = new._data.reshape(n, c).mean(axis=0)
                share_version(running)[0] += 1
    return REGISTRY["reshape"].call(out, shape)


def _by_channel(xp, a):
    return xp.ascontiguousarray(a).reshape(*a.shape[:2], math.prod(a.shape[2:]))


@op(tensors=("input", "weight", "bias"), optional=("weight", "bias"), method=False, aux=True,
    name="group_norm_nd", node_name="NativeGroupNorm", samples=lambda m: [
        case(m(2, 4, 3), m(4), m(4), 2, 1e-3), case(m(2, 6, 2, 2), None, None, 3, 1e-5),
        case(m(3, 4), m(4), None, 1, 1e-3), case(m(0, 4, 2), m(4), m(4), 2, 1e-5),
    ])
def _group_norm(xp, input, weight, bias, groups, eps):
    out, *stats = xp.group_norm(_by_channel(xp, input), weight, bias, groups, eps)
    return out.reshape(input.shape), tuple(stats)


@_group_norm.fast_grad("input", "weight", "bias")
def _(F, g, needs, input, weight, aux):
    rows = (_by_channel(F.xp, a) for a in (g, input))
    gx, gw, gb = F.xp.group_norm_backward(*rows, weight, *aux)
    return gx.reshape(input.shape), gw, gb


@_group_norm.compose
def _(input, weight, bias, groups, eps):
    shape = input._data.shape
    rows = REGISTRY["reshape"].call(input, (shape[0], groups, math.prod(shape[1:]) // groups))
    centred = rows - REGISTRY["mean"].call(rows, 2, True)
    var = REGISTRY["mean"].call(centred * centred, 2, True)
    normal = REGISTRY["reshape"].call(centred * REGISTRY["rsqrt"].call(var + eps), shape)
    return _affine(normal, weight, bias)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True) -> Tensor:
    """Zero mean and unit variance over each of ``num_groups`` groups of channels of each sample.

    Args:
        input: N×C×…; weight, bias: C, or None.

    Raises:
        RuntimeError: if the channels do not divide into groups or shapes do not fit.
    """
    shape = input._data.shape
    if len(shape) < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {len(shape)}"
        )
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if shape[1] % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(shape)} and num_groups={num_groups}"
        )
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t._data.shape != (shape[1],):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, "
                f"but got {name} of shape {list(t._data.shape)} and input of shape {list(shape)}"
            )
    return _group_norm.call(input, weight, bias, num_groups, eps)


def native_batch_norm(
    input, weight, bias, running_mean, running_var, training, momentum, eps
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_norm`` with what it saves: (output, mean, 1/√(var + eps)), empty in evaluation."""
    out = batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)
    if not training:
        empty = REGISTRY["zeros_shaped"].call(input.detach(), (0,))
        return out, empty, empty
    mean, var = _batch_stats(input)
    return out, mean, (var + eps) ** -0.5


def native_group_norm(input, weight, bias, N, C, HxW, group, eps):
    """``group_norm`` of N·C·HxW elements with what it saves: (output, mean, 1/√(variance + eps))."""
    out = group_norm(input, group, weight, bias, eps)
    a = input._data
    xp = namespace_of(a)
    rows = a.astype(F32) if a.itemsize == 2 else a
    _, mean, rstd = xp.group_norm(rows.reshape(N, C, HxW), None, None, group, eps)
    return out, *(wrap(stat.astype(a.dtype)) for stat in (mean, rstd))


FUNCTIONS = {"batch_norm": batch_norm, "instance_norm": instance_norm, "group_norm": group_norm,
             "native_batch_norm": native_batch_norm,
             "native_group_norm": native_group_norm}
