"""What benchmarks/gpu.py measures, one function a section; each runs in a process of its own.

A section returns rows of figures by name. `p` is a library: disttorch, or PyTorch where it is installed;
both run in one process, by turns, and a figure is the median of the rounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

from models import source

ROUNDS = 5
PEAK_BF16 = 989e12  # FLOP/s of an H100 or H200 SXM, dense (NVIDIA's datasheet): the base of the MFU


def libraries() -> dict[str, Any]:
    """The libraries by name: ours, and PyTorch if it is there."""
    names = ["disttorch"] + (["torch"] if importlib.util.find_spec("torch") else [])
    found = {name: importlib.import_module(name) for name in names}
    if "torch" in found:
        found["torch"].backends.cudnn.benchmark = False
    return found


def seconds(p, function: Callable[[], object], least: float = 0.02, most: int = 2000) -> float:
    """Seconds per call, the device's work included: one sample of at least `least` seconds."""
    function()
    p.cuda.synchronize()
    began = time.perf_counter()
    function()
    p.cuda.synchronize()
    times = max(1, min(most, int(least / max(time.perf_counter() - began, 1e-7))))
    began = time.perf_counter()
    for _ in range(times):
        function()
    p.cuda.synchronize()
    return (time.perf_counter() - began) / times


def by_turns(functions: dict[str, tuple[Any, Callable[[], object]]], rounds: int = ROUNDS,
             least: float = 0.02) -> dict[str, float]:
    """Median seconds per call of each (library, function), taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, (p, function) in functions.items():
            found[name].append(seconds(p, function, least))
    return {name: statistics.median(values) for name, values in found.items()}


class Rows(dict):
    """Rows by name; one that fails is told and left out, so that it does not cost the others."""

    def add(self, name: str, measure: Callable[[], dict[str, float]]) -> None:
        try:
            self[name] = measure()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            print(f"{name}: {type(error).__name__}: {error} ({place.filename}:{place.lineno})")


def graphed(p, function: Callable[[], object]) -> Callable[[], object]:
    """A replay of the work that `function` puts on the device."""
    stream = p.cuda.Stream()
    stream.wait_stream(p.cuda.current_stream())
    with p.cuda.stream(stream):
        for _ in range(3):
            function()
    p.cuda.current_stream().wait_stream(stream)
    graph = p.cuda.CUDAGraph()
    with p.cuda.graph(graph):
        kept = function()

    def replay(kept=kept):
        graph.replay()

    return replay


# ---- the cost of a call ----------------------------------------------------------------------------


def overhead() -> dict[str, dict[str, float]]:
    """Microseconds of one small op (4 KiB): untracked, tracked, with its backward; and in a graph."""
    cases = {
        "add": lambda p, x, y, w: x + y,
        "mul number": lambda p, x, y, w: x * 1.5,
        "tanh": lambda p, x, y, w: x.tanh(),
        "matmul": lambda p, x, y, w: x @ w,
        "linear": lambda p, x, y, w: p.nn.functional.linear(x, w),
        "layer_norm": lambda p, x, y, w: p.nn.functional.layer_norm(x, (32,)),
        "softmax": lambda p, x, y, w: x.softmax(-1),
    }

    def measure(case):
        functions: dict[str, tuple[Any, Callable[[], object]]] = {}
        for library, p in libraries().items():
            x, y, w = (p.randn(32, 32, device="cuda") for _ in range(3))
            tx, ty, tw = (t.clone().requires_grad_() for t in (x, y, w))
            g = p.randn(32, 32, device="cuda")

            def both(p=p, case=case, given=(tx, ty, tw), g=g):
                case(p, *given).backward(g)

            functions[f"{library}"] = (p, lambda p=p, case=case, t=(x, y, w): case(p, *t))
            functions[f"{library} tracked"] = (p, lambda p=p, case=case, t=(tx, ty, tw): case(p, *t))
            functions[f"{library} both"] = (p, both)
            try:
                functions[f"{library} graph"] = (
                    p, graphed(p, lambda p=p, case=case, t=(x, y, w): [case(p, *t) for _ in range(20)]))
            except Exception as error:
                print(f"{library} in a graph: {type(error).__name__}: {error}")
        found = {key: value * 1e6 for key, value in by_turns(functions, 5, 0.01).items()}
        return {k: v / 20 if k.endswith("graph") else v for k, v in found.items()}

    rows = Rows()
    for name, case in cases.items():
        rows.add(name, lambda case=case: measure(case))
    return rows


# ---- kernels that are bound by memory ------------------------------------------------------------


def memory_cases(p) -> dict[str, tuple[int, Callable[[], Callable[[], object]]]]:
    """{name: (bytes that must move, what makes the call)} over bfloat16 [16384, 4096] (128 MiB)
    and logits of GPT-2's vocabulary. A backward reads the gradient and what was saved."""
    F, half = p.nn.functional, p.bfloat16
    n, m = 16384 * 4096, 8192 * 50257
    x, y = (p.randn(16384, 4096, device="cuda").to(half) for _ in range(2))
    row = p.randn(4096, device="cuda").to(half)
    logits = p.randn(8192, 50257, device="cuda").to(half)
    target = p.randint(0, 50257, (8192,), device="cuda")

    def backward(function, given=x, seed=y):
        def make():
            t = given.clone().requires_grad_()
            out = function(t)
            seeds = seed if out.ndim else None
            return lambda: p.autograd.grad(out, t, seeds, retain_graph=True)

        return make

    def call(function):
        return lambda: function

    return {
        "copy": (4 * n, call(lambda: x.clone())),
        "add": (6 * n, call(lambda: x + y)),
        "add row": (4 * n, call(lambda: x + row)),
        "mul number": (4 * n, call(lambda: x * 1.5)),
        "to float32": (6 * n, call(lambda: x.float())),
        "gelu": (4 * n, call(lambda: F.gelu(x))),
        "gelu backward": (6 * n, backward(F.gelu)),
        "softmax": (4 * n, call(lambda: x.softmax(-1))),
        "softmax backward": (6 * n, backward(lambda t: t.softmax(-1))),
        "layer_norm": (4 * n, call(lambda: F.layer_norm(x, (4096,), row, row))),
        "layer_norm backward": (6 * n, backward(lambda t: F.layer_norm(t, (4096,), row, row))),
        "rms_norm": (4 * n, call(lambda: F.rms_norm(x, (4096,), row))),
        "dropout": (5 * n, call(lambda: F.dropout(x, 0.1, True))),
        "dropout backward": (5 * n, backward(lambda t: F.dropout(t, 0.1, True))),
        "sum rows": (2 * n, call(lambda: x.sum(0))),
        "transpose copy": (4 * n, call(lambda: x.t().contiguous())),
        "cross_entropy": (2 * m, call(lambda: F.cross_entropy(logits, target))),
        "cross_entropy backward": (4 * m, backward(lambda t: F.cross_entropy(t, target), logits)),
    }


def memory() -> dict[str, dict[str, float]]:
    """TB/s of kernels bound by memory, and their share of the copy bandwidth of the same run."""
    found = {name: memory_cases(p) for name, p in libraries().items()}

    def measure(case):
        functions = {name: (libraries()[name], cases[case][1]()) for name, cases in found.items()}
        times = by_turns(functions, 3)
        return {name: found[name][case][0] / t / 1e12 for name, t in times.items()}

    rows = Rows()
    for case in found["disttorch"]:
        rows.add(case, lambda case=case: measure(case))
    best = max(rows["copy"].values())
    for row in rows.values():
        row["of copy"] = row["disttorch"] / best
    return rows


def optimizer() -> dict[str, dict[str, float]]:
    """Milliseconds for AdamW, gradient norm and unscaling of GPT-2's 124 M float32 parameters."""
    shapes = [(50257, 768), (1024, 768)] + 12 * [
        (2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,),
        *4 * [(768,)]]  # fmt: skip
    adamw, clip = {}, {}
    for name, p in libraries().items():
        params = [p.nn.Parameter(p.randn(*s, device="cuda")) for s in shapes]
        for param in params:
            param.grad = p.randn_like(param)
        chosen = p.optim.AdamW(params, lr=1e-4, fused=True)
        adamw[name] = (p, chosen.step)
        clip[name] = (p, lambda p=p, params=params: p.nn.utils.clip_grad_norm_(params, 1e9))
    count = sum(math.prod(s) for s in shapes)
    rows = Rows()

    def measure(functions, size):
        times = by_turns(functions, 3)
        return {name: t * 1e3 for name, t in times.items()} | {
            "TB/s": size * count / times["disttorch"] / 1e12}

    for label, functions, size in (("AdamW", adamw, 28), ("clip_grad_norm_", clip, 12)):
        rows.add(label, lambda functions=functions, size=size: measure(functions, size))
    return rows


# ---- products ------------------------------------------------------------------------------------


def gemm() -> dict[str, dict[str, float]]:
    """TFLOP/s of matrix products: bfloat16 of a GPT-2's shapes and large squares, TF32, float32."""
    shapes = {
        "bf16 8192^3": ("bfloat16", (8192, 8192), (8192, 8192), False),
        "bf16 qkv 16384x768x2304": ("bfloat16", (16384, 768), (2304, 768), True),
        "bf16 up 16384x768x3072": ("bfloat16", (16384, 768), (3072, 768), True),
        "bf16 down 16384x3072x768": ("bfloat16", (16384, 3072), (768, 3072), True),
        "bf16 head 16384x768x50257": ("bfloat16", (16384, 768), (50257, 768), True),
        "bf16 batched 192x1024x64x1024": ("bfloat16", (192, 1024, 64), (192, 1024, 64), True),
        "fp16 4096^3": ("float16", (4096, 4096), (4096, 4096), False),
        "fp32 4096^3": ("float32", (4096, 4096), (4096, 4096), False),
        "tf32 4096^3": ("float32", (4096, 4096), (4096, 4096), False),
    }

    def measure(name, dtype, a, b, transposed):
        functions = {}
        for library, p in libraries().items():
            p.set_float32_matmul_precision("high" if name.startswith("tf32") else "highest")
            x, y = (p.randn(*s, device="cuda").to(getattr(p, dtype)) for s in (a, b))
            y = y.transpose(-1, -2) if transposed else y
            functions[library] = (p, lambda x=x, y=y: x @ y)
        work = 2 * math.prod(a) * (b[-2] if transposed else b[-1])
        return {n: work / t / 1e12 for n, t in by_turns(functions).items()}

    rows = Rows()
    for name, shape in shapes.items():
        rows.add(name, lambda name=name, shape=shape: measure(name, *shape))
    return rows


def attention() -> dict[str, dict[str, float]]:
    """TFLOP/s of causal attention, 16 × 12 heads × 1024 × 64 in bfloat16: forward, and with backward."""
    size, rows = (16, 12, 1024, 64), Rows()
    work = 4 * math.prod(size) * 1024 / 2
    ways = {"forward": 1.0, "forward and backward": 3.5}
    functions: dict[str, dict] = {way: {} for way in ways}
    for library, p in libraries().items():
        q, k, v = (p.randn(*size, device="cuda").to(p.bfloat16).requires_grad_() for _ in range(3))
        g = p.randn(*size, device="cuda").to(p.bfloat16)
        call = p.nn.functional.scaled_dot_product_attention
        backends = {"": None}
        if library == "disttorch":
            backends |= {" own": p.nn.attention.SDPBackend.FLASH_ATTENTION,
                         " cudnn": p.nn.attention.SDPBackend.CUDNN_ATTENTION}
        for label, backend in backends.items():
            def forward(p=p, backend=backend, call=call, given=(q, k, v)):
                if backend is None:
                    return call(*given, is_causal=True)
                with p.nn.attention.sdpa_kernel(backend):
                    return call(*given, is_causal=True)

            try:
                forward()
            except Exception as error:  # cuDNN may not be there
                print(f"{library}{label}: {error}")
                continue
            functions["forward"][library + label] = (p, forward)
            functions["forward and backward"][library + label] = (
                p, lambda p=p, f=forward, given=(q, k, v), g=g: p.autograd.grad(f(), given, g))
    for name in list(functions["forward"]):  # without the CPU's part, which the short calls may wait for
        for way in ways:
            p, call = functions[way][name]
            try:
                functions[way][f"{name} graph"] = (p, graphed(p, call))
            except Exception as error:
                print(f"{name}, {way} in a graph: {type(error).__name__}: {error}")
    for way, factor in ways.items():
        rows.add(way, lambda way=way, factor=factor: {
            n: factor * work / t / 1e12 for n, t in by_turns(functions[way]).items()})
    print_kernels({n: f for n, f in functions["forward and backward"].items() if "graph" not in n})
    return rows


# ---- whole training steps ------------------------------------------------------------------------


def kernels(function: Callable[[], object], most: int = 12) -> list[str]:
    """The kernels that a call launches, by the time they take: PyTorch's profiler sees those of all."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        libraries()["torch"].cuda.synchronize()
    found = sorted(seen.key_averages(), key=lambda e: -e.device_time_total)
    total = sum(e.device_time_total for e in found)
    lines = [f"  {total / 1e3:.2f} ms of kernels, {sum(e.count for e in found)} of them"]
    lines += [f"  {e.device_time_total / 1e3:8.3f} ms {e.count:5d} × {e.key[:90]}" for e in found[:most]]
    return lines


def print_kernels(functions: dict[str, tuple[Any, Callable[[], object]]]) -> None:
    """The kernels of one call of each; PyTorch is needed for it."""
    if "torch" not in libraries():
        return
    for name, (p, function) in functions.items():
        try:
            there = "with" if p.backends.cudnn.is_available() else "without"
            print(f"{name}, one call ({there} cuDNN):", *kernels(function), sep="\n")
        except Exception as error:
            print(f"{name}: no list of kernels: {type(error).__name__}: {error}")


def _steps(build, batch: int, unit: str, flops: float, compiled: bool) -> dict[str, dict[str, float]]:
    """Rates of a training step: eager, replayed from a graph (ours), compiled (PyTorch's)."""
    functions: dict[str, tuple[Any, Callable[[], object]]] = {}
    peaks = {}
    for name, p in libraries().items():
        p.cuda.reset_peak_memory_stats()
        before = p.cuda.memory_allocated()
        step, forward = build(p)
        functions[name] = (p, step)
        for _ in range(2):
            step()
        p.cuda.synchronize()
        peaks[name] = (p.cuda.max_memory_allocated() - before) / 2**30
        try:
            if name == "disttorch":
                functions[f"{name} graph"] = (p, graphed(p, step))
            elif compiled:
                functions[f"{name} compiled"] = (p, build(p, p.compile)[0])
        except Exception as error:
            print(f"{name}: no second way: {type(error).__name__}: {error}")
    times = by_turns(functions, 3, 0.3)
    print_kernels({name: functions[name] for name in libraries()})
    rows = {f"{unit}/s": {n: batch / t for n, t in times.items()},
            "ms per step": {n: t * 1e3 for n, t in times.items()},
            "MFU %": {n: 100 * flops / t / PEAK_BF16 for n, t in times.items()},
            "peak GiB": peaks}
    return rows


def gpt2(batch: int = 16, length: int = 1024, compiled: bool = False) -> dict[str, dict[str, float]]:
    """GPT-2 124M, AdamW, bfloat16 by autocast, float32 parameters."""
    layers, width, vocabulary = 12, 768, 50257

    def build(p, wrap=lambda model: model):
        p.manual_seed(0)
        model = source(p, "gpt").GPT(vocabulary, length, layers, 12, width).to("cuda")
        optimizer = p.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)
        ids = p.randint(0, vocabulary, (batch, length + 1), device="cuda")
        x, t = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
        called = wrap(model)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with p.autocast("cuda", dtype=p.bfloat16):
                logits = called(x)
                loss = p.nn.functional.cross_entropy(logits.reshape(-1, vocabulary), t)
            loss.backward()
            optimizer.step()

        return step, called

    count = 12 * layers * width**2 + vocabulary * width
    flops = batch * length * (6 * count + 6 * layers * width * length)  # causal: half of the scores
    return _steps(build, batch * length, "tokens", flops, compiled)


def resnet50(batch: int = 128, compiled: bool = False) -> dict[str, dict[str, float]]:
    """ResNet-50 on 224×224 images, SGD with momentum, bfloat16 by autocast, channels-last."""

    def build(p, wrap=lambda model: model):
        p.manual_seed(0)
        model = source(p, "resnet").resnet50().to("cuda").to(memory_format=p.channels_last)
        optimizer = p.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
        x = p.randn(batch, 3, 224, 224, device="cuda").to(memory_format=p.channels_last)
        t = p.randint(0, 1000, (batch,), device="cuda")
        called = wrap(model)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with p.autocast("cuda", dtype=p.bfloat16):
                loss = p.nn.functional.cross_entropy(called(x), t)
            loss.backward()
            optimizer.step()

        return step, called

    return _steps(build, batch, "images", batch * 3 * 2 * 4.09e9, compiled)


SECTIONS = {f.__name__: f for f in (overhead, memory, optimizer, gemm, attention, gpt2, resnet50)}
