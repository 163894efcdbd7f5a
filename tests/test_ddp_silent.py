"""The failures that users of data parallelism notice last: each must be an error, or not happen.

Wrong hook target: `test_ddp.test_a_hook_that_reduces_nothing_is_noticed`. Unused parameters:
`ddp_scenarios.unused_parameters_are_an_error` and `branches_differ_between_ranks`.
"""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
from ddp_models import (
    TINY,
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
from disttorch.distributed.algorithms.ddp_comm_hooks import default_hooks
from disttorch.nn.parallel import DistributedDataParallel as DDP
from disttorch.utils.data import DataLoader
from disttorch.utils.data.distributed import DistributedSampler


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


# ---- a wrapper that is passed by -----------------------------------------------------------------


def test_a_direct_call_of_the_module_is_reduced():
    def scenario():
        ddp, whole = ddp_and_whole(mlp)
        for number in range(2):
            ddp.zero_grad()
            whole.zero_grad()
            loss_of(ddp.module(batch(number, dist.get_rank()))).backward()
            loss_of(whole(whole_batch(number))).backward()
            assert_gradients_match(ddp, whole)

    on_ranks(2, scenario)


def test_a_direct_call_after_no_sync_is_an_error_at_the_step():
    def scenario():
        rank = dist.get_rank()
        ddp, _ = ddp_and_whole(mlp)
        optimizer = optim.SGD(ddp.parameters(), lr=0.1)
        with ddp.no_sync():
            loss_of(ddp(batch(0, rank))).backward()
        loss_of(ddp.module(batch(1, rank))).backward()
        text = r"SGD\.step on rank \d: the gradients of 6 parameter\(s\) of Sequential .*'0.weight'"
        with pytest.raises(RuntimeError, match=text):
            optimizer.step()
        before = [p.tolist() for p in ddp.parameters()]
        assert before == [p.tolist() for p in build(mlp, 0).parameters()]  # nothing happened
        loss_of(ddp(batch(2, rank))).backward()  # reduces all that has accumulated
        optimizer.step()
        assert_same_on_all_ranks(ddp.parameters())

    on_ranks(2, scenario)


def test_a_module_whose_wrapper_is_gone_is_an_error():
    def scenario():
        rank = dist.get_rank()
        module = DDP(build(mlp, rank)).module
        gc.collect()
        with pytest.raises(RuntimeError, match="of Sequential is not averaged .* wrapper is gone"):
            loss_of(module(batch(0, rank))).backward()
        ddp = DDP(module)  # wrapped again, it trains
        loss_of(ddp(batch(0, rank))).backward()
        ddp._remove_autograd_hooks()
        del ddp
        gc.collect()
        module.zero_grad()
        loss_of(module(batch(0, rank))).backward()  # on purpose, alone
        alone = build(mlp, 0)
        loss_of(alone(batch(0, rank))).backward()
        for p, q in zip(module.parameters(), alone.parameters()):
            assert p.grad.tolist() == q.grad.tolist()

    on_ranks(2, scenario)


# ---- accumulation that is never reduced ----------------------------------------------------------


@pytest.mark.parametrize("action", ["raise", "warn", "ignore", None])
def test_accumulation_without_a_reduction(action):
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, rank), unreduced=action)
        optimizer = optim.AdamW(ddp.parameters(), lr=0.1)
        warned = False
        for _ in range(2):
            with ddp.no_sync():
                for number in range(2):
                    loss_of(ddp(batch(number, rank))).backward()
            nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
            text = r"AdamW\.step on rank \d: .*first: '0.weight'.*never averaged"
            if action == "raise":
                with pytest.raises(RuntimeError, match=text):
                    optimizer.step()
            elif action == "ignore":
                optimizer.step()
            else:  # warnings are of the process, not of a rank: let one rank look
                dist.barrier()
                if rank == 0 and (action == "warn" or not warned):
                    with pytest.warns(RuntimeWarning, match=text):
                        optimizer.step()
                    warned = True
                elif rank == 0:
                    optimizer.step()
                dist.barrier()
            optimizer.zero_grad()
            # Other optimizers, and gradients that were dropped, are nobody's business.
            optimizer.step()
            optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).step()

    on_ranks(2, scenario)


def test_unreduced_is_checked():
    def scenario():
        with pytest.raises(ValueError, match="unreduced must be one of"):
            DDP(mlp(), unreduced="maybe")
        ddp = DDP(mlp())  # one rank: nothing to average
        optimizer = optim.SGD(ddp.parameters(), lr=0.1)
        with ddp.no_sync():
            ddp(torch.ones(2, 5)).sum().backward()
        optimizer.step()

    on_ranks(1, scenario)


# ---- the mean over unequal batches ---------------------------------------------------------------

SIZES = {1: [5], 2: [2, 5], 3: [4, 1, 2], 4: [1, 3, 2, 2]}


def unequal(number):
    draw = np.random.default_rng(number)
    return [torch.tensor(draw.normal(size=(rows, 5))) for rows in SIZES[dist.get_world_size()]]


def per_sample(out):
    return (out * out).mean(1) + out.sum(1)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"bucket_cap_mb": TINY, "gradient_as_bucket_view": True}])
@pytest.mark.parametrize("hook", [False, True])
def test_weighted_is_the_mean_over_all_samples(n, options, hook):
    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        ddp, whole = ddp_and_whole(mlp, **options)
        if hook:
            ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        for number in range(3):
            x = unequal(number)
            for kind in ("mean", "sum"):
                ddp.zero_grad()
                whole.zero_grad()
                losses = per_sample(ddp(x[rank]))
                loss = losses.mean() if kind == "mean" else losses.sum()
                with ddp.weighted(len(x[rank]), loss=kind):
                    loss.backward()
                per_sample(whole(torch.cat(x))).mean().backward()
                assert_gradients_match(ddp, whole)
        ddp.zero_grad()
        per_sample(ddp(x[rank])).mean().backward()  # and without it, it is not
        if n > 1:
            with pytest.raises(AssertionError):
                assert_gradients_match(ddp, whole)

    on_ranks(n, scenario)


def test_weighted_accumulation_and_empty_batches():
    def scenario():
        rank = dist.get_rank()
        ddp, whole = ddp_and_whole(mlp)
        first, second = unequal(0), unequal(1)
        with ddp.no_sync():
            per_sample(ddp(first[rank])).sum().backward()
        loss = per_sample(ddp(second[rank])).sum()
        with ddp.weighted(len(first[rank]) + len(second[rank]), loss="sum"):
            loss.backward()
        per_sample(whole(torch.cat(first + second))).mean().backward()
        assert_gradients_match(ddp, whole)
        # A mean over nothing is not a number, and counts as nothing.
        ddp.zero_grad()
        whole.zero_grad()
        x = first[rank][: 0 if rank == 1 else None]
        with ddp.weighted(len(x)):
            per_sample(ddp(x)).mean().backward()
        per_sample(whole(torch.cat([first[0], first[2]]))).mean().backward()
        assert_gradients_match(ddp, whole)

    on_ranks(3, scenario)


def test_equal_weights_change_no_bit_and_cost_one_small_call():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, 0, torch.float32))
        found = []
        for weighted in (False, True):
            for number in range(2):
                ddp.zero_grad()
                dist.reset_ledger()
                loss = loss_of(ddp(batch(number, rank, torch.float32)))
                if weighted:
                    with ddp.weighted(4):
                        loss.backward()
                else:
                    loss.backward()
            found.append([p.grad.tolist() for p in ddp.parameters()])
            size = sum(p.numel() * 4 for p in ddp.parameters())
            assert dist.ledger()["all_reduce"]["payload_bytes"] == size + 8 * weighted
        assert found[0] == found[1]

    on_ranks(3, scenario)


def test_weighted_is_checked():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, rank))
        with pytest.raises(ValueError, match="at least 0, got -1"), ddp.weighted(-1):
            pass
        with pytest.raises(ValueError, match="got 'max'"), ddp.weighted(1, loss="max"):
            pass
        message = "around a backward of no_sync"
        with pytest.raises(RuntimeError, match=message), ddp.no_sync(), ddp.weighted(1):
            loss_of(ddp(batch(0, rank))).backward()
        with pytest.raises(RuntimeError, match="counts of all ranks are zero"), ddp.weighted(0):
            loss_of(ddp(batch(0, rank))).backward()
        dist.barrier()

    on_ranks(2, scenario)


# ---- evaluation with samples that are not there --------------------------------------------------


def test_padded_evaluation():
    """7 samples on 3 ranks: the default sampler repeats two, and the mean is wrong; exact does not."""

    def scenario():
        values = torch.tensor([0.0, 0, 0, 0, 0, 0, 7])
        results = {}
        for exact in (False, True):
            sampler = DistributedSampler(values, shuffle=False, exact=exact)
            total = torch.zeros(2)
            for x in DataLoader(values, batch_size=2, sampler=sampler):
                total += torch.tensor([x.sum().item(), float(len(x))])
            dist.all_reduce(total)
            results[exact] = total.tolist()
        assert results[True] == [7.0, 7.0]
        assert results[False][1] == 9  # what the exact sampler is for

    on_ranks(3, scenario)


# ---- ranks that drift apart ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_an_audit_names_parameter_and_rank(n, dtype):
    def scenario():
        n, rank = dist.get_world_size(), dist.get_rank()
        model = build(mlp, 0, dtype)
        dist.reset_ledger()
        dist.audit(model)
        assert dist.ledger()["all_reduce"]["payload_bytes"] == 16
        assert set(dist.ledger()) == {"all_reduce"}
        with torch.no_grad():
            if rank == n - 1:
                model[2].weight[3, 4] *= 1.01
        with pytest.raises(RuntimeError, match=rf"1 of 6 parameters .* '2.weight' on rank {n - 1}"):
            dist.audit(model)
        with torch.no_grad():
            if rank == 0:
                model[4].bias[0] += 1
        names = rf"'2.weight' on rank {n - 1}; '4.bias' on rank {'1' if n == 2 else '0'}"
        with pytest.raises(RuntimeError, match=names):
            dist.audit(model)

    on_ranks(n, scenario)


def test_audits_every_so_often():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(mlp, rank), audit_every=3)
        optimizer = optim.SGD(ddp.parameters(), lr=0.1)
        for number in range(7):
            if number == 4 and rank == 1:
                with torch.no_grad():
                    ddp.module[0].bias[0] += 1e-9
            if number == 5:  # the sixth forward
                with pytest.raises(RuntimeError, match="'0.bias' on rank 1"):
                    ddp(batch(number, rank))
                break
            optimizer.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            optimizer.step()
        ddp.eval()
        with torch.no_grad():
            for _ in range(4):
                ddp(batch(0, rank))  # evaluation is not training
        model = build(mlp, rank)
        handle = dist.audit(model, every=2)
        model(batch(0, rank))
        with pytest.raises(RuntimeError, match="6 of 6 parameters"):
            model(batch(0, rank))
        handle.remove()
        for _ in range(4):
            model(batch(0, rank))
        with pytest.raises(ValueError, match="every must be at least 1"):
            dist.audit(model, every=0)
        assert copy.deepcopy(ddp)._auditor.every == 3

    on_ranks(2, scenario)
