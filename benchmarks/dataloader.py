"""Throughput of DataLoader with worker processes, beside PyTorch's on the same machine.

    python benchmarks/dataloader.py [--workers 2] [--seconds 2]

For each kind of dataset it loads whole passes with persistent workers, alternating between the two
libraries, and prints samples per second (the best pass of each) and their ratio; above 1 we are
faster. PyTorch must be installed. Tensors are read (summed) by the loading process where the row
says so, as a model would, because memory that is only mapped costs nothing until then.
"""

from __future__ import annotations

import argparse
import importlib
import time

import numpy as np


class Images:
    """Samples of 3×64×64 floats, made with little arithmetic."""

    n = 2048

    def __init__(self, package: str):
        self.torch = importlib.import_module(package)
        self.pixels = np.random.default_rng(0).random((64, 3, 64, 64), dtype=np.float32)

    def __getstate__(self):
        return self.torch.__name__, self.pixels

    def __setstate__(self, state):
        self.torch, self.pixels = importlib.import_module(state[0]), state[1]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.torch.from_numpy(self.pixels[i % 64]), i % 10


class Augmented(Images):
    """The same with work for the workers: a flip and a change of contrast in NumPy."""

    n = 1024

    def __getitem__(self, i):
        x = self.pixels[i % 64][:, :, ::-1]
        x = (x - x.mean()) * 1.1 + 0.5
        return self.torch.from_numpy(np.ascontiguousarray(np.clip(x, 0, 1))), i % 10


class Rows(Images):
    """Small samples: 32 floats."""

    n = 8192

    def __getitem__(self, i):
        return self.torch.from_numpy(self.pixels[i % 64, 0, 0, :32]), i % 10


class Arrays(Images):
    """NumPy samples of 16×1000 floats in a nested structure."""

    n = 1024

    def __getitem__(self, i):
        x = self.pixels[i % 64].reshape(-1)
        return {"a": x[:8000], "b": [x[:4000], x[4000:8000]], "y": float(i)}


def first_tensor(batch):
    while not hasattr(batch, "sum"):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return batch


def one_pass(loader, read: bool) -> float:
    """Samples per second of one pass."""
    begin = time.perf_counter()
    for batch in loader:
        if read:
            first_tensor(batch).sum()
    return loader.dataset.n / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="per library and row")
    options = parser.parse_args()
    ours, theirs = (
        importlib.import_module(p + ".utils.data").DataLoader for p in ("disttorch", "torch")
    )
    importlib.import_module("torch").set_num_threads(1)
    rows = [(Images, 32, False), (Images, 32, True), (Augmented, 32, True), (Rows, 64, True),
            (Arrays, 32, True)]
    print(f"{options.workers} workers, samples/s{'':20s}disttorch      torch   ratio")
    for kind, batch, read in rows:
        loaders = [
            make(kind(package), batch, num_workers=options.workers,
                 persistent_workers=options.workers > 0)
            for make, package in ((ours, "disttorch"), (theirs, "torch"))
        ]
        best = [0.0, 0.0]
        for loader in loaders:
            one_pass(loader, read)  # starts the workers
        end = time.perf_counter() + 2 * options.seconds
        while time.perf_counter() < end:
            for k, loader in enumerate(loaders):
                best[k] = max(best[k], one_pass(loader, read))
        name = f"{kind.__name__}, batch {batch}{', read' if read else ''}"
        print(f"{name:36s}{best[0]:14.0f} {best[1]:10.0f} {best[0] / best[1]:7.2f}", flush=True)
        del loaders, loader


if __name__ == "__main__":
    main()
