"""States that the tests of checkpoints save and load, in the layouts that ranks have."""

from __future__ import annotations

import json
import os

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch import nn
from disttorch.distributed import init_device_mesh
from disttorch.distributed.checkpoint import LocalShards
from disttorch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

LAYOUTS = ("plain", "rows", "columns", "grid", "boxes")


def tensors() -> dict[str, torch.Tensor]:
    """Odd sizes, no dimensions, nothing inside, every width of element."""
    gen = torch.Generator().manual_seed(7)
    return {
        "matrix": torch.randn(7, 5, generator=gen),
        "vector": torch.arange(3.0, dtype=torch.float64),
        "number": torch.tensor(2.5),
        "half": torch.randn(2, 3, 4, generator=gen).to(torch.bfloat16),
        "complex": torch.complex(torch.randn(3, 4, generator=gen), torch.zeros(3, 4)).to(
            torch.complex128
        ),
        "flags": torch.arange(11) % 3 == 0,
        "ids": torch.arange(6, dtype=torch.int64).reshape(6, 1),
        "nothing": torch.zeros(0, 4),
    }


def zeros() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(t) for name, t in tensors().items()}


def laid_out(state: dict, layout: str, rank: int, n: int) -> dict:
    """The state as one of n ranks holds it; with "grid" the ranks are replicas by 2."""
    return {name: _one(t, layout, rank, n) for name, t in state.items()}


def _one(t: torch.Tensor, layout: str, rank: int, n: int):
    if layout == "plain" or t.dim() == 0:
        return t.clone()
    if layout == "boxes":  # along the last dimension, dealt in turn, without mesh or group
        size = t.shape[-1]
        last, before = t.dim() - 1, [0] * (t.dim() - 1)
        mine = [((*before, i), t.narrow(last, i, 1).clone()) for i in range(rank, size, n)]
        return LocalShards(t.shape, mine, t.dtype)
    if layout == "grid":
        replicas = 2 if n % 2 == 0 else 1
        mesh = init_device_mesh("cpu", (replicas, n // replicas), mesh_dim_names=("copy", "shard"))
        return distribute_tensor(t.clone(), mesh, [Replicate(), Shard(0)])
    mesh = init_device_mesh("cpu", (n,))
    return distribute_tensor(t.clone(), mesh, [Shard(0 if layout == "rows" else t.dim() - 1)])


def check(state: dict, expected: dict, note: object = "") -> None:
    """Every tensor, whole, bit by bit; of `LocalShards` the boxes that are here."""
    for name, wanted in expected.items():
        got = state[name]
        if isinstance(got, LocalShards):
            for offsets, part in got.shards.items():
                box = wanted.narrow(wanted.dim() - 1, offsets[-1], 1)
                assert torch.equal(part, box), (note, name, offsets)
            continue
        if isinstance(got, DTensor):
            got = got.full_tensor()
        assert got.dtype is wanted.dtype and torch.equal(got, wanted), (note, name, got, wanted)


def small_model(seed: int = 0) -> nn.Module:
    """Layers of different sizes, a normalisation with buffers, a frozen bias."""
    gen = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) * 0.3)
    model[3].bias.requires_grad_(False)
    return model


def save_from(n: int, layout: str, folder, state=None) -> None:
    """The state saved by n ranks."""
    state = tensors() if state is None else state
    dist.run_local(
        n, lambda r: dcp.save(laid_out(state, layout, r, n), checkpoint_id=folder) and None
    )


def load_on(n: int, layout: str, folder, expected=None) -> None:
    """Loaded by n ranks, and compared."""
    expected = tensors() if expected is None else expected

    def rank_main(rank: int) -> None:
        state = laid_out(zeros(), layout, rank, n)
        dcp.load(state, checkpoint_id=folder)
        check(state, expected, (layout, n))

    dist.run_local(n, rank_main)


def manifest_of(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())["checkpoint"]


def bytes_written(folder) -> list[int]:
    """Of tensors, by rank."""
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    return [
        os.path.getsize(folder / f) - manifest_of(folder)["files"][f]["header"] for f in files
    ]


def read_safetensors(path) -> dict:
    from disttorch.serialization import safetensors

    return safetensors.load_file(path)


def same(a, b) -> bool:
    """Equal types, keys and bits, all the way down."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype is b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
