"""More of what every rank must see: uneven sizes, coalescing, futures, objects, methods of groups.

As in `distributed_scenarios`: each scenario is called on every rank of a job, and asserts.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import threading

import numpy as np
import pytest
from distributed_scenarios import DTYPES, everyone, same, total_of, value

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed import ReduceOp


def place() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def uneven_parts() -> None:
    """Rank r has r + 1 rows, the last rank none."""
    rank, n = place()
    rows = [r + 1 if r < n - 1 else 0 for r in range(n)]
    for dtype in (torch.float32, torch.bfloat16, torch.bool):
        for async_op in (False, True):
            outs = [torch.zeros(rows[r], 2).to(dtype) for r in range(n)]
            work = dist.all_gather(outs, value(rank, (rows[rank], 2), dtype), async_op=async_op)
            assert work is None or work.wait()
            for r, out in enumerate(outs):
                same(out, value(r, (rows[r], 2), dtype))
    out = torch.zeros(rows[rank], 2)
    dist.reduce_scatter(out, [value(rank + r, (rows[r], 2)) for r in range(n)])
    same(out, total_of([value(r + rank, (rows[rank], 2)) for r in range(n)]))
    if n > 1:
        with pytest.raises(ValueError, match="counts"):
            dist.all_gather([torch.zeros(rows[r], 2) for r in range(n)], torch.zeros(9))


def single_tensor_names() -> None:
    rank, n = place()
    for gather, scatter in (
        (dist.all_gather_single, dist.reduce_scatter_single),
        (dist._all_gather_base, dist._reduce_scatter_base),
    ):
        flat = torch.zeros(n, 3, 2)
        gather(flat, value(rank))
        same(flat, torch.stack(everyone()))
        out = torch.zeros(2)
        scatter(out, value(rank, (2 * n,)))
        same(out, total_of(everyone((2 * n,)))[2 * rank : 2 * rank + 2])


def premultiplied_sum() -> None:
    rank, n = place()
    for factor in (0.5, torch.tensor(0.5)):
        tensor = value(rank) * 2
        dist.all_reduce(tensor, dist._make_nccl_premul_sum(factor))
        same(tensor, total_of(everyone()))
    assert ReduceOp(ReduceOp.SUM) is ReduceOp.SUM and ReduceOp.RedOpType.MAX is ReduceOp.MAX
    assert dist.reduce_op.PRODUCT is ReduceOp.PRODUCT
    tensor = value(rank, dtype=torch.int32)
    dist.all_reduce(tensor, ReduceOp.BXOR)
    each = [t.numpy() for t in everyone(dtype=torch.int32)]
    same(tensor, torch.tensor(np.bitwise_xor.reduce(each)))
    with pytest.raises(ValueError, match="does not support .*MAX on complex"):
        dist.all_reduce(torch.ones(1, dtype=torch.complex64), ReduceOp.MAX)


def coalesced_calls() -> None:
    rank, n = place()
    shapes = ((2,), (), (0, 3), (2, 2))
    mine = [value(rank, shape) for shape in shapes]
    dist.all_reduce_coalesced(mine)
    for tensor, shape in zip(mine, shapes):
        same(tensor, total_of(everyone(shape)))
        assert tensor._version == 1
    future = dist.all_reduce_coalesced([value(rank), value(rank)], ReduceOp.MAX, async_op=True)
    same(future.wait()[1], torch.tensor(np.maximum.reduce([t.numpy() for t in everyone()])))
    lists = [[torch.zeros(shape) for shape in shapes] for _ in range(n)]
    dist.all_gather_coalesced(lists, [value(rank, shape) for shape in shapes])
    for r in range(n):
        for tensor, shape in zip(lists[r], shapes):
            same(tensor, value(r, shape))
    with pytest.raises(ValueError, match="different dtypes"):
        dist.all_reduce_coalesced([value(rank), value(rank, dtype=torch.int64)])
    with pytest.raises(ValueError, match="output_tensor_lists: each list needs"):
        dist.all_gather_coalesced([[torch.zeros(3)]] * n, [torch.zeros(2)])


def calls_made_as_one() -> None:
    """The manager's tensors go by one call for each dtype and operation."""
    rank, n = place()
    dist.reset_ledger()
    tensors = [value(rank, (3,)), value(rank, (2, 2)), value(rank, dtype=torch.float64)]
    tops = value(rank)
    with dist._coalescing_manager():
        for tensor in tensors:
            dist.all_reduce(tensor)
        dist.all_reduce(tops, ReduceOp.MAX)
    same(tensors[0], total_of(everyone((3,))))
    same(tensors[1], total_of(everyone((2, 2))))
    same(tensors[2], total_of(everyone(dtype=torch.float64)))
    same(tops, torch.tensor(np.maximum.reduce([t.numpy() for t in everyone()])))
    assert dist.ledger()["all_reduce"]["calls"] == 3
    outs = [torch.zeros(3 * n, 2), torch.zeros(n, 2)]
    with dist._coalescing_manager(async_ops=True) as manager:
        assert dist.all_gather_into_tensor(outs[0], value(rank)) is None
        held = dist.all_gather_into_tensor(outs[1], value(rank, (2,)), async_op=True)
        with pytest.raises(RuntimeError, match="wait for the manager"):
            held.wait()
    assert len(manager.works) == 1
    manager.wait()
    same(outs[0], torch.cat(everyone()))
    same(outs[1], torch.stack(everyone((2,))))
    parts = [torch.zeros(2), torch.zeros(1, 3)]
    with dist._coalescing_manager():
        dist.reduce_scatter_tensor(parts[0], value(rank, (2 * n,)), ReduceOp.AVG)
        dist.reduce_scatter_tensor(parts[1], value(rank, (n, 3)), ReduceOp.AVG)
    mean = total_of(everyone((2 * n,))) / n
    same(parts[0], mean[2 * rank : 2 * rank + 2])
    same(parts[1], (total_of(everyone((n, 3))) / n)[rank : rank + 1])
    mixed = pytest.raises(RuntimeError, match="mixed types: .'all_gather_single', 'all_reduce'.")
    with mixed, dist._coalescing_manager():
        dist.all_reduce(value(rank))
        dist.all_gather_into_tensor(outs[1], value(rank, (2,)))
    nested = pytest.raises(ValueError, match="non-empty op list")
    with dist._coalescing_manager(), nested, dist._coalescing_manager():
        pass
    dist.all_reduce(tensors[0])  # the manager has ended


def futures() -> None:
    rank, n = place()
    tensor = value(rank)
    work = dist.all_reduce(tensor, async_op=True)
    future = work.get_future()
    assert future is work.get_future()
    found = []
    following = future.then(lambda f: f.value()[0].sum())
    future.add_done_callback(lambda f: found.append(f.done()))
    assert following.wait().item() == total_of(everyone()).sum().item()
    assert future.wait()[0] is tensor and future.done() and work.result()[0] is tensor
    failing = future.then(lambda f: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.wait()
    both = torch.futures.collect_all([future, following])
    assert [f.value() for f in both.wait()] == [future.value(), following.value()]
    assert found == [True]

    def in_a_callback(f):
        return dist.get_rank(), dist.get_world_size()

    chained = dist.barrier(async_op=True).get_future().then(in_a_callback)
    assert chained.wait() == (rank, n)


def more_objects() -> None:
    rank, n = place()
    root = n - 1
    found = [None] * n if rank == root else None
    dist.gather_object({"rank": rank}, found, dst=root)
    assert found == ([{"rank": r} for r in range(n)] if rank == root else None)
    out = [None, "kept"]
    dist.scatter_object_list(out, [("x" * r, r) for r in range(n)] if rank == root else None, root)
    assert out == [("x" * rank, rank), "kept"]
    if n > 1:
        right, left = (rank + 1) % n, (rank - 1) % n
        got = [None, None]
        if rank % 2 == 0:
            dist.send_object_list([rank, "to the right"], right)
            assert dist.recv_object_list(got, left) == left
        else:
            assert dist.recv_object_list(got, left) == left
            dist.send_object_list([rank, "to the right"], right)
        assert got == [left, "to the right"]
        dist.barrier()
        with pytest.raises(ValueError, match="same as the rank of the current"):
            dist.send_object_list([1], rank)
    with pytest.raises(ValueError, match="at least 1"):
        dist.scatter_object_list([], None)
    wrong = None if rank == root else [None] * n
    with pytest.raises(ValueError, match="gather_list"):
        dist.gather_object(1, wrong, dst=root)


def many_messages() -> None:
    rank, n = place()
    if n == 1:
        return
    right, left = (rank + 1) % n, (rank - 1) % n
    for dtype in DTYPES:
        got = torch.zeros(3, 2).to(dtype)
        ops = [
            dist.P2POp(dist.isend, value(rank, dtype=dtype), right, tag=3),
            dist.P2POp(dist.irecv, got, left, tag=3),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        same(got, value(left, dtype=dtype))
    assert repr(ops[1]).startswith(f"P2POp(irecv pg=0, group_src={left}, group_dst={rank}, ")
    got = torch.zeros(3, 2)
    with dist._coalescing_manager():
        dist.isend(value(rank), right)
        dist.irecv(got, left)
    same(got, value(left))
    pair = dist.new_group([0, n - 1])
    if rank in (0, n - 1):
        other = n - 1 - rank
        op = dist.P2POp(dist.isend, got, group=pair, group_peer=1 if rank == 0 else 0)
        assert op.peer == other
        with pytest.raises(ValueError, match="same group"):
            dist.batch_isend_irecv([op, dist.P2POp(dist.isend, got, other)])
    with pytest.raises(ValueError, match="Invalid ``p2p_op_list``"):
        dist.batch_isend_irecv([1])
    with pytest.raises(ValueError, match="Invalid ``op``"):
        dist.P2POp(dist.send, got, right)


def methods_of_groups() -> None:
    rank, n = place()
    pg = dist.group.WORLD
    assert (pg.rank(), pg.size(), pg.name()) == (rank, n, dist.get_backend())
    assert pg.group_desc == "default_pg" and pg.bound_device_id is None
    tensor = value(rank)
    pg.allreduce([tensor]).wait()
    same(tensor, total_of(everyone()))
    several = [value(rank), value(rank, (2,))]
    pg.allreduce(several).wait()
    same(several[1], total_of(everyone((2,))))
    pg.allreduce_coalesced(several).wait()
    options = dist.ReduceOptions()
    options.reduceOp, options.rootRank = ReduceOp.MAX, n - 1
    tensor = value(rank)
    pg.reduce([tensor], options).wait()
    tops = torch.tensor(np.maximum.reduce([t.numpy() for t in everyone()]))
    same(tensor, tops if rank == n - 1 else value(rank))
    outs = [torch.zeros(3, 2) for _ in range(n)]
    pg.allgather(outs, value(rank)).wait()
    same(outs[-1], value(n - 1))
    lists = [[torch.zeros(2), torch.zeros(1)] for _ in range(n)]
    pg.allgather_coalesced(lists, [value(rank, (2,)), value(rank, (1,))]).wait()
    same(lists[n - 1][0], value(n - 1, (2,)))
    flats = [torch.zeros(n, 2), torch.zeros(n)]
    pg.allgather_into_tensor_coalesced(flats, [value(rank, (2,)), value(rank, (1,))]).wait()
    same(flats[0], torch.stack(everyone((2,))))
    part = [torch.zeros(2)]
    pg.reduce_scatter_tensor_coalesced(part, [value(rank, (2 * n,))]).wait()
    same(part[0], total_of(everyone((2 * n,)))[2 * rank : 2 * rank + 2])
    root = dist.GatherOptions()
    root.rootRank = 0
    pg.gather([outs] if rank == 0 else [], [value(rank, (3, 2))], root).wait()
    out = torch.zeros(2)
    pg.scatter([out], [everyone((2,))] if rank == 0 else [], dist.ScatterOptions()).wait()
    same(out, value(rank, (2,)))
    pg.alltoall(outs, [value(rank) for _ in range(n)]).wait()
    same(outs[n - 1], value(n - 1))
    pg.monitored_barrier(datetime.timedelta(seconds=20))
    pg.barrier(timeout=datetime.timedelta(seconds=20)).wait()
    pg.set_timeout(datetime.timedelta(seconds=1800))
    assert pg._get_backend(torch.device("cpu"))._get_backend_name() == dist.get_backend()
    assert torch.device("cpu") in pg._device_types
    with pytest.raises(ValueError, match="a list of 2"):
        pg.broadcast([tensor, tensor], root=0)


def subgroups() -> None:
    rank, n = place()
    mine, listed = dist.new_subgroups(1)
    assert dist.get_process_group_ranks(mine) == [rank] and len(listed) == n
    assert [each is mine for each in listed] == [r == rank for r in range(n)]
    odd = [[r for r in range(n) if r % 2 == 1], [r for r in range(n) if r % 2 == 0]]
    mine, listed = dist.new_subgroups_by_enumeration([part for part in odd if part])
    tensor = value(rank)
    dist.all_reduce(tensor, group=mine)
    same(tensor, total_of([value(r) for r in range(n) if r % 2 == rank % 2]))
    turned = dist.new_group(list(reversed(range(n))), sort_ranks=False)
    assert dist.get_rank(turned) == n - 1 - rank and dist.get_global_rank(turned, 0) == n - 1
    parts = dist.split_group(None, [[r] for r in range(n - 1)] or [[0]], group_desc="one each")
    assert (parts is None) == (rank == n - 1 and n > 1)
    if parts is not None:
        assert (parts.size(), parts.group_desc, parts.members) == (1, "one each", [rank])
    before = dist.get_pg_count()
    dist.destroy_process_group(turned)
    assert dist.get_pg_count() == before - 1
    config = dist.get_backend_config()
    assert dist.BackendConfig(config).get_device_backend_map()["cpu"] == dist.get_backend()
    for call, message in (
        (lambda: dist.new_subgroups(n + 1), "must not exceed the world size"),
        (lambda: dist.new_subgroups(0), "must be positive"),
        (lambda: dist.new_subgroups_by_enumeration([[0], [0]]), "appeared in both"),
        (lambda: dist.split_group(None, []), "cannot be None or empty"),
        (lambda: dist.split_group(None, [[0], [0]]), "duplicate"),
        (lambda: dist.split_group(None, [[n]]), "the parent's ranks are 0 to"),
        (lambda: dist.split_group(None, [[]]), "cannot be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NotImplementedError, match="going on without failed ranks"):
        dist.shrink_group([0])
    odd = [each for each in range(n) if each % 2]
    if rank in odd:  # the others do not call
        two = [dist.new_group(odd, use_local_synchronization=True) for _ in range(2)]
        total = torch.tensor([1.0])
        for group in two:
            dist.all_reduce(total, group=group)
        assert total.item() == len(odd) ** 2
    elif n > 1:
        outside = dist.new_group(odd, use_local_synchronization=True)
        assert outside == dist.GroupMember.NON_GROUP_MEMBER
    assert dist.get_world_size(dist.new_group(use_local_synchronization=True)) == n


def timeouts() -> None:
    rank, n = place()
    world = dist.group.WORLD
    assert world.timeout == dist.default_pg_timeout.total_seconds() == 1800
    group = dist.new_group(timeout=datetime.timedelta(seconds=7))
    assert group.timeout == 7 and world.timeout == 1800
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=9), group)
    assert group.timeout == 9
    with group.limit(datetime.timedelta(seconds=1)):
        assert group.timeout == 1
    assert group.timeout == 9
    with pytest.raises(TypeError, match="of type datetime.timedelta, got int"):
        dist.new_group(timeout=3)


def several_threads() -> None:
    """Each thread has a group of its own; what they start at the same time does not mix."""
    rank, n = place()
    groups = [dist.new_group() for _ in range(3)]
    results: list = [None] * len(groups)

    def work(i: int) -> None:
        found = []
        for step in range(20):
            tensor = value(rank + i + step, (4,))
            found.append((tensor, dist.all_reduce(tensor, group=groups[i], async_op=True)))
            if step % 5 == 0:
                dist.barrier(groups[i])
        for _, under_way in found:
            under_way.wait()
        results[i] = [tensor for tensor, _ in found]

    # In copies of this context, or ranks that are threads would be nobody in theirs.
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(work, i), daemon=True)
        for i in range(len(groups))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, found in enumerate(results):
        for step, tensor in enumerate(found):
            same(tensor, total_of([value(r + i + step, (4,)) for r in range(n)]))


def reports(folder) -> None:
    rank, n = place()
    dist.all_reduce(value(rank))
    record = dist.flight_record()
    assert record["rank"] == rank or n == 1
    assert [call["name"] for call in record["calls"]][-1] == "all_reduce"
    assert "all_reduce" in dist.ledger_table() and "payload" in dist.ledger_table().split("\n")[0]
    path = folder / "trace.json"
    dist.write_timeline(path)
    if rank == 0:
        events = json.loads(path.read_text())["traceEvents"]
        assert {event["pid"] for event in events} == set(range(n))
    with pytest.raises(OSError, match="No such file"):
        dist.write_timeline(folder / "missing" / "trace.json")


MORE = (
    uneven_parts, single_tensor_names, premultiplied_sum, coalesced_calls, calls_made_as_one,
    futures, more_objects, many_messages, methods_of_groups, several_threads, subgroups,
    timeouts,
)
