"""Exact training on a device, by hand: the digests must not depend on the number of ranks.

    for n in 1 2 3; do python -m launcher -n $n --oversubscribe tests/exact_on_gpu.py cuda; done

Ranks may share a GPU. The GPT, whose embedding's gradient is a scattered sum, is trained
last, and twice, to see whether it repeats itself at all. `cpu` tries the script without a GPU.
"""

from __future__ import annotations

import sys
import warnings

import exact_models
from exact_models import MODELS, OPTIMIZERS, V, build, data, loss_of

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed.exact import ExactDataParallel


def train(name: str, device: str) -> str:
    model = ExactDataParallel(build(name).to(device), V, seed=11)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    x, y = (t.to(device) for t in data(name, exact_models.BATCH)[:])
    for _ in range(8):
        optimizer.zero_grad()
        model.backward(lambda x, y: loss_of(model(x), y), x, y, whole=True)
        model.clip_grad_norm_(0.7)
        optimizer.step()
    return model.digest()


def main() -> None:
    device = sys.argv[1]
    warnings.simplefilter("ignore")
    if device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group("nccl" if device == "cuda" else None)
    for name in [*MODELS, "gpt"]:
        digest = train(name, device)
        if dist.get_rank() == 0:
            print(f"{name} on {dist.get_world_size()} ranks of {device}: {digest}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
