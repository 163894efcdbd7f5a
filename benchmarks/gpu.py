"""The GPU engine beside PyTorch on the same GPU: calls, kernels, products, whole training steps.

    python benchmarks/gpu.py [overhead memory optimizer gemm attention gpt2 resnet50]
                             [--limit 60] [--compile] [--out FOLDER]

Each section runs in a process of its own with a time limit, so that a crash costs one section. In it the
two libraries take turns on one GPU; figures are medians. `--compile` adds torch.compile to the training
steps (minutes). `--out` keeps gpu.json and gpu.txt. PyTorch is the yardstick and need not be there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from _gpu_cases import SECTIONS  # noqa: E402

import disttorch  # noqa: E402

# (section, the columns whose ratio is the figure, target, whether more is better)
TARGETS = {
    "overhead": ("disttorch tracked", "torch tracked", 2.0, False),
    "memory": ("disttorch", None, 0.85, True),
    "gemm": ("disttorch", "torch", 0.95, True),
    "gpt2": ("disttorch", "torch", 1.0, True),
    "resnet50": ("disttorch", "torch", 0.9, True),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--limit", type=int, default=60, help="seconds of a section (default 60)")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.txt")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # section, file for its rows
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def run_one(name: str, file: str, compiled: bool) -> None:
    """The section in this process; its rows go to the file."""
    function = SECTIONS[name]
    takes = "compiled" in inspect.signature(function).parameters
    rows = function(compiled=compiled) if takes else function()  # type: ignore[operator]
    Path(file).write_text(json.dumps(rows))


def run(name: str, options: argparse.Namespace) -> dict:
    """The rows of a section, or {"error": its last words}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--one", name, str(file)]
        command += ["--compile"] if options.compile else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer in {options.limit} s"}
        print(done.stdout, end="")
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no words"])[-1],
                    "trace": done.stderr[-4000:]}
        return json.loads(file.read_text())


def table(name: str, rows: dict) -> str:
    """The rows as text: columns in the order of their first appearance."""
    lines = [f"== {name}: {(SECTIONS[name].__doc__ or '').strip().splitlines()[0]}"]
    if "error" in rows:
        return "\n".join([*lines, f"failed: {rows['error']}", rows.get("trace", ""), ""])
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    main, base, target, more = TARGETS.get(name, ("disttorch", "torch", None, True))
    ratio = base is not None and base in columns
    head = f"{'':30s}" + "".join(f"{c:>19s}" for c in columns) + ("      ratio" if ratio else "")
    lines.append(head)
    for label, row in rows.items():
        text = "".join(f"{row[c]:19.3f}" if c in row else f"{'':19s}" for c in columns)
        if ratio and main in row and base in row:
            text += f"{row[main] / row[base]:11.2f}"
        lines.append(f"{label:30s}" + text)
    if target is not None:
        what = f"{main} / {base}" if base else "share of the copy bandwidth"
        lines.append(f"target: {what} {'at least' if more else 'at most'} {target}")
    return "\n".join([*lines, ""])


def main() -> None:
    options = arguments()
    if options.one:
        return run_one(*options.one, options.compile)
    if not disttorch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no GPU that CuPy can use; see docs/gpu.md")
    found, text = {}, []
    for name in options.sections or SECTIONS:
        found[name] = run(name, options)
        text.append(table(name, found[name]))
        print(text[-1], flush=True)
        if options.out:  # after each section: what is known stays if a later one hangs the machine
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "gpu.txt").write_text("\n".join(text))
    sys.exit(any("error" in rows for rows in found.values()))


if __name__ == "__main__":
    main()
