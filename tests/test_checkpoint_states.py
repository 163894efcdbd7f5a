"""States of models and optimizers by names, from every layout into every other."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_models import FULL, PLACES, build, train, trained
from checkpoint_states import same

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch import nn
from disttorch.distributed.checkpoint.staging import copy_state_dict
from disttorch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from disttorch.distributed.fsdp import fully_shard

WORKER = Path(__file__).with_name("checkpoint_worker.py")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


# ---- layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "n"), PLACES)
def test_models_and_optimizers_go_from_every_layout_to_every_other(tmp_path, kind, n):
    whole = dist.run_local(n, trained, (kind, n, tmp_path))[0]  # its buffers are rank 0's
    whole[0].pop("_extra_state", None)
    assert "0.weight" in whole[0] and "module.0.weight" not in whole[0]
    assert whole[1]["param_groups"][1]["params"] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert float(whole[1]["state"]["0.weight"]["step"]) == 3
    assert len({float(t.sum()) for t in whole[0].values()}) > 7

    def loaded(rank: int, other: str, m: int):
        model, optimizer = build(other, m, seed=5)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"m": model_state, "o": optimizer_state}
        only_exact_has_a_step_number = dcp.DefaultLoadPlanner(allow_partial_load=other == "exact")
        dcp.load(state, checkpoint_id=tmp_path, planner=only_exact_has_a_step_number)
        set_state_dict(model, optimizer, model_state_dict=state["m"], optim_state_dict=state["o"])
        result = copy_state_dict(get_state_dict(model, optimizer, options=FULL))
        result[0].pop("_extra_state", None)
        train(model, optimizer, rank, m, [9])
        return result

    for other, m in PLACES:
        for result in dist.run_local(m, loaded, (other, m)):
            assert same(result, whole), (kind, other)


def test_training_goes_on_the_same_in_another_layout(tmp_path):
    """Three steps on one process and three on FSDP: as six on one process."""
    dist.run_local(1, trained, ("plain", 1, tmp_path))
    model, optimizer = build("plain", 1)
    model.eval()  # statistics of parts of a batch are others
    train(model, optimizer, 0, 1, [])
    reference, reference_optimizer = build("plain", 1)
    train(reference, reference_optimizer, 0, 1, range(3))
    reference.eval()
    train(reference, reference_optimizer, 0, 1, [20, 21, 22])

    def goes_on(rank: int):
        model, optimizer = build("nested", 3, seed=5)
        state = dict(zip("mo", get_state_dict(model, optimizer)))
        dcp.load(state, checkpoint_id=tmp_path)
        set_state_dict(model, optimizer, model_state_dict=state["m"], optim_state_dict=state["o"])
        model.eval()
        train(model, optimizer, rank, 3, [20, 21, 22])
        return get_model_state_dict(model, options=FULL)

    for result in dist.run_local(3, goes_on):
        for name, tensor in reference.state_dict().items():
            assert torch.allclose(result[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
@pytest.mark.parametrize("flat", [False, True])
def test_whole_states_from_rank_0_only(tmp_path, kind, flat):
    """What a plain run saved, read by rank 0 and sent to the others."""
    whole = dist.run_local(1, trained, ("plain", 1, tmp_path))[0]
    options = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=True, flatten_optimizer_state_dict=flat
    )
    plain = build("plain", 1)
    set_state_dict(*plain, model_state_dict=dict(whole[0]), optim_state_dict=whole[1])
    flattened = StateDictOptions(flatten_optimizer_state_dict=flat)
    given = copy_state_dict(get_optimizer_state_dict(*plain, options=flattened))

    def rank_main(rank: int):
        model, optimizer = build(kind, 3, seed=5)
        result = set_model_state_dict(model, whole[0] if rank == 0 else {}, options=options)
        assert not result.missing_keys and not result.unexpected_keys
        set_optimizer_state_dict(model, optimizer, given if rank == 0 else {}, options=options)
        offloaded = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return copy_state_dict(get_state_dict(model, optimizer, options=offloaded))

    first, *others = dist.run_local(3, rank_main)
    assert same(first, whole)
    assert others == [({}, {})] * 2


def test_whole_states_on_every_rank_are_cut(tmp_path):
    whole = dist.run_local(1, trained, ("plain", 1, tmp_path))[0]

    def rank_main(rank: int):
        model, optimizer = build("nested", 3, seed=5)
        set_state_dict(
            model, optimizer, model_state_dict=dict(whole[0]), optim_state_dict=whole[1], options=FULL
        )
        return copy_state_dict(get_state_dict(model, optimizer, options=FULL))

    assert all(same(result, whole) for result in dist.run_local(3, rank_main))


@pytest.mark.parametrize("how", ["sharded", "whole", "from rank 0"])
def test_a_model_made_on_the_meta_device(tmp_path, how):
    """No rank ever has memory for the whole model that it does not need."""
    whole = dist.run_local(1, trained, ("plain", 1, tmp_path))[0][0]

    def rank_main(rank: int):
        where = {"device": "meta"}
        layers = nn.Linear(6, 8, **where), nn.BatchNorm1d(8, **where), nn.Linear(8, 3, **where)
        model = nn.Sequential(*layers[:2], nn.Tanh(), layers[2])
        fully_shard(model)
        if how == "sharded":
            state = {"m": get_model_state_dict(model)}
            dcp.load(state, checkpoint_id=tmp_path)
            set_model_state_dict(model, state["m"])
        else:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=how != "whole")
            given = whole if rank == 0 or how == "whole" else {}
            set_model_state_dict(model, dict(given), options=options)
        assert not any(p.is_meta for p in model.parameters())
        model(torch.ones(3, 6))
        model.eval()
        return copy_state_dict(get_model_state_dict(model, options=FULL))

    for result in dist.run_local(3, rank_main):
        weights = [name for name in whole if "running" not in name and "num" not in name]
        assert all(torch.equal(result[name], whole[name]) for name in weights)


def test_a_fresh_optimizer_is_left_as_it_is_and_saved_before_its_first_step(tmp_path):
    one, two = build("plain", 1), build("plain", 1)
    state = get_optimizer_state_dict(*one)
    assert not one[1].state and all(p.grad is None for p in one[0].parameters())
    assert all(float(entry["step"]) == 0 for entry in state["state"].values())
    assert one[1].param_groups[1]["lr"] == 0.02
    set_optimizer_state_dict(*one, state)
    for model, optimizer in (one, two):
        train(model, optimizer, 0, 1, range(3))
    assert same(one[0].state_dict(), two[0].state_dict())


def test_options_of_states():
    model, optimizer = build("plain", 1)
    frozen = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
    assert set(model.state_dict()) - set(frozen) == {"3.bias"}
    with pytest.warns(FutureWarning, match="submodules"):
        part = get_model_state_dict(
            model, submodules={model[3]}, options=StateDictOptions(keep_submodule_prefixes=False)
        )
    assert set(part) == {"weight", "bias"}
    train(model, optimizer, 0, 1, [0])
    state = get_optimizer_state_dict(model, optimizer)
    del state["state"]["0.weight"]
    with pytest.raises(RuntimeError, match="Missing optimizer state for parameter '0.weight'"):
        set_optimizer_state_dict(model, optimizer, state)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(strict=False))
    with pytest.raises(ValueError, match="full_state_dict must be True"):
        get_model_state_dict(model, options=StateDictOptions(broadcast_from_rank0=True))
    with pytest.raises(RuntimeError, match="none of the model's"):
        get_optimizer_state_dict(nn.Linear(1, 1), optimizer)
