"""How much of a list of torch names disttorch has.

    python -m disttorch.utils.coverage names.json

The list is a JSON file ``{"names": {"torch.nn.Linear": 26, "Tensor.view": 23, ...}}``: a name and
how many repositories use it. A name counts as covered if it resolves; those in ``REASONS`` are left
out on purpose and are listed with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections import defaultdict
from pathlib import Path

MUST = 2  # names used by so many repositories are a must

_COMPILER = "needs PyTorch's compiler or its C++ graph format"
_TORCHSCRIPT = "TorchScript's own file format and compiler"
_SPARSE = "disttorch has dense tensors only"
_FP8 = "8-bit floats: planned with mixed precision, not as a tensor dtype yet"
# The longest prefix of a name that stands here gives its reason
REASONS = {
    "torch.export": _COMPILER, "torch.fx": _COMPILER, "torch.onnx": _COMPILER,
    "torch.library": _COMPILER,
    "torch.ops.nanogpt": "an operator that one project wrote in C++",
    "torch.PyTorchFileReader": _TORCHSCRIPT,
    "torch.sparse": _SPARSE, "torch.sparse_coo_tensor": _SPARSE, "torch.spmm": _SPARSE,
    "Tensor.to_sparse": _SPARSE, "Tensor.indices": _SPARSE,
    "torch.nested": "ragged tensors", "Tensor.dequantize": "disttorch has no quantised tensors",
    "torch.float8_e4m3fn": _FP8, "torch.float8_e5m2": _FP8,
    "torch.symeig": "removed from PyTorch; use torch.linalg.eigh",
    "torch.numa": "binds PyTorch's own launcher to NUMA nodes",
    "torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch":
        "PyTorch's stream bookkeeping, which disttorch does not have",
    "torch.overrides": "operator overriding needs PyTorch's dispatcher",
    "Tensor.is_distributed": "removed from PyTorch", "Tensor.xpu": "Intel GPUs",
    "Tensor.resize": "removed from PyTorch; use resize_",
}


def reason(name: str) -> str | None:
    """Why a name is left out on purpose, or None."""
    while name:
        if name in REASONS:
            return REASONS[name]
        name = name.rpartition(".")[0]
    return None


def resolves(name: str) -> bool:
    """Whether a dotted name beginning with ``torch`` or ``Tensor`` exists in disttorch."""
    head, *rest = name.split(".")
    root = importlib.import_module(__package__.partition(".")[0])
    found = root.Tensor if head == "Tensor" else root
    for part in rest:
        try:
            found = getattr(found, part)
        except AttributeError:
            if not hasattr(found, "__path__"):
                return False
            try:
                found = importlib.import_module(f"{found.__name__}.{part}")
            except ImportError:
                return False
    return True


def group_of(name: str) -> str:
    """The namespace that a name is reported under: ``torch.nn``, ``Tensor``, ``torch``."""
    parts = name.split(".")
    return ".".join(parts[: min(2, len(parts) - 1)]) or name


def report(names: dict[str, int]) -> tuple[str, list[str]]:
    """The report as text, and the musts that are missing without a reason."""
    rows: dict = defaultdict(lambda: [0, 0, 0, 0])
    missing: list[str] = []
    excused: list[str] = []
    for name, count in names.items():
        here, must = resolves(name), count >= MUST
        for key in (group_of(name), "all"):
            row = rows[key]
            row[0] += 1
            row[1] += here
            row[2] += must
            row[3] += must and here
        if not here:
            (missing if reason(name) is None else excused).append(name)
    lines = [f"{'namespace':24} {'must (' + str(MUST) + '+)':>16} {'all':>16}"]
    for key in sorted(rows, key=lambda k: (k == "all", -rows[k][0])):
        total, have, must, have_must = rows[key]
        lines.append(f"{key:24} {_share(have_must, must):>16} {_share(have, total):>16}")
    lines += ["", "missing:"]
    lines += [f"  {names[n]:3} {n}" for n in sorted(missing, key=lambda n: (-names[n], n))]
    lines += ["", "left out, and why:"]
    lines += [f"  {names[n]:3} {n}: {reason(n)}" for n in sorted(excused)]
    return "\n".join(lines), [n for n in missing if names[n] >= MUST]


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} {100 * part / whole:.0f}%" if whole else "-"


def main() -> int:
    """Print the report; 1 if ``--strict`` and a must is missing."""
    parser = argparse.ArgumentParser(description="share of torch names that disttorch has")
    parser.add_argument("names", type=Path, help='JSON: {"names": {"torch.x": repositories}}')
    parser.add_argument("--strict", action="store_true", help="fail if a must is missing")
    arguments = parser.parse_args()
    text, missing = report(json.loads(arguments.names.read_text())["names"])
    print(text)
    return int(arguments.strict and bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
