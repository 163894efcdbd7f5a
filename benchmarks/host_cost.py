"""What one training step costs the CPU on a GPU machine, measured without a GPU.

    python benchmarks/host_cost.py [gpt2|resnet50|ops] [--count] [--profile]

The engine runs over a CuPy that computes nothing (``_null_cupy.py``): arrays have shapes and no memory,
kernels and library calls end in C calls without effect. So the shapes are the real ones of
``benchmarks/gpu.py``, and what is left is our Python. On a real machine each launch adds some 3 µs, each
of CuPy's own functions ("cupy …" of ``--count``) 14, each call of cuDNN 45. Figures are CPU time of this
thread, which other processes disturb little; "reference" is a fixed loop, to compare machines by.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import _null_cupy
from models import source

clock = time.thread_time


def gpt2(p, batch: int = 16, length: int = 1024, vocabulary: int = 50257):
    """GPT-2 124M as in ``_gpu_cases.gpt2``: (optimizer, the loss of a forward)."""
    with p.device("cuda"):
        model = source(p, "gpt").GPT(vocabulary, length, 12, 12, 768)
    optimizer = p.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)
    ids = p.randint(0, vocabulary, (batch, length + 1), device="cuda")
    x, t = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    return optimizer, lambda: p.nn.functional.cross_entropy(model(x).reshape(-1, vocabulary), t)


def resnet50(p, batch: int = 128):
    """ResNet-50 as in ``_gpu_cases.resnet50``: (optimizer, the loss of a forward)."""
    with p.device("cuda"):
        model = source(p, "resnet").resnet50()
    model = model.to(memory_format=p.channels_last)
    optimizer = p.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
    x = p.randn(batch, 3, 224, 224, device="cuda").to(memory_format=p.channels_last)
    t = p.randint(0, 1000, (batch,), device="cuda")
    return optimizer, lambda: p.nn.functional.cross_entropy(model(x), t)


def stepper(p, optimizer, forward, parts: dict[str, list[float]]) -> Callable[[], None]:
    """One training step under autocast that notes the ms of its parts."""

    def step():
        times = [clock()]
        optimizer.zero_grad(set_to_none=True)
        times.append(clock())
        with p.autocast("cuda", dtype=p.bfloat16):
            loss = forward()
        times.append(clock())
        loss.backward()
        times.append(clock())
        optimizer.step()
        times.append(clock())
        for name, begin, end in zip(parts, times, times[1:]):
            parts[name].append((end - begin) * 1e3)

    return step


def reference() -> float:
    """ms of a loop of plain Python."""
    found: dict[int, Any] = {}
    began = clock()
    for i in range(20000):
        found[i & 255] = (i, None)
    return (clock() - began) * 1e3


def show_step(p, build, given) -> None:
    parts: dict[str, list[float]] = {name: [] for name in ("zero_grad", "forward", "backward", "step")}
    step = stepper(p, *build(p), parts)
    for _ in range(3):
        step()
    _null_cupy.counts.clear()
    if given.count:
        step()
        found = _null_cupy.counts
        print(sum(n for name, n in found.items() if name.startswith("launch")), "launches")
        for name, n in found.most_common():
            print(f"{n:6d} {name}")
    elif given.profile:
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(5):
            step()
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(50)
    else:
        for values in parts.values():
            values.clear()
        for _ in range(given.steps):
            step()
        print(f"{'reference':10s} {min(reference() for _ in range(30)):8.2f} ms")
        for name, values in (*parts.items(), ("total", [sum(v) for v in zip(*parts.values())])):
            print(f"{name:10s} {min(values):8.2f} ms, median {statistics.median(values):.2f}")


def show_ops(p) -> None:
    """µs of small operations, tracked and not."""
    x = p.ones(4, 256, device="cuda").requires_grad_()
    w, b = (p.ones(*s, device="cuda").requires_grad_() for s in ((256, 256), (256,)))
    y, f = x.detach(), p.nn.functional
    for name, call in {
        "add": lambda: x + x, "add, untracked": lambda: y + y, "mul by a number": lambda: x * 1.5,
        "tanh": lambda: p.tanh(x), "relu": lambda: f.relu(x), "gelu": lambda: f.gelu(x),
        "matmul": lambda: x @ w, "linear": lambda: f.linear(x, w, b),
        "softmax": lambda: f.softmax(x, -1), "layer_norm": lambda: f.layer_norm(x, (256,), b, b),
        "add_": lambda: y.add_(y),
    }.items():
        best = float("inf")
        for _ in range(7):
            began = clock()
            for _ in range(1000):
                call()
            best = min(best, clock() - began)
        print(f"{name:16s} {best * 1e3:7.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("gpt2", "resnet50", "ops"), default="gpt2")
    parser.add_argument("--count", action="store_true", help="launches and CuPy's own calls of a step")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    parser.add_argument("--steps", type=int, default=30, help="counted steps (default 30)")
    given = parser.parse_args()
    _null_cupy.install(given.count)
    import disttorch as p

    if given.what == "ops":
        show_ops(p)
    else:
        show_step(p, {"gpt2": gpt2, "resnet50": resnet50}[given.what], given)


if __name__ == "__main__":
    main()
