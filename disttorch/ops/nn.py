"""Operations of neural networks: softmax, normalisation, dropout, losses."""

from __future__ import annotations

from ..autograd.autocast import state as casting
from ..autograd.autocast import switch as autocast
from ..backend import dtypes, namespace_of
from ..tensor import Tensor
from . import rotary  # noqa: F401  (registers its ops)
from .core import REGISTRY, op, wrap_dim
from .samples import case

_SOFTMAX_CASES = lambda m: [  # noqa: E731
    case(m(3, 4), 1), case(m(2, 3, 4), 0), case(m(5), -1), case(m(), 0), case(m(0, 3), 1)]


@op(method=False, fused=True, samples=_SOFTMAX_CASES, name="softmax_over", node_name="Softmax")
def _softmax(xp, input, dim):
    return xp.softmax(input, wrap_dim(dim, input.ndim))


@_softmax.grad("input")
def _(F, g, out, dim):
    return out * (g - F.sum(g * out, dim, True))


@_softmax.fast_grad("input")
def _(F, g, needs, out, dim):
    return (F.xp.softmax_backward(g, out, dim),)


@op(method=False, fused=True, samples=_SOFTMAX_CASES, name="log_softmax_over",
    node_name="LogSoftmax")
def _log_softmax(xp, input, dim):
    return xp.log_softmax(input, wrap_dim(dim, input.ndim))


@_log_softmax.grad("input")
def _(F, g, out, dim):
    return g - F.exp(out) * F.sum(g, dim, True)


@_log_softmax.fast_grad("input")
def _(F, g, needs, out, dim):
    return (F.xp.log_softmax_backward(g, out, dim),)


def _in_dtype(name, input, dtype):
    if dtype is not None:
        return REGISTRY["to_dtype"].call(input, dtype)
    if input.dtype.category < dtypes.FLOAT:
        raise NotImplementedError(f'"{name}_kernel_impl" not implemented for \'{input.dtype.name}\'')
    return input


def softmax(input: Tensor, dim=None, _stacklevel=3, dtype=None) -> Tensor:
    """exp(input) / Σ exp(input) over ``dim``; ``dtype`` casts before."""
    return _softmax.apply((_in_dtype("softmax_lastdim", input, dtype), _implicit_dim(input, dim)))


def log_softmax(input: Tensor, dim=None, _stacklevel=3, dtype=None) -> Tensor:
    """log of softmax over ``dim``, without underflow."""
    return _log_softmax.apply((_in_dtype("log_softmax_lastdim", input, dtype),
                               _implicit_dim(input, dim)))


def _softmax_with_dim(name, function):
    """As ``torch.`` function and method the dim must be given; ``nn.functional`` guesses it."""

    def call(input, dim, dtype=None) -> Tensor:
        return function(input, dim, dtype=dtype)

    call.__name__, call.__doc__ = name, function.__doc__
    return call


def _implicit_dim(input, dim):
    return dim if dim is not None else 0 if input.ndim in (0, 1, 3) else 1


# ---------------------------------------------------------------- layer norm
@op(tensors=("input", "weight", "bias"), optional=("weight", "bias"), method=False, aux=True,
    fused=True, name="native_layer_norm", node_name="NativeLayerNorm", samples=lambda m: [
        case(m(3, 4), m(4), m(4), 1, 1e-5), case(m(2, 3, 4), m(3, 4), None, 2, 1e-5),
        case(m(2, 5), None, None, 1, 1e-3), case(m(0, 4), m(4), m(4), 1, 1e-5),
    ])
def _layer_norm(xp, input, weight, bias, ndim, eps):
    return xp.layer_norm_over(input, weight, bias, ndim, eps)


@_layer_norm.fast_grad("input", "weight", "bias")
def _(F, g, needs, input, weight, aux, ndim):
    return F.xp.layer_norm_over_backward(g, input, weight, ndim, aux, needs[1] or needs[2])


@_layer_norm.compose
def _(input, weight, bias, ndim, eps):
    dims = tuple(range(-ndim, 0))
    centred = input - REGISTRY["mean"].call(input, dims, True)
    variance = REGISTRY["mean"].call(centred * centred, dims, True)
    out = centred * REGISTRY["rsqrt"].call(variance + eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5) -> Tensor:
    """Normalise over the last dims, of ``normalized_shape``; then scale and shift.

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450.

    Raises:
        RuntimeError: if the shapes do not fit.
    """
    shape = tuple(normalized_shape)
    if not shape or input._data.shape[-len(shape):] != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape "
            f"[*, {', '.join(map(str, shape))}], but got input of size{list(input._data.shape)}"
        )
    for name, p in (("weight", weight), ("bias", bias)):
        if p is not None and p._data.shape != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(p._data.shape)} and normalized_shape = {list(shape)}"
            )
    return _layer_norm.apply((input, weight, bias, len(shape), eps))


@op(tensors=("input", "weight"), optional=("weight",), method=False, aux=True, fused=True,
    name="native_rms_norm", node_name="RmsNorm", samples=lambda m: [
        case(m(3, 4), m(4), 1, 1e-5), case(m(2, 3, 4), m(3, 4), 2, 1e-5),
        case(m(2, 5), None, 1, 1e-3), case(m(0, 4), m(4), 1, 1e-5),
    ])
def _rms_norm(xp, input, weight, ndim, eps):
    return xp.rms_norm_over(input, weight, ndim, eps)


@_rms_norm.fast_grad("input", "weight")
def _(F, g, needs, input, weight, aux, ndim):
    return F.xp.rms_norm_over_backward(g, input, weight, ndim, aux, needs[1])


@_rms_norm.compose
def _(input, weight, ndim, eps):
    dims = tuple(range(-ndim, 0))
    scale = REGISTRY["rsqrt"].call(REGISTRY["mean"].call(input * input, dims, True) + eps)
    return input * scale if weight is None else input * scale * weight


def rms_norm(input, normalized_shape, weight=None, eps=None) -> Tensor:
    """input / sqrt(mean(input²) + eps) over the last dims, then scaled (arXiv:1910.07467).

    Args:
        normalized_shape: of the last dims, which ``weight`` has, too.
        eps: by default the distance from 1 to the next number of the input's type.
    """
    shape = tuple(normalized_shape)
    if not shape or input._data.shape[-len(shape):] != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape "
            f"[*, {', '.join(map(str, shape))}], but got input of size{list(input._data.shape)}"
        )
    if weight is not None and weight._data.shape != shape:
        raise RuntimeError(
            f"Expected weight to be of same shape as normalized_shape, but got weight of shape "
            f"{list(weight._data.shape)} and normalized_shape = {list(shape)}"
        )
    if eps is None:
        eps = dtypes.finfo(input.dtype).eps
    return _rms_norm.apply((input, weight, len(shape), eps))


# ---------------------------------------------------------------- losses
_REDUCTIONS = ("none", "mean", "sum")


def _check_class_weight(weight, classes):
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(
            f"weight tensor should be defined either for all {classes} classes or no classes but got "
            f"weight tensor of shape: {list(weight.shape)}"
        )


@op(tensors=("input", "target", "weight"), optional=("weight",), method=False, aux=True,
    name="nll_rows", node_name="NllLoss", samples=lambda m: [
        case(m(4, 3), m.index(3, 4), None, -100, "mean", 0.0),
        case(m(4, 3), m.index(3, 4), m.constant(3, low=0.5), 1, "sum", 0.0),
        case(m(4, 3), m.index(3, 4), None, 2, "none", 0.0),
        case(m(4, 3), m.index(3, 4), m.constant(3, low=0.5), -100, "mean", 0.1),
    ])
def _nll(xp, input, target, weight, ignore_index, reduction, smoothing):
    """Loss of log-probabilities N×C at the targets N; aux holds weights of rows and their sum."""
    classes = input.shape[1]
    _check_class_weight(weight, classes)
    counted = target != ignore_index
    safe = xp.where(counted, target, 0)
    if safe.size and (safe.min() < 0 or safe.max() >= classes):
        bad = target[counted & ((target < 0) | (target >= classes))][0]
        raise IndexError(f"Target {int(bad)} is out of bounds.")
    rows = xp.ones(target.shape, input.dtype) if weight is None else weight[safe]
    rows = xp.where(counted, rows, input.dtype.type(0))
    picked = input[xp.arange(target.shape[0]), safe]
    loss = -picked * rows
    if smoothing:
        smooth = -input.sum(axis=1) if weight is None else -(input @ weight)
        smooth = xp.where(counted, smooth, input.dtype.type(0))
        loss = (1 - smoothing) * loss + smooth * (smoothing / classes)
    total = rows.sum()
    if reduction == "sum":
        loss = loss.sum()
    elif reduction == "mean":
        loss = loss.sum() / total
    return loss, (safe, rows, counted, total)


@_nll.grad("input")
def _(F, g, input, weight, aux, reduction, smoothing):
    safe, rows, counted, total = aux
    if reduction == "mean":
        g = g / total
    if reduction == "none":
        g = F.unsqueeze(g, 1)
    at = F.unsqueeze(safe, 1)
    grad = F.scatter_add(F.zeros_like(input), 1, at, -F.unsqueeze(rows, 1))
    if smoothing:
        each = F.ones_like(input) if weight is None else F.expand(weight, tuple(input.shape))
        each = F.where(F.unsqueeze(counted, 1), each, F.zeros_like(each))
        grad = grad * (1 - smoothing) - each * (smoothing / input.shape[1])
    return g * grad


@_nll.fast_grad("input")
def _(F, g, needs, input, weight, aux, reduction, smoothing):
    xp, (safe, rows, counted, total) = F.xp, aux
    if reduction == "mean":
        g = g / total
    if reduction == "none":
        g = g[:, None]
    grad = xp.zeros(input.shape, input.dtype)
    grad[xp.arange(safe.shape[0]), safe] = -rows
    if smoothing:
        each = xp.ones(input.shape[1], input.dtype) if weight is None else weight
        grad *= 1 - smoothing
        grad -= xp.where(counted[:, None], each * (smoothing / input.shape[1]), 0)
    grad *= g
    return (grad,)


@op(tensors=("input", "target", "weight"), optional=("weight",), method=False, aux=True,
    fused=True, name="cross_entropy_rows", node_name="NllLoss", samples=lambda m: [
        case(m(4, 3), m.index(3, 4), None, -100, "mean", 0.0),
        case(m(4, 3), m.index(3, 4), m.constant(3, low=0.5), 1, "sum", 0.0),
        case(m(4, 3), m.index(3, 4), None, 2, "none", 0.0),
        case(m(4, 3), m.index(3, 4), None, 2, "none", 0.1),
        case(m(4, 3), m.index(3, 4), m.constant(3, low=0.5), -100, "mean", 0.1),
    ])
def _cross_entropy(xp, input, target, weight, ignore_index, reduction, smoothing, wide=False):
    """Loss of logits N×C at the targets N in one go, without their logarithmic softmax in memory.

    ``wide``: a float32 loss of 16-bit logits, where the namespace has kernels that take them.
    """
    _check_class_weight(weight, input.shape[1])
    return xp.cross_entropy(input, target, weight, ignore_index, reduction, smoothing, wide)


@_cross_entropy.fast_grad("input")
def _(F, g, needs, input, target, weight, aux, ignore_index, reduction, smoothing):
    return (F.xp.cross_entropy_backward(g, input, target, weight, aux, ignore_index, reduction,
                                        smoothing),)


@_cross_entropy.compose
def _(input, target, weight, ignore_index, reduction, smoothing, wide=False):
    if wide:
        input = REGISTRY["to_dtype"].call(input, dtypes.float32)
    return _nll.call(_log_softmax.call(input, 1), target, weight, ignore_index, reduction, smoothing)


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None,
             reduction="mean", _smoothing=0.0) -> Tensor:
    """Negative log likelihood of log-probabilities ``input`` (N×C×…) at class ``target`` (N×…)."""
    reduction = legacy_reduction(size_average, reduce, reduction)
    rest = (weight, ignore_index, reduction, _smoothing)
    return _class_loss("nll_loss", _nll.call, input, target, reduction, rest)


def _class_loss(name, call, input, target, reduction, rest):
    """``call`` (rows N×C, targets N, *rest) for inputs C, N×C and N×C×…."""
    if input.ndim == 1:
        rows, flat = REGISTRY["unsqueeze"].call(input, 0), REGISTRY["reshape"].call(target, (1,))
        loss = call(rows, flat, *rest)
        return REGISTRY["reshape"].call(loss, ()) if reduction == "none" else loss
    want = input._data.shape[:1] + input._data.shape[2:]
    if target._data.shape != want:
        if target._data.shape[:1] != want[:1]:
            raise ValueError(
                f"Expected input batch_size ({want[0]}) to match target batch_size "
                f"({target._data.shape[0] if target.ndim else 0})."
            )
        raise RuntimeError(
            f"{name}: target of shape {list(target._data.shape)} does not fit an input of shape "
            f"{list(input._data.shape)}; expected {list(want)}"
        )
    if target.dtype.category != dtypes.INT:
        raise RuntimeError(f"expected scalar type Long but found {target.dtype.name.capitalize()}")
    if input.ndim == 2:
        return call(input, target, *rest)
    axes = (0, *range(2, input.ndim), 1)  # N×C×d… -> (N·d…)×C
    input = REGISTRY["reshape"].call(REGISTRY["permute"].call(input, axes), (-1, input._data.shape[1]))
    flat = REGISTRY["reshape"].call(target, (-1,))
    loss = call(input, flat, *rest)
    return REGISTRY["reshape"].call(loss, want) if reduction == "none" else loss


def cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None,
                  reduction="mean", label_smoothing=0.0) -> Tensor:
    """Cross entropy between logits and classes (or class probabilities).

    Args:
        input: logits, C, N×C or N×C×….
        target: classes (integers, shape without C), or probabilities of the input's shape.
        weight: a weight per class, C.
        ignore_index: targets that do not count.
        reduction: "mean" (weighted), "sum" or "none".
        label_smoothing: share of each target spread evenly over the classes.
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(
            f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}"
        )
    if input._data.shape == target._data.shape and target.dtype.category >= dtypes.FLOAT:
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    rest = (weight, ignore_index, reduction, label_smoothing)
    if namespace_of(input._data).fused_half and input.ndim:  # kernels that need no logarithm in memory
        input = _in_dtype("log_softmax_lastdim", input, None)
        # under autocast the loss is float32, as PyTorch's, without a float32 copy of the logits
        wide = autocast.on and input.device.type in casting.enabled
        return _class_loss("cross_entropy", _cross_entropy.call, input, target, reduction,
                           (*rest, wide))
    logp = log_softmax(input, 0 if input.ndim == 1 else 1)
    return _class_loss("cross_entropy", _nll.call, logp, target, reduction, rest)


def _soft_cross_entropy(input, target, weight, reduction, smoothing):
    dim = 0 if input.ndim == 1 else 1
    classes = input._data.shape[dim]
    if smoothing:
        target = target * (1 - smoothing) + smoothing / classes
    logp = log_softmax(input, dim)
    if weight is not None:
        shape = [1] * input.ndim
        shape[dim] = classes
        logp = logp * REGISTRY["reshape"].call(weight, tuple(shape))
    loss = -REGISTRY["sum"].call(logp * target, dim)
    if reduction == "none":
        return loss
    total = REGISTRY["sum"].call(loss)
    return total if reduction == "sum" else total / max(input._data.size // classes, 1)


def legacy_reduction(size_average, reduce, reduction) -> str:
    """PyTorch's old ``size_average`` and ``reduce`` flags in today's words."""
    if size_average is not None or reduce is not None:
        if reduce is False:
            return "none"
        return "sum" if size_average is False else "mean"
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


# ---------------------------------------------------------------- dropout
@op(method=False, aux=True, fused=True, name="native_dropout", node_name="Dropout")
def _dropout(xp, input, p, generator):
    """Zero elements with probability p and scale the others by 1/(1 − p)."""
    if p == 1:
        return xp.zeros_like(input), (xp.zeros(input.shape, bool),)
    out, keep = xp.dropout(input, p, generator)
    return out, (keep,)


@_dropout.grad("input")
def _(F, g, aux, p):
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return F.where(aux[0], g * scale, F.zeros_like(g))


@_dropout.fast_grad("input")
def _(F, g, needs, aux, p):
    return (F.xp.dropout_backward(g, aux[0], 0.0 if p == 1 else 1 / (1 - p)),)


def dropout(input, p=0.5, training=True, inplace=False) -> Tensor:
    """In training, zero elements with probability p and scale the rest by 1/(1 − p).

    Srivastava et al., JMLR 15 (2014).
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    from .random import default_generator

    result = _dropout.call(input, p, default_generator(input.device).source)
    return input.copy_(result) if inplace else result


COMPOSITES = {"softmax": _softmax_with_dim("softmax", softmax),
              "log_softmax": _softmax_with_dim("log_softmax", log_softmax), "dropout": dropout,
              "layer_norm": layer_norm, "rms_norm": rms_norm}
METHODS = {name: COMPOSITES[name] for name in ("softmax", "log_softmax")}
