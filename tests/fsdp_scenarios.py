"""What fully_shard must do, on whichever ranks run it: the values.

Gradients, then weights after 20 steps, are compared with one process on the whole batch in float64.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from fsdp_models import (
    WIDE,
    Branching,
    Convolutional,
    Language,
    Stack,
    Tied,
    Twice,
    assert_gradients_match,
    assert_weights_match,
    batch,
    build,
    frozen,
    loss_of,
    mine,
    shard,
    whole,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from disttorch.distributed.tensor import DTensor, Replicate, Shard
from disttorch.ops.random import own_stream
from disttorch.utils.checkpoint import checkpoint

MODELS = (Stack, Twice, Tied, frozen, Convolutional, Language)
STAGES = ({"reshard_after_forward": True}, {"reshard_after_forward": False}, {})

# ---- scenarios: gradients ------------------------------------------------------------------------


def gradients_equal_one_process() -> None:
    for make in MODELS:
        for options in STAGES:
            model, oracle = shard(build(make), **options), build(make)
            for step in range(3):
                model.zero_grad(set_to_none=step != 1)
                oracle.zero_grad()
                loss_of(model(mine(step))).backward()
                loss_of(oracle(whole_batch(step))).backward()
                assert_gradients_match(model, oracle)


def hybrid_sharding() -> None:
    """Shards over pairs, replicas over the pairs (at 4 ranks); one replica each at 1 and 3."""
    n = dist.get_world_size()
    shape = (2, 2) if n == 4 else (n, 1) if n == 3 else (1, n)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    for make in (Stack, frozen):
        for options in STAGES:
            model, oracle = shard(build(make), mesh=mesh, **options), build(make)
            assert model.stem.weight.placements == (Replicate(), Shard(0))
            for step in range(3):
                model.zero_grad()
                oracle.zero_grad()
                loss_of(model(mine(step))).backward()
                loss_of(oracle(whole_batch(step))).backward()
                assert_gradients_match(model, oracle)


def shards_over_fewer_ranks_until_backward() -> None:
    n = dist.get_world_size()
    if n != 4:
        with pytest.raises(ValueError, match="factor"):
            shard(build(Stack), reshard_after_forward=7)
        return
    model, oracle = shard(build(Stack), reshard_after_forward=2), build(Stack)
    for step in range(3):
        model.zero_grad()
        oracle.zero_grad()
        loss_of(model(mine(step))).backward()
        loss_of(oracle(whole_batch(step))).backward()
        assert_gradients_match(model, oracle)


def gradients_accumulate() -> None:
    """With a reduction in every backward, and with one at the end only; the sums are the same."""
    for options in STAGES:
        for synced in (True, False):
            for keep_whole in (False, True):
                model, oracle = shard(build(Stack), **options), build(Stack)
                for round_ in range(2):
                    model.zero_grad()
                    oracle.zero_grad()
                    for part in range(3):
                        last = part == 2
                        model.set_requires_gradient_sync(synced or last)
                        model.set_reshard_after_backward(not keep_whole or last)
                        step = 3 * round_ + part
                        dist.reset_ledger()
                        loss_of(model(mine(step))).backward()
                        if not synced and not last:
                            assert "reduce_scatter" not in dist.ledger()
                            assert model.head.weight.grad is None or keep_whole
                        loss_of(oracle(whole_batch(step))).backward()
                    assert_gradients_match(model, oracle)


def replicas_accumulate_shards() -> None:
    n = dist.get_world_size()
    shape = (2, 2) if n == 4 else (n, 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    model, oracle = shard(build(Stack), mesh=mesh), build(Stack)
    for part in range(3):
        model.set_requires_all_reduce(part == 2)
        loss_of(model(mine(part))).backward()
        if part < 2:
            assert all(p.grad is None for p in model.parameters())
        loss_of(oracle(whole_batch(part))).backward()
    assert_gradients_match(model, oracle)


def reductions_may_go_on_after_backward() -> None:
    model, oracle = shard(build(Stack)), build(Stack)
    loss_of(model(mine(9))).backward()
    model.zero_grad()
    for part in range(3):
        model.set_is_last_backward(part == 2)
        loss_of(model(mine(part))).backward()
        loss_of(oracle(whole_batch(part))).backward()
    assert_gradients_match(model, oracle)


def branches_differ_between_ranks() -> None:
    """Parameters that only some ranks use count as zero on the others; unused ones keep no grad."""
    n = dist.get_world_size()
    model, oracle = shard(build(Branching)), build(Branching)
    opts = [optim.AdamW(m.parameters(), 0.01) for m in (model, oracle)]
    for step in range(3):
        for m in (model, oracle):
            m.zero_grad()
        loss_of(model(mine(step))).backward()
        sum(loss_of(oracle(batch(step, r), r)) for r in range(n)).div(n).backward()
        assert model.blocks[0].spare.weight.grad is None
        assert (model.blocks[0].high.weight.grad is None) == (n == 1)
        assert_gradients_match(model, oracle)
        for o in opts:
            o.step()
    assert_weights_match(model, oracle)


def several_passes_and_backwards() -> None:
    model, oracle = shard(build(Stack)), build(Stack)
    for m, x in ((model, mine(0)), (oracle, whole_batch(0))):
        (loss_of(m(x)) + loss_of(m(x * 2))).backward()  # two forwards, one backward
    assert_gradients_match(model, oracle)
    for m, x in ((model, mine(1)), (oracle, whole_batch(1))):
        out = m(x)
        loss_of(out).backward(retain_graph=True)
        loss_of(out * 3).backward()  # two backwards through one forward
    assert_gradients_match(model, oracle)
    with torch.no_grad():  # evaluation between the steps
        np.testing.assert_allclose(model(mine(2)).numpy(), oracle(mine(2)).numpy(), 1e-10, 1e-12)
    for m, x in ((model, mine(1)), (oracle, whole_batch(1))):
        m.zero_grad()
        loss_of(m(x)).backward()
    assert_gradients_match(model, oracle)


class Checkpointed(Stack):
    reentrant = False

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class CheckpointedReentrant(Checkpointed):
    reentrant = True


def activation_checkpoints() -> None:
    for make in (Checkpointed, CheckpointedReentrant):
        for options in STAGES:
            model, oracle = shard(build(make), **options), build(Stack)
            for step in range(2):
                model.zero_grad()
                oracle.zero_grad()
                loss_of(model(mine(step))).backward()
                loss_of(oracle(whole_batch(step))).backward()
                assert_gradients_match(model, oracle)


def clipping_takes_the_norm_over_all_ranks() -> None:
    """Also for a mixture of sharded, replicated and ordinary parameters."""
    for p in (2.0, 1.0, float("inf")):
        model, oracle = build(Stack), build(Stack)
        free = model.head.bias
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model, ignored_params={free})
        loss_of(model(mine(0))).backward()
        loss_of(oracle(whole_batch(0))).backward()
        dist.all_reduce(free.grad, dist.ReduceOp.AVG)
        got = nn.utils.clip_grad_norm_(model.parameters(), 0.1, p)
        wanted = nn.utils.clip_grad_norm_(oracle.parameters(), 0.1, p)
        assert isinstance(got, DTensor)
        np.testing.assert_allclose(got.full_tensor().numpy(), wanted.numpy(), 1e-10)
        for a, b in zip(model.parameters(), oracle.parameters()):
            np.testing.assert_allclose(whole(a.grad), b.grad.numpy(), 1e-9, 1e-12)


# ---- scenarios: training -------------------------------------------------------------------------


def weights_after_20_steps() -> None:
    rules = (
        lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9),
        lambda ps: optim.AdamW(ps, lr=0.01),
    )
    for make in MODELS:
        for options in STAGES[:2]:
            for rule in rules:
                model, oracle = shard(build(make), **options), build(make)
                opts = [rule(model.parameters()), rule(oracle.parameters())]
                for step in range(20):
                    for o in opts:
                        o.zero_grad()
                    loss_of(model(mine(step))).backward()
                    loss_of(oracle(whole_batch(step))).backward()
                    for m in (model, oracle):
                        nn.utils.clip_grad_norm_(m.parameters(), 1.0)
                    for o in opts:
                        o.step()
                assert_weights_match(model, oracle)


def state_of_model_and_optimizer() -> None:
    """state_dict makes no call; what it holds loads into another sharded model, or a whole one."""
    model = shard(build(Stack))
    opt = optim.AdamW(model.parameters(), 0.01)
    loss_of(model(mine(0))).backward()
    opt.step()
    model(mine(1))  # leaves the root whole
    dist.reset_ledger()
    state, opt_state = model.state_dict(), opt.state_dict()
    assert not dist.ledger()
    assert list(state) == list(Stack().state_dict())
    assert all(isinstance(v, DTensor) for v in state.values())
    moments = [s["exp_avg"] for s in opt_state["state"].values()]
    assert all(isinstance(m, DTensor) for m in moments)
    assert [m.shape for m in moments] == [v.shape for v in state.values()]
    other = shard(build(Stack))
    other_opt = optim.AdamW(other.parameters(), 0.01)
    other.load_state_dict(state)
    other_opt.load_state_dict(copy.deepcopy(opt_state))  # shared otherwise, as in PyTorch
    full = build(Stack)
    full.load_state_dict({k: v.full_tensor() for k, v in state.items()})
    third = shard(build(Stack))
    third.load_state_dict(full.state_dict())  # every rank has the whole: each keeps its part
    assert_weights_match(third, full, 0)
    for m, o in ((model, opt), (other, other_opt)):
        m.zero_grad()
        loss_of(m(mine(2))).backward()
        o.step()
    for a, b in zip(model.parameters(), other.parameters()):
        assert a.to_local().tolist() == b.to_local().tolist()


def mixed_precision() -> None:
    """Shards in float32, computed in bfloat16, reduced in float32."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    model = shard(build(Stack, torch.float32), mp_policy=policy)
    oracle = build(Stack, torch.float32).to(torch.bfloat16)
    seen = []
    model.blocks[0].up.register_forward_hook(lambda m, i, o: seen.append((m.weight.dtype, o.dtype)))
    out = model(mine(0, torch.float32))
    assert out.dtype is torch.float32 and seen == [(torch.bfloat16, torch.bfloat16)]
    loss_of(out).backward()
    total = [np.zeros(tuple(p.shape)) for p in oracle.parameters()]
    n = dist.get_world_size()
    for r in range(n):
        oracle.zero_grad()
        loss_of(oracle(batch(0, r).to(torch.bfloat16)).to(torch.float32)).backward()
        for t, p in zip(total, oracle.parameters()):
            t += p.grad.to(torch.float64).numpy() / n
    for t, (name, p) in zip(total, model.named_parameters()):
        assert p.dtype is p.grad.dtype is torch.float32, name
        # the ranks' bfloat16 gradients are added in float32: no further rounding
        np.testing.assert_allclose(whole(p.grad), t, 1e-5, 1e-6, err_msg=name)


def accumulation_is_in_the_reduction_dtype() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(build(Stack, torch.float32), mp_policy=policy)
    model.set_requires_gradient_sync(False)
    for step in range(2):
        loss_of(model(mine(step, torch.float32)).float()).backward()
    unit = model._get_fsdp_state().unit
    assert {p.accumulated.dtype.name for p in unit.params} == {"float32"}
    model.set_requires_gradient_sync(True)
    loss_of(model(mine(2, torch.float32)).float()).backward()
    assert all(p.accumulated is None for p in unit.params)
    assert all(p.grad is not None for p in model.parameters())


def gradients_may_be_divided_by_another_number() -> None:
    n = dist.get_world_size()
    model, oracle = shard(build(Stack)), build(Stack)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(5.0)
    loss_of(model(mine(0))).backward()
    (loss_of(oracle(whole_batch(0))) * n / 5.0).backward()
    assert_gradients_match(model, oracle)


def placements_chosen_by_the_caller() -> None:
    model, oracle = build(Stack), build(Stack)
    shard(model, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    assert model.stem.weight.placements == (Shard(1),)
    loss_of(model(mine(0))).backward()
    loss_of(oracle(whole_batch(0))).backward()
    assert_gradients_match(model, oracle)


def several_modules_form_a_unit() -> None:
    """A tied weight may be shared by modules of one unit."""
    model, oracle = build(Tied), build(Tied)
    fully_shard(model.blocks[0])
    fully_shard([model.embedding, model.head])
    fully_shard(model)
    assert model.embedding.weight is model.head.weight
    for step in range(2):
        model.zero_grad()
        oracle.zero_grad()
        loss_of(model(mine(step))).backward()
        loss_of(oracle(whole_batch(step))).backward()
        assert_gradients_match(model, oracle)


def parameters_changed_between_passes_are_seen() -> None:
    """A root that stayed whole after an evaluation must not compute with what has changed since."""
    model = shard(build(Stack))
    with torch.no_grad():
        model(mine(0))
        for p in model._get_fsdp_state().unit.params:
            p.sharded.mul_(2.0)
        got = model(mine(0))
    oracle = build(Stack)
    with torch.no_grad():
        for p in (*oracle.stem.parameters(), *oracle.head.parameters()):
            p.mul_(2.0)
        np.testing.assert_allclose(got.numpy(), oracle(mine(0)).numpy(), 1e-12)


def initialised_without_memory() -> None:
    """Made on the meta device, then sharded: the values are those of one process of the same seed."""
    with torch.device("meta"):
        model = Stack()
    assert all(p.is_meta for p in model.parameters())
    shard(model.to(WIDE))
    assert all(p.is_meta and isinstance(p, DTensor) for p in model.parameters())
    model.to_empty(device="cpu")
    assert not any(p.is_meta for p in model.parameters())
    oracle = Stack().to(WIDE)
    for each in (model, oracle):
        with own_stream(5):
            for module in each.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            nn.init.trunc_normal_(each.head.weight, std=0.3)
            nn.init.orthogonal_(each.stem.weight)
    for p, q in zip(model.parameters(), oracle.parameters()):
        assert whole(p).tolist() == whole(q).tolist()
    loss_of(model(mine(0))).backward()
    loss_of(oracle(whole_batch(0))).backward()
    assert_gradients_match(model, oracle)


SCENARIOS = (
    gradients_equal_one_process,
    hybrid_sharding,
    shards_over_fewer_ranks_until_backward,
    gradients_accumulate,
    replicas_accumulate_shards,
    reductions_may_go_on_after_backward,
    branches_differ_between_ranks,
    several_passes_and_backwards,
    activation_checkpoints,
    clipping_takes_the_norm_over_all_ranks,
    weights_after_20_steps,
    state_of_model_and_optimizer,
    mixed_precision,
    accumulation_is_in_the_reduction_dtype,
    gradients_may_be_divided_by_another_number,
    placements_chosen_by_the_caller,
    several_modules_form_a_unit,
    parameters_changed_between_passes_are_seen,
    initialised_without_memory,
)
