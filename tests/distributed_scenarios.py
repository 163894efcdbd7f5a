"""What every call of disttorch.distributed must do, on whichever ranks run it.

Each scenario is called on every rank of a job whose default group exists, and asserts. Warnings
must be turned into errors by whoever runs them.
"""

from __future__ import annotations

import datetime

import numpy as np
import pytest

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed import ReduceOp

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)


def value(rank: int, shape: tuple[int, ...] = (3, 2), dtype=torch.float32) -> torch.Tensor:
    """Small whole numbers that differ between ranks and elements: exact in every dtype."""
    count = int(np.prod(shape))
    numbers = (np.arange(count).reshape(shape) + 3 * rank) % 7
    return torch.tensor(numbers % 2 if dtype is torch.bool else numbers).to(dtype)


def everyone(shape: tuple[int, ...] = (3, 2), dtype=torch.float32) -> list[torch.Tensor]:
    return [value(rank, shape, dtype) for rank in range(dist.get_world_size())]


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert got.tolist() == wanted.tolist()


def total_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = total | tensor if total.dtype is torch.bool else total + tensor
    return total


def all_reduce_in_every_dtype() -> None:
    rank = dist.get_rank()
    for dtype in DTYPES:
        for shape in ((3, 2), (), (0, 4), (7,)):
            for async_op in (False, True):
                tensor = value(rank, shape, dtype)
                work = dist.all_reduce(tensor, async_op=async_op)
                assert (work is not None) == async_op
                if work is not None:
                    assert work.wait() and work.is_completed() and work.is_success()
                same(tensor, total_of(everyone(shape, dtype)))
                assert tensor._version == 1


def reductions() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    stacked = np.stack([t.numpy() for t in everyone()])
    for op, wanted in (
        (ReduceOp.AVG, stacked.sum(0, dtype=np.float32) / np.float32(n)),
        (ReduceOp.MAX, stacked.max(0)),
        (ReduceOp.MIN, stacked.min(0)),
        (ReduceOp.PRODUCT, stacked.prod(0)),
    ):
        tensor = value(rank)
        dist.all_reduce(tensor, op)
        same(tensor, torch.tensor(wanted))
    with pytest.raises(TypeError, match="ReduceOp.AVG needs a floating"):
        dist.all_reduce(value(rank, dtype=torch.int64), ReduceOp.AVG)
    root = n - 1
    tensor = value(rank)
    dist.reduce(tensor, dst=root)
    same(tensor, total_of(everyone()) if rank == root else value(rank))
    assert tensor._version == (rank == root)


def views_and_strides() -> None:
    """A transposed view is written in place, its base sees it, and both count as changed."""
    rank = dist.get_rank()
    base = value(rank, (4, 3))
    dist.all_reduce(base.t()[:, 1:3])
    wanted = value(rank, (4, 3))
    wanted[1:3] = total_of(everyone((4, 3)))[1:3]
    same(base, wanted)
    assert base._version == 1


def autograd_notices_a_write() -> None:
    weight = torch.ones(3, requires_grad=True)
    data = torch.ones(3)
    product = (weight * data).sum()
    dist.all_reduce(data)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def broadcasts() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    for root in range(n):
        tensor = value(rank)
        dist.broadcast(tensor, root)
        same(tensor, value(root))
        assert tensor._version == (rank != root)
    tensor = value(rank)
    dist.broadcast(tensor, group_src=n - 1)
    same(tensor, value(n - 1))
    with pytest.raises(ValueError, match="Must specify src or group_src"):
        dist.broadcast(tensor)
    with pytest.raises(ValueError, match="Can't specify both group_src and src"):
        dist.broadcast(tensor, 0, group_src=0)
    with pytest.raises(ValueError, match=f"got {n}"):
        dist.broadcast(tensor, n)


def gathers() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    for async_op in (False, True):
        outs = [torch.zeros(2, 3).t() for _ in range(n)]
        work = dist.all_gather(outs, value(rank), async_op=async_op)
        if work is not None:
            work.wait()
        for got, wanted in zip(outs, everyone()):
            same(got, wanted)
            assert got._version == 1
    flat = torch.zeros(3 * n, 2)
    dist.all_gather_into_tensor(flat, value(rank))
    same(flat, torch.cat(everyone()))
    root = n // 2
    outs = [torch.zeros(3, 2) for _ in range(n)] if rank == root else None
    dist.gather(value(rank), outs, dst=root)
    if outs is not None:
        for got, wanted in zip(outs, everyone()):
            same(got, wanted)
    with pytest.raises(ValueError, match="`tensor_list` has 0 tensors"):
        dist.all_gather([], value(rank))
    with pytest.raises(ValueError, match="`tensor_list\\[0\\]` has shape"):
        dist.all_gather([torch.zeros(5)] * n, value(rank))
    with pytest.raises(TypeError, match="Expected parameter `tensor` of type torch.Tensor"):
        dist.all_gather([torch.zeros(5)] * n, np.zeros(5))
    message = "must be specified on destination" if rank == root else "must NOT be specified"
    with pytest.raises(ValueError, match=message):
        dist.gather(value(rank), None if rank == root else [value(rank)] * n, dst=root)


def scatters() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    root = n - 1
    tensor = torch.zeros(3, 2)
    dist.scatter(tensor, everyone() if rank == root else None, src=root)
    same(tensor, value(rank))
    out = torch.zeros(3, 2)
    inputs = [value(rank + r) for r in range(n)]
    dist.reduce_scatter(out, inputs)
    wanted = total_of([value(r + rank) for r in range(n)])
    same(out, wanted)
    out = torch.zeros(3, 2)
    dist.reduce_scatter_tensor(out, torch.cat(inputs), async_op=True).wait()
    same(out, wanted)


def all_to_all_calls() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    out = torch.zeros(n)
    dist.all_to_all_single(out, torch.arange(n).float() + 10 * rank)
    assert out.tolist() == [10.0 * r + rank for r in range(n)]
    # rank a sends b + 1 rows to rank b
    out = torch.zeros(n * (rank + 1), 2)
    rows = torch.full((n * (n + 1) // 2, 2), float(rank))
    work = dist.all_to_all_single(
        out, rows, [rank + 1] * n, [r + 1 for r in range(n)], async_op=True
    )
    work.wait()
    assert out.tolist() == [[float(r)] * 2 for r in range(n) for _ in range(rank + 1)]
    outs = [torch.zeros(rank + 1) for _ in range(n)]
    dist.all_to_all(outs, [torch.full((r + 1,), 10.0 * rank + r) for r in range(n)])
    assert [o.tolist() for o in outs] == [[10.0 * r + rank] * (rank + 1) for r in range(n)]
    assert all(o._version == 1 for o in outs)
    with pytest.raises(ValueError, match="input_split_sizes"):
        dist.all_to_all_single(out, rows, [rank + 1] * n, [1] * (n + 1))


def messages() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    if n == 1:
        return
    right, left = (rank + 1) % n, (rank - 1) % n
    tensor = torch.zeros(3, 2)
    works = [dist.isend(value(rank), right, tag=7), dist.irecv(tensor, left, tag=7)]
    for work in works:
        work.wait()
    same(tensor, value(left))
    assert works[1].source_rank() == left and tensor._version == 1
    if rank == 0:
        froms = [dist.recv(torch.zeros(3, 2)) for _ in range(n - 1)]
        assert sorted(froms) == list(range(1, n))
    else:
        dist.send(value(rank), dst=0)
    dist.barrier()
    with pytest.raises(ValueError, match="rank should not be the same as the rank of the current"):
        dist.send(tensor, rank)
    with pytest.raises(ValueError, match="this rank itself"):
        dist.isend(tensor, rank)


def objects() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    mine = [{"rank": rank}, None, "x" * rank]
    dist.broadcast_object_list(mine, src=n - 1)
    assert mine == [{"rank": n - 1}, None, "x" * (n - 1)]
    found = [None] * n
    dist.all_gather_object(found, (rank, "y" * rank))
    assert found == [(r, "y" * r) for r in range(n)]
    with pytest.raises(ValueError, match=f"the group has {n} ranks"):
        dist.all_gather_object([None] * (n + 1), rank)


def groups() -> None:
    rank, n = dist.get_rank(), dist.get_world_size()
    members = [n - 1, 0] if n > 1 else [0]
    part = dist.new_group(members)
    inside = rank in members
    assert (part == dist.GroupMember.NON_GROUP_MEMBER) == (not inside)
    assert dist.get_rank(part) == (sorted(members).index(rank) if inside else -1)
    assert dist.get_world_size(part) == (len(members) if inside else -1)
    tensor = value(rank)
    if not inside:
        # Warnings are errors here: recording them is not safe where ranks are threads.
        with pytest.raises(UserWarning, match=f"Running all_reduce on global rank {rank} which"):
            dist.all_reduce(tensor, group=part)
        same(tensor, value(rank))
    else:
        dist.all_reduce(tensor, group=part)
        same(tensor, total_of([value(r) for r in sorted(members)]))
        tensor = value(rank)
        dist.broadcast(tensor, src=n - 1, group=part)  # src counts in the whole job
        same(tensor, value(n - 1))
        assert dist.get_process_group_ranks(part) == sorted(members)
        assert dist.get_global_rank(part, len(members) - 1) == n - 1
        assert dist.get_group_rank(part, n - 1) == len(members) - 1
        assert dist.get_backend(part) == dist.get_backend()
        if n > 2:
            with pytest.raises(ValueError, match="Global rank 1 is not part of group"):
                dist.broadcast(tensor, src=1, group=part)
        dist.destroy_process_group(part)
        with pytest.raises(ValueError, match="Invalid process group specified"):
            dist.all_reduce(tensor, group=part)
    for wrong in ([0, 0], [n], []):
        with pytest.raises(ValueError, match="new_group: ranks"):
            dist.new_group(wrong)
    everybody = dist.new_group()
    assert dist.get_world_size(everybody) == n and everybody is not dist.group.WORLD


def counts() -> None:
    n = dist.get_world_size()
    dist.reset_ledger()
    assert dist.ledger() == {}
    part = dist.new_group()
    dist.all_reduce(torch.zeros(10))
    dist.all_reduce(torch.zeros(5, dtype=torch.float64), group=part)
    entry = dist.ledger()["all_reduce"]
    assert entry["calls"] == 2 and entry["payload_bytes"] == 80
    assert entry["lower_bound_bytes"] == pytest.approx(2 * 80 * (n - 1) / n)
    assert dist.ledger(part)["all_reduce"]["payload_bytes"] == 40


def waiting_has_a_limit() -> None:
    """A rank that comes late makes the others' wait end with an error, and the call goes on."""
    rank, n = dist.get_rank(), dist.get_world_size()
    if n == 1:
        return
    tensor = value(rank)
    if rank == 0:
        for other in range(1, n):
            dist.recv(torch.zeros(1), src=other)
        dist.all_reduce(tensor)
    else:
        work = dist.all_reduce(tensor, async_op=True)
        with pytest.raises(TimeoutError, match="all_reduce is not complete"):
            work.wait(datetime.timedelta(milliseconds=20))
        dist.send(torch.zeros(1), dst=0)
        work.wait()
    same(tensor, total_of(everyone()))


def places() -> None:
    n = dist.get_world_size()
    assert dist.is_initialized() and dist.group.WORLD.size() == n
    assert dist.GroupMember.WORLD is dist.group.WORLD
    assert 0 <= dist.get_node_local_rank() < n
    with pytest.raises(ValueError, match="initialize the default process group twice"):
        dist.init_process_group()


SCENARIOS = (
    all_reduce_in_every_dtype, reductions, views_and_strides, autograd_notices_a_write, broadcasts,
    gathers, scatters, all_to_all_calls, messages, objects, groups, counts, waiting_has_a_limit,
    places,
)
