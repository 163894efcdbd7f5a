"""What may be sent and how it is laid out for a transport.

Callers hand in arrays of any layout; transports (local, mpi) see flat contiguous buffers of a
dtype that they can move or reduce. `Staged` is the bridge, `Reduction` the dtype rules:

- bool is reduced as 0/1 bytes: SUM, MAX and BOR are "or"; PRODUCT, MIN and BAND are "and".
- float16 and bfloat16 are reduced in float32 and rounded once at the end, because MPI has no
  bfloat16 and rounds float16 after every addition.
- AVG is a SUM divided by the number of ranks, before that rounding.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from . import device

Array = Any  # np.ndarray, or an object with __cuda_array_interface__


class ReduceOp(enum.Enum):
    """How values of different ranks become one."""

    SUM = "sum"
    AVG = "avg"
    PRODUCT = "product"
    MIN = "min"
    MAX = "max"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"

    __hash__ = object.__hash__  # a member is what it is; Enum's own is Python code


@dataclass(frozen=True)
class PremulSum:
    """The reduction SUM of what each rank has multiplied by `factor` before."""

    factor: float

    @property
    def name(self) -> str:
        """As in messages."""
        return f"PREMUL_SUM({self.factor:g})"


# PyTorch's spellings of the type of an operation, and of the one that needs a factor.
ReduceOp.RedOpType = ReduceOp  # type: ignore[attr-defined]
ReduceOp.PREMUL_SUM = PremulSum  # type: ignore[attr-defined]

Op = ReduceOp | PremulSum


UFUNCS = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.BAND: np.bitwise_and,
    ReduceOp.BOR: np.bitwise_or,
    ReduceOp.BXOR: np.bitwise_xor,
}

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
HALVES = ("float16", "bfloat16")
FLOATS = ("float32", "float64")
COMPLEX = ("complex64", "complex128")
DTYPES = ("bool", *INTEGERS, *HALVES, *FLOATS, *COMPLEX)

_SENDABLE = frozenset(DTYPES)
_BITWISE = (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)
_ORDERED = (ReduceOp.MIN, ReduceOp.MAX)
_BOOL_OPS = {ReduceOp.SUM: ReduceOp.MAX, ReduceOp.PRODUCT: ReduceOp.MIN}
_WORDS: dict[str, np.dtype] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
}


@cache
def name_of(dtype: np.dtype) -> str:
    """`dtype.name`, which NumPy composes anew each time at the cost of a small all-reduce."""
    return dtype.name


def check_array(array: Array, what: str, *, written: bool) -> None:
    """Refuse what cannot be moved.

    Raises:
        TypeError: not an array, or of a dtype outside `DTYPES`.
        ValueError: `written` and the array is read-only.
    """
    on_device = device.is_device_array(array)
    if not on_device and not isinstance(array, np.ndarray):
        raise TypeError(
            f"{what} must be a NumPy array or offer __cuda_array_interface__, "
            f"got {type(array).__name__}"
        )
    if name_of(array.dtype) not in _SENDABLE or not array.dtype.isnative:
        raise TypeError(
            f"{what} has dtype {array.dtype}, which cannot be sent between ranks; "
            f"supported: {', '.join(DTYPES)} in native byte order"
        )
    if written and not on_device and not array.flags.writeable:
        raise ValueError(f"{what} of shape {array.shape} is read-only; pass a writable copy")


def check_fit(out: Array, array: Array, times: int, what: str) -> None:
    """Refuse an `out` that does not hold `times` arrays of the size and dtype of `array`.

    Raises:
        TypeError: the dtypes differ.
        ValueError: the sizes do not fit.
    """
    if out.dtype != array.dtype:
        raise TypeError(f"{what}: out has dtype {out.dtype}, the input has {array.dtype}")
    if out.size != array.size * times:
        raise ValueError(
            f"{what}: out of shape {tuple(out.shape)} has {out.size} elements, but "
            f"{times} x {array.size} = {times * array.size} are needed for inputs of shape "
            f"{tuple(array.shape)}"
        )


@dataclass(frozen=True)
class Reduction:
    """How arrays of one dtype are reduced with one op over n ranks.

    Attributes:
        wire: the dtype in which the transport reduces.
        op: the op that the transport applies; never AVG.
        divisor: what the result is divided by; 1 unless AVG was asked for.
        factor: what each rank's values are multiplied by before; None for nothing.
        name: of the op that was asked for.
    """

    wire: np.dtype
    op: ReduceOp
    divisor: int
    factor: float | None
    name: str

    @classmethod
    @cache
    def plan(cls, dtype: np.dtype, op: Op, n: int, halves: bool = False) -> Reduction:
        """Choose by dtype and op; raises TypeError for a pair without a meaning.

        Args:
            dtype: of the caller's arrays.
            op: a ReduceOp or PremulSum.
            n: number of ranks.
            halves: whether the transport reduces 16-bit floats itself.
        """
        if not isinstance(op, ReduceOp | PremulSum):
            raise TypeError(f"op must be a ReduceOp, got {op!r}")
        name = name_of(dtype)
        wire = _WORDS["bool"] if name == "bool" else dtype
        if name in HALVES and not halves:
            wire = np.dtype(np.float32)
        if isinstance(op, PremulSum):
            if name not in (*HALVES, *FLOATS, *COMPLEX):
                raise TypeError(f"{op.name} needs a floating or complex array, got {name}")
            return cls(wire, ReduceOp.SUM, 1, op.factor, op.name)
        if op in _BITWISE and name not in ("bool", *INTEGERS):
            raise TypeError(f"{op} needs an integer or bool array, got {name}")
        if op in _ORDERED and name in COMPLEX:
            raise TypeError(f"{op} needs values with an order, got {name}")
        if op is ReduceOp.AVG:
            if name not in (*HALVES, *FLOATS, *COMPLEX):
                raise TypeError(f"{op} needs a floating or complex array, got {name}")
            return cls(wire, ReduceOp.SUM, n, None, op.name)
        applied = _BOOL_OPS.get(op, op) if name == "bool" else op
        return cls(wire, applied, 1, None, op.name)

    def prepare(self, buffer: Array) -> Array:
        """Multiply a loaded buffer by the factor, in place; returns it."""
        if self.factor is not None:
            buffer *= buffer.dtype.type(self.factor)
        return buffer

    def finish(self, reduced: Array) -> None:
        """Turn what the transport reduced into the result, in place."""
        if self.divisor != 1:
            reduced /= reduced.dtype.type(self.divisor)


class Staged:
    """A caller's array seen as a flat contiguous buffer for the time of one call.

    Args:
        array: the caller's array, already checked.
        wire: dtype to reduce in (`Reduction.wire`). None moves bits unchanged: bool as bytes and
            16-bit floats as 16-bit words, so that no transport needs to know these types.
        direct: whether the transport reads device memory by itself, without a host copy.
    """

    def __init__(self, array: Array, wire: np.dtype | None = None, direct: bool = False) -> None:
        self._array = array
        self._word: np.dtype = _WORDS.get(name_of(array.dtype), array.dtype)
        self._wire: np.dtype = self._word if wire is None else wire
        self._on_device = device.is_device_array(array)
        self._bridge: device.HostBridge | None = None
        if self._on_device and direct:
            device.synchronize()  # the transport knows nothing of the caller's stream
        elif self._on_device:
            self._bridge = device.HostBridge(array)
        self._is_copy = True

    @property
    def nbytes(self) -> int:
        """Size of the buffer in bytes."""
        return self._array.size * self._wire.itemsize

    def load(self, *, read: bool = True, private: bool = False) -> Array:
        """The buffer: the array's own memory where layout and dtype allow, else a copy.

        Args:
            read: whether the content matters; False spares a device-to-host copy.
            private: copy in any case, because the memory is about to be overwritten.
        """
        host = self._array if self._bridge is None else self._bridge.download(read)
        in_place = host.flags.c_contiguous and not private
        flat = host.reshape(-1) if in_place else host.flatten()
        if self._wire == self._word:
            self._is_copy = not in_place
            return flat if flat.dtype == self._word else flat.view(self._word)
        return flat.astype(self._wire)

    def store(self, buffer: Array) -> None:
        """Bring a changed buffer back into the caller's array, rounding once if it is wider."""
        if self._bridge is None and not self._is_copy:
            return
        dtype = self._array.dtype
        if self._wire == self._word:
            result = buffer.view(dtype)
        else:
            with np.errstate(over="ignore"):  # beyond the 16-bit range is inf, as on one rank
                result = buffer.astype(dtype)
        result = result.reshape(self._array.shape)
        if self._bridge is not None:
            self._bridge.upload(result)
            return
        self._array[...] = result
        if self._on_device:
            device.synchronize()


def may_overlap(a: Array, b: Array) -> bool:
    """Whether two arrays might share memory; True where that cannot be told cheaply."""
    if device.is_device_array(a) or device.is_device_array(b):
        return device.may_overlap(a, b)
    return np.may_share_memory(a, b)


def from_bytes(data: bytes) -> np.ndarray:
    """A writable uint8 array with a copy of `data`."""
    return np.frombuffer(bytearray(data), np.uint8)


def empty_bytes(n: int) -> np.ndarray:
    """An uninitialised uint8 array."""
    return np.empty(n, np.uint8)


def lengths(*values: int) -> np.ndarray:
    """An int64 array."""
    return np.array(values, np.int64)
