"""What one small operation costs the CPU on a GPU machine, part by part: µs a call.

    python benchmarks/gpu_overhead.py [--json FILE]

Launches by each method (``backend/gpu/launch.py``), allocation, CuPy's ufunc, our function, our op
untracked and tracked, with its backward, beside PyTorch's where it is installed. 4 elements each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

CALLS, ROUNDS = 500, 9


def microseconds(call, wait) -> float:
    """The median over rounds; the device finishes between rounds, so its queue never fills."""
    for _ in range(20):
        call()
    found = []
    for _ in range(ROUNDS):
        wait()
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - began) / CALLS * 1e6)
    wait()
    return statistics.median(found)


def launches(xp) -> dict:
    """A prepared launch of the same kernel by each method, and the general call."""
    from disttorch.backend.gpu import launch
    from disttorch.backend.gpu.kernel import kernel

    cupy = xp.cupy
    a, out = cupy.ones(4, "f4"), cupy.empty(4, "f4")
    made = kernel(cupy, "elementwise", "elementwise", VALUE="float", RESULT="float32", NUMBERS=0, NDIM=1,
                  FIRST="float32", SECOND="float32", EXPR="plus(a, b)")
    types, cases = (cupy.ndarray,) * 3 + (int,), {}
    chosen = launch.METHOD
    for launch.METHOD in ("driver", "rawkernel"):
        fast = made.prepared(256, types)
        cases[f"launch, {launch.METHOD}"] = lambda fast=fast: fast(1, a, a, out, 4)
    launch.METHOD = chosen
    return cases | {"launch, Kernel.__call__": lambda: made((1,), (256,), (a, a, out, 4))}


def cases() -> dict:
    import disttorch as torch
    from disttorch.backend.cupy_backend import gpu

    xp = gpu()
    cupy, a, big = xp.cupy, xp.cupy.ones(4, "f4"), xp.cupy.ones((4, 4), "f4")
    x = torch.ones(4, device="cuda").requires_grad_()
    plain, seed = x.detach(), torch.ones(4, device="cuda")
    return launches(xp) | {
        "cupy.ndarray(shape, dtype)": lambda: cupy.ndarray((4,), a.dtype),
        "cupy.empty": lambda: cupy.empty((4,), a.dtype),
        "current stream": lambda: cupy.cuda.get_current_stream().ptr,
        "current device": cupy.cuda.runtime.getDevice,
        "cupy.add(a, a)": lambda: cupy.add(a, a),
        "cupy.add(a, a, out)": lambda: cupy.add(a, a, a),
        "fused.add(a, a)": lambda: xp.fused.add(a, a),
        "fused.add broadcast": lambda: xp.fused.add(big, a),
        "ours: add": lambda: plain + plain,
        "ours: tracked add": lambda: x + x,
        "ours: tracked add of a number": lambda: x + 1.5,
        "ours: tracked relu": lambda: x.relu(),
        "ours: add_": lambda: plain.add_(seed),
        "ours: zero_": lambda: seed.zero_(),
        "ours: mul and backward": lambda: (x * x).backward(plain),
    }


def torch_cases() -> dict:
    import torch

    x = torch.ones(4, device="cuda", requires_grad=True)
    plain, seed = x.detach(), torch.ones(4, device="cuda")
    return {
        "torch: add": lambda: plain + plain, "torch: tracked add": lambda: x + x,
        "torch: tracked add of a number": lambda: x + 1.5, "torch: tracked relu": lambda: x.relu(),
        "torch: add_": lambda: plain.add_(seed), "torch: zero_": lambda: seed.zero_(),
        "torch: mul and backward": lambda: (x * x).backward(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures here")
    given = parser.parse_args()
    import disttorch

    if not disttorch.cuda.is_available():
        raise SystemExit("no CUDA device, or no CuPy: this measures a GPU")
    found = {name: microseconds(call, disttorch.cuda.synchronize) for name, call in cases().items()}
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None and torch.cuda.is_available():
        found |= {n: microseconds(c, torch.cuda.synchronize) for n, c in torch_cases().items()}
    for name, figure in found.items():
        print(f"{name:34s} {figure:8.2f}")
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
