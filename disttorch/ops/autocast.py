"""Which operations autocast casts, and how: PyTorch's lists for CPU and GPU.

- ``LOWER``: matrix products, convolutions and attention run in the lower-precision type.
- ``FLOAT32``: what loses accuracy or range in 16 bits runs in float32.
- ``WIDEST``: operations that need operands of one type take the widest among them.
- ``AS_IS``: no rule of its own in PyTorch, but written here with operations that have one.
- ``REFUSED``: unsafe in 16 bits.

Registered ops look here from ``Op.apply``; functions written with other ops are wrapped by
``points`` when their module is put together, and run their parts as they are. Only float16,
bfloat16 and float32 tensors of the region's device are ever cast. See "Autocast Op Reference" of
PyTorch's documentation.
"""

from __future__ import annotations

import functools

from ..autograd.autocast import state, switch
from ..autograd.modes import state as grad_state
from ..backend import dtypes, gpu_arrays, namespace_of, ndarray
from ..tensor import Tensor
from .casts import to_dtype

_CONVOLUTIONS = ("conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d")
_PRODUCTS = ("addbmm addmm baddbmm bmm chain_matmul einsum inner linalg.multi_dot linalg.vecdot "
             "linear matmul mm prelu scaled_dot_product_attention tensordot")
_LOSSES = (
    "cosine_embedding_loss cross_entropy hinge_embedding_loss huber_loss kl_div l1_loss "
    "margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss "
    "poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss "
    "binary_cross_entropy_with_logits"
)
_FFT = "fft ifft fft2 ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft"
_LINALG = ("cond matrix_rank solve cholesky cholesky_ex svd svdvals eig eigvals eigh eigvalsh inv "
           "inv_ex householder_product tensorinv tensorsolve qr lstsq")

LOWER, FLOAT32, WIDEST, AS_IS, REFUSED = "lower", "float32", "widest", "as is", "refused"


def _table(**lists) -> dict:
    return {name: policy for policy, names in lists.items() for name in names.split()}


_CPU = _table(
    lower=f"{_CONVOLUTIONS} {_PRODUCTS} lstm_layer",
    float32=f"{_LOSSES} " + " ".join(f"fft.{n}" for n in _FFT.split()) + " "
    + " ".join(f"linalg.{n}" for n in _LINALG.split())
    + " avg_pool3d binary_cross_entropy grid_sample polar prod quantile nanquantile stft "
    "cdist trace view_as_complex cholesky cholesky_inverse cholesky_solve inverse lu_solve orgqr "
    "ormqr pinverse geqrf lu qr svd triangular_solve max_pool3d max_unpool2d max_unpool3d "
    "adaptive_avg_pool3d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d ctc_loss",
    widest="cat stack index_copy",
)
_CPU |= dict.fromkeys(("mv", "dot", "vdot", "addmv", "addr", "bilinear", "lstm_cell"), AS_IS)
_CUDA = _table(
    lower=f"{_CONVOLUTIONS} {_PRODUCTS} addmv addr mv rnn_layer lstm_layer gru_layer "
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    float32=f"{_LOSSES} acos asin cosh cosine_similarity cdist cumprod cumsum dist erfinv exp "
    "expm1 group_norm layer_norm linalg.matrix_norm linalg.vector_norm log log10 log1p log2 "
    "log_softmax logsumexp native_layer_norm norm pdist pow prod reciprocal renorm rms_norm rsqrt "
    "sinh softmax softplus sum tan interpolate",
    widest="addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put scatter_add",
    refused="binary_cross_entropy",
)
_CUDA["tensordot"] = WIDEST


def _cross_entropy_policy(args):
    """Of 16-bit logits and classes a namespace's kernels make a float32 loss themselves: the logits,
    the largest array of many models, are not copied (see ``nn.cross_entropy``)."""
    arrays = [a._data for a in args if isinstance(a, Tensor)]
    classes = any(a.dtype.kind in "iu" for a in arrays)
    return None if classes and namespace_of(arrays[0]).fused_half else FLOAT32


_CUDA["cross_entropy"] = _cross_entropy_policy


def _pad_policy(args):
    """On the CPU PyTorch reflects and repeats edges in float32 (but reflects 3-d ones as they are)."""
    mode = next((a for a in args if a.__class__ is str), "constant")
    three = any(isinstance(a, (tuple, list)) and len(a) == 6 for a in args)
    return FLOAT32 if mode == "replicate" or mode == "reflect" and not three else None


_CPU["pad"] = _pad_policy
POLICIES = {"cpu": _CPU, "cuda": _CUDA}

_F32 = dtypes.float32.np
FLOATS = frozenset((dtypes.float16.np, dtypes.bfloat16.np, _F32))


# ---------------------------------------------------------------- finding what to do
def _device_type(args):
    """The type of the device of the first tensor among arguments and lists of them, or None."""
    for a in args:
        if isinstance(a, Tensor):
            kind = a._data.__class__
            return "cpu" if kind is ndarray else "cuda" if kind in gpu_arrays else a.device.type
        if a.__class__ is list or a.__class__ is tuple:
            found = _device_type(a)
            if found is not None:
                return found
    return None


def _policy(name, args):
    """(policy, device type) of a call in this thread; (None, None) if it runs as it is."""
    enabled = state.enabled
    if not enabled:
        return None, None
    device = _device_type(args)
    if device not in enabled:
        return None, None
    policy = POLICIES[device].get(name)
    return (policy(args) if callable(policy) else policy), device


def cast_args(op, args):
    """The arguments of a registered op as autocast wants them; called from ``Op.apply``."""
    policy, device = _policy(op.name, args)
    if policy is None or policy is AS_IS:
        return args
    dtype = _target(policy, op.name, args, device)
    if dtype is None:
        return args
    made, wanted, on_cpu = None, dtype.np, device == "cpu"
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            a = value._data
            if a.dtype is wanted or a.dtype not in FLOATS or (a.__class__ is ndarray) is not on_cpu:
                continue
            value = value if a.dtype == wanted else _cached_cast(value, dtype, device)
        elif value.__class__ is tuple or value.__class__ is list:
            value = _cast(value, dtype, device)
        else:
            continue
        if made is None:
            made = list(args)
        made[i] = value
    return args if made is None else tuple(made)


switch.cast = cast_args


def _target(policy, name, args, device):
    if policy is LOWER:
        return state.dtypes[device]
    if policy is FLOAT32:
        return dtypes.float32
    if policy is WIDEST:
        return _widest(args, device)
    raise RuntimeError(
        f"torch.nn.functional.{name} and torch.nn.BCELoss are unsafe to autocast.\nMany models use "
        "a sigmoid layer right before the binary cross entropy layer.\nIn this case, combine the "
        "two layers using torch.nn.functional.binary_cross_entropy_with_logits\nor "
        "torch.nn.BCEWithLogitsLoss.  binary_cross_entropy_with_logits and BCEWithLogits are\nsafe "
        "to autocast."
    )


def _widest(args, device):
    """float32 if any tensor is, else the lower type; None without floats."""
    found = {t._data.dtype for t in _tensors(args) if _eligible(t, device)}
    if not found:
        return None
    if dtypes.float32.np in found:
        return dtypes.float32
    if found == {state.dtypes[device].np}:
        return state.dtypes[device]
    raise RuntimeError(
        "Unexpected floating ScalarType in at::autocast::prioritize: under autocast to "
        f"{state.dtypes[device]} the operands are {sorted(map(str, found))}; cast them to one type "
        "before"
    )


def _tensors(values):
    for v in values:
        if isinstance(v, Tensor):
            yield v
        elif v.__class__ is list or v.__class__ is tuple:
            yield from _tensors(v)


# ---------------------------------------------------------------- casting
def _eligible(t, device) -> bool:
    a = t._data
    return a.dtype in FLOATS and (a.__class__ is ndarray) == (device == "cpu")


def _cast(value, dtype, device):
    """Tensors in (nested) arguments cast to ``dtype``; everything else as it is."""
    if isinstance(value, Tensor):
        if dtype is None or not _eligible(value, device) or value._data.dtype == dtype.np:
            return value
        return _cached_cast(value, dtype, device)
    if value.__class__ is tuple or value.__class__ is list:
        return value.__class__([v if v.__class__ is int else _cast(v, dtype, device) for v in value])
    return value


def _cached_cast(t, dtype, device):
    """Cast; a float32 weight only once in a region, so that its uses share one node."""
    if not (
        state.cache_enabled and t._rg and t._node is None and t._base is None
        and dtype is state.dtypes[device] and t._data.dtype == _F32
    ):
        return to_dtype.apply((t, dtype))
    # under no_grad the cast has no graph: it must not serve where one is wanted
    key = id(t), dtype, grad_state.enabled
    found, version = state.cache.get(key), 0 if t._ver is None else t._ver[0]
    if found is None or found[0] is not t or found[1] != version or found[2] != id(t._data):
        found = state.cache[key] = (t, version, id(t._data), to_dtype.apply((t, dtype)))
    return found[3]


# ---------------------------------------------------------------- functions made of other ops
def _point(name, function):
    """``function`` cast under autocast as the lists say for ``name``."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if not switch.on:
            return function(*args, **kwargs)
        policy, device = _policy(name, (*args, *kwargs.values()))
        if policy is None:
            return function(*args, **kwargs)
        if policy is not AS_IS:
            target = _target(policy, name, (*args, *kwargs.values()), device)
            args = _cast(args, target, device)
            kwargs = {k: _cast(v, target, device) for k, v in kwargs.items()}
        enabled, state.enabled = state.enabled, state.enabled - {device}
        try:  # its parts see the cast operands and are left alone
            return function(*args, **kwargs)
        finally:
            state.enabled = enabled

    return call


def points(namespace: dict, prefix: str = "") -> dict:
    """The functions of a namespace that autocast knows, wrapped.

    Args:
        namespace: name to function; registered ops are left out, as they look by themselves.
        prefix: of the names in the lists, for example ``"linalg."``.
    """
    return {
        name: _point(prefix + name, f)
        for name, f in namespace.items()
        if _listed(prefix + name) and callable(f) and not _looks_itself(f)
    }


def close_lists(ops) -> None:
    """Tell registered ops that no list names: their calls need not look here."""
    for op in ops:
        op.casts = _listed(op.name)


def _listed(name: str) -> bool:
    return any(name in policy for policy in POLICIES.values())


def _looks_itself(function) -> bool:
    op = getattr(function, "op", None)
    return op is not None and _listed(op.name)


__all__ = ["POLICIES", "cast_args", "points"]
