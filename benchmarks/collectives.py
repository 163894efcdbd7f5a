"""Collectives between processes: disttorch beside torch gloo, raw mpi4py and the machine's limit.

    python benchmarks/collectives.py                          # 2 ranks, 8 B to 256 MiB, all calls
    python benchmarks/collectives.py --quick                  # all_reduce, few sizes, a minute
    python benchmarks/collectives.py --calls all_reduce,broadcast --sizes 8,64K,16M --ranks 4
    python benchmarks/collectives.py --save                   # write benchmarks/results/collectives.*

disttorch and mpi4py take turns in the same processes; gloo runs in processes of its own, in an
environment with PyTorch. The two jobs alternate and never run at the same time. Figures are medians,
of the slowest rank, with one thread a rank. Busbw as nccl-tests define it: bytes over the busiest
link per second, so for all_reduce 2S(n-1)/n per time. The limit is the least that a reduction in
shared memory must copy and add, measured in the same run, in memory and in cache
(`_collectives_worker.py`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this file's folder would hide the package `collectives`

from benchmarks._collectives_common import CALLS, bus_factor, elements, median  # noqa: E402
from benchmarks._jobs import by_environment, by_mpiexec, run  # noqa: E402, F401

SIZES = "8,256,4K,64K,256K,1M,4M,16M,64M,256M"
QUICK_SIZES = "8,64K,1M,16M"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
Samples = dict[tuple[str, int], dict[str, list[float]]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--calls", help=f"of {','.join(CALLS)} (default all)")
    parser.add_argument("--sizes", help=f"bytes, with K, M or G (default {SIZES})")
    parser.add_argument("--quick", action="store_true", help="all_reduce, few sizes, few samples")
    parser.add_argument("--rounds", type=int, default=3, help="times that every job runs (default 3)")
    parser.add_argument("--repeat", type=int, default=5, help="samples in a run (default 5)")
    parser.add_argument(
        "--torch-python", default=str(ROOT / ".venv-parity/bin/python"),
        help="interpreter that has PyTorch (default .venv-parity/bin/python)",
    )  # fmt: skip
    parser.add_argument(
        "--mpi-python", default="", help="interpreter whose mpi4py uses another MPI, to be measured too"
    )
    parser.add_argument("--save", action="store_true", help="write results/collectives.txt, .csv, .png")
    options, _ = parser.parse_known_args()
    if options.quick:
        options.rounds, options.repeat = 2, 3
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    options.calls = (options.calls or ("all_reduce" if options.quick else ",".join(CALLS))).split(",")
    unknown = set(options.calls) - set(CALLS)
    if unknown:
        parser.error(f"unknown calls {', '.join(sorted(unknown))}; known are {', '.join(CALLS)}")
    try:
        options.sizes = [to_bytes(text) for text in options.sizes.split(",")]
    except (ValueError, KeyError):
        parser.error(f"--sizes {options.sizes}: numbers with K, M or G, such as 8,64K,16M")
    return options


def to_bytes(text: str) -> int:
    digits = text.rstrip("KMG")
    return int(digits) * UNITS[text[len(digits) :]]


def as_text(nbytes: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        size = 1 << {"GiB": 30, "MiB": 20, "KiB": 10}[unit]
        if nbytes >= size:
            return f"{nbytes / size:g} {unit}"
    return f"{nbytes} B"


# ---- jobs --------------------------------------------------------------------------------------------


def job_options(options: argparse.Namespace, result: Path) -> list[str]:
    return [
        "--calls", ",".join(options.calls), "--sizes", ",".join(map(str, options.sizes)),
        "--repeat", str(options.repeat), "--result", str(result),
    ]  # fmt: skip


def mpi_job(python: str, options: list[str], ranks: int, **environment: str) -> None:
    by_mpiexec(python, "_collectives_worker.py", options, ranks, **environment)


def gloo_job(python: str, options: list[str], ranks: int) -> None:
    by_environment(python, "_collectives_gloo.py", options, ranks)


def gather(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """Every job in turn, `rounds` times: all samples, and the libraries' versions."""
    jobs = {"mpi": lambda more: mpi_job(sys.executable, more, options.ranks)}
    if Path(options.torch_python).exists():
        jobs["gloo"] = lambda more: gloo_job(os.path.abspath(options.torch_python), more, options.ranks)
    else:
        print(f"gloo: not measured, there is no {options.torch_python} (make parity)")
    if options.mpi_python:
        other = os.path.abspath(options.mpi_python)
        jobs["other mpi"] = lambda more: mpi_job(other, [*more, "--raw-only"], options.ranks)
    samples: Samples = {}
    about: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for name, job in jobs.items():
                print(f"\rround {turn + 1} of {options.rounds}: {name:10s}", end="", file=sys.stderr)
                result = Path(folder, "result.json")
                job(job_options(options, result))
                found = json.loads(result.read_text())
                about |= found["about"]
                for row in found["rows"]:
                    times = samples.setdefault((row["call"], row["bytes"]), {})
                    for library, seconds in row["seconds"].items():
                        times.setdefault(library, []).extend(seconds)
    print(file=sys.stderr)
    return samples, about


def cost_of_checks(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of an 8-byte all_reduce with the ranks' calls compared, and without."""
    found: dict[str, list[float]] = {"1": [], "0": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for switch, seconds in found.items():
                result = Path(folder, "result.json")
                more = ["--repeat", str(3 * options.repeat), "--result", str(result)]
                mpi_job(sys.executable, more, options.ranks, DISTTORCH_CHECKS=switch)
                seconds += json.loads(result.read_text())["rows"][0]["seconds"]["disttorch"]
    return {switch: median(seconds) for switch, seconds in found.items()}


# ---- report ------------------------------------------------------------------------------------------


def figures(samples: Samples, ranks: int) -> list[dict]:
    """One row per call, size and library."""
    rows = []
    for (call, size), times in samples.items():
        found = {library: median(seconds) for library, seconds in times.items()}
        sent = elements(size, ranks) * 4
        for library, seconds in found.items():
            busbw = sent * bus_factor(call, ranks) / seconds / 1e9 if ranks > 1 else 0.0
            rows.append(
                {
                    "call": call, "ranks": ranks, "bytes": size, "library": library,
                    "us": seconds * 1e6, "least_us": min(times[library]) * 1e6,
                    "busbw_GB_s": busbw,
                }
            )  # fmt: skip
    return rows


def table(
    rows: list[dict], about: dict[str, str], checks: dict[str, float], ranks: int, load: float
) -> str:
    """The text that is printed and saved."""
    libraries = sorted({row["library"] for row in rows}, key=_order)
    raws = [name for name in libraries if name.startswith("mpi4py")]
    lines = [
        f"{ranks} ranks on {os.cpu_count()} cores (load before: {load:.1f}), float32, "
        "one thread a rank; medians of the slowest rank"
    ]
    lines += [f"  {name}: {version}" for name, version in about.items() if name in libraries]
    for call in dict.fromkeys(row["call"] for row in rows):
        mine = [row for row in rows if row["call"] == call]
        names = [name for name in libraries if any(row["library"] == name for row in mine)]
        heads = "".join(f"{short(name):>11s}" for name in names)
        ratios = [name for name in ("gloo", "best mpi", "limit") if name in names or name == "best mpi"]
        lines += ["", f"{call}: microseconds | busbw in GB/s | disttorch's busbw over the others'"]
        lines.append(f"{'size':>9s}{heads} |{heads} |" + "".join(f"{'/ ' + r:>11s}" for r in ratios))
        for size in dict.fromkeys(row["bytes"] for row in mine):
            found = {row["library"]: row for row in mine if row["bytes"] == size}
            times = "".join(f"{found[name]['us']:11.1f}" for name in names)
            widths = "".join(f"{found[name]['busbw_GB_s']:11.4f}" for name in names)
            others = {name: found[name]["us"] for name in names}
            others["best mpi"] = min(others[name] for name in raws)
            compared = "".join(f"{others[name] / others['disttorch']:11.2f}" for name in ratios)
            lines.append(f"{as_text(size):>9s}{times} |{widths} |{compared}")
    with_checks, without = checks["1"] * 1e6, checks["0"] * 1e6
    lines += [
        "",
        f"all_reduce of 8 B with the always-on check {with_checks:.1f} us, with DISTTORCH_CHECKS=0 "
        f"{without:.1f} us: {with_checks - without:+.1f} us",
    ]
    return "\n".join(lines) + "\n"


def short(library: str) -> str:
    """ "mpi4py (mpich)" as "mpich"."""
    return library.removeprefix("mpi4py (").rstrip(")")


def _order(library: str) -> tuple[int, str]:
    return {"disttorch": 0, "limit": 2, "in cache": 3}.get(library, 1), library


def save(rows: list[dict], text: str, ranks: int) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    name = folder / ("collectives" if ranks == 2 else f"collectives_{ranks}_ranks")
    name.with_suffix(".txt").write_text(text)
    with open(name.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    plot(rows, name.with_suffix(".png"), ranks)


def plot(rows: list[dict], file: Path, ranks: int) -> None:
    """Busbw over size, a panel per call."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    calls = list(dict.fromkeys(row["call"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(calls), figsize=(1 + 4 * len(calls), 4), sharey=True, squeeze=False
    )
    for panel, call in zip(panels[0], calls):
        mine = [row for row in rows if row["call"] == call]
        for library in sorted({row["library"] for row in mine}, key=_order):
            points = [(r["bytes"], r["busbw_GB_s"]) for r in mine if r["library"] == library]
            limits = {"limit": "--", "in cache": ":"}
            style = (
                {"color": "gray", "linestyle": limits[library]} if library in limits else {"marker": "."}
            )
            panel.plot(*zip(*points), label=library, **style)
        panel.set(title=f"{call}, {ranks} ranks", xlabel="bytes", xscale="log", yscale="log")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("busbw, GB/s")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = arguments()
    load = os.getloadavg()[0]
    samples, about = gather(options)
    rows = figures(samples, options.ranks)
    text = table(rows, about, cost_of_checks(options), options.ranks, load)
    print(text, end="")
    if options.save:
        save(rows, text, options.ranks)


if __name__ == "__main__":
    main()
