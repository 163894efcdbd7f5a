"""What fully_shard and DTensor do on two ranks, written down as text and numbers.

    python fsdp_program.py RESULTS.json                        PyTorch, two processes
    python -m disttorch fsdp_program.py RESULTS.json           disttorch, two processes
    python -m disttorch fsdp_program.py RESULTS.json threads   disttorch, two threads

The file holds `[rank 0, rank 1]`, each a dictionary from a case's name to a list of texts and of
(nested lists of) numbers. `import torch` is whatever the interpreter stands for.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def values(*shape, seed=0):
    count = 1
    for n in shape:
        count *= n
    return ((torch.arange(count, dtype=torch.float64) * 7 + seed * 3) % 11 / 11 - 0.4).reshape(shape)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(5, 7)
        self.down = nn.Linear(7, 5)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build(dtype=torch.float64):
    net = Net().to(dtype)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(values(*p.shape, seed=i))
    return net


def sharded(dtype=torch.float64, **options):
    net = build(dtype)
    mesh = options.pop("mesh", None) or init_device_mesh("cpu", (2,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def batch(rank, step=0, dtype=torch.float64):
    return values(4, 3, seed=10 * step + rank).to(dtype)


def local(t):
    t = t.detach()
    t = t.to_local() if isinstance(t, DTensor) else t
    return t.to(torch.float64).tolist()


def ends(fn, *args, **kwargs):
    try:
        return str(fn(*args, **kwargs))
    except Exception as error:
        return type(error).__name__


@case
def classes_and_placements(rank):
    net = sharded()
    found = [type(net).__name__, type(net.blocks[0]).__name__, isinstance(net, FSDPModule)]
    found += [[name, str(p.placements), list(p.shape), isinstance(p, nn.Parameter)]
              for name, p in net.named_parameters()]
    return found + [type(nn.Linear(1, 1)).__name__]


@case
def shards(rank):
    return [local(p) for p in sharded().parameters()]


@case
def gradients(rank):
    found = []
    for options in ({}, {"reshard_after_forward": True}, {"reshard_after_forward": False}):
        net = sharded(**options)
        net(batch(rank)).square().mean().backward()
        found += [local(p.grad) for p in net.parameters()]
    return found


@case
def training(rank):
    net = sharded()
    opt = torch.optim.AdamW(net.parameters(), lr=0.05, foreach=False)
    norms = []
    for step in range(5):
        opt.zero_grad()
        net(batch(rank, step)).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        norms.append(norm.full_tensor().item())
        opt.step()
    state = opt.state_dict()
    moments = [s["exp_avg"] for s in state["state"].values()]
    return [norms, *map(local, net.parameters()), *map(local, moments),
            [type(m).__name__ for m in moments], list(state["state"][0])]


@case
def accumulation(rank):
    net = sharded()
    for step in range(3):
        net.set_requires_gradient_sync(step == 2)
        net(batch(rank, step)).square().mean().backward()
        if step == 0:
            early = [p.grad is None for p in net.parameters()]
    return [early, *[local(p.grad) for p in net.parameters()]]


@case
def divided(rank):
    net = sharded()
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(4.0)
    net(batch(rank)).square().mean().backward()
    return [local(p.grad) for p in net.parameters()]


@case
def hybrid(rank):
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    net = sharded(mesh=mesh)
    net(batch(rank)).square().mean().backward()
    return [str(net.head.weight.placements), *[local(p.grad) for p in net.parameters()]]


@case
def other_dim(rank):
    net = nn.Linear(4, 3).to(torch.float64)
    with torch.no_grad():
        net.weight.copy_(values(3, 4))
        net.bias.copy_(values(3))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)),
                shard_placement_fn=lambda p: Shard(1) if p.ndim == 2 else None)
    net(values(2, 4, seed=rank)).square().mean().backward()
    return [str(net.weight.placements), local(net.weight), local(net.weight.grad)]


@case
def low_precision(rank):
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    net = sharded(torch.float32, mp_policy=policy)
    out = net(batch(rank, dtype=torch.float32))
    out.float().square().mean().backward()
    return [str(out.dtype), *[str(p.grad.dtype) for p in net.parameters()]]


@case
def unsharding(rank):
    net = sharded()
    block = net.blocks[0]
    before = isinstance(block.up.weight, DTensor)
    handle = block.unshard(async_op=True)
    handle.wait()
    whole = local(block.up.weight)
    inside = isinstance(block.up.weight, DTensor)
    block.reshard()
    return [before, inside, isinstance(block.up.weight, DTensor), whole]


@case
def states(rank):
    net = sharded()
    state = net.state_dict()
    other = sharded()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    other.load_state_dict(state)
    return [list(state), [type(v).__name__ for v in state.values()], *map(local, other.parameters())]


@case
def older_wrapper(rank):
    net = FullyShardedDataParallel(
        build(torch.float32), auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch(rank, dtype=torch.float32)).square().mean().backward()
    norm = float(net.clip_grad_norm_(0.2))
    opt.step()
    with FullyShardedDataParallel.state_dict_type(
        net, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=True)
    ):
        state = net.state_dict()
    return [norm, list(state), *map(local, state.values())]


@case
def policies(rank):
    found = []
    for least in (20, 60, 100):
        policy = functools.partial(size_based_auto_wrap_policy, min_num_params=least)
        net = FullyShardedDataParallel(build(), auto_wrap_policy=policy, use_orig_params=True,
                                       device_id=torch.device("cpu"))
        found.append(sorted(
            name.replace("_fsdp_wrapped_module", "").replace("..", ".")
            for name, m in net.named_modules() if isinstance(m, FullyShardedDataParallel)
        ))
    return found


@case
def refusals(rank):
    mesh = init_device_mesh("cpu", (2,))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    return [
        ends(fully_shard, nn.ModuleList(), mesh=mesh),
        ends(fully_shard, nn.Linear(2, 2), mesh=mesh, reshard_after_forward=3),
        ends(sharded().set_reshard_after_forward, 2),
        ends(sharded().set_modules_to_forward_prefetch, [tied]),
        ends(__import__("copy").deepcopy, sharded()),
        ends(distribute_tensor, torch.ones(2), mesh, [Shard(0), Shard(0)]),
        ends(DTensor.from_local, torch.ones(2), mesh, [Shard(0)], shape=(4,)),
    ]


@case
def distributed_tensors(rank):
    mesh = init_device_mesh("cpu", (2,))
    x = values(5, 3)
    found = []
    for placed in ([Shard(0)], [Shard(1)], [Replicate()]):
        d = distribute_tensor(x, mesh, placed)
        found += [str(d.placements), repr(d.placements), list(d.shape), list(d.to_local().shape)]
        found += [local(d), d.full_tensor().tolist()]
        for target in ([Shard(1)], [Shard(0)], [Replicate()]):
            found.append(local(d.redistribute(mesh, target)))
        found += [local(d * 2 + d), local(d.abs().sqrt()), (d / 2).full_tensor().tolist()]
        found += [d.sum().full_tensor().item(), d.max().full_tensor().item()]
        found += [d.sum().placements[0].is_partial(), d.norm().full_tensor().item()]
    part = DTensor.from_local(torch.full((2,), rank + 1.0), mesh, [Partial()])
    found += [repr(part.placements), part.full_tensor().tolist()]
    found += [local(part.redistribute(mesh, [Shard(0)]))]
    grown = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
    return [*found, list(grown.shape), str(Shard(1) == Shard(1)), repr(Shard(1)), repr(Replicate())]


@case
def gradients_of_distributed_tensors(rank):
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(values(5, 3), mesh, [Shard(0)]))
    (p.full_tensor() * values(5, 3, seed=2)).sum().backward()
    q = nn.Parameter(distribute_tensor(values(5, 3), mesh, [Shard(0)]))
    (q.to_local() * 3).sum().backward()
    return [isinstance(p, nn.Parameter), isinstance(p, DTensor), local(p.grad), local(q.grad),
            str(q.grad.placements), p.is_leaf, p.requires_grad]


def run(rank):
    found = {}
    for name, fn in CASES.items():
        found[name] = fn(rank)
    return found


def process(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    pathlib.Path(folder, str(rank)).write_text(json.dumps(run(rank)))
    dist.destroy_process_group()


def main():
    target, *how = sys.argv[1:]
    if how:
        found = dist.run_local(2, run, timeout=100)
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(process, (folder,), nprocs=2)
            found = [json.loads(pathlib.Path(folder, str(r)).read_text()) for r in range(2)]
    pathlib.Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
