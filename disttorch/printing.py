"""How a tensor prints."""

from __future__ import annotations

from .backend import CPU, dtypes, namespace_of


def tensor_text(t) -> str:
    """``tensor([...], dtype=..., grad_fn=<...>)`` as PyTorch writes it."""
    array = namespace_of(t._data).to_host(t._data)
    if array.dtype.itemsize == 2 and array.dtype.kind not in "iu":
        array = array.astype("float32")
    body = CPU.array2string(
        array, precision=4, separator=", ", floatmode="fixed" if array.dtype.kind == "f" else "maxprec",
        prefix="tensor(", threshold=1000, edgeitems=3,
    )  # fmt: skip
    tail = ""
    if t.is_cuda:
        tail += f", device='{t.device}'"
    plain = (dtypes.get_default_dtype(), dtypes.int64, dtypes.bool)
    if t.dtype not in plain or not array.size:
        tail += f", dtype={t.dtype!r}"
    if t.grad_fn is not None:
        tail += f", grad_fn=<{t.grad_fn.name()}>"
    elif t.requires_grad:
        tail += ", requires_grad=True"
    return f"tensor({body}{tail})"
