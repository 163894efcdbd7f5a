"""Speed and memory of single operations, beside PyTorch when it is installed.

    python benchmarks/ops.py [small|large|memory ...] [--threads 1] [--save] [--only softmax]

Both libraries run in this process with the same number of threads, by turns, and the median of the
rounds counts. *small* is the overhead of one tracked operation on 4 elements, forward and backward;
*large* the time of one on arrays that leave the caches; *memory* the peak of a training step of a
12-layer MLP, by counting allocations. A ratio is ours over PyTorch's: below 1 we are faster.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
TARGETS = {"small": 1.3, "large": 1.2, "memory": 1.1}
DEPTH, WIDTH, BATCH = 12, 512, 1024  # the MLP of the memory figure


# ---------------------------------------------------------------- what is measured
def small_cases() -> dict:
    """{name: f(T, x, y, m)}: x, y are vectors of 4 and m is 2×2; all require grad."""
    return {
        "add": lambda T, x, y, m: x + y,
        "add number": lambda T, x, y, m: x + 1.5,
        "sub": lambda T, x, y, m: x - y,
        "mul": lambda T, x, y, m: x * y,
        "div": lambda T, x, y, m: x / y,
        "neg": lambda T, x, y, m: -x,
        "pow 2": lambda T, x, y, m: x**2,
        "exp": lambda T, x, y, m: T.exp(x),
        "log": lambda T, x, y, m: x.log(),
        "sqrt": lambda T, x, y, m: x.sqrt(),
        "tanh": lambda T, x, y, m: x.tanh(),
        "sigmoid": lambda T, x, y, m: x.sigmoid(),
        "relu": lambda T, x, y, m: x.relu(),
        "clamp": lambda T, x, y, m: x.clamp(min=0.5),
        "maximum": lambda T, x, y, m: T.maximum(x, y),
        "where": lambda T, x, y, m: T.where(x > y, x, y),
        "sum": lambda T, x, y, m: x.sum(),
        "mean": lambda T, x, y, m: x.mean(),
        "max dim": lambda T, x, y, m: x.max(0)[0],
        "matmul": lambda T, x, y, m: m @ m,
        "reshape": lambda T, x, y, m: x.reshape(2, 2),
        "transpose": lambda T, x, y, m: m.transpose(0, 1),
        "slice": lambda T, x, y, m: x[1:3],
        "cat": lambda T, x, y, m: T.cat((x, y)),
        "stack": lambda T, x, y, m: T.stack((x, y)),
        "softmax": lambda T, x, y, m: x.softmax(0),
        "linear": lambda T, x, y, m: T.nn.functional.linear(m, m),
        "layer_norm": lambda T, x, y, m: T.nn.functional.layer_norm(x, (4,)),
    }


def large_cases() -> dict:
    """{name: f(T, d)}: d holds inputs by name, see ``large_inputs``."""
    return {
        "add": lambda T, d: d["a"] + d["b"],
        "add row": lambda T, d: d["a"] + d["row"],
        "mul": lambda T, d: d["a"] * d["b"],
        "exp": lambda T, d: d["a"].exp(),
        "tanh": lambda T, d: d["a"].tanh(),
        "sigmoid": lambda T, d: d["a"].sigmoid(),
        "relu": lambda T, d: d["a"].relu(),
        "gelu": lambda T, d: T.nn.functional.gelu(d["a"]),
        "where": lambda T, d: T.where(d["mask"], d["a"], d["b"]),
        "sum": lambda T, d: d["a"].sum(),
        "sum dim 0": lambda T, d: d["a"].sum(0),
        "sum dim 1": lambda T, d: d["a"].sum(1),
        "mean dim 1": lambda T, d: d["a"].mean(1),
        "max dim 1": lambda T, d: d["a"].max(1)[0],
        "var dim 1": lambda T, d: d["a"].var(1),
        "logsumexp": lambda T, d: d["a"].logsumexp(1),
        "cumsum": lambda T, d: d["a"].cumsum(1),
        "sort": lambda T, d: d["a"].sort(1)[0],
        "topk": lambda T, d: d["a"].topk(8, 1)[0],
        "softmax": lambda T, d: d["a"].softmax(1),
        "log_softmax": lambda T, d: d["a"].log_softmax(1),
        "layer_norm": lambda T, d: T.nn.functional.layer_norm(d["a"], (1024,), d["row"], d["row"]),
        "cross_entropy": lambda T, d: T.nn.functional.cross_entropy(d["a"], d["label"]),
        "matmul": lambda T, d: d["s"] @ d["s"],
        "batched matmul": lambda T, d: d["q"] @ d["q"].transpose(-1, -2),
        "linear": lambda T, d: T.nn.functional.linear(d["a"], d["s"]),
        "attention": lambda T, d: T.nn.functional.scaled_dot_product_attention(
            d["q"], d["q"], d["q"], is_causal=True),
        "embedding": lambda T, d: T.nn.functional.embedding(d["label"], d["a"]),
        "index rows": lambda T, d: d["a"][d["label"]],
        "gather": lambda T, d: d["a"].gather(1, d["place"]),
        "scatter_add": lambda T, d: d["b"].scatter_add(1, d["place"], d["a"]),
        "index_add": lambda T, d: d["b"].index_add(0, d["label"], d["a"]),
        "masked_fill": lambda T, d: d["a"].masked_fill(d["mask"], 0.0),
        "boolean mask": lambda T, d: d["a"][d["mask"]],
        "transpose copy": lambda T, d: d["a"].t().contiguous(),
        "cat": lambda T, d: T.cat((d["a"], d["b"]), 1),
        "slice": lambda T, d: d["a"][:, 100:900],
    }


def large_inputs(T) -> dict:
    """float32 a, b, s: 1024×1024, q: 4×8×256×64; int64 label: 1024, place: 1024×1024."""
    import numpy as np

    rng = np.random.default_rng(0)

    def floats(*shape, scale=1.0):
        values = (rng.standard_normal(shape) * scale).astype("float32")
        return T.from_numpy(values).requires_grad_()

    return {
        "a": floats(1024, 1024), "b": floats(1024, 1024), "row": floats(1024),
        "s": floats(1024, 1024, scale=0.03), "q": floats(4, 8, 256, 64, scale=0.3),
        "mask": T.from_numpy(rng.random((1024, 1024)) < 0.5),
        "label": T.from_numpy(rng.integers(0, 1024, 1024)),
        "place": T.from_numpy(rng.integers(0, 1024, (1024, 1024))),
    }


# ---------------------------------------------------------------- timing
def step_of(T, f, leaves):
    """A function that runs ``f`` forward and backward once, from a gradient of ones."""
    out = f()
    ones = T.ones_like(out).detach()

    def step():
        f().backward(ones)
        for leaf in leaves:
            leaf.grad = None

    return step


def steps(libraries, kind, only):
    """Yields (name, [one step function for each library])."""
    if kind == "small":
        given = []
        for T in libraries:
            x, y = (T.tensor(v, requires_grad=True) for v in ([0.5, 1.0, 2.0, 3.0], [1.0] * 4))
            given.append((x, y, T.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)))
        for name, f in small_cases().items():
            if only in name:
                yield name, [step_of(T, lambda f=f, T=T, g=g: f(T, *g), g)
                             for T, g in zip(libraries, given)]
        return
    given = [large_inputs(T) for T in libraries]
    for name, f in large_cases().items():
        if only in name:
            yield name, [
                step_of(T, lambda f=f, T=T, d=d: f(T, d),
                        [v for v in d.values() if v.requires_grad])
                for T, d in zip(libraries, given)
            ]


def time_by_turns(functions, rounds=9, target=0.02) -> list[float]:
    """Seconds per call of each function: the median of rounds that take turns."""
    counts = []
    for f in functions:
        f()
        start = time.perf_counter()
        f()
        once = time.perf_counter() - start
        counts.append(max(1, int(target / max(once, 1e-7))))
    times = [[] for _ in functions]
    for _ in range(rounds):
        for f, count, found in zip(functions, counts, times):
            start = time.perf_counter()
            for _ in range(count):
                f()
            found.append((time.perf_counter() - start) / count)
    return [statistics.median(t) for t in times]


# ---------------------------------------------------------------- memory
def mlp_step(T):
    """(parameters, a function that runs one training step) of a GELU MLP with SGD."""
    import numpy as np

    rng = np.random.default_rng(0)
    draw = lambda *shape: T.from_numpy((rng.standard_normal(shape) * 0.04).astype("float32"))  # noqa: E731
    weights = [draw(WIDTH, WIDTH).requires_grad_() for _ in range(DEPTH)]
    x, target = draw(BATCH, WIDTH), draw(BATCH, WIDTH)
    F = T.nn.functional

    def step():
        h = x
        for w in weights:
            h = F.gelu(F.linear(h, w))
        F.mse_loss(h, target).backward()
        with T.no_grad():
            for w in weights:
                w -= 0.1 * w.grad
                w.grad = None

    return weights, step


def peak_of_disttorch() -> int:
    """Bytes at the peak of a step beyond those before it: NumPy reports to tracemalloc."""
    import tracemalloc

    import disttorch

    _, step = mlp_step(disttorch)
    step()
    tracemalloc.start()
    step()
    return tracemalloc.get_traced_memory()[1]


def peak_of_torch() -> int:
    """The same for PyTorch, from its profiler's record of every allocation."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    _, step = mlp_step(torch)
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak


def measure_memory(names) -> list[float]:
    """Peaks in MiB, each in a process of its own."""
    found = []
    for name in names:
        command = [sys.executable, __file__, "--peak-of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(int(done.stdout.split()[-1]) / 2**20)
    return found


# ---------------------------------------------------------------- the command
def libraries_here():
    import disttorch

    try:
        import torch
    except ImportError:
        return [disttorch]
    return [disttorch, torch]


def measure(kinds, threads, only) -> list[dict]:
    libraries = libraries_here()
    if len(libraries) > 1:
        libraries[1].set_num_threads(threads)
    rows = []
    for kind in kinds:
        unit = {"small": "us", "large": "ms", "memory": "MiB"}[kind]
        scale = {"small": 1e6, "large": 1e3}.get(kind)
        print(f"{kind} ({unit})".ljust(24) + f"{'disttorch':>12}{'torch':>12}{'ratio':>8}")
        if kind == "memory":
            found = [(f"{DEPTH}-layer MLP step", measure_memory([T.__name__ for T in libraries]))]
        else:
            found = ((name, [t * scale for t in time_by_turns(fs)])
                     for name, fs in steps(libraries, kind, only))
        for name, values in found:
            ratio = values[0] / values[1] if len(values) > 1 else None
            rows.append({"kind": kind, "name": name, "unit": unit, "disttorch": values[0],
                         "torch": values[1] if ratio else None, "ratio": ratio})
            cells = "".join(f"{v:12.3f}" for v in values)
            late = " *" if ratio and ratio > TARGETS[kind] else ""
            print(name.ljust(24) + cells + (f"{ratio:8.2f}{late}" if ratio else ""), flush=True)
        ratios = [r["ratio"] for r in rows if r["kind"] == kind and r["ratio"]]
        if ratios:
            print(f"{'median ratio':<48}{statistics.median(ratios):8.2f}   "
                  f"(* above {TARGETS[kind]})\n")
    return rows


def save(rows, threads):
    RESULTS.mkdir(exist_ok=True)
    about = {"threads": threads, "python": platform.python_version(),
             "machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}
    (RESULTS / "ops.json").write_text(json.dumps(about, indent=1) + "\n")
    with open(RESULTS / "ops.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="kind", help="small, large, memory")
    parser.add_argument("--threads", type=int, default=1, help="threads on both sides")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--save", action="store_true", help="write results/ops.json and ops.csv")
    parser.add_argument("--peak-of", choices=["disttorch", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_of_disttorch() if options.peak_of == "disttorch" else peak_of_torch())
        return
    if unknown := set(options.kinds) - set(TARGETS):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(TARGETS)}")
    # Read when NumPy's and PyTorch's libraries load, so before the first import of either
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    rows = measure(options.kinds or list(TARGETS), options.threads, options.only)
    if options.save and rows:
        save(rows, options.threads)


if __name__ == "__main__":
    main()
