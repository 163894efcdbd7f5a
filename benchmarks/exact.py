"""What exact mode costs: time and bytes of a step beside DistributedDataParallel.

    python benchmarks/exact.py                     # 1 and 2 ranks, about two minutes
    python benchmarks/exact.py --ranks 1,2,4 --models gpt
    python benchmarks/exact.py --via mpi --save    # write benchmarks/results/exact.txt

One job for each number of ranks n; in it plain DDP and exact mode with V = n, 2n and 4n virtual
shards take turns, and FSDP (`fully_shard`) with and without exact mode, on the same global batch, with
one thread a rank and AdamW. A step's time is that of its slowest rank; figures are medians over the
rounds. Bytes are those that a rank has received for gradients and parameters, counted, beside the
least that these calls need.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this file's folder would hide the package `collectives`

BATCH = {"mlp": 256, "cnn": 64, "gpt": 32}
WORKER = "DISTTORCH_BENCHMARK_EXACT"
COUNTED = ("all_reduce", "tree_all_reduce", "reduce_scatter", "all_gather")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(BATCH), help="(default: mlp,cnn,gpt)")
    parser.add_argument("--ranks", default="1,2", help="(default: 1,2)")
    parser.add_argument("--rounds", type=int, default=15, help="that every mode runs (default: 15)")
    parser.add_argument("--via", default="spawn", help="spawn or mpi (default: spawn)")
    parser.add_argument("--save", action="store_true", help="write results/exact.txt")
    return parser.parse_known_args()[0]


# ---- in each rank --------------------------------------------------------------------------------


def make_model(name: str) -> Any:
    import disttorch as torch
    from disttorch import nn
    from disttorch.models.gpt import GPT

    torch.manual_seed(1)
    if name == "mlp":
        return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                             nn.Linear(1024, 10))  # fmt: skip
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 64, 10),
        )  # fmt: skip
    return GPT(vocabulary_size=96, context=64, layers=4, heads=4, width=128, dropout=0.1)


def make_batch(name: str) -> tuple[Any, Any]:
    import disttorch as torch

    g = torch.Generator().manual_seed(2)
    n = BATCH[name]
    if name == "gpt":
        ids = torch.randint(0, 96, (n, 65), generator=g)
        return ids[:, :-1], ids[:, 1:]
    shape = (512,) if name == "mlp" else (3, 32, 32)
    return torch.randn(n, *shape, generator=g), torch.randint(0, 10, (n,), generator=g)


def steps_of(name: str, n: int) -> dict[str, Callable[[], None]]:
    """One training step in each mode."""
    import disttorch as torch
    import disttorch.distributed as dist
    import disttorch.nn.functional as F
    from disttorch.distributed.exact import ExactDataParallel
    from disttorch.distributed.fsdp import fully_shard
    from disttorch.nn.parallel import DistributedDataParallel

    x, y = make_batch(name)
    each, rank = len(x) // n, dist.get_rank()
    mine, target = x[rank * each : (rank + 1) * each], y[rank * each : (rank + 1) * each]

    def loss_of(out: Any, y: Any) -> Any:
        return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))

    def sharded() -> Any:
        net = make_model(name)
        for block in getattr(net, "blocks", ()):
            fully_shard(block)
        return fully_shard(net)

    def plain(model: Any) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(model(mine), target).backward()
            optimizer.step()

        return step

    def exact(net: Any, V: int) -> Callable[[], None]:
        model = ExactDataParallel(net, V)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            for a, b in model.shards(mine, target):
                loss_of(model(a), b).backward()
            optimizer.step()

        return step

    made = {f"exact, V={k * n}": exact(make_model(name), k * n) for k in (1, 2, 4)}
    return {
        "DDP": plain(DistributedDataParallel(make_model(name))), **made,
        "FSDP": plain(sharded()), f"exact FSDP, V={n}": exact(sharded(), n),
    }  # fmt: skip


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    import disttorch.distributed as dist

    n = dist.get_world_size()
    steps = steps_of(name, n)
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {mode: [] for mode in steps}
    moved: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for mode, step in steps.items():
            dist.barrier()
            dist.reset_ledger()
            begin = time.perf_counter()
            step()
            seconds[mode].append(time.perf_counter() - begin)
            ledger = dist.ledger()
            moved[mode] = {
                figure: sum(ledger[c][figure] for c in COUNTED if c in ledger)
                for figure in ("received_bytes", "lower_bound_bytes")
            }
    everyone: list[Any] = [None] * n
    dist.all_gather_object(everyone, seconds)
    rows = []
    for mode in steps:
        slowest = [max(times) for times in zip(*(theirs[mode] for theirs in everyone))]
        rows.append({"model": name, "ranks": n, "mode": mode, **moved[mode],
                     "seconds": statistics.median(slowest)})  # fmt: skip
    return rows


def worker() -> None:
    import disttorch.distributed as dist

    given = json.loads(os.environ[WORKER])
    dist.init_process_group()
    rows = [row for name in given["models"] for row in measure(name, given["rounds"])]
    if dist.get_rank() == 0:
        Path(given["out"]).write_text(json.dumps(rows))
    dist.destroy_process_group()


# ---- the jobs, and their table -------------------------------------------------------------------


def run_job(n: int, given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    told = {"models": given.models.split(","), "rounds": given.rounds, "out": str(out)}
    command = [
        sys.executable, "-m", "launcher", "--via", given.via, "-n", str(n), "--oversubscribe",
        "--threads-per-rank", "1", str(Path(__file__).resolve()),
    ]  # fmt: skip
    env = os.environ | {WORKER: json.dumps(told), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=env, cwd=ROOT, check=True)
    return json.loads(out.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'model':6} {'ranks':>5}  {'mode':16} {'ms a step':>9} {'by DDP':>7} "
             f"{'MB received':>11} {'least':>6}"]  # fmt: skip
    base = 1.0
    for row in rows:
        if row["mode"] == "DDP":
            base = row["seconds"]
        got, least = row["received_bytes"] / 1e6, row["lower_bound_bytes"] / 1e6
        lines.append(
            f"{row['model']:6} {row['ranks']:5}  {row['mode']:16} {1e3 * row['seconds']:9.1f} "
            f"{row['seconds'] / base:7.2f} {got:11.2f} {least:6.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    import tempfile

    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for n in map(int, given.ranks.split(","))
                for row in run_job(n, given, Path(folder) / "rows.json")]  # fmt: skip
    text = table(sorted(rows, key=lambda row: (row["model"], row["ranks"])))
    print(text)
    if given.save:
        path = ROOT / "benchmarks" / "results" / "exact.txt"
        path.write_text(text + "\n")


if __name__ == "__main__":
    worker() if WORKER in os.environ else main()
