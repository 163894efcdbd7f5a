"""What `torch.distributed.checkpoint` gives on two ranks, written down as text.

    python checkpoint_program.py RESULTS.json               PyTorch
    python -m disttorch checkpoint_program.py RESULTS.json  disttorch

Formats on the disk differ; what a program gets back does not. `import torch` is whatever the
interpreter stands for. The file holds `[rank 0, rank 1]`: case -> what it returned.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import format_utils
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def text(x):
    """Tensors as dtype, shape and numbers; containers of them, dicts in their order."""
    if isinstance(x, DTensor):
        return f"DTensor {list(x.shape)} {x.placements} of {text(x.to_local())}"
    if isinstance(x, torch.Tensor):
        numbers = x.detach().double().reshape(-1).tolist()
        return f"{x.dtype} {list(x.shape)} {[round(v, 6) for v in numbers]}"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{k!r}: {text(v)}" for k, v in x.items()) + "}"
    if isinstance(x, (list, tuple)):
        return type(x).__name__ + "[" + ", ".join(map(text, x)) + "]"
    return repr(x)


def ends(fn, *args, **kwargs):
    """What a call returns, or the kinds of its errors by rank."""
    try:
        return text(fn(*args, **kwargs))
    except dcp.api.CheckpointException as error:
        return {r: type(e).__name__ for r, (e, _) in sorted(error.failures.items())}
    except Exception as error:
        return type(error).__name__


def model_of(kind, seed=0):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.arange(p.numel()).reshape(p.shape).float() / 10 - 0.3 * (i + seed))
    model[2].bias.requires_grad_(False)
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        fully_shard(model)
    return model


def train(rank, model, optimizer, steps=2):
    for i in range(steps):
        model(torch.full((2, 3), 0.1 * (rank + 1 + i))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def built(rank, kind, seed=0, steps=2, optimizer=torch.optim.Adam):
    model = model_of(kind, seed)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1]},
              {"params": [p for p in model.parameters() if p.dim() < 2], "lr": 0.02}]
    optimizer = optimizer(groups, lr=0.1)
    train(rank, model, optimizer, steps)
    return model, optimizer


# ---- save and load ---------------------------------------------------------------------------------


NESTED = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "list": [torch.ones(1), {"x": 1}, [2, 3]],
          "plain": [1, 2.5, "x"], "pair": (0.9, 0.99), "none": None, "deep": {"a": {"b": {"c": 3}}}}


def zeroed(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {k: zeroed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [zeroed(v) for v in value]
    return 0


@case
def nested_values(rank, folder):
    dcp.save(NESTED, checkpoint_id=folder)
    state = zeroed(NESTED)
    dcp.load(state, checkpoint_id=folder)
    return state


@case
def metadata_of_a_save(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    state = {"s": distribute_tensor(torch.arange(10.0).reshape(5, 2), mesh, [Shard(0)]),
             "w": torch.ones(3), "n": 1}
    found = dcp.save(state, checkpoint_id=folder)
    return {key: [text(tuple(v.size)), sorted((tuple(c.offsets), tuple(c.sizes)) for c in v.chunks)]
            if isinstance(v, dcp.TensorStorageMetadata) else "bytes"
            for key, v in sorted(found.state_dict_metadata.items())}


@case
def shards_along_every_dim(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(35.0).reshape(7, 5)
    results = []
    places = [Shard(0), Shard(1), Replicate()]
    for i, placement in enumerate(places):
        dcp.save({"w": distribute_tensor(whole, mesh, [placement])}, checkpoint_id=f"{folder}/{i}")
        for other in places:
            state = {"w": distribute_tensor(torch.zeros(7, 5), mesh, [other])}
            dcp.load(state, checkpoint_id=f"{folder}/{i}")
            results.append(state["w"])
        plain = {"w": torch.zeros(7, 5, dtype=torch.float64)}
        dcp.load(plain, checkpoint_id=f"{folder}/{i}")
        results.append(plain)
    return results


@case
def errors(rank, folder):
    dcp.save({"w": torch.ones(3), "n": 5}, checkpoint_id=folder)
    return [
        ends(dcp.load, {"missing": torch.ones(1)}, checkpoint_id=folder),
        ends(dcp.load, {"w": torch.ones(4)}, checkpoint_id=folder),
        ends(dcp.load, {"w": 3}, checkpoint_id=folder),
        ends(dcp.load, {"w": torch.ones(4) if rank else torch.ones(3)}, checkpoint_id=folder),
        ends(dcp.load, {}),
        ends(dcp.save, {"w": 1}, storage_writer=dcp.FileSystemWriter(folder, overwrite=False)),
        ends(dcp.save, {"a": {"b": 1}, "a.b": 2}, checkpoint_id=f"{folder}/x"),
        issubclass(dcp.api.CheckpointException, Exception),
    ]


class Holder:
    def __init__(self):
        self.weight, self.n = torch.zeros(2), 0

    def state_dict(self):
        return {"weight": self.weight, "n": self.n}

    def load_state_dict(self, state):
        self.weight, self.n = state["weight"], state["n"]


@case
def stateful(rank, folder):
    holder = Holder()
    holder.weight, holder.n = torch.ones(2), 7
    dcp.save({"h": holder}, checkpoint_id=folder)
    other = Holder()
    place = other.weight
    dcp.load({"h": other}, checkpoint_id=folder)
    return [other.weight, other.n, other.weight is place, isinstance(other, dcp.stateful.Stateful)]


@case
def modules_and_optimizers(rank, folder):
    model, optimizer = built(rank, "ddp")
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    other, other_optimizer = built(rank, "ddp", seed=3)
    dcp.load({"model": other, "optimizer": other_optimizer}, checkpoint_id=folder)
    return [other.state_dict(), other_optimizer.state_dict()["state"]]


@case
def partial_load(rank, folder):
    dcp.save({"w": torch.ones(2)}, checkpoint_id=folder)
    state = {"w": torch.zeros(2), "new": torch.zeros(1)}
    dcp.load(state, checkpoint_id=folder, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    return state


@case
def different_keys(rank, folder):
    dcp.save({f"k{rank}": torch.full((2,), float(rank)), f"v{rank}": rank}, checkpoint_id=folder)
    state = {f"k{1 - rank}": torch.zeros(2), f"v{1 - rank}": None}
    dcp.load(state, checkpoint_id=folder)
    return state


@case
def asynchronous(rank, folder):
    weight = torch.ones(4)
    future = dcp.async_save({"w": weight, "n": [1, 2]}, checkpoint_id=folder)
    weight.zero_()
    future.result()
    state = {"w": torch.zeros(4), "n": None}
    dcp.load(state, checkpoint_id=folder)
    return state


@case
def planner_that_changes_types(rank, folder):
    class Half(dcp.DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            for item in plan.items:
                if item.tensor_data is not None:
                    item.tensor_data.properties.dtype = torch.float16
            return plan

        def resolve_data(self, write_item):
            data = super().resolve_data(write_item)
            return data if write_item.tensor_data is None else data.to(torch.float16)

    dcp.save({"w": torch.tensor([1 / 3, 1.0])}, checkpoint_id=folder, planner=Half())
    state = {"w": torch.zeros(2)}
    dcp.load(state, checkpoint_id=folder)
    return state


@case
def single_files(rank, folder):
    dcp.save(NESTED, checkpoint_id=f"{folder}/dcp")
    dist.barrier()
    mine = f"{folder}/{rank}"
    format_utils.dcp_to_torch_save(f"{folder}/dcp", f"{mine}.pt")
    format_utils.torch_save_to_dcp(f"{mine}.pt", f"{mine}.dcp")
    state = zeroed(NESTED)
    dcp.load(state, checkpoint_id=f"{mine}.dcp", no_dist=True)
    return [torch.load(f"{mine}.pt"), state]


# ---- states by names -------------------------------------------------------------------------------


def by_name(state):
    return {"state": dict(sorted(state["state"].items())), "param_groups": state["param_groups"]}


@case
def states_of_ddp(rank, folder):
    model, optimizer = built(rank, "ddp")
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return [model_state, by_name(optimizer_state)]


@case
def states_of_fsdp(rank, folder):
    model, optimizer = built(rank, "fsdp")
    model_state, optimizer_state = get_state_dict(model, optimizer)
    full = StateDictOptions(full_state_dict=True)
    offloaded = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return [model_state, by_name(optimizer_state), get_model_state_dict(model, options=full),
            by_name(get_optimizer_state_dict(model, optimizer, options=full)),
            get_state_dict(model, optimizer, options=offloaded)]


@case
def from_each_layout_to_each(rank, folder):
    results = []
    for kind in ("ddp", "fsdp"):
        model, optimizer = built(rank, kind)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        dcp.save({"m": model_state, "o": optimizer_state}, checkpoint_id=f"{folder}/{kind}")
        for other in ("ddp", "fsdp"):
            model, optimizer = built(rank, other, seed=2)
            model_state, optimizer_state = get_state_dict(model, optimizer)
            state = {"m": model_state, "o": optimizer_state}
            dcp.load(state, checkpoint_id=f"{folder}/{kind}")
            set_state_dict(model, optimizer, model_state_dict=state["m"], optim_state_dict=state["o"])
            train(rank, model, optimizer)
            full = StateDictOptions(full_state_dict=True)
            results += [get_model_state_dict(model, options=full),
                        by_name(get_optimizer_state_dict(model, optimizer, options=full))]
    return results


@case
def flattened_optimizers(rank, folder):
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = built(rank, "ddp")
    state = get_optimizer_state_dict(model, optimizer, options=flat)
    other = built(rank, "ddp", seed=1)
    set_optimizer_state_dict(*other, dict(state), options=flat)
    return [dict(sorted(state.items())), by_name(get_optimizer_state_dict(*other))]


@case
def frozen_parameters_left_out(rank, folder):
    options = StateDictOptions(ignore_frozen_params=True)
    return list(get_model_state_dict(model_of("ddp"), options=options))


@case
def from_rank_0(rank, folder):
    full = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    model, optimizer = built(rank, "plain")
    states = get_state_dict(model, optimizer) if rank == 0 else ({}, {})
    other = built(rank, "fsdp", seed=1)
    set_model_state_dict(other[0], states[0], options=full)
    set_optimizer_state_dict(*other, states[1], options=full)
    model_state, optimizer_state = get_state_dict(*other)
    for group in optimizer_state["param_groups"]:
        group["betas"] = list(group["betas"])  # PyTorch makes a list of the tuple on the way
    return [model_state, by_name(optimizer_state)]


@case
def a_missing_state(rank, folder):
    model, optimizer = built(rank, "ddp")
    state = get_optimizer_state_dict(model, optimizer)
    del state["state"]["0.weight"]
    return [ends(set_optimizer_state_dict, model, optimizer, state),
            ends(StateDictOptions, broadcast_from_rank0=True) == "never",
            ends(get_model_state_dict, model, options=StateDictOptions(broadcast_from_rank0=True))]


# ---- both ranks ------------------------------------------------------------------------------------


def one_process(rank, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=60))
    found = {}
    for name, fn in CASES.items():
        try:
            found[name] = text(fn(rank, f"{folder}/{name}"))
        except BaseException as error:
            found[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    pathlib.Path(folder, f"rank{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_process, (folder,), nprocs=2)
        both = [json.loads(pathlib.Path(folder, f"rank{r}").read_text()) for r in (0, 1)]
    pathlib.Path(sys.argv[1]).write_text(json.dumps(both, indent=1))
