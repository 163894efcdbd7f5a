"""How fully_shard works, counted: bytes, calls, memory, and the order of events."""

from __future__ import annotations

import tracemalloc

import pytest
from fsdp_models import Stack, build, mine, shard

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
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
