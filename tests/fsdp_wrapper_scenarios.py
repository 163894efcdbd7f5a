"""What the older wrapper FullyShardedDataParallel must do, on whichever ranks run it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from fsdp_models import Block, Stack, build, loss_of, mine, whole, whole_batch

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.distributed.fsdp import (
    FullStateDictConfig,
    MixedPrecision,
    ShardingStrategy,
    StateDictType,
)
from disttorch.distributed.fsdp import FullyShardedDataParallel as FSDP
from disttorch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from disttorch.distributed.fsdp.wrap import (
    CustomPolicy,
    ModuleWrapPolicy,
    enable_wrap,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
    wrap,
)
from disttorch.distributed.tensor import DTensor

BLOCKS = ModuleWrapPolicy({Block})


def wrapped(**options) -> FSDP:
    return FSDP(build(Stack), auto_wrap_policy=BLOCKS, **options)


def strategies_equal_one_process() -> None:
    n = dist.get_world_size()
    shape = (2, 2) if n == 4 else (1, n)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    for strategy in ShardingStrategy:
        hybrid = "HYBRID" in strategy.name
        model = wrapped(sharding_strategy=strategy, device_mesh=mesh if hybrid else None)
        oracle = build(Stack)
        opts = [optim.AdamW(m.parameters(), 0.01) for m in (model, oracle)]
        for step in range(3):
            for o in opts:
                o.zero_grad()
            loss_of(model(mine(step))).backward()
            loss_of(oracle(whole_batch(step))).backward()
            got, wanted = model.clip_grad_norm_(0.3), nn.utils.clip_grad_norm_(oracle.parameters(), 0.3)
            assert not isinstance(got, DTensor)
            np.testing.assert_allclose(got.numpy(), wanted.numpy(), 1e-10)
            for p, q in zip(model.parameters(), oracle.parameters()):
                np.testing.assert_allclose(whole(p.grad), q.grad.numpy(), 1e-9, 1e-12)
            for o in opts:
                o.step()
        for p, q in zip(model.parameters(), oracle.parameters()):
            np.testing.assert_allclose(whole(p), whole(q), 1e-8, 1e-10)


def no_sync_accumulates() -> None:
    model, oracle = wrapped(), build(Stack)
    dist.reset_ledger()
    with model.no_sync():
        loss_of(model(mine(0))).backward()
    assert "reduce_scatter" not in dist.ledger()
    loss_of(model(mine(1))).backward()
    for step in range(2):
        loss_of(oracle(whole_batch(step))).backward()
    for p, q in zip(model.parameters(), oracle.parameters()):
        np.testing.assert_allclose(whole(p.grad), q.grad.numpy(), 1e-10, 1e-12)


def policies_choose_units() -> None:
    def names(policy) -> list[str]:
        model = FSDP(build(Stack), auto_wrap_policy=policy)
        return [type(m.module).__name__ for m in FSDP.fsdp_modules(model)[1:]]

    assert names(BLOCKS) == ["FSDPBlock"] * 3
    assert names(
        functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={nn.LayerNorm})
    ) == ["FSDPLayerNorm"] * 3
    assert names(functools.partial(size_based_auto_wrap_policy, min_num_params=100)) == (
        ["FSDPBlock"] * 3
    )
    assert names(CustomPolicy(lambda m: isinstance(m, nn.Linear) and m.out_features == 9)) == (
        ["FSDPLinear"] * 3
    )
    with enable_wrap(wrapper_cls=FSDP, sharding_strategy=ShardingStrategy.NO_SHARD):
        inside = wrap(nn.Linear(2, 2))
    assert isinstance(inside, FSDP) and inside.sharding_strategy is ShardingStrategy.NO_SHARD
    assert type(wrap(nn.Linear(2, 2))) is nn.Linear


def state_dicts() -> None:
    rank, oracle = dist.get_rank(), build(Stack)
    model = wrapped()
    full = model.state_dict()
    assert list(full) == list(oracle.state_dict())
    for key, value in oracle.state_dict().items():
        assert not isinstance(full[key], DTensor) and full[key].tolist() == value.tolist()
    with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(True, True)):
        first = model.state_dict()
    assert list(first) == (list(full) if rank == 0 else [])
    with FSDP.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        parts = model.state_dict()
    assert list(parts) == list(full) and all(isinstance(v, DTensor) for v in parts.values())
    with pytest.raises(NotImplementedError, match="LOCAL_STATE_DICT"):
        FSDP.set_state_dict_type(model, StateDictType.LOCAL_STATE_DICT)
    changed = {k: v * 2 for k, v in full.items()}
    model.load_state_dict(changed)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in changed.items()
    }
    model.load_state_dict(parts)  # shares memory with what was changed
    assert model.state_dict()["head.bias"].tolist() == changed["head.bias"].tolist()


def optimizer_states() -> None:
    model, oracle = wrapped(), build(Stack)
    opts = [optim.AdamW(m.parameters(), 0.01) for m in (model, oracle)]
    loss_of(model(mine(0))).backward()
    loss_of(oracle(whole_batch(0))).backward()
    for o in opts:
        o.step()
    found = FSDP.optim_state_dict(model, opts[0])
    names = [name for name, _ in oracle.named_parameters()]
    assert list(found["state"]) == names and found["param_groups"][0]["params"] == names
    for (name, _), entry in zip(oracle.named_parameters(), opts[1].state_dict()["state"].values()):
        np.testing.assert_allclose(
            found["state"][name]["exp_avg"].numpy(), entry["exp_avg"].numpy(), 1e-9, 1e-12
        )
    fresh = wrapped()
    opt = optim.AdamW(fresh.parameters(), 0.01)
    fresh.load_state_dict(model.state_dict())
    opt.load_state_dict(FSDP.optim_state_dict_to_load(fresh, opt, found))
    for m, o in ((model, opts[0]), (fresh, opt)):
        m.zero_grad()
        loss_of(m(mine(1))).backward()
        o.step()
    for p, q in zip(model.parameters(), fresh.parameters()):
        assert p.to_local().tolist() == q.to_local().tolist()


def whole_parameters_on_request() -> None:
    model, oracle = wrapped(), build(Stack)
    with FSDP.summon_full_params(model):
        for p, q in zip(model.parameters(), oracle.parameters()):
            assert not isinstance(p, DTensor) and p.tolist() == q.tolist()
        with torch.no_grad():
            model.module.head.weight.mul_(3.0)
    assert isinstance(model.head.weight, DTensor)
    np.testing.assert_allclose(whole(model.head.weight), 3 * whole(oracle.head.weight))
    with FSDP.summon_full_params(model, writeback=False), torch.no_grad():
        model.module.head.weight.zero_()
    np.testing.assert_allclose(whole(model.head.weight), 3 * whole(oracle.head.weight))


def rank_0s_values_are_taken() -> None:
    module = build(Stack)
    with torch.no_grad():
        for p in module.parameters():
            p += dist.get_rank()
    model = FSDP(module, auto_wrap_policy=BLOCKS, sync_module_states=True)
    for p, q in zip(model.parameters(), build(Stack).parameters()):
        np.testing.assert_allclose(whole(p), whole(q))


def overflow_on_one_rank_skips_the_step_on_all() -> None:
    model = FSDP(build(Stack, torch.float32), mixed_precision=MixedPrecision(torch.float32))
    opt = optim.SGD(model.parameters(), 0.1)
    scaler = ShardedGradScaler("cpu", init_scale=4.0, growth_interval=1)
    before = [p.to_local().tolist() for p in model.parameters()]
    scaler.scale(loss_of(model(mine(0).float()))).backward()
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:  # in one rank's shard only
        with torch.no_grad():
            next(p for p in model.parameters() if p.to_local().numel()).grad.to_local().fill_(
                float("inf")
            )
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert before == [p.to_local().tolist() for p in model.parameters()]
    opt.zero_grad()
    scaler.scale(loss_of(model(mine(0).float()))).backward()
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert before != [p.to_local().tolist() for p in model.parameters()]


SCENARIOS = (
    strategies_equal_one_process,
    no_sync_accumulates,
    policies_choose_units,
    state_dicts,
    optimizer_states,
    whole_parameters_on_request,
    rank_0s_values_are_taken,
    overflow_on_one_rank_skips_the_step_on_all,
)
