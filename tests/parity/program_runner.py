"""Runs every program of tests/programs in this process and writes what ``main()`` returned.

    python program_runner.py RESULTS.pickle [NAME ...]
    python -m disttorch program_runner.py RESULTS.pickle [NAME ...]

``import torch`` is whatever the interpreter was started with: PyTorch, or disttorch in its place.
The file written is a pickled ``{(name, dtype): (kind, value)}`` of NumPy arrays and numbers, where
kind is "ok" or "error" and an error's value is its traceback.
"""

from __future__ import annotations

import pickle
import runpy
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"


def names() -> list[str]:
    return sorted(p.stem for p in PROGRAMS.glob("*.py"))


def run_program(name: str, dtype: str) -> tuple:
    """What one program gives with a default dtype: ("ok", list of arrays) or ("error", text)."""
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        result = runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="program")["main"]()
        return "ok", [as_plain(value) for value in result]
    except Exception:
        return "error", traceback.format_exc()
    finally:
        torch.set_default_dtype(torch.float32)


def as_plain(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    return value if isinstance(value, str) else np.array(value)


def main():
    target, *chosen = sys.argv[1:]
    results = {(name, dtype): run_program(name, dtype)
               for name in chosen or names() for dtype in ("float64", "float32")}
    Path(target).write_bytes(pickle.dumps((torch.__name__, torch.__file__, results)))


if __name__ == "__main__":
    main()
