"""What data parallelism does on two ranks, written down as numbers.

    python ddp_program.py RESULTS.json                 PyTorch, two processes over gloo
    python -m disttorch ddp_program.py RESULTS.json    disttorch, two processes

The file holds `[rank 0, rank 1]`, each a dictionary from a case's name to nested lists of what the
case returned. `import torch` is whatever the interpreter stands for.
"""

from __future__ import annotations

import copy
import json
import pathlib
import pickle
import sys
import tempfile
import warnings
from collections import OrderedDict

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import (
    DDPCommHookType,
    default_hooks,
    powerSGD_hook,
    register_ddp_comm_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.join import Join
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel as DDP

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def plain(x):
    """Tensors as lists, other things as they are or as text."""
    if isinstance(x, torch.Tensor):
        return x.detach().double().tolist() if x.is_floating_point() else x.tolist()
    if isinstance(x, dict):
        return [[str(key), plain(value)] for key, value in x.items()]
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    return x if isinstance(x, (int, float, str, bool, type(None))) else str(x)


def ends(fn, *args, **kwargs):
    """The type of a call's error; "fine" without one."""
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return "fine"


def waves(*shape, seed=0):
    count = 1
    for n in shape:
        count *= n
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + seed).reshape(shape)


def fill(model):
    model = model.double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(waves(*p.shape, seed=i) * 0.5)
    return model


def mlp():
    return fill(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(),
                              nn.Linear(6, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.low = nn.Linear(5, 8), nn.Linear(8, 3)
        self.high, self.spare = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return (self.low if dist.get_rank() == 0 else self.high)(torch.tanh(self.stem(x)))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        with torch.no_grad():
            self.seen += x.sum()
        return self.linear(x)


def data(rank, number, rows=4):
    return waves(rows, 5, seed=10 * number + rank)


def loss_of(out):
    return (out * out).mean() + out.sum() / 7


def grads(model):
    return [None if p.grad is None else p.grad for p in model.parameters()]


def steps(model, optimizer, rank, numbers):
    for number in numbers:
        optimizer.zero_grad()
        loss_of(model(data(rank, number))).backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trained(rank, count=4, make=mlp, hook=None, state=None, **options):
    ddp = DDP(make(), **options)
    if hook is not None:
        ddp.register_comm_hook(state, hook)
    steps(ddp, sgd(ddp), rank, range(count))
    return [list(ddp.parameters()), grads(ddp)]


# ---- gradients -----------------------------------------------------------------------------------


@case
def training(rank):
    return [trained(rank), trained(rank, bucket_cap_mb=0.0002),
            trained(rank, gradient_as_bucket_view=True), trained(rank, static_graph=True),
            trained(rank, batched_grad_copy=True), trained(rank, bucket_cap_mb_list=[0.0001, 0.001])]


@case
def unused(rank):
    return [trained(rank, make=lambda: fill(Branches()), find_unused_parameters=True),
            trained(rank, make=lambda: fill(Branches()), static_graph=True)]


@case
def accumulation(rank):
    ddp = DDP(mlp())
    found = []
    for number in range(3):
        with ddp.no_sync():
            loss_of(ddp(data(rank, number))).backward()
        found.append(copy.deepcopy(grads(ddp)))
        loss_of(ddp(data(rank, number + 5))).backward()
        found.append(copy.deepcopy(grads(ddp)))
    return found


@case
def buffers(rank):
    found = []
    for options in ({}, {"forward_sync_buffers": False}, {"broadcast_buffers": False}):
        model = fill(Counting())
        model.seen += rank
        ddp = DDP(model, **options)
        for number in range(3):
            loss_of(ddp(data(rank, number))).backward()
            found.append(ddp.module.seen.clone())
    return found


@case
def frozen_and_ignored(rank):
    frozen = mlp()
    frozen[0].weight.requires_grad_(False)
    ignored = mlp()
    DDP._set_params_and_buffers_to_ignore_for_model(ignored, ["2.weight", "2.bias"])
    found = []
    for model in (frozen, ignored):
        ddp = DDP(model)
        loss_of(ddp(data(rank, 0))).backward()
        found.append(grads(ddp))
    return found


@case
def copies(rank):
    ddp = DDP(mlp(), find_unused_parameters=True)
    loss_of(ddp(data(rank, 0))).backward()
    found = []
    for other in (copy.deepcopy(ddp), pickle.loads(pickle.dumps(ddp))):
        other.zero_grad()
        loss_of(other(data(rank, 1))).backward()
        found.append([grads(other), other.find_unused_parameters, list(other.state_dict())])
    own = DDP(mlp(), process_group=dist.new_group([0, 1]))
    return [*found, ends(copy.deepcopy, own)]


@case
def wrong_arguments(rank):
    p = nn.Parameter(torch.ones(2))
    plain_model, hooked = mlp(), DDP(mlp())
    hooked.register_comm_hook(None, default_hooks.allreduce_hook)
    for q in plain_model.parameters():
        q.requires_grad_(False)

    def unused_error():
        ddp = DDP(fill(Branches()))
        for number in range(2):
            loss_of(ddp(data(rank, number))).backward()

    return [
        ends(DDP, plain_model),
        ends(DDP, mlp(), device_ids=[0, 1]),
        ends(DDP, mlp(), device_ids=[0]),
        ends(DDP, mlp(), output_device=1),
        ends(DDP, mlp(), param_to_hook_all_reduce=p),
        ends(hooked.register_comm_hook, None, default_hooks.allreduce_hook),
        ends(DDP(mlp()).register_comm_hook, None, 3),
        ends(DDP(mlp())._set_ddp_runtime_logging_sample_rate, 0),
        ends(Join, []),
        ends(PeriodicModelAverager, 0), ends(PeriodicModelAverager, 2, -1),
        ends(HierarchicalModelAverager, OrderedDict()),
        ends(HierarchicalModelAverager, OrderedDict([(2, 1)])),
        ends(powerSGD_hook.PowerSGDState, None, 1, 1),
        ends(ZeroRedundancyOptimizer, p, torch.optim.SGD),
        ends(ZeroRedundancyOptimizer, [], torch.optim.SGD),
        ends(ZeroRedundancyOptimizer, [p, 3], torch.optim.SGD),
        ends(ZeroRedundancyOptimizer([p], torch.optim.SGD).state_dict),
        ends(unused_error),
    ]


@case
def delayed(rank):
    model = mlp()
    named = [(n, p) for n, p in model.named_parameters() if n[0] != "0"]
    for p in model.parameters():  # PyTorch's buffer for them is of float32
        p.data = p.data.float()
    ddp = DDP(model, delay_all_reduce_named_params=named, param_to_hook_all_reduce=model[0].weight)
    found = []
    for number in range(2):
        ddp.zero_grad()
        loss_of(ddp(data(rank, number).float())).backward()
        dist.barrier()  # PyTorch does not wait for them
        found.append(copy.deepcopy(grads(ddp)))
    return found


# ---- hooks ---------------------------------------------------------------------------------------


@case
def hooks(rank):
    found = [trained(rank, hook=default_hooks.allreduce_hook, state=dist.group.WORLD)]
    for kind in ("ALLREDUCE", "FP16_COMPRESS", "NOOP"):  # PyTorch's 8-bit ones fail over gloo
        ddp = DDP(mlp().float())
        register_ddp_comm_hook(DDPCommHookType[kind], ddp, dist.group.WORLD)
        loss_of(ddp(data(rank, 0).float())).backward()
        found.append(grads(ddp))
    ddp = DDP(mlp())
    ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    loss_of(ddp(data(rank, 0))).backward()
    return [*found, grads(ddp)]


@case
def buckets_that_hooks_see(rank):
    """One bucket per parameter; the order within a layer is each engine's own."""
    ddp = DDP(mlp(), bucket_cap_mb=1e-5)
    seen, flags = [], []

    def look(state, bucket):
        flags.append([bucket.index(), bucket.is_last()])
        for p, g in zip(bucket.parameters(), bucket.gradients()):
            seen.append([list(p.shape), list(g.shape), bucket.buffer().numel(), g.clone()])
        return default_hooks.allreduce_hook(state, bucket)

    ddp.register_comm_hook(None, look)
    for number in range(3):
        seen.clear()
        flags.clear()
        ddp.zero_grad()
        loss_of(ddp(data(rank, number))).backward()
    found = ddp._get_ddp_logging_data()
    keys = ("world_size", "rank", "num_parameter_tensors", "total_parameter_size_bytes",
            "find_unused_parameters", "gradient_as_bucket_view", "module_name",
            "unused_parameter_size")
    sizes = sorted(map(int, found["rebuilt_bucket_sizes"].split(", ")))
    values = [int(v) if isinstance(v := found.get(k), bool) else v for k in keys]
    return [sorted(seen, key=lambda entry: entry[0]), flags, sizes, values]


@case
def powersgd(rank):
    """PowerSGD from the same first Q: two generators do not draw the same.

    PyTorch 2.13's `batched_powerSGD_hook` fails in an assertion of its own, so it is not here.
    """
    found = []
    for rank_, feedback, warm in ((1, True, True), (2, True, True), (3, False, True), (8, True, True)):
        state = powerSGD_hook.PowerSGDState(
            None, rank_, start_powerSGD_iter=2, min_compression_rate=0.1,
            use_error_feedback=feedback, warm_start=warm,
        )

        def with_q(state, bucket):
            if state.iter == 2:
                shapes = [[g.shape[0], g.numel() // g.shape[0]] for g in bucket.gradients()]
                ranks = [min(n, m, state.matrix_approximation_rank) for n, m in shapes]
                worth = [(n, m, k) for (n, m), k in zip(shapes, ranks) if (n + m) * k * 0.1 < n * m]
                size = sum(n * k for n, _, k in worth)
                state.p_memory_dict[bucket.index()] = torch.zeros(size, dtype=torch.float64)
                # waves alone are of rank 2, and what a fourth column gives is nobody's promise
                q = torch.cat([torch.exp(3 * waves(m, k, seed=1)).reshape(-1) for _, m, k in worth])
                state.q_memory_dict[bucket.index()] = q
            return powerSGD_hook.powerSGD_hook(state, bucket)

        ddp = DDP(mlp())
        ddp.register_comm_hook(state, with_q)
        steps(ddp, sgd(ddp), rank, range(6))
        found.append([list(ddp.parameters()), grads(ddp), state.compression_stats()[1:]])
    return found


# ---- models in the place of gradients ------------------------------------------------------------


@case
def averaging(rank):
    found = []
    for averager in (PeriodicModelAverager(3, warmup_steps=2),
                     HierarchicalModelAverager(OrderedDict([(2, 1), (4, 2)]), warmup_steps=1)):
        model = mlp()
        optimizer = sgd(model)
        for number in range(7):
            steps(model, optimizer, rank, [number])
            averager.average_parameters(model.parameters())
        found.append(list(model.parameters()))
    return found


@case
def post_local_sgd(rank):
    ddp = DDP(mlp())
    alone, _ = dist.new_subgroups(1)
    ddp.register_comm_hook(PostLocalSGDState(None, alone, 3), post_localSGD_hook)
    optimizer = PostLocalSGDOptimizer(sgd(ddp), PeriodicModelAverager(2, 3))
    steps(ddp, optimizer, rank, range(7))
    return [list(ddp.parameters()), optimizer.state_dict()["step"]]


# ---- uneven inputs, sharded optimizers -----------------------------------------------------------


@case
def uneven(rank):
    found = []
    for options in ({}, {"divide_by_initial_world_size": False}):
        for make in (mlp, lambda: fill(Counting())):
            ddp = DDP(make())
            optimizer = sgd(ddp)
            with ddp.join(**options):
                steps(ddp, optimizer, rank, range(2 + 2 * rank))
            found.append(list(ddp.state_dict().values()))
    ddp = DDP(mlp())

    def throwing():
        with ddp.join(throw_on_early_termination=True):
            steps(ddp, sgd(ddp), rank, range(2 + rank))

    return [*found, ends(throwing)]


@case
def zero(rank):
    found = []
    for view in (False, True):
        for kind, options in ((torch.optim.Adam, {"lr": 0.01}),
                              (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})):
            ddp = DDP(mlp())
            ps = list(ddp.parameters())
            optimizer = ZeroRedundancyOptimizer(
                [{"params": ps[:2], "lr": 0.05}, {"params": ps[2:]}], kind,
                parameters_as_bucket_view=view, **options,
            )
            steps(ddp, optimizer, rank, range(4))
            optimizer.consolidate_state_dict(to=1)
            state = None
            if rank == 1:
                whole = optimizer.state_dict()
                state = [sorted(whole["state"]), [whole["state"][i] for i in sorted(whole["state"])],
                         [[g["lr"], g["params"]] for g in whole["param_groups"]]]
            shares = [[[p.numel() for p in g["params"]] for g in part]
                      for part in optimizer._partition_parameters()]
            found.append([ps, state, shares])
    return found


def main(rank):
    found = {}
    for name, fn in CASES.items():
        found[name] = plain(fn(rank))
        dist.barrier()
    return found


def one_process(rank, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = main(rank)
    with open(f"{folder}/{rank}", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_process, (folder,), nprocs=2)
        both_ranks = [json.loads(pathlib.Path(folder, str(r)).read_text()) for r in (0, 1)]
    with open(sys.argv[1], "w") as file:
        json.dump(both_ranks, file)
