"""What fully_shard offers and refuses beside training: classes, methods, hooks, errors."""

from __future__ import annotations

import numpy as np
import pytest
from fsdp_counts import WIDTH
from fsdp_models import Block, Stack, batch, build, loss_of, mine, shard

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.fsdp import FSDPModule, fully_shard


def classes_and_methods() -> None:
    model = shard(build(Stack))
    assert type(model).__name__ == "FSDPStack"
    assert isinstance(model, FSDPModule) and isinstance(model, Stack)
    assert type(model.blocks[0]).__name__ == "FSDPBlock" and isinstance(model.blocks[0], Block)
    chain = fully_shard(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert type(chain[:1]) is nn.Sequential  # slicing makes another container: not a sharded one
    with pytest.raises(ValueError, match="applied"):
        fully_shard(model)
    with pytest.raises(ValueError, match="containers"):
        fully_shard(nn.ModuleList())
    with pytest.raises(AssertionError, match="deepcopy"):
        import copy

        copy.deepcopy(model)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    fully_shard(tied[0])
    with pytest.raises(ValueError, match="shared"):
        fully_shard(tied)
    with pytest.raises(NotImplementedError, match="linear"):
        nn.functional.linear(torch.ones(1, 5, dtype=torch.float64), model.stem.weight)


def other_methods_count_as_forward() -> None:
    from disttorch.distributed.fsdp import register_fsdp_forward_method

    class Encoder(Stack):
        def encode(self, x):
            return self.stem(x)

    model, oracle = shard(build(Encoder)), build(Encoder)
    register_fsdp_forward_method(model, "encode")
    loss_of(model.encode(mine(0))).backward()
    n = dist.get_world_size()
    sum(loss_of(oracle.encode(batch(0, r))) for r in range(n)).div(n).backward()
    np.testing.assert_allclose(
        model.stem.weight.grad.full_tensor().numpy(), oracle.stem.weight.grad.numpy(), 1e-10, 1e-12
    )
    assert model.head.weight.grad is None


def an_exception_does_not_go_on_unnoticed() -> None:
    model = shard(build(Stack))
    loss_of(model(mine(0))).backward()

    def fail(grad):
        raise ValueError("on purpose")

    model.zero_grad()
    x = mine(0).requires_grad_()
    x.register_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        loss_of(model(x)).backward()
    with pytest.raises(RuntimeError, match="reset_iter_state"):
        model(mine(1))
    model.reset_iter_state()
    model.zero_grad()
    oracle = build(Stack)
    loss_of(model(mine(1))).backward()
    n = dist.get_world_size()
    sum(loss_of(oracle(batch(1, r))) for r in range(n)).div(n).backward()
    np.testing.assert_allclose(
        model.head.weight.grad.full_tensor().numpy(), oracle.head.weight.grad.numpy(), 1e-10, 1e-12
    )


class Fork(nn.Module):
    """Two units of the same size, of which each rank runs another one in backward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        outs = self.a(x), self.b(x)
        return outs[dist.get_rank() % 2]


def ranks_that_run_different_units_are_told() -> None:
    """Their calls look alike, so the collectives cannot tell: the mean would be of other weights."""
    if dist.get_world_size() == 1:
        return
    model = Fork()
    fully_shard(model.a)
    fully_shard(model.b)
    fully_shard(model)
    with pytest.raises(RuntimeError, match="different units"):
        model(torch.ones(1, WIDTH)).sum().backward()


def an_optimizer_made_too_early_is_told() -> None:
    model = build(Stack)
    opt = optim.SGD(model.parameters(), 0.1)
    kept = model.stem.weight
    shard(model)
    loss_of(model(mine(0))).backward()
    with pytest.raises(RuntimeError, match="make the optimizer after"):
        opt.step()
    assert kept._data.strides == (0, 0)  # and holds no memory


def hooks_of_shards_run() -> None:
    model = shard(build(Stack))
    seen = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.placements)))
    loss_of(model(mine(0))).backward()
    assert {id(p) for p, _ in seen} == {id(p) for p in model.parameters()}
    assert len(seen) == len(list(model.parameters()))


def a_state_dict_is_assigned() -> None:
    state = shard(build(Stack)).state_dict()
    with torch.device("meta"):
        model = Stack().to(torch.float64)
    shard(model)
    model.load_state_dict(state, assign=True)
    oracle = build(Stack)
    loss_of(model(mine(0))).backward()
    n = dist.get_world_size()
    sum(loss_of(oracle(batch(0, r))) for r in range(n)).div(n).backward()
    for p, q in zip(model.parameters(), oracle.parameters()):
        np.testing.assert_allclose(
            p.grad.full_tensor().numpy(), q.grad.numpy(), 1e-10, 1e-12
        )
    with pytest.raises(RuntimeError, match="replaced"):
        model.load_state_dict(oracle.state_dict(), assign=True)


def the_plain_scaler_agrees_over_ranks() -> None:
    model = shard(build(Stack, torch.float32))
    opt, scaler = optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.to_local().tolist() for p in model.parameters()]
    scaler.scale(loss_of(model(mine(0).float()))).backward()
    if dist.get_rank() == dist.get_world_size() - 1:
        with torch.no_grad():
            next(p for p in model.parameters() if p.to_local().numel()).grad.to_local().fill_(
                float("nan")
            )
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert before == [p.to_local().tolist() for p in model.parameters()]


def parameters_may_be_frozen_between_steps() -> None:
    model, oracle = shard(build(Stack)), build(Stack)
    n = dist.get_world_size()
    for step in range(3):
        for m in (model, oracle):
            m.blocks[1].requires_grad_(step != 1)
            m.stem.requires_grad_(step != 1)
            m.zero_grad()
        loss_of(model(mine(step))).backward()
        sum(loss_of(oracle(batch(step, r))) for r in range(n)).div(n).backward()
        for p, q in zip(model.parameters(), oracle.parameters()):
            assert (p.grad is None) == (q.grad is None)
            if q.grad is not None:
                np.testing.assert_allclose(
                    p.grad.full_tensor().numpy(), q.grad.numpy(), 1e-10, 1e-12
                )


def modules_move_and_convert() -> None:
    model = shard(build(Stack)).to(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    out = model(mine(0).float())
    assert out.dtype is torch.float32
    out.square().mean().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


SCENARIOS = (
    classes_and_methods,
    other_methods_count_as_forward,
    an_exception_does_not_go_on_unnoticed,
    ranks_that_run_different_units_are_told,
    an_optimizer_made_too_early_is_told,
    hooks_of_shards_run,
    a_state_dict_is_assigned,
    the_plain_scaler_agrees_over_ranks,
    parameters_may_be_frozen_between_steps,
    modules_move_and_convert,
)
