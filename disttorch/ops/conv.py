"""Convolutions and transposed convolutions in one, two and three dims.

Three operations that are each other's gradients: ``conv_nd`` (linear in input and weight), and its
two adjoints. A transposed convolution is the gradient of the input with the roles exchanged.
"""

from __future__ import annotations

import math

from ..tensor import Tensor
from .core import REGISTRY, op
from .samples import case

# (input size, weight size, stride, padding, dilation, groups): every option at least once
_GEOMETRIES = [
    ((2, 3, 6), (4, 3, 3), (1,), (1,), (1,), 1),
    ((2, 4, 7), (6, 2, 2), (2,), (1,), (2,), 2),
    ((2, 2, 5, 4), (3, 2, 3, 2), (1, 1), (1, 0), (1, 1), 1),
    ((2, 2, 6, 5), (3, 2, 3, 2), (2, 1), (1, 1), (1, 2), 1),
    ((1, 2, 4, 4), (3, 2, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2, 5, 4), (3, 2, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((2, 3, 5, 4), (6, 1, 3, 2), (2, 1), (2, 1), (1, 2), 3),
    ((1, 2, 3, 4), (2, 2, 2, 2), (1, 1), (3, 2), (1, 1), 1),
    ((0, 2, 4, 4), (3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 2), 1),
]


def _out_size(case_):
    (_, _, *size), (_, _, *kernel), stride, padding, dilation, _ = case_
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1
                 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation))


def _conv_cases(m):
    return [case(m(*g[0]), m(*g[1]), m(g[1][0]) if i % 2 else None, *g[2:])
            for i, g in enumerate(_GEOMETRIES)]


def _input_grad_cases(m):
    return [case(m(g[0][0], g[1][0], *_out_size(g)), m(*g[1]), g[0][2:], *g[2:])
            for g in _GEOMETRIES]


def _weight_grad_cases(m):
    return [case(m(*g[0]), m(g[0][0], g[1][0], *_out_size(g)), g[1][2:], *g[2:])
            for g in _GEOMETRIES if g[0][0]]


@op(tensors=("input", "weight", "bias"), optional=("bias",), method=False, fused=True,
    node_name="Convolution", samples=_conv_cases)
def conv_nd(xp, input, weight, bias, stride, padding, dilation, groups):
    """N×C×S with O×(C/G)×K: N×O×P, cross-correlation."""
    return xp.conv(input, weight, bias, stride, padding, dilation, groups)


@conv_nd.fast_grad("input", "weight", "bias")
def _(F, g, needs, input, weight, stride, padding, dilation, groups):
    input, weight = F.conj(input), F.conj(weight)
    return F.xp.conv_grads(g, input, weight, needs, stride, padding, dilation, groups)


@conv_nd.grad("input")
def _(F, g, input_shape, weight, stride, padding, dilation, groups):
    size = tuple(input_shape[2:])
    return F.conv_input_grad(g, F.conj(weight), size, stride, padding, dilation, groups)


@conv_nd.grad("weight")
def _(F, g, input, weight_shape, stride, padding, dilation, groups):
    kernel = tuple(weight_shape[2:])
    return F.conv_weight_grad(F.conj(input), g, kernel, stride, padding, dilation, groups)


@conv_nd.grad("bias")
def _(F, g):
    return F.sum(g, (0, *range(2, g.ndim)))


@op(tensors=("grad", "weight"), method=False, fused=True, node_name="ConvolutionTransposed",
    samples=_input_grad_cases)
def conv_input_grad(xp, grad, weight, size, stride, padding, dilation, groups):
    """The adjoint of ``conv_nd`` in its input: N×O×P with O×(C/G)×K: N×C×S, S = ``size``."""
    return xp.conv_input_grad(grad, weight, size, stride, padding, dilation, groups)


@conv_input_grad.grad("grad")
def _(F, g, weight, stride, padding, dilation, groups):
    return F.conv_nd(g, F.conj(weight), None, stride, padding, dilation, groups)


@conv_input_grad.grad("weight")
def _(F, g, grad, weight_shape, stride, padding, dilation, groups):
    kernel = tuple(weight_shape[2:])
    return F.conv_weight_grad(g, F.conj(grad), kernel, stride, padding, dilation, groups)


@op(tensors=("input", "grad"), method=False, fused=True, samples=_weight_grad_cases)
def conv_weight_grad(xp, input, grad, kernel, stride, padding, dilation, groups):
    """The adjoint of ``conv_nd`` in its weight: N×C×S with N×O×P: O×(C/G)×K, K = ``kernel``."""
    return xp.conv_weight_grad(input, grad, kernel, stride, padding, dilation, groups)


@conv_weight_grad.grad("input")
def _(F, g, input_shape, grad, stride, padding, dilation, groups):
    size = tuple(input_shape[2:])
    return F.conv_input_grad(F.conj(grad), g, size, stride, padding, dilation, groups)


@conv_weight_grad.grad("grad")
def _(F, g, input, stride, padding, dilation, groups):
    return F.conv_nd(F.conj(input), g, None, stride, padding, dilation, groups)


# ---------------------------------------------------------------- checks
def spread_ints(value, dims: int, name: str) -> tuple:
    """One int for all dims, or one for each, as a tuple.

    Raises:
        TypeError: if it is something else.
        RuntimeError: if their number does not fit.
    """
    if isinstance(value, int):
        return (value,) * dims
    try:
        values = tuple(int(v) for v in value)
    except (TypeError, ValueError):
        raise TypeError(
            f"argument '{name}' must be tuple of ints or int, not {type(value).__name__}"
        ) from None
    if len(values) == 1:
        return values * dims
    if len(values) != dims:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {dims} values to match the "
            f"convolution dimensions, but got {name}={list(values)}"
        )
    return values


def _batched(name, input, dims):
    """(input with a batch dim, whether it had one)."""
    if input.ndim == dims + 2:
        return input, True
    if input.ndim == dims + 1:
        return REGISTRY["unsqueeze"].call(input, 0), False
    raise RuntimeError(
        f"Expected {dims + 1}D (unbatched) or {dims + 2}D (batched) input to {name}, but got input "
        f"of size: {list(input._data.shape)}"
    )


def _check_tensors(name, **tensors):
    for position, (label, t) in enumerate(tensors.items(), 1):
        if not (isinstance(t, Tensor) or t is None and label == "bias"):
            raise TypeError(
                f"{name}(): argument '{label}' (position {position}) must be Tensor, not "
                f"{type(t).__name__}"
            )
    kinds = {t.dtype.name: t for t in tensors.values() if t is not None}
    if len(kinds) > 1:
        have, want = tensors["input"].dtype.name, tensors["weight"].dtype.name
        if have != want:
            raise RuntimeError(
                f"Input type ({have}) and weight type ({want}) should be the same; convert one of "
                "them with .to()"
            )
        raise RuntimeError(
            f"Input type ({have}) and bias type ({tensors['bias'].dtype.name}) should be the same"
        )


def _check_options(stride, padding, dilation, groups):
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    if any(s <= 0 for s in stride):
        raise RuntimeError("non-positive stride is not supported")
    if any(p < 0 for p in padding):
        raise RuntimeError("negative padding is not supported")
    if any(d <= 0 for d in dilation):
        raise RuntimeError("dilation should be greater than zero")


def _check_weight(input, weight, bias, dims, groups, transposed):
    shape, x = weight._data.shape, input._data.shape
    if len(shape) != dims + 2:
        raise RuntimeError(
            f"Expected {dims + 2}-dimensional input for {dims + 2}-dimensional weight, but got "
            f"weight of size {list(shape)} instead"
        )
    kind = "transposed=1" if transposed else f"groups={groups}"
    given = f"Given {kind}, weight of size {list(shape)}"
    if transposed:
        if x[1] != shape[0]:
            raise RuntimeError(
                f"{given}, expected input{list(x)} to have {shape[0]} channels, but got {x[1]} "
                "channels instead"
            )
        outs = shape[1] * groups
    else:
        if shape[0] < groups:
            raise RuntimeError(
                f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
                f"but got weight of size {list(shape)} instead"
            )
        if shape[0] % groups:
            raise RuntimeError(
                f"Given groups={groups}, expected weight to be divisible by {groups} at dimension "
                f"0, but got weight of size {list(shape)} instead"
            )
        if x[1] != shape[1] * groups:
            raise RuntimeError(
                f"{given}, expected input{list(x)} to have {shape[1] * groups} channels, but got "
                f"{x[1]} channels instead"
            )
        outs = shape[0]
    if bias is not None and bias._data.shape != (outs,):
        raise RuntimeError(
            f"{given}, expected bias to be 1-dimensional with {outs} elements, but got bias of "
            f"size {list(bias._data.shape)} instead"
        )


def _same_padding(input, kernel, stride, dilation):
    """'same': (input padded by one more at the end where that is needed, the symmetric rest)."""
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if any(t % 2 for t in total):
        extra = [side for t in reversed(total) for side in (0, t % 2)]
        input = REGISTRY["constant_pad"].call(input, tuple(extra), 0.0)
    return input, tuple(t // 2 for t in total)


_checked: dict[tuple, tuple] = {}  # calls that passed the checks: their options for each dim


def _convolve(name, dims, input, weight, bias, stride, padding, dilation, groups):
    try:
        x, w = input._data, weight._data
        key = (dims, x.shape, x.dtype, w.shape, w.dtype,
               None if bias is None else (bias._data.shape, bias._data.dtype), stride, padding, dilation,
               groups)
        options = _checked.get(key)
    except (AttributeError, TypeError):  # no tensors, or lists of options
        key = options = None
    if options is not None:
        return conv_nd.call(input, weight, bias, *options, groups)
    _check_tensors(name, input=input, weight=weight, bias=bias)
    input, batched = _batched(name, input, dims)
    stride = spread_ints(stride, dims, "stride")
    dilation = spread_ints(dilation, dims, "dilation")
    kernel = weight._data.shape[2:]
    asked = padding
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(
                f"Invalid padding string: '{padding}': it must be 'same' or 'valid'"
            )
        padding = (0,) * dims
    padding = spread_ints(padding, dims, "padding")
    _check_options(stride, padding, dilation, groups)
    _check_weight(input, weight, bias, dims, groups, transposed=False)
    if asked == "same":
        input, padding = _same_padding(input, kernel, stride, dilation)
    padded = [n + 2 * p for n, p in zip(input._data.shape[2:], padding)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    if any(n < r for n, r in zip(padded, reach)):
        text = " x ".join(map(str, padded)), " x ".join(map(str, reach))
        raise RuntimeError(
            f"Calculated padded input size per channel: ({text[0]}). Kernel size: ({text[1]}). "
            "Kernel size can't be greater than actual input size"
        )
    if batched and asked != "same" and key is not None:
        if len(_checked) >= 4096:  # shapes that keep changing
            _checked.clear()
        _checked[key] = stride, padding, dilation
    out = conv_nd.call(input, weight, bias, stride, padding, dilation, groups)
    return out if batched else REGISTRY["squeeze"].call(out, 0)


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Cross-correlation over the last dim.

    Args:
        input: N×C×L or C×L; weight: O×(C/groups)×K; bias: O or None.
        stride, dilation: steps between windows, and between a window's elements.
        padding: zeros put on both sides, or "valid" (none), or "same" (the output keeps the size).
        groups: channels in and out are split into this many independent groups.

    Raises:
        RuntimeError: if shapes, dtypes or options do not fit.
    """
    return _convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Cross-correlation over the last two dims: N×C×H×W with O×(C/groups)×KH×KW; see conv1d."""
    return _convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Cross-correlation over the last three dims: N×C×D×H×W; see conv1d."""
    return _convolve("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def _convolve_transposed(name, dims, input, weight, bias, stride, padding, output_padding, groups,
                         dilation):
    _check_tensors(name, input=input, weight=weight, bias=bias)
    input, batched = _batched(name, input, dims)
    stride, padding, output_padding, dilation = (
        spread_ints(v, dims, n) for v, n in (
            (stride, "stride"), (padding, "padding"), (output_padding, "output_padding"),
            (dilation, "dilation"))
    )
    _check_options(stride, padding, dilation, groups)
    if any(p < 0 for p in output_padding):
        raise RuntimeError("negative output_padding is not supported")
    _check_weight(input, weight, bias, dims, groups, transposed=True)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation)):
        raise RuntimeError(
            "output padding must be smaller than either stride or dilation, but got "
            f"output_padding={list(output_padding)}, stride={list(stride)}, "
            f"dilation={list(dilation)}"
        )
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(input._data.shape[2:], stride, padding, dilation,
                                    weight._data.shape[2:], output_padding)
    )
    if any(n < 1 for n in size) and math.prod(input._data.shape):
        raise RuntimeError(
            f"Given input size per channel: {list(input._data.shape[2:])}. Calculated output size "
            f"per channel: {list(size)}. Output size is too small"
        )
    out = conv_input_grad.call(input, weight, size, stride, padding, dilation, groups)
    if bias is not None:
        out = out + REGISTRY["reshape"].call(bias, (-1, *(1,) * dims))
    return out if batched else REGISTRY["squeeze"].call(out, 0)


def conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
                     dilation=1) -> Tensor:
    """The adjoint of conv1d: N×C×L with C×(O/groups)×K, to N×O×((L−1)·stride − 2·padding +
    dilation·(K−1) + output_padding + 1)."""
    return _convolve_transposed("conv_transpose1d", 1, input, weight, bias, stride, padding,
                                output_padding, groups, dilation)


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
                     dilation=1) -> Tensor:
    """The adjoint of conv2d; see conv_transpose1d."""
    return _convolve_transposed("conv_transpose2d", 2, input, weight, bias, stride, padding,
                                output_padding, groups, dilation)


def conv_transpose3d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
                     dilation=1) -> Tensor:
    """The adjoint of conv3d; see conv_transpose1d."""
    return _convolve_transposed("conv_transpose3d", 3, input, weight, bias, stride, padding,
                                output_padding, groups, dilation)


def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding,
                groups) -> Tensor:
    """Any of the above, by the number of dims of ``weight``."""
    dims = weight.ndim - 2
    if transposed:
        return _convolve_transposed("convolution", dims, input, weight, bias, stride, padding,
                                    output_padding, groups, dilation)
    return _convolve("convolution", dims, input, weight, bias, stride, padding, dilation, groups)


def conv_tbc(input, weight, bias, pad=0) -> Tensor:
    """conv1d of time×batch×channels with a K×C×O weight: time×batch×O."""
    permute = REGISTRY["permute"].call
    out = conv1d(permute(input, (1, 2, 0)), permute(weight, (2, 1, 0)), bias, padding=pad)
    return permute(out, (2, 0, 1))


FUNCTIONS = {f.__name__: f for f in (conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d,
                                     conv_transpose3d, convolution, conv_tbc)}
