"""How fully_shard works, counted: bytes, calls, memory, and the order of events."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fsdp_models import Block, Stack, batch, build, loss_of, mine, shard

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from disttorch.distributed.tensor import DTensor
from disttorch.distributed.tensor._utils import compute_local_shape_and_global_offset

WIDTH, DEPTH = 48, 4  # dims that 2, 3 and 4 divide: nothing is padded


def even(dtype=torch.float32) -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
    return nn.Sequential(*layers).to(dtype)


def sharded_even(**options) -> nn.Module:
    model = even()
    for layer in model:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def one_step(model: nn.Module, rows: int = 1) -> None:
    x = torch.ones(rows, WIDTH) * (dist.get_rank() + 1)
    model(x).square().mean().backward()


def bytes_and_calls_follow_the_theory() -> None:
    """ZeRO-3 moves 3Ψ(n-1)/n bytes per rank and step, ZeRO-2 2Ψ(n-1)/n: one call for each unit."""
    n = dist.get_world_size()
    psi = 4 * DEPTH * (WIDTH * WIDTH + WIDTH)
    for keep, gathers in ((False, 2), (True, 1)):
        model = sharded_even(reshard_after_forward=not keep)
        for _ in range(2):
            dist.reset_ledger()
            one_step(model)
            ledger = dist.ledger()
        if n == 1:
            assert not ledger
            continue
        assert set(ledger) == {"all_gather", "reduce_scatter"}
        assert ledger["all_gather"]["calls"] == gathers * DEPTH
        assert ledger["reduce_scatter"]["calls"] == DEPTH
        gathered = ledger["all_gather"]["lower_bound_bytes"]
        scattered = ledger["reduce_scatter"]["lower_bound_bytes"]
        assert gathered == gathers * psi * (n - 1) / n
        flags = 4 * 3 * DEPTH * (n - 1)  # in each section one for each parameter, and a number
        assert scattered == psi * (n - 1) / n + flags
        total = (gathers + 1) * psi * (n - 1) / n
        assert total <= gathered + scattered <= 1.01 * total
        # what really travelled; ranks that are threads send nothing
        moved = sum(max(row["sent_bytes"], row["received_bytes"]) for row in ledger.values())
        assert moved == 0 or moved >= total * 0.99


def accumulation_without_synchronisation_sends_no_gradient() -> None:
    n = dist.get_world_size()
    model = sharded_even(reshard_after_forward=True)
    model.set_requires_gradient_sync(False)
    dist.reset_ledger()
    one_step(model)
    assert "reduce_scatter" not in dist.ledger()
    model.set_requires_gradient_sync(True)
    one_step(model)
    if n > 1:
        assert dist.ledger()["reduce_scatter"]["calls"] == DEPTH


def frozen_parameters_send_no_gradient() -> None:
    n = dist.get_world_size()
    model = sharded_even(reshard_after_forward=True)
    for p in model[1].parameters():
        p.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    dist.reset_ledger()
    one_step(model)
    if n > 1:
        row = dist.ledger()["reduce_scatter"]
        assert row["calls"] == DEPTH - 1
        elements = 2 * (WIDTH * WIDTH + WIDTH + 3 * n) + WIDTH + 2 * n
        assert row["lower_bound_bytes"] == 4 * elements * (n - 1) / n
    assert model[1].weight.grad is None and model[2].weight.grad is None
    assert model[2].bias.grad is not None


def shards_are_even_and_rebuild_the_whole() -> None:
    """Sizes as `chunk` gives, also empty ones; together they are the parameter."""
    n, rank = dist.get_world_size(), dist.get_rank()
    model, oracle = shard(build(Stack)), build(Stack)
    for p, q in zip(model.parameters(), oracle.parameters()):
        shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
        part = p.detach().to_local()
        assert isinstance(p, nn.Parameter) and isinstance(p, DTensor)
        assert p.shape == q.shape and tuple(part.shape) == shape
        chunks = q.detach().chunk(n)
        wanted = chunks[rank] if rank < len(chunks) else q.detach()[:0]
        assert part.tolist() == wanted.tolist()
        rows = q.detach()[offset[0] : offset[0] + shape[0]]
        assert part.numel() == 0 or part.tolist() == rows.tolist()
        owner = part._data if part._data.base is None else part._data.base
        assert n == 1 or owner.nbytes == part._data.nbytes  # the whole is not kept alive


# ---- memory --------------------------------------------------------------------------------------


def memory_follows_the_theory() -> None:
    """Parameters, gradients and Adam's moments: 16Ψ/n bytes per rank, within 2 %."""
    n = dist.get_world_size()
    for options in ({"reshard_after_forward": True}, {"reshard_after_forward": False}):
        model = sharded_even(**options)
        opt = optim.Adam(model.parameters(), 1e-3)
        one_step(model)
        opt.step()
        elements = sum(p.numel() for p in even().parameters())
        held = _unique_bytes(
            a for p in model.parameters() for a in (p.to_local()._data, p.grad.to_local()._data)
        )
        held += _unique_bytes(
            v._data for s in opt.state.values() for k, v in s.items() if k != "step"
        )
        assert held == pytest.approx(16 * elements / n, rel=0.02), (held, 16 * elements / n)


def _unique_bytes(arrays) -> int:
    """Bytes of the memory that arrays keep alive, each counted once."""
    owners = {}
    for a in arrays:
        while a.base is not None:
            a = a.base
        owners[id(a)] = a
    return sum(a.nbytes for a in owners.values())


def peak_of_whole_parameters() -> None:
    """At most the unit that computes and the one that is gathered ahead are whole."""
    model = sharded_even(reshard_after_forward=True)
    units = [m._get_fsdp_state().unit for m in model]
    most = []

    def count(*_: object) -> None:
        most.append(sum(u.state != "sharded" for u in units))

    for layer in model:
        layer.register_forward_hook(count, prepend=True)
        layer.register_full_backward_hook(count)
    for _ in range(3):
        one_step(model)
    assert max(most) == 2
    assert all(u.state == "sharded" for u in units)
    for u in units:
        for p in u.params:
            assert p.whole._data.strides == (0,) * p.whole.ndim and p.whole._grad is None


# ---- order ---------------------------------------------------------------------------------------


def events_of(model: nn.Module, steps: int = 2) -> list[tuple]:
    for step in range(steps):
        model(mine(step)).square().mean().backward()
    context = model._get_fsdp_state().attach()
    context.events = []
    model(mine(steps)).square().mean().backward()
    events, context.events = context.events, None
    return events


def the_next_unit_is_gathered_before_this_ones_forward_ends() -> None:
    model = shard(build(Stack), reshard_after_forward=True)
    events = events_of(model)
    for this, following in (("blocks.0", "blocks.1"), ("blocks.1", "blocks.2")):
        begun = events.index(("gather", following, "prefetch"))
        assert begun < events.index(("forward ends", this))
    # backward: the unit before is under way when this one's gradients are reduced
    backward = events[events.index(("forward ends", "")) :]
    for this, before in (("blocks.2", "blocks.1"), ("blocks.1", "blocks.0")):
        assert backward.index(("gather", before, "prefetch")) < backward.index(("reduce", this))
    # and gradients are on their way before the last one is there
    assert backward.index(("reduce", "blocks.2")) < backward.index(("reduce", "blocks.0"))
    # the first unit's forward ends at once in the very first pass: nothing is known yet
    fresh = shard(build(Stack), reshard_after_forward=True)
    fresh._get_fsdp_state().attach().events = first = []
    fresh(mine(0))
    assert not any(e[0] == "gather" and e[-1] == "prefetch" for e in first)


def prefetching_can_be_chosen() -> None:
    model = shard(build(Stack), reshard_after_forward=True)
    blocks = model.blocks
    model.set_modules_to_forward_prefetch([blocks[0], blocks[1]])
    blocks[2].set_modules_to_backward_prefetch([blocks[1], blocks[0]])
    events = events_of(model, 0)
    names = [e[1] for e in events if e[0] == "gather" and e[-1] == "prefetch"]
    assert names[:2] == ["blocks.0", "blocks.1"]
    backward = events[events.index(("forward ends", "")) :]
    names = [e[1] for e in backward if e[0] == "gather" and e[-1] == "prefetch"]
    assert names[1:3] == ["blocks.1", "blocks.0"]


def explicit_unshard() -> None:
    model = shard(build(Stack))
    handle = model.blocks[1].unshard(async_op=True)
    handle.wait()
    weight = model.blocks[1].up.weight
    assert not isinstance(weight, DTensor)
    assert weight.tolist() == build(Stack).blocks[1].up.weight.tolist()
    model.blocks[1].reshard()
    assert isinstance(model.blocks[1].up.weight, DTensor)
    assert model.unshard() is None and not isinstance(model.stem.weight, DTensor)
    model.reshard()


# ---- interface -----------------------------------------------------------------------------------


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


def low_precision_halves_the_bytes() -> None:
    n = dist.get_world_size()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = sharded_even(reshard_after_forward=True, mp_policy=policy)
    one_step(model)
    dist.reset_ledger()
    one_step(model)
    if n > 1:
        psi = 2 * DEPTH * (WIDTH * WIDTH + WIDTH)
        assert dist.ledger()["all_gather"]["lower_bound_bytes"] == 2 * psi * (n - 1) / n
        assert dist.ledger()["reduce_scatter"]["payload_bytes"] == psi + 2 * 3 * n * DEPTH


SCENARIOS = (
    bytes_and_calls_follow_the_theory,
    accumulation_without_synchronisation_sends_no_gradient,
    frozen_parameters_send_no_gradient,
    shards_are_even_and_rebuild_the_whole,
    memory_follows_the_theory,
    peak_of_whole_parameters,
    the_next_unit_is_gathered_before_this_ones_forward_ends,
    prefetching_can_be_chosen,
    explicit_unshard,
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
    low_precision_halves_the_bytes,
)


# ---- the peak, measured by the allocator; one rank a process ----------------------------------


def peak_memory() -> dict[str, float]:
    """Bytes that NumPy holds at most during a step beyond what lies between steps, and the theory.

    The batch is one row, so activations do not count. Unit and next unit whole, the gather's buffer,
    or a unit's gradients and the reduction's buffer: never all parameters.
    """
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    for layer in model:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=True)
    opt = optim.Adam(model.parameters(), 1e-3)
    x = torch.ones(1, 256)
    for _ in range(2):
        model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
    tracemalloc.start()
    model(x).square().mean().backward()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    unit = 4 * (256 * 256 + 256)
    return {"held": held, "peak": peak, "unit": unit, "gradients": 8 * unit / dist.get_world_size()}
