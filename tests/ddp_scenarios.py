"""What DistributedDataParallel must do, on whichever ranks run it.

Gradients are compared before losses, with one process on the whole batch in float64, and weights
with the naive way (`average_one_by_one`), bit by bit where the sum has one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from ddp_models import (
    TINY,
    Averages,
    Backwards,
    Branches,
    OwnOrder,
    Tied,
    assert_gradients_match,
    assert_same_on_all_ranks,
    average_one_by_one,
    batch,
    build,
    ddp_and_whole,
    frozen,
    loss_of,
    mixed_dtypes,
    mlp,
    sums_have_one_order,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.nn.parallel import DistributedDataParallel as DDP

# ---- scenarios: gradients ------------------------------------------------------------------------


def gradients_equal_one_process() -> None:
    for make in (mlp, Tied, frozen, mixed_dtypes, Backwards):
        for options in (
            {},
            {"bucket_cap_mb": TINY},
            {"bucket_cap_mb": TINY, "find_unused_parameters": True},
            {"bucket_cap_mb": TINY, "gradient_as_bucket_view": True},
            {"static_graph": True},
        ):
            ddp, whole = ddp_and_whole(make, **options)
            for step in range(3):  # buckets are laid out anew after the first backward
                ddp.zero_grad(set_to_none=step != 1)
                whole.zero_grad()
                loss_of(ddp(batch(step, dist.get_rank()))).backward()
                loss_of(whole(whole_batch(step))).backward()
                assert_gradients_match(ddp, whole)


def gradients_accumulate_in_no_sync() -> None:
    for options in ({"bucket_cap_mb": TINY}, {"gradient_as_bucket_view": True}):
        ddp, whole = ddp_and_whole(mlp, **options)
        rank, n = dist.get_rank(), dist.get_world_size()
        for round_ in range(2):
            dist.reset_ledger()
            ddp.zero_grad()
            whole.zero_grad()
            for part in range(3):
                step = 3 * round_ + part
                if part < 2:
                    with ddp.no_sync():
                        loss_of(ddp(batch(step, rank))).backward()
                    if n > 1:
                        assert "all_reduce" not in dist.ledger()
                else:
                    loss_of(ddp(batch(step, rank))).backward()
                loss_of(whole(whole_batch(step))).backward()
            assert_gradients_match(ddp, whole)
            if n > 1 and round_:
                assert dist.ledger()["all_reduce"]["calls"] == len(ddp.reducer.buckets)


def every_backward_is_reduced() -> None:
    """Two backwards through one forward, on parts of the loss, add up as in one process."""
    ddp, whole = ddp_and_whole(mlp)
    for _ in range(2):
        for model, x in ((ddp, batch(0, dist.get_rank())), (whole, whole_batch(0))):
            out = model(x)
            loss_of(out).backward(retain_graph=True)
            loss_of(out * 3).backward()
        assert_gradients_match(ddp, whole)  # the second time onto gradients that are there already
    for model, x in ((ddp, batch(1, dist.get_rank())), (whole, whole_batch(1))):
        model.zero_grad()
        (loss_of(model(x)) + loss_of(model(x * 2))).backward()  # two forwards, one backward
    assert_gradients_match(ddp, whole)


def branches_differ_between_ranks() -> None:
    n, rank = dist.get_world_size(), dist.get_rank()
    for options in ({}, {"bucket_cap_mb": TINY}, {"gradient_as_bucket_view": True}):
        for unused in ({"find_unused_parameters": True}, {"static_graph": True}):
            ddp, whole = ddp_and_whole(Branches, **options, **unused)
            for step in range(3):
                ddp.zero_grad()
                whole.zero_grad()
                loss_of(ddp(batch(step, rank))).backward()
                sum(loss_of(whole(batch(step, r), r)) for r in range(n)).div(n).backward()
                assert ddp.module.spare.weight.grad is None
                assert (ddp.module.high.weight.grad is None) == (n == 1)
                assert_gradients_match(ddp, whole)


def branches_switch_between_steps() -> None:
    """Parameters used at some step and not at others; gradients left from before take part."""
    n, rank = dist.get_world_size(), dist.get_rank()
    ddp, whole = ddp_and_whole(Branches, find_unused_parameters=True, bucket_cap_mb=TINY)
    for step, split in enumerate((1, n, 0, 1)):
        ddp.module.split = whole.split = split
        if step == 2:
            ddp.zero_grad(set_to_none=False)
            whole.zero_grad(set_to_none=False)
        loss_of(ddp(batch(step, rank))).backward()
        sum(loss_of(whole(batch(step, r), r)) for r in range(n)).div(n).backward()
        assert_gradients_match(ddp, whole)


def order_of_readiness_may_differ() -> None:
    for options in ({}, {"bucket_cap_mb": TINY / 10}):
        ddp, whole = ddp_and_whole(OwnOrder, **options)
        for step in range(3):
            ddp.zero_grad()
            whole.zero_grad()
            ddp(batch(step, dist.get_rank())).mean().backward()
            whole(whole_batch(step)).mean().backward()
            assert_gradients_match(ddp, whole)


def recorded_gradients_are_reduced() -> None:
    ddp, whole = ddp_and_whole(mlp)
    loss_of(ddp(batch(0, dist.get_rank()))).backward(create_graph=True)
    loss_of(whole(whole_batch(0))).backward()
    assert_gradients_match(ddp, whole)


def groups_of_two() -> None:
    """With process_group, the mean is over that group only."""
    n, rank = dist.get_world_size(), dist.get_rank()
    pairs = [list(range(first, min(first + 2, n))) for first in range(0, n, 2)]
    groups = [dist.new_group(pair) for pair in pairs]
    mine = pairs[rank // 2]
    ddp = DDP(build(mlp, rank), process_group=groups[rank // 2])
    whole = build(mlp, mine[0])
    loss_of(ddp(batch(0, rank))).backward()
    loss_of(whole(torch.cat([batch(0, r) for r in mine]))).backward()
    for p, q in zip(ddp.parameters(), whole.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-12, 1e-12)


# ---- scenarios: training -------------------------------------------------------------------------


@dataclass
class Run:
    model: nn.Module
    optimizer: optim.Optimizer

    def step(self, x: torch.Tensor, after: Callable[[nn.Module], None] | None = None) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model(x)).backward()
        if after is not None:
            after(self.model)
        self.optimizer.step()


OPTIMIZERS = {
    "SGD": lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9),
    "AdamW": lambda ps: optim.AdamW(ps, lr=0.01),
}


def weights_after_20_steps() -> None:
    for make in (mlp, Tied):
        for optimizer in OPTIMIZERS.values():
            ddp = DDP(build(make, dist.get_rank(), torch.float32), bucket_cap_mb=TINY)
            naive, whole = build(make, 0, torch.float32), build(make, 0, torch.float32)
            runs = [Run(m, optimizer(m.parameters())) for m in (ddp, naive, whole)]
            for step in range(20):
                mine = batch(step, dist.get_rank(), torch.float32)
                runs[0].step(mine)
                runs[1].step(mine, average_one_by_one)
                runs[2].step(whole_batch(step, torch.float32))
            assert_same_on_all_ranks(ddp.parameters())
            for p, q, w in zip(ddp.parameters(), naive.parameters(), whole.parameters()):
                if sums_have_one_order():
                    assert p.detach().numpy().tobytes() == q.detach().numpy().tobytes()
                np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), 1e-6, 1e-6)
                np.testing.assert_allclose(p.detach().numpy(), w.detach().numpy(), 1e-3, 1e-3)


# ---- scenarios: how it is done -------------------------------------------------------------------


def construction_takes_rank_0s_values() -> None:
    for make in (mlp, frozen, Tied):
        ddp = DDP(build(make, dist.get_rank()))
        for p, q in zip(ddp.parameters(), build(make, 0).parameters()):
            assert p.tolist() == q.tolist()
            assert p.requires_grad == q.requires_grad
    kept = DDP(build(mlp, dist.get_rank()), init_sync=False)
    for p, q in zip(kept.parameters(), build(mlp, dist.get_rank()).parameters()):
        assert p.tolist() == q.tolist()


def reduction_starts_before_the_last_gradient() -> None:
    ddp, _ = ddp_and_whole(Backwards, bucket_cap_mb=TINY)
    assert ddp.last_events == []
    ddp.record_events = True
    for step in range(3):
        loss_of(ddp(batch(step, dist.get_rank()))).backward()
        events = ddp.last_events
        ready = [event[1] for event in events if event[0] == "ready"]
        names = [name for name, _ in ddp.module.named_parameters()]
        assert sorted(ready) == sorted(names)
        assert events[-1] == ("backward finished",)
        launched = [event for event in events if event[0] == "launched"]
        if dist.get_world_size() == 1:
            assert launched == []
            continue
        assert launched == [("launched", i) for i in range(len(launched))] and len(launched) > 1
        last_gradient = max(i for i, event in enumerate(events) if event[0] == "ready")
        if step:  # in the order of the first backward, found by measuring
            assert events.index(("launched", 0)) < last_gradient
            members = [i for bucket in ddp.reducer.buckets for i in bucket.members]
            assert [names[i] for i in members] == ready


def bytes_are_the_least_possible() -> None:
    n = dist.get_world_size()
    for cap in (TINY, 25):
        ddp, _ = ddp_and_whole(mlp, bucket_cap_mb=cap)
        size = sum(p.numel() * p.element_size() for p in ddp.parameters())
        for step in range(3):
            dist.reset_ledger()
            loss_of(ddp(batch(step, dist.get_rank()))).backward()
            if n == 1:
                assert dist.ledger() == {}
                continue
            entry = dist.ledger()["all_reduce"]
            assert entry["payload_bytes"] == entry["transport_bytes"] == size
            assert entry["lower_bound_bytes"] == pytest.approx(2 * size * (n - 1) / n)
            if step:
                assert entry["calls"] == len(ddp.reducer.buckets)
                assert set(dist.ledger()) == {"all_reduce"}
        assert n == 1 or (len(ddp.reducer.buckets) > 1) == (cap == TINY)


def views_share_the_buckets_memory() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    view = DDP(build(mlp, rank), gradient_as_bucket_view=True)
    copy = DDP(build(mlp, rank))
    for ddp in (view, copy):
        for step in range(3):
            ddp.zero_grad(set_to_none=step == 1)
            loss_of(ddp(batch(step, rank))).backward()
        for p in ddp.parameters():
            shared = any(
                np.shares_memory(p.grad.numpy(), b.flat) for b in ddp.reducer.buckets
            )
            assert shared == (ddp is view and n > 1)
    for p, q in zip(view.parameters(), copy.parameters()):
        assert p.grad.tolist() == q.grad.tolist()


def the_first_bucket_is_small() -> None:
    ddp = DDP(nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600)))  # 2 x 1.4 MB
    for _ in range(2):
        ddp(torch.ones(1, 600)).sum().backward()
    members = [bucket.members for bucket in ddp.reducer.buckets]
    if dist.get_world_size() > 1:
        assert len(members) == 2 and len(members[0]) + len(members[1]) == 4


def unused_parameters_do_not_delay_the_others() -> None:
    """No bucket waits for parameters that this backward cannot reach."""
    ddp, _ = ddp_and_whole(Branches, bucket_cap_mb=TINY / 10, find_unused_parameters=True)
    ddp.record_events = True
    loss_of(ddp(batch(0, dist.get_rank()))).backward()
    events = ddp.last_events
    if dist.get_world_size() > 1:
        last_gradient = max(i for i, event in enumerate(events) if event[0] == "ready")
        assert events.index(("launched", 0)) < last_gradient


def a_gradient_that_comes_twice() -> None:
    """Before the reduction has started it counts whole; afterwards it is an error."""
    rank, n = dist.get_rank(), dist.get_world_size()

    def run(model: nn.Module, module: nn.Module, x: torch.Tensor) -> None:
        def nested(grad):
            with torch.enable_grad():
                (module[4].weight * x.sum()).sum().backward()

        def watch(layer, args, out):
            if out.requires_grad:
                out.register_hook(nested)

        with_hook = module[0].register_forward_hook(watch)
        try:
            loss_of(model(x)).backward()
        finally:
            with_hook.remove()

    ddp, whole = ddp_and_whole(mlp)
    run(ddp, ddp.module, batch(0, rank))
    for r in range(n):
        run(whole, whole, batch(0, r))
    for p in whole.parameters():
        p.grad /= n
    assert_gradients_match(ddp, whole)
    ddp, _ = ddp_and_whole(mlp, bucket_cap_mb=TINY / 100)
    if n > 1:
        with pytest.raises(RuntimeError, match="'4.weight' became ready on rank .* after its red"):
            run(ddp, ddp.module, batch(0, rank))
    dist.barrier()


def a_write_into_gradients_counts_as_a_change() -> None:
    ddp, _ = ddp_and_whole(mlp)
    before = {}
    for p in ddp.parameters():
        p.register_post_accumulate_grad_hook(lambda p: before.update({p: p.grad._version}))
    for _ in range(2):
        loss_of(ddp(batch(0, dist.get_rank()))).backward()
        changed = [p.grad._version > before[p] for p in ddp.parameters()]
        assert changed == [dist.get_world_size() > 1] * 6


def buffers_follow_rank_0() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    for broadcast in (True, False):
        ddp = DDP(build(Averages, rank), forward_sync_buffers=broadcast)
        for step in range(3):
            loss_of(ddp(batch(step, rank))).backward()
        # After a forward each rank has added its own batch; the next forward begins with rank 0's.
        source = 0 if broadcast else rank
        wanted = batch(0, source).mean(0) + batch(1, source).mean(0) + batch(2, rank).mean(0)
        np.testing.assert_allclose(ddp.module.mean.numpy(), wanted.numpy(), 1e-12)
        assert ddp.module.count.item() == 3
        changed = ddp.module.count._version
        loss_of(ddp(batch(3, rank))).backward()
        assert ddp.module.count._version == changed + 1 + (broadcast and rank != 0)
        before = ddp.module.mean.clone()
        ddp.eval()
        dist.reset_ledger()
        ddp(batch(4, rank))
        assert ddp.module.mean.tolist() == before.tolist() and dist.ledger() == {}
        with ddp.train().no_sync():
            ddp(batch(5, rank))
        assert dist.ledger() == {}
        ddp(batch(6, rank))
        assert set(dist.ledger()) == ({"broadcast"} if broadcast and n > 1 else set())


def state_has_the_prefix() -> None:
    ddp, _ = ddp_and_whole(mlp)
    state = ddp.state_dict()
    assert list(state) == [f"module.{name}" for name in ddp.module.state_dict()]
    other = DDP(build(mlp, 7 + dist.get_rank()))
    other.load_state_dict(state)
    assert [p.tolist() for p in other.parameters()] == [p.tolist() for p in ddp.parameters()]


def arguments_pass_through() -> None:
    class Pick(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x, *, factor, extra=None):
            return {"out": self.weight * x * factor, "extra": extra}

    ddp = DDP(Pick())
    marker = object()
    found = ddp(torch.ones(2), factor=3, extra=marker)
    assert found["out"].tolist() == [3, 3] and found["extra"] is marker


def wrapping_again_reduces_once() -> None:
    first, whole = ddp_and_whole(mlp)
    module = first.module
    del first
    ddp = DDP(module)
    dist.reset_ledger()
    loss_of(ddp(batch(0, dist.get_rank()))).backward()
    loss_of(whole(whole_batch(0))).backward()
    assert_gradients_match(ddp, whole)
    assert dist.get_world_size() == 1 or dist.ledger()["all_reduce"]["calls"] == 1


# ---- scenarios: mistakes -------------------------------------------------------------------------


def unused_parameters_are_an_error() -> None:
    """The same parameters are unused on all ranks, so all get the error."""
    rank = dist.get_rank()

    class Unused(Branches):
        def forward(self, x):
            return super().forward(x, 0)

    ddp = DDP(build(Unused, rank))
    message = f"4 parameter.* on rank {rank}: high.weight, high.bias, spare.weight, spare.bias"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            loss_of(ddp(batch(0, rank))).backward()
        dist.barrier()
    ddp = DDP(build(mlp, rank))
    ddp.module[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="0.weight stopped requiring grad after wrapping"):
        loss_of(ddp(batch(0, rank))).backward()
    dist.barrier()


def models_must_agree() -> None:
    n, rank = dist.get_world_size(), dist.get_rank()
    if n == 1:
        return
    last = rank == n - 1

    def model(**changed) -> nn.Module:
        return nn.Sequential(nn.Linear(5, changed.get("wide", 8)), nn.Linear(8, 3))

    different = model(wide=9) if last else model()
    with pytest.raises(
        RuntimeError, match=rf"rank {n - 1} differs.*'0.weight' has shape \[9, 5\], there \[8, 5\]"
    ):
        DDP(different)
    different = model().double() if last else model()
    with pytest.raises(RuntimeError, match="'0.weight' is of torch.float64, there of torch.float3"):
        DDP(different)
    different = model().append(nn.Linear(3, 3)) if last else model()
    with pytest.raises(RuntimeError, match="'2.weight' exists only here"):
        DDP(different)
    different = model()
    different[1].bias.requires_grad_(not last)
    with pytest.raises(RuntimeError, match="'1.bias' has requires_grad=False, there True"):
        DDP(different)


def wrong_use_is_refused() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    with pytest.raises(RuntimeError, match="doesn't have any parameter that requires a gradient"):
        DDP(nn.ReLU())
    with pytest.raises(ValueError, match="only work with single-device/multiple-device GPU"):
        DDP(mlp(), device_ids=[0])
    ddp = DDP(build(frozen, rank))
    ddp.module[0].weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="'0.weight' was frozen when the module was wrapped"):
        ddp(batch(0, rank))
    ddp = DDP(build(mlp, rank), static_graph=True)
    ddp.module[4].bias.requires_grad_(False)
    loss_of(ddp(batch(0, rank))).backward()
    ddp.module[4].bias.requires_grad_(True)
    if n > 1:
        with pytest.raises(RuntimeError, match="'4.bias' .* no rank used it in the first backward"):
            loss_of(ddp(batch(0, rank))).backward()
    dist.barrier()


def an_interrupted_backward_is_noticed() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    ddp = DDP(build(mlp, rank))
    hidden = ddp.module[2](torch.tanh(ddp.module[0](batch(0, rank))))
    hidden.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(ddp.module[4](hidden)).backward()
    if n == 1:
        loss_of(ddp(batch(0, rank))).backward()
        return
    with pytest.raises(RuntimeError, match="was left by an exception before all gradients"):
        ddp(batch(0, rank))


SCENARIOS = (
    gradients_equal_one_process, gradients_accumulate_in_no_sync, every_backward_is_reduced,
    branches_differ_between_ranks, branches_switch_between_steps, order_of_readiness_may_differ,
    recorded_gradients_are_reduced, groups_of_two, weights_after_20_steps,
    construction_takes_rank_0s_values, reduction_starts_before_the_last_gradient,
    bytes_are_the_least_possible, views_share_the_buckets_memory, the_first_bucket_is_small,
    unused_parameters_do_not_delay_the_others, a_gradient_that_comes_twice,
    a_write_into_gradients_counts_as_a_change, buffers_follow_rank_0, state_has_the_prefix,
    arguments_pass_through, wrapping_again_reduces_once, unused_parameters_are_an_error,
    models_must_agree, wrong_use_is_refused, an_interrupted_backward_is_noticed,
)
