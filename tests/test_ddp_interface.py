"""DistributedDataParallel's rarer arguments and methods, as PyTorch has them."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
from ddp_models import (
    TINY,
    Averages,
    Branches,
    assert_gradients_match,
    assert_same_on_all_ranks,
    batch,
    build,
    ddp_and_whole,
    loss_of,
    mlp,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.ddp import _BufferCommHookLocation
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.nn.parallel import DistributedDataParallel as DDP

PYTORCH_2_13 = [
    "module", "device_ids", "output_device", "dim", "broadcast_buffers", "init_sync",
    "process_group", "bucket_cap_mb", "find_unused_parameters", "check_reduction",
    "gradient_as_bucket_view", "static_graph", "delay_all_reduce_named_params",
    "param_to_hook_all_reduce", "mixed_precision", "device_mesh", "skip_all_reduce_unused_params",
    "bucket_cap_mb_list", "batched_grad_copy", "forward_sync_buffers",
]  # fmt: skip


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def step(ddp, whole, number):
    ddp.zero_grad()
    whole.zero_grad()
    loss_of(ddp(batch(number, dist.get_rank()))).backward()
    loss_of(whole(whole_batch(number))).backward()


def test_arguments_are_pytorchs():
    parameters = inspect.signature(DDP.__init__).parameters
    assert list(parameters)[1:-2] == PYTORCH_2_13
    assert {parameters[name].kind for name in ("audit_every", "unreduced")} == {
        inspect.Parameter.KEYWORD_ONLY
    }


def test_arguments_that_cannot_be():
    def scenario():
        p = nn.Parameter(torch.ones(2))
        with pytest.raises(ValueError, match="can only be None or contain a single element"):
            DDP(mlp(), device_ids=[0, 1])
        with pytest.raises(ValueError, match="need to be set at the same time"):
            DDP(mlp(), param_to_hook_all_reduce=p)
        with pytest.raises(NotImplementedError, match="mixed_precision=.*autocast"):
            DDP(mlp(), mixed_precision=object())
        with pytest.raises(RuntimeError, match="uninitialized parameters"):
            DDP(nn.LazyLinear(3))
        with pytest.warns(FutureWarning, match="`check_reduction` argument"):
            DDP(mlp(), check_reduction=True)
        with pytest.warns(FutureWarning, match="Use `forward_sync_buffers`"):
            assert not DDP(mlp(), broadcast_buffers=False).forward_sync_buffers
        with pytest.warns(FutureWarning, match="both|Both"):
            ddp = DDP(mlp(), broadcast_buffers=False, forward_sync_buffers=True)
        assert ddp.broadcast_buffers
        ddp.broadcast_buffers = False
        assert not ddp.forward_sync_buffers
        assert DDP(mlp(), device_ids=[]).device_ids is None

    on_ranks(1, scenario)


def test_device_mesh():
    def scenario():
        rank = dist.get_rank()
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "other"))
        ddp = DDP(build(mlp, rank), device_mesh=mesh["copies"])
        assert ddp.process_group.size() == 2
        loss_of(ddp(batch(0, rank))).backward()
        mine = [rank % 2, rank % 2 + 2]
        whole = build(mlp, mine[0])
        loss_of(whole(torch.cat([batch(0, r) for r in mine]))).backward()
        for p, q in zip(ddp.parameters(), whole.parameters()):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-12, 1e-12)
        with pytest.raises(RuntimeError, match="Only 1D device mesh"):
            DDP(mlp(), device_mesh=mesh)
        with pytest.raises(RuntimeError, match="both process_group and device_mesh"):
            DDP(mlp(), device_mesh=mesh["copies"], process_group=dist.group.WORLD)

    on_ranks(4, scenario)


def test_bucket_limits():
    def scenario():
        def sizes(**options):
            ddp = DDP(nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)]), **options)
            ddp(torch.ones(1, 256)).sum().backward()
            return [len(bucket.members) for bucket in ddp.reducer.buckets]

        assert sizes() == [4, 4]  # 1 MiB first, then 25; a layer has 1/4 MiB
        assert sizes(bucket_cap_mb=0.5) == [2, 2, 2, 2]
        assert sizes(bucket_cap_mb_list=[0.25, 0.75]) == [1, 3, 3, 1]

    on_ranks(2, scenario)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ignored_parameters_and_buffers(n):
    def scenario():
        rank = dist.get_rank()
        model = build(Averages, rank)
        DDP._set_params_and_buffers_to_ignore_for_model(model, ["linear.bias", "count"])
        model.count += rank
        own = model.linear.bias.tolist()
        ddp = DDP(model)
        assert ddp.module.linear.bias.tolist() == own and ddp.module.count.item() == rank
        assert list(ddp.named_module_buffers) == ["mean"]
        assert [name for name, _ in DDP._get_data_parallel_params(model, named_params=True)] == [
            "linear.weight"
        ]
        assert list(DDP._get_data_parallel_params(model)) == [model.linear.weight]
        loss_of(ddp(batch(0, rank))).backward()
        assert ddp.module.count.item() == rank + 1
        assert_same_on_all_ranks([ddp.module.linear.weight.grad])
        grads = [None] * dist.get_world_size()
        dist.all_gather_object(grads, ddp.module.linear.bias.grad.tolist())
        assert len({tuple(g) for g in grads}) == len(grads)  # each rank's own

    on_ranks(n, scenario)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_delayed_parameters(n):
    """The last layers' gradients travel together, once that of the first layer is there."""

    def scenario():
        rank = dist.get_rank()
        for every in (False, True):
            model, whole = build(mlp, rank), build(mlp, 0)
            named = [(name, p) for name, p in model.named_parameters() if every or name[0] != "0"]
            ddp = DDP(model, delay_all_reduce_named_params=named,
                      param_to_hook_all_reduce=model[0].weight)
            for number in range(3):
                dist.reset_ledger()
                step(ddp, whole, number)
                if every:  # the trigger's own gradient comes with its hook: it is among them
                    pairs = list(zip(ddp.parameters(), whole.parameters()))[2:]
                    for p, q in pairs:
                        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-12, 1e-12)
                else:
                    assert_gradients_match(ddp, whole)
                if dist.get_world_size() > 1 and number:
                    assert dist.ledger()["all_reduce"]["calls"] == 1 + (not every)
            with pytest.raises(RuntimeError, match="cannot be copied"):
                copy.deepcopy(ddp)

    on_ranks(n, scenario)


def test_set_static_graph():
    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        ddp, whole = ddp_and_whole(Branches, bucket_cap_mb=TINY)
        ddp._set_static_graph()
        with pytest.warns(UserWarning, match="no need to set it again"):
            ddp._set_static_graph()
        for number in range(3):
            ddp.zero_grad()
            whole.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            sum(loss_of(whole(batch(number, r), r)) for r in range(n)).div(n).backward()
            assert_gradients_match(ddp, whole)
        late, _ = ddp_and_whole(mlp)
        loss_of(late(batch(0, rank))).backward()
        with pytest.raises(RuntimeError, match="before the first backward"):
            late._set_static_graph()

    on_ranks(1, scenario)


@pytest.mark.parametrize("late", [False, True])
def test_a_hook_for_buffers(late):
    """The ranks' running means are averaged, before or after forward, in the place of a copy."""

    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        ddp = DDP(build(Averages, rank))
        calls = []

        def average(state, buffers):
            calls.append((state, sorted(buffers)))
            work = dist.all_reduce(buffers["mean"], dist.ReduceOp.AVG, async_op=late)
            return [work.get_future()] if late else None

        where = _BufferCommHookLocation
        ddp._register_buffer_comm_hook(
            "state", average, where.POST_FORWARD if late else where.PRE_FORWARD
        )
        for number in range(2):
            loss_of(ddp(batch(number, rank))).backward()
        assert calls == [("state", ["count", "mean"])] * 2
        first = sum(batch(0, r).mean(0) for r in range(n)) / n
        second = sum(batch(1, r).mean(0) for r in range(n)) / n if late else batch(1, rank).mean(0)
        np.testing.assert_allclose(ddp.module.mean.numpy(), (first + second).numpy(), 1e-12)
        with pytest.raises(AssertionError, match="hook must be callable"):
            ddp._register_buffer_comm_hook(None, 3)

    on_ranks(3, scenario)


@pytest.mark.parametrize("n", [1, 2])
def test_copies_and_files(n):
    def scenario():
        rank = dist.get_rank()
        ddp, whole = ddp_and_whole(mlp, bucket_cap_mb=TINY, find_unused_parameters=True)
        step(ddp, whole, 0)
        for other in (copy.deepcopy(ddp), pickle.loads(pickle.dumps(ddp))):
            assert other.module is not ddp.module and other.find_unused_parameters
            assert other.reducer is not ddp.reducer
            before = [p.grad.tolist() for p in ddp.parameters()]
            assert [p.tolist() for p in other.parameters()] == [p.tolist() for p in ddp.parameters()]
            for number in range(2):
                step(other, whole, number)
                assert_gradients_match(other, whole)
            assert before == [p.grad.tolist() for p in ddp.parameters()]
        alone = pickle.loads(pickle.dumps(ddp.module))
        dist.reset_ledger()
        loss_of(alone(batch(0, rank))).backward()  # a copy of the module has no hooks
        assert "all_reduce" not in dist.ledger()
        own = DDP(build(mlp, 0), process_group=dist.new_group(list(range(dist.get_world_size()))))
        with pytest.raises(RuntimeError, match="only supported when using DDP with the default"):
            copy.deepcopy(own)

    on_ranks(n, scenario)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}])
def test_optimizer_in_backward(n, options):
    def scenario():
        rank = dist.get_rank()
        ddp, whole = ddp_and_whole(mlp, bucket_cap_mb=TINY, **options)
        kinds = (optim.AdamW, {"lr": 0.01})
        ddp._register_fused_optim(kinds[0], optim_params=list(ddp.parameters())[:4], **kinds[1])
        last = optim.SGD(list(ddp.parameters())[4:], lr=0.1)
        ones = [kinds[0](list(whole.parameters())[:4], **kinds[1]),
                optim.SGD(list(whole.parameters())[4:], lr=0.1)]
        for number in range(5):
            ddp.zero_grad()
            whole.zero_grad()
            with ddp.no_sync():
                loss_of(ddp(batch(number, rank))).backward()
            loss_of(ddp(batch(number + 9, rank))).backward()
            last.step()
            loss_of(whole(whole_batch(number))).backward()
            loss_of(whole(whole_batch(number + 9))).backward()
            for one in ones:
                one.step()
            for p, q in zip(ddp.parameters(), whole.parameters()):
                np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-9, 1e-10)
        with pytest.raises(ValueError, match="not all of this wrapper's"):
            ddp._register_fused_optim(optim.SGD, optim_params=[nn.Parameter(torch.ones(1))])

    on_ranks(n, scenario)


def test_another_process_group():
    def scenario():
        rank = dist.get_rank()
        pair = dist.new_group([0, 1])
        ddp, whole = ddp_and_whole(mlp)
        step(ddp, whole, 0)
        if rank == 2:
            return
        ddp._update_process_group(pair)
        for number in range(2):
            ddp.zero_grad()
            whole.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            loss_of(whole(torch.cat([batch(number, r) for r in (0, 1)]))).backward()
            for p, q in zip(ddp.parameters(), whole.parameters()):
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-12, 1e-12)

    on_ranks(3, scenario)


# ---- what it says about itself -------------------------------------------------------------------


def test_logging_data():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(Branches, rank, torch.float32), bucket_cap_mb=1e-5,
                  find_unused_parameters=True)
        data = ddp._get_ddp_logging_data()
        assert (data["world_size"], data["rank"], data["iteration"]) == (2, rank, 0)
        assert data["num_parameter_tensors"] == 8
        total = 4 * sum(p.numel() for p in ddp.parameters())
        assert data["total_parameter_size_bytes"] == total
        assert sum(map(int, data["bucket_sizes"].split(", "))) == total
        ddp.module.split = 2  # both ranks use `low`
        for number in range(3):
            loss_of(ddp(batch(number, rank, torch.float32))).backward()
        data = ddp._get_ddp_logging_data()
        assert data["iteration"] == 3 and data["can_set_static_graph"]
        assert data["unused_parameter_size"] == 4 * 2 * 27
        order = data["prev_iteration_grad_ready_order_indices"].split(", ")
        assert sorted(order) == ["0", "1", "2", "3"]
        for name in ("forward_compute_time", "backward_compute_time", "backward_comm_time"):
            assert 0 < data[name] < 60e9 and 0 < data["avg_" + name] < 60e9
        assert data["backward_compute_comm_overlap_time"] <= data["backward_comm_time"]
        ddp.module.split = 0
        loss_of(ddp(batch(4, rank, torch.float32))).backward()
        assert not ddp._get_ddp_logging_data()["can_set_static_graph"]
        ddp = DDP(build(mlp, rank), bucket_cap_mb=TINY)
        for number in range(2):
            loss_of(ddp(batch(number, rank))).backward()
        data = ddp._get_ddp_logging_data()
        assert data["has_rebuilt_buckets"]
        sizes = [bucket.flat.nbytes for bucket in ddp.reducer.buckets]
        assert data["rebuilt_bucket_sizes"] == ", ".join(map(str, sizes))
        assert data["num_buckets_reduced"] == len(sizes) > 1
        with pytest.raises(ValueError, match="equal or greater than 1"):
            ddp._set_ddp_runtime_logging_sample_rate(0)
        ddp._set_ddp_runtime_logging_sample_rate(5)
        assert ddp.reducer.clock.every == 5
        ddp._check_reducer_finalized()

    on_ranks(2, scenario)


def test_import_paths():

    assert dist.algorithms.join is disttorch_module("distributed.algorithms.join")
    assert dist.GradBucket is disttorch_module("distributed.buckets").GradBucket
    assert dist.BuiltinCommHookType.ALLREDUCE.name == "ALLREDUCE"
    assert dist.optim.ZeroRedundancyOptimizer.__mro__[1] is optim.Optimizer
    assert callable(dist.audit)
    assert nn.SyncBatchNorm is nn.modules.SyncBatchNorm


def disttorch_module(name):
    import importlib

    return importlib.import_module(f"disttorch.{name}")
