"""The names of old: ``torch.FloatTensor`` and kin, types of a dtype and a device kind.

They make tensors and test them (``isinstance(t, torch.FloatTensor)``), but are no classes of
tensors: what they make is a plain Tensor.
"""

from __future__ import annotations

from .backend import devices, dtypes
from .ops.checks import TYPE_NAMES as _WORDS
from .tensor import Tensor

# complex types never had such a name
TYPE_NAMES = {f"{v}Tensor": dtypes.BY_NAME[k] for k, v in _WORDS.items()
              if not k.startswith("complex")}
_made: dict = {}


class tensortype(type):
    """The type of ``torch.FloatTensor`` and kin."""

    dtype: dtypes.dtype
    kind: str

    def __instancecheck__(cls, value):
        return (
            isinstance(value, Tensor) and value.dtype is cls.dtype and value.device.type == cls.kind
        )

    def __call__(cls, *args, device=None):
        """``FloatTensor(2, 3)`` is uninitialised memory, ``FloatTensor([1, 2])`` holds the data."""
        from . import ops
        from .cuda.which import NoGpuError, is_available

        if cls.kind == "cuda" and not is_available():
            raise NoGpuError(f"type {cls} not available. Torch not compiled with CUDA enabled.")
        place = device or cls.kind
        if len(args) == 1 and not isinstance(args[0], int) and not hasattr(args[0], "numel"):
            return ops.creation.tensor(args[0], dtype=cls.dtype, device=place)
        if len(args) == 1 and isinstance(args[0], Tensor):
            if args[0].dtype is not cls.dtype:
                raise TypeError(f"expected {cls} (got {args[0].type()})")
            return args[0].detach()
        return ops.creation.empty(*(args or (0,)), dtype=cls.dtype, device=place)

    def __repr__(cls):
        return f"<class '{cls}'>"

    def __str__(cls):
        return f"torch{'.cuda' if cls.kind == 'cuda' else ''}.{cls.__name__}"


def tensor_type(name: str, kind: str = "cpu"):
    """The type called ``name`` for a device kind, or None if there is none of that name."""
    if name not in TYPE_NAMES:
        return None
    key = name, kind
    if key not in _made:
        _made[key] = tensortype(name, (), {"dtype": TYPE_NAMES[name], "kind": kind})
    return _made[key]


def type_text(t: Tensor) -> str:
    """``"torch.FloatTensor"``, ``"torch.cuda.LongTensor"``."""
    return f"torch{'.cuda' if t.is_cuda else ''}.{_WORDS[t.dtype.name]}Tensor"


def find_type(value):
    """(dtype, device kind or None) of a dtype, a legacy type or its text.

    Raises:
        ValueError: if it names no type.
    """
    if isinstance(value, dtypes.dtype):
        return value, None
    if isinstance(value, tensortype):
        return value.dtype, value.kind
    if value is Tensor:
        return dtypes.get_default_dtype(), None
    if isinstance(value, str):
        path, _, name = value.rpartition(".")
        if path in ("torch", "torch.cuda") and name in TYPE_NAMES:
            return TYPE_NAMES[name], "cuda" if path == "torch.cuda" else "cpu"
    raise ValueError(f"invalid type: {value!r}")


def type_method(self, dtype=None, non_blocking=False, **kwargs):
    """Without an argument the name of the type; with one the tensor in that type."""
    if dtype is None:
        return type_text(self)
    d, kind = find_type(dtype)
    moved = self.to(d)
    return moved if kind is None or kind == moved.device.type else moved.to(kind)


def set_default_tensor_type(t) -> None:
    """Set the default dtype and device by a legacy type or its name."""
    d, kind = find_type(t)
    dtypes.set_default_dtype(d)
    devices.set_default_device(None if kind in (None, "cpu") else kind)


def new(self, *args, device=None):
    """Another tensor of this one's dtype and device, by sizes or data."""
    kind = tensor_type(type_text(self).rpartition(".")[2], self.device.type)
    return kind(*args, device=device or self.device)


METHODS = {"type": type_method, "new": new}
