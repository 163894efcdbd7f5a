"""How a tensor prints: PyTorch's layout, digit for digit.

One element format is chosen for the whole tensor (for a long one, from the elements that are
shown): integers, whole floats with a point, fixed decimals, or scientific notation where the
magnitudes lie far apart. Numbers are padded to one width and wrapped at the line width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

from .backend import CPU, dtypes, namespace_of


@dataclasses.dataclass
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


OPTIONS = _Options()
_PROFILES: dict[str, dict] = {
    "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
    "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
    "full": {"precision": 4, "threshold": math.inf, "edgeitems": 3, "linewidth": 80},
}


def set_printoptions(precision=None, threshold=None, edgeitems=None, linewidth=None, profile=None,
                     sci_mode=None) -> None:
    """Set how tensors print.

    Args:
        precision: digits after the point (4).
        threshold: tensors of more elements are summarised (1000).
        edgeitems: how many elements a summary shows at each end of a dim (3).
        linewidth: characters per line (80).
        profile: ``"default"``, ``"short"`` or ``"full"`` sets the four above; they override it.
        sci_mode: True or False forces or forbids scientific notation; None decides per tensor.
    """
    if profile is not None:
        if profile not in _PROFILES:
            raise ValueError(f"profile is one of {', '.join(_PROFILES)}, got {profile!r}")
        for name, value in _PROFILES[profile].items():
            setattr(OPTIONS, name, value)
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems,
             "linewidth": linewidth}
    for name, value in given.items():
        if value is not None:
            setattr(OPTIONS, name, value)
    OPTIONS.sci_mode = sci_mode


def get_printoptions() -> dict:
    """The options now in force, as keyword arguments of ``set_printoptions``."""
    return dataclasses.asdict(OPTIONS)


@contextlib.contextmanager
def printoptions(**options):
    """``set_printoptions`` for the length of a ``with`` block."""
    before = get_printoptions()
    set_printoptions(**options)
    try:
        yield
    finally:
        set_printoptions(**before)


class _Format:
    """The text of one element, chosen after a look at all that will be shown."""

    def __init__(self, array):
        self.is_float = array.dtype.kind == "f"
        self.whole, self.scientific, self.width = True, False, 1
        if not self.is_float:
            self.width = max((len(str(v)) for v in array.reshape(-1).tolist()), default=1)
            return
        shown = array[CPU.isfinite(array) & (array != 0)].reshape(-1)
        if not shown.size:
            return
        self.whole = bool((shown == CPU.ceil(shown)).all())
        if OPTIONS.sci_mode is None:
            size = CPU.abs(shown).astype("float64")
            low, high = float(size.min()), float(size.max())
            self.scientific = high / low > 1000 or high > 1e8 or low < 1e-4
        else:
            self.scientific = OPTIONS.sci_mode
        self.width = max(len(self._number(v)) for v in shown.tolist())

    def _number(self, value) -> str:
        if self.scientific:
            return f"{value:.{OPTIONS.precision}e}"
        if self.whole:
            return f"{value:.0f}" + ("." if math.isfinite(value) else "")
        return f"{value:.{OPTIONS.precision}f}"

    def text(self, value) -> str:
        return (self._number(value) if self.is_float else str(value)).rjust(self.width)


class _ComplexFormat:
    """Real and imaginary part, each in a format of its own."""

    def __init__(self, array):
        self.real, self.imag = _Format(array.real), _Format(array.imag)
        self.width = self.real.width + self.imag.width + 1

    def text(self, value) -> str:
        imaginary = self.imag.text(value.imag).lstrip() + "j"
        sign = "" if imaginary[0] in "+-" else "+"
        return self.real.text(value.real) + sign + imaginary


def _shown(array):
    """The elements that a summary shows."""
    n = OPTIONS.edgeitems
    for axis, size in enumerate(array.shape):
        if size > 2 * n:
            array = CPU.take(array, [*range(n), *range(size - n, size)], axis)
    return array


def _row(array, indent, summarize, form) -> str:
    n = OPTIONS.edgeitems
    if summarize and not n:
        cells = ["..."]
    elif summarize and len(array) > 2 * n:
        head, tail = array[:n].tolist(), array[len(array) - n:].tolist()
        cells = [*map(form.text, head), " ...", *map(form.text, tail)]
    else:
        cells = [form.text(v) for v in array.tolist()]
    per_line = max(1, (OPTIONS.linewidth - indent) // (form.width + 2))
    lines = [", ".join(cells[i : i + per_line]) for i in range(0, len(cells), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _nested(array, indent, summarize, form) -> str:
    if array.ndim == 0:
        return form.text(array.item())
    if array.ndim == 1:
        return _row(array, indent, summarize, form)
    n, size = OPTIONS.edgeitems, len(array)
    cut = summarize and size > 2 * n
    rows = [*range(n), *range(size - n, size)] if cut else range(size)
    parts = [_nested(array[i], indent + 1, summarize, form) for i in rows]
    if cut:
        parts.insert(n, "...")
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def body_text(t, indent: int) -> str:
    """The numbers of a tensor in brackets; lines after the first start at ``indent``."""
    if t.is_meta:
        return "..."
    array = namespace_of(t._data).to_host(t._data)
    if not array.size:
        return "[]"
    if array.dtype == dtypes.bfloat16.np:
        array = array.astype("float32")
    summarize = array.size > OPTIONS.threshold
    form = _ComplexFormat if array.dtype.kind == "c" else _Format
    return _nested(array, indent, summarize, form(_shown(array) if summarize else array))


def tensor_text(t, tensor_contents: str | None = None) -> str:
    """``tensor([...], dtype=..., grad_fn=<...>)`` as PyTorch writes it.

    Args:
        tensor_contents: text to show in place of the numbers.
    """
    prefix = _prefix(t)
    body = body_text(t, len(prefix)) if tensor_contents is None else tensor_contents
    text = prefix + body
    column = len(text) - text.rfind("\n") + 1
    for suffix in _suffixes(t):
        if column + len(suffix) + 2 > OPTIONS.linewidth:
            text += ",\n" + " " * len(prefix) + suffix
            column = len(prefix) + len(suffix)
        else:
            text += ", " + suffix
            column += len(suffix) + 2
    return text + ")"


def _prefix(t) -> str:
    from .tensor import Tensor

    if type(t) is Tensor or type(t).__name__ == "Parameter":
        return "tensor("
    return f"{type(t).__name__}("


def _suffixes(t):
    from .backend import devices

    if t.device.type != devices.get_default_device().type:
        yield f"device='{t.device}'"
    default = dtypes.get_default_dtype()
    if t._data.size:
        wide = dtypes.complex128 if default is dtypes.float64 else dtypes.complex64
        unnamed = (default, wide, dtypes.int64, dtypes.bool)
        if not OPTIONS.edgeitems or t.is_meta:
            yield f"size={tuple(t.shape)}"
    else:  # no element shows what kind they are
        unnamed = (default,)
        if t.ndim != 1:
            yield f"size={tuple(t.shape)}"
    if t.dtype not in unnamed:
        yield f"dtype={t.dtype!r}"
    if t.grad_fn is not None:
        yield f"grad_fn=<{t.grad_fn.name()}>"
    elif t.requires_grad:
        yield "requires_grad=True"


__all__ = ["get_printoptions", "printoptions", "set_printoptions", "tensor_text"]
