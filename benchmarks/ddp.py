"""Data-parallel training steps beside torch DDP and FSDP2 over gloo, on the same cores.

    python benchmarks/ddp.py                            # 1 and 2 ranks, four models, about 20 minutes
    python benchmarks/ddp.py --quick                    # two models, fewer samples: three minutes
    python benchmarks/ddp.py --models mlp,gpt384 --ranks 4
    python benchmarks/ddp.py --via mpi,spawn            # ranks of disttorch's launcher too, without MPI
    python benchmarks/ddp.py --save                     # write benchmarks/results/ddp.txt, .csv, .png

A step is forward, backward with reduction, and AdamW, with one thread a rank; both libraries execute
the same lines (`_ddp_worker.py`) on the same models (`disttorch/models`). Jobs of the two alternate and
never run at the same time. A step's time is that of its slowest rank; figures are medians. Overhead is
what a step takes above one of a single process (alone), and above one of as many processes that do
not communicate (beside): the second leaves out what ranks cost each other by sharing a machine.

Samples during which other programs used more than a tenth of a core are taken anew, --patience times
as many in all, and left out where there are others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this file's folder would hide the package `collectives`

from benchmarks._ddp_common import CASES  # noqa: E402
from benchmarks._ddp_report import figures, save, table  # noqa: E402
from benchmarks._jobs import by_environment, by_mpiexec, by_spawn  # noqa: E402

# (library, model, ranks, mode) -> what its rows of all rounds come to
Samples = dict[tuple[str, str, int, str], dict]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help=f"of {','.join(CASES)} (default all)")
    parser.add_argument("--ranks", type=int, default=2, help="1, 2, 4, … up to this (default 2)")
    parser.add_argument("--quick", action="store_true", help="mlp and gpt128, few samples")
    parser.add_argument("--rounds", type=int, default=4, help="times that every job runs (default 4)")
    parser.add_argument("--repeat", type=int, default=3, help="samples in a run (default 3)")
    parser.add_argument(
        "--patience", type=int, default=4, help="samples at most, times --repeat (default 4)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sample, about (default 1)")
    parser.add_argument("--via", default="mpi", help="how disttorch's ranks start: mpi, spawn or both")
    parser.add_argument(
        "--torch-python", default=str(ROOT / ".venv-parity/bin/python"),
        help="interpreter that has PyTorch (default .venv-parity/bin/python)",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="write results/ddp.txt, .csv, .png")
    options, _ = parser.parse_known_args()
    if options.quick:
        options.rounds, options.repeat, options.seconds = 3, 3, 0.3
    options.models = (options.models or ("mlp,gpt128" if options.quick else ",".join(CASES))).split(",")
    options.via = options.via.split(",")
    for what, given, known in (
        ("models", options.models, list(CASES)), ("ways to start", options.via, ["mpi", "spawn"])
    ):  # fmt: skip
        unknown = set(given) - set(known)
        if unknown:
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if options.ranks < 1:
        parser.error(f"--ranks {options.ranks} is not at least 1")
    return options


def worlds(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({1 << k for k in range(most.bit_length()) if 1 << k <= most} | {most})


def jobs(options: argparse.Namespace) -> dict:
    """Library -> what starts a job of it: (options of the worker, ranks)."""
    script = "_ddp_worker.py"
    ways = {
        "mpi": lambda more, n: by_mpiexec(sys.executable, script, ["--library", "disttorch", *more], n),
        "spawn": lambda more, n: by_spawn(script, ["--library", "disttorch", *more], n),
    }
    names = {"mpi": "disttorch", "spawn": "disttorch" if options.via == ["spawn"] else "disttorch spawn"}
    found = {names[via]: ways[via] for via in options.via}
    if Path(options.torch_python).exists():
        python = os.path.abspath(options.torch_python)
        found["torch"] = lambda more, n: by_environment(python, script, ["--library", "torch", *more], n)
    else:
        print(f"torch: not measured, there is no {options.torch_python} (make parity)")
    return found


def gather(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """Every job in turn, `rounds` times: all samples, and the libraries' versions."""
    samples: Samples = {}
    versions: dict[str, str] = {}
    starters = jobs(options)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        for turn in range(options.rounds):
            for model in options.models:
                for ranks in worlds(options.ranks):
                    # A B, then B A: neither always follows the other.
                    for library in sorted(starters, reverse=turn % 2 == 1):
                        show(f"round {turn + 1} of {options.rounds}: {model}, {ranks} ranks, {library}")
                        modes = "alone" if ranks == 1 else "alone,ddp,fsdp"
                        more = [
                            "--model", model, "--modes", modes, "--strong", "--result", str(result),
                            "--repeat", str(options.repeat), "--seconds", str(options.seconds),
                            "--most", str(options.patience * options.repeat),
                        ]  # fmt: skip
                        starters[library](more, ranks)
                        add(samples, versions, library, model, ranks, json.loads(result.read_text()))
    print(file=sys.stderr)
    return samples, versions


def add(
    samples: Samples, versions: dict[str, str], library: str, model: str, ranks: int, found: dict
) -> None:
    """Put a job's rows to those of the rounds before."""
    versions[library] = found["version"]
    for row in found["rows"]:
        entry = samples.setdefault((library, model, ranks, row["mode"]), {"samples": [], "rounds": []})
        entry["samples"] += row.pop("samples")
        entry["rounds"].append(row)


def show(text: str) -> None:
    print(f"\r{text:60s}", end="", file=sys.stderr, flush=True)


def main() -> None:
    options = arguments()
    before = os.getloadavg()[0]
    samples, versions = gather(options)
    rows = figures(samples)
    text = table(rows, versions, (before, os.getloadavg()[0]))
    print(text, end="")
    if options.save:
        save(rows, text, HERE / "results" / "ddp")


if __name__ == "__main__":
    main()
