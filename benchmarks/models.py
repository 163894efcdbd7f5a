"""Whole training steps (forward, backward, update) of five models, beside PyTorch's eager mode.

    python benchmarks/models.py [--threads 1] [--repeat 7] [--only gpt] [--save]

The models are the files of ``disttorch/models``, executed a second time with PyTorch. The two sides
alternate in one process; figures are medians. PyTorch is the yardstick and need not be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "disttorch" / "models"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads on both sides (default 1)")
    parser.add_argument("--repeat", type=int, default=7, help="counted steps of each (default 7)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--save", action="store_true", help="write results/models.json")
    options, _ = parser.parse_known_args()
    return options


def source(p, file: str) -> types.ModuleType:
    """A model file executed with library ``p`` under the name it imports."""
    text = (MODELS / f"{file}.py").read_text(encoding="utf-8")
    module = types.ModuleType(file)
    exec(compile(text.replace("disttorch", p.__name__), file, "exec"), module.__dict__)
    return module


# Each builder takes a library and the samples in a batch, and returns (model, its loss on fixed
# data); the loss takes what is to be called, the model or a wrapper of it.


def mlp(p, batch: int = 128):
    n, x, t = p.nn, p.randn(batch, 784), p.randint(0, 10, (batch,))
    model = n.Sequential(n.Linear(784, 512), n.ReLU(), n.Linear(512, 512), n.ReLU(), n.Linear(512, 10))
    return model, lambda model: n.functional.cross_entropy(model(x), t)


def resnet18(p, batch: int = 32):
    x, t = p.randn(batch, 3, 32, 32), p.randint(0, 10, (batch,))
    model = source(p, "resnet").resnet18(num_classes=10, small_images=True)
    return model, lambda model: p.nn.functional.cross_entropy(model(x), t)


def lstm(p, batch: int = 32):
    ids = p.randint(0, 100, (batch, 65))
    model = source(p, "lstm_lm").LSTMLanguageModel(100, width=256, layers=2)
    return model, lambda model: _next_loss(p, model(ids[:, :-1])[0], ids)


def gpt(layers: int, width: int, usual: int, context: int):
    def build(p, batch: int = usual):
        ids = p.randint(0, 100, (batch, context + 1))
        model = source(p, "gpt").GPT(100, context, layers, heads=width // 32, width=width)
        return model, lambda model: _next_loss(p, model(ids[:, :-1]), ids)

    return build


def _next_loss(p, logits, ids):
    return p.nn.functional.cross_entropy(logits.reshape(-1, 100), ids[:, 1:].reshape(-1))


CASES = {
    "MLP 784-512-512-10, batch 128": mlp,
    "ResNet-18 on 32x32, batch 32": resnet18,
    "LSTM 2 x 256, 32 x 64 ids": lstm,
    "GPT 4 layers / 128, 12 x 64 ids": gpt(4, 128, 12, 64),
    "GPT 6 layers / 384, 4 x 256 ids": gpt(6, 384, 4, 256),
}


def training_step(p, build):
    """A function that does one AdamW step on fixed data."""
    p.manual_seed(0)
    model, loss = build(p)
    optimizer = p.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

    return step


def medians(steps: dict, repeat: int) -> dict[str, float]:
    """Median milliseconds of each step, taken in turn after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(repeat + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if run:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    options = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # read when the libraries load
    import disttorch
    import disttorch.nn

    libraries = [disttorch]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(options.threads)
        libraries.append(torch)
    rows = {}
    print(f"{'ms per step':34s}" + "".join(f"{p.__name__:>11s}" for p in libraries) + "      ratio")
    for name, build in CASES.items():
        if options.only.lower() not in name.lower():
            continue
        found = medians({p.__name__: training_step(p, build) for p in libraries}, options.repeat)
        rows[name] = found
        ratio = found["disttorch"] / found["torch"] if "torch" in found else float("nan")
        print(f"{name:34s}" + "".join(f"{v:11.1f}" for v in found.values()) + f"{ratio:11.2f}")
    if options.save:
        folder = ROOT / "benchmarks" / "results"
        folder.mkdir(exist_ok=True)
        (folder / "models.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
