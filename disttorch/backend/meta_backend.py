"""The meta device: arrays with a shape and a dtype, but no memory and no values.

A model too large for one machine is built on it, then sharded, and only the shards get memory
(`Module.to_empty`) and values (`reset_parameters`, or a checkpoint). What initialisation does works:
making, filling, drawing, views, elementwise arithmetic. Other computations raise.
"""

from __future__ import annotations

import math

import numpy as np

from . import devices

NO_DATA = (
    "Cannot copy out of meta tensor; no data! Please use torch.nn.Module.to_empty() instead of "
    "torch.nn.Module.to() when moving module from meta to a different device."
)


class MetaArray(np.ndarray):
    """A view of one element with the wanted shape: all strides are 0. Writing does nothing."""

    __slots__ = ()

    def __setitem__(self, index, value):
        pass

    def astype(self, dtype, *args, **kwargs):
        return meta(self.shape, np.dtype(dtype))

    def copy(self, order="C"):
        return meta(self.shape, self.dtype)

    def reshape(self, *shape, **kwargs):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if -1 in shape:
            known = math.prod(s for s in shape if s != -1)
            shape = tuple(self.size // known if s == -1 else s for s in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {tuple(shape)}")
        return meta(shape, self.dtype)

    def item(self, *args):
        raise NotImplementedError(NO_DATA)

    tolist = __float__ = __int__ = __bool__ = tobytes = item

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method != "__call__" or ufunc.signature is not None:
            raise _not_built(f"{ufunc.__name__} ({method})")
        arrays = [np.empty((), x.dtype) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
        plain = [x.view(np.ndarray) if isinstance(x, MetaArray) else x for x in arrays]
        with np.errstate(all="ignore"):
            result = ufunc(*plain, **kwargs)  # of one element: for the dtype
        shape = np.broadcast_shapes(*(np.shape(x) for x in inputs))
        if out is not None:
            return out[0] if len(out) == 1 else out
        several = isinstance(result, tuple)
        made = [meta(shape, np.asarray(r).dtype) for r in (result if several else (result,))]
        return tuple(made) if several else made[0]

    def __array_function__(self, func, types, args, kwargs):
        if func.__name__ in _SAME_SHAPE:
            like = next(a for a in args if isinstance(a, np.ndarray))
            return meta(like.shape, kwargs.get("dtype") or like.dtype)
        if func.__name__ == "where":
            dtype = np.result_type(*args[1:])
            return meta(np.broadcast_shapes(*(np.shape(a) for a in args)), dtype)
        if func.__name__ == "result_type":
            return np.result_type(*(a.dtype if isinstance(a, np.ndarray) else a for a in args))
        if func.__name__ in _VIEWS:
            return super().__array_function__(func, types, args, kwargs)
        raise _not_built(func.__name__)


_SAME_SHAPE = {"zeros_like", "ones_like", "empty_like", "full_like", "tril", "triu", "copy", "clip"}
_VIEWS = {
    "moveaxis", "swapaxes", "transpose", "expand_dims", "squeeze", "broadcast_to", "flip", "ndim",
    "shape", "size", "may_share_memory", "shares_memory",
}  # fmt: skip


def _not_built(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name}: tensors on the meta device have no values; they can be made, filled and viewed. "
        "Give the module memory with to_empty(device=...) first"
    )


def meta(shape, dtype) -> MetaArray:
    """An array of this shape and dtype without memory of its own."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    one = np.zeros((), dtype)
    return np.lib.stride_tricks.as_strided(one, shape, (0,) * len(shape)).view(MetaArray)


class MetaGenerator:
    """Draws nothing; what asks for numbers gets their shape."""

    initial_seed = 0

    def manual_seed(self, seed: int) -> None:
        self.initial_seed = seed

    def seed(self) -> int:
        return self.initial_seed

    def random(self, shape, dtype=np.dtype("float32")):
        return meta(shape, dtype)

    standard_normal = standard_exponential = random

    def get_state(self):
        return np.zeros(0, np.uint8)

    def set_state(self, state) -> None:
        pass


class MetaNamespace:
    """What makes arrays on the meta device."""

    name = "meta"
    ndarray = MetaArray
    array_types = (MetaArray,)
    widens_half = False
    steps_on_device = False
    fused_half = True
    fused = None
    integer, floating, generic, newaxis, pi, inf, nan = (
        np.integer, np.floating, np.generic, None, np.pi, np.inf, np.nan,
    )  # fmt: skip

    @staticmethod
    def device_of(array) -> devices.device:
        return devices.device("meta")

    @staticmethod
    def empty(shape, dtype=np.dtype("float32")):
        return meta(shape, dtype)

    zeros = ones = empty

    @staticmethod
    def full(shape, value, dtype=None):
        return meta(shape, np.asarray(value).dtype if dtype is None else dtype)

    @staticmethod
    def arange(*args, dtype=None):
        made = np.arange(*args, dtype=dtype)
        return meta(made.shape, made.dtype)

    @staticmethod
    def linspace(start, stop, num=50, dtype=None, **kwargs):
        return meta((num,), dtype or np.dtype("float64"))

    @staticmethod
    def eye(rows, columns=None, dtype=np.dtype("float32"), **kwargs):
        return meta((rows, rows if columns is None else columns), dtype)

    @staticmethod
    def index_outside(index, low, high):
        """None: nothing is known of an index."""

    @staticmethod
    def check_places(shape, index):
        """Nothing is known of indices."""

    @staticmethod
    def from_host(array, non_blocking=False):
        return meta(array.shape, array.dtype)

    @staticmethod
    def to_host(array, non_blocking=False):
        raise NotImplementedError(NO_DATA)

    @staticmethod
    def array(value, dtype=None, **kwargs):
        value = value if isinstance(value, np.ndarray) else np.asarray(value)
        return meta(value.shape, value.dtype if dtype is None else dtype)

    @staticmethod
    def asarray(value, dtype=None):
        same = isinstance(value, MetaArray) and dtype in (None, value.dtype)
        return value if same else MetaNamespace.array(value, dtype)

    @staticmethod
    def contiguous_copy(array):
        return meta(array.shape, array.dtype)

    ascontiguousarray = duplicate = contiguous_copy

    @staticmethod
    def reshaped(array, shape):
        return array.reshape(shape)

    @staticmethod
    def ramp(start, step, count, dtype):
        return meta((count,), dtype)

    @staticmethod
    def framed(source, shape, starts, value=0):
        return meta(shape, source.dtype)

    @staticmethod
    def cast(array, dtype):
        return meta(array.shape, dtype)

    @staticmethod
    def assign(out, source):
        return out

    fill_with = assign

    @staticmethod
    def linear(*args):
        raise _not_built("matmul")

    add_matmul = linear_gelu = linear

    @staticmethod
    def offset_of(array) -> int:
        return 0  # all elements are one

    @staticmethod
    def make_generator(seed: int) -> MetaGenerator:
        return MetaGenerator()

    @staticmethod
    def synchronize() -> None:
        """There is nothing to wait for."""

    def __getattr__(self, name):
        value = getattr(np, name)  # raises an AttributeError that names numpy
        if not callable(value):
            return value

        def call(*args, **kwargs):
            if any(isinstance(a, MetaArray) for a in args):
                return value(*args, **kwargs)
            raise _not_built(name)

        return call


META = MetaNamespace()
