"""``torch.autocast``: a region in which operations choose their precision.

The lists of operations are in ``ops/autocast.py``; here is what switches them on.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping

from ..autograd.autocast import DEVICES, check_device_type, set_enabled, state
from ..backend import dtypes
from ..tensor import Tensor

_SUPPORTED = (dtypes.bfloat16, dtypes.float16)


def is_autocast_available(device_type: str) -> bool:
    """Whether autocast knows this type of device: "cpu" and "cuda"."""
    return device_type in DEVICES


# ---------------------------------------------------------------- the state of this thread
def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether operations on this type of device are cast in this thread."""
    return check_device_type(device_type) in state.enabled


def set_autocast_enabled(device_type, enabled: bool | None = None) -> None:
    """Switch casting on or off, without a region; ``set_autocast_enabled(flag)`` is for "cuda"."""
    if enabled is None:
        device_type, enabled = "cuda", device_type
    set_enabled(check_device_type(device_type), bool(enabled))


def get_autocast_dtype(device_type: str) -> dtypes.dtype:
    """The lower-precision dtype: bfloat16 on "cpu" and float16 on "cuda", unless set otherwise."""
    return state.dtypes[check_device_type(device_type)]


def set_autocast_dtype(device_type: str, dtype: dtypes.dtype) -> None:
    """Choose the lower-precision dtype of this thread."""
    state.dtypes = {**state.dtypes, check_device_type(device_type): dtype}


def is_autocast_cpu_enabled() -> bool:
    """``is_autocast_enabled("cpu")``."""
    return is_autocast_enabled("cpu")


def set_autocast_cpu_enabled(enabled: bool) -> None:
    """``set_autocast_enabled("cpu", enabled)``."""
    set_autocast_enabled("cpu", enabled)


def get_autocast_cpu_dtype() -> dtypes.dtype:
    """``get_autocast_dtype("cpu")``."""
    return get_autocast_dtype("cpu")


def set_autocast_cpu_dtype(dtype: dtypes.dtype) -> None:
    """``set_autocast_dtype("cpu", dtype)``."""
    set_autocast_dtype("cpu", dtype)


def get_autocast_gpu_dtype() -> dtypes.dtype:
    """``get_autocast_dtype("cuda")``."""
    return get_autocast_dtype("cuda")


def set_autocast_gpu_dtype(dtype: dtypes.dtype) -> None:
    """``set_autocast_dtype("cuda", dtype)``."""
    set_autocast_dtype("cuda", dtype)


def is_autocast_cache_enabled() -> bool:
    """Whether casts of weights are kept until the region ends."""
    return state.cache_enabled


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Keep casts of weights until the region ends, or cast them at each use."""
    state.cache_enabled = bool(enabled)


def clear_autocast_cache() -> None:
    """Drop the casts of weights."""
    state.cache = {}


def autocast_increment_nesting() -> int:
    """Note that a region begins; returns how many are open."""
    state.nesting += 1
    return state.nesting


def autocast_decrement_nesting() -> int:
    """Note that a region ends; returns how many are still open."""
    state.nesting -= 1
    return state.nesting


# ---------------------------------------------------------------- the region
class autocast:
    """A region (``with``) or a function (as decorator) in which operations choose their precision.

    Matrix products, convolutions and attention run in ``dtype``; reductions, losses and functions
    that lose accuracy in 16 bits run in float32. Use it around forward and loss, not backward:
    gradients come in the types of their tensors. Regions nest; the state is per thread.

    Args:
        device_type: "cpu" or "cuda": which tensors are cast.
        dtype: bfloat16 or float16; that of ``get_autocast_dtype`` if None.
        enabled: False makes a region without casts, also inside another.
        cache_enabled: cast each float32 weight once until the outermost region ends.

    Raises:
        ValueError, RuntimeError: if ``device_type`` is no string, or another device.
    """

    def __init__(
        self, device_type: str, dtype: dtypes.dtype | None = None, enabled: bool = True,
        cache_enabled: bool | None = None,
    ):
        if not isinstance(device_type, str):
            raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
        if not is_autocast_available(device_type):
            raise RuntimeError(
                f"User specified an unsupported autocast device_type '{device_type}'"
            )
        self.device = device_type
        self.fast_dtype = get_autocast_dtype(device_type) if dtype is None else dtype
        self._cache_enabled = state.cache_enabled if cache_enabled is None else cache_enabled
        self._enabled = bool(enabled) and self._can_be_enabled()

    def _can_be_enabled(self) -> bool:
        if self.device == "cuda":
            from .. import cuda

            if not cuda.is_available():
                warnings.warn(
                    "CUDA is not available or torch_xla is imported. Disabling autocast.",
                    stacklevel=3,
                )
                return False
            return True
        if self.fast_dtype not in _SUPPORTED:
            warnings.warn(
                f"In {self.device.upper()} autocast, but the target dtype is not supported. "
                f"Disabling autocast.\n{self.device.upper()} Autocast only supports dtypes of "
                f"{', '.join(map(str, _SUPPORTED))} currently.",
                stacklevel=3,
            )
            return False
        return True

    def __enter__(self):
        self.prev_cache_enabled = state.cache_enabled
        self.prev, self.prev_fastdtype = self.device in state.enabled, state.dtypes[self.device]
        set_enabled(self.device, self._enabled)
        set_autocast_dtype(self.device, self.fast_dtype)
        autocast_increment_nesting()
        state.cache_enabled = self._cache_enabled
        return self

    def __exit__(self, *exc):
        if autocast_decrement_nesting() == 0:
            clear_autocast_cache()
        set_enabled(self.device, self.prev)
        set_autocast_dtype(self.device, self.prev_fastdtype)
        state.cache_enabled = self.prev_cache_enabled
        return False

    def __call__(self, func):
        if not callable(func):
            raise TypeError(
                f"autocast()(func) requires a callable, but got {type(func).__name__}. Did you "
                "mean to use autocast as a context manager? For example:\n    with "
                "torch.autocast(device_type=...):\n        output = model(input)"
            )

        @functools.wraps(func)
        def decorate_autocast(*args, **kwargs):
            # a region of its own for each call: calls may nest or run in several threads
            with autocast(self.device, self.fast_dtype, self._enabled, self._cache_enabled):
                return func(*args, **kwargs)

        return decorate_autocast


# ---------------------------------------------------------------- custom functions
def _cast(value, device_type: str, dtype: dtypes.dtype):
    """Floating point tensors (but float64) of the device cast, also in containers."""
    if isinstance(value, Tensor):
        wanted = (
            value.is_floating_point() and value.device.type == device_type
            and value.dtype is not dtypes.float64
        )
        return value.to(dtype) if wanted else value
    if isinstance(value, (str, bytes)) or hasattr(value, "__array_interface__"):
        return value
    if isinstance(value, Mapping):
        return {_cast(k, device_type, dtype): _cast(v, device_type, dtype)
                for k, v in value.items()}
    if isinstance(value, Iterable):
        items = (_cast(v, device_type, dtype) for v in value)
        return type(value)(items) if isinstance(value, (list, tuple)) else items
    return value


def _check_type(device_type):
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")


def custom_fwd(fwd=None, *, device_type: str, cast_inputs: dtypes.dtype | None = None):
    """Decorator of ``forward`` of an ``autograd.Function`` that is used under autocast.

    Args:
        device_type: "cpu" or "cuda".
        cast_inputs: inside a region, cast floating point inputs to it and run ``forward`` without
            casts; None runs it as the region says.
    """
    _check_type(device_type)
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def decorate_fwd(*args, **kwargs):
        ctx, enabled = args[0], is_autocast_enabled(device_type)
        ctx._dtype = get_autocast_dtype(device_type)
        ctx._fwd_used_autocast = enabled and cast_inputs is None
        if cast_inputs is None or not enabled:
            return fwd(*args, **kwargs)
        with autocast(device_type, enabled=False):
            return fwd(*_cast(args, device_type, cast_inputs),
                       **_cast(kwargs, device_type, cast_inputs))

    return decorate_fwd


def custom_bwd(bwd=None, *, device_type: str):
    """Decorator of ``backward`` of such a Function: it runs with the casts of its ``forward``."""
    _check_type(device_type)
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def decorate_bwd(*args, **kwargs):
        ctx = args[0]
        with autocast(device_type, enabled=ctx._fwd_used_autocast, dtype=ctx._dtype):
            return bwd(*args, **kwargs)

    return decorate_bwd
