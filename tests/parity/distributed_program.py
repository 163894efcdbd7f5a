"""What every call of `torch.distributed` does on two ranks, written down as text.

    python distributed_program.py RESULTS.json                          PyTorch, two processes
    python -m disttorch distributed_program.py RESULTS.json             disttorch, two processes
    python -m disttorch distributed_program.py RESULTS.json threads     disttorch, two threads

The file holds `[rank 0, rank 1]`, each a dictionary from a case's name to what the case returned or
to the type of the error that it raised. `import torch` is whatever the interpreter stands for.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64",
          "complex64", "complex128")
OPS = ("SUM", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "AVG")
CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def value(rank, *shape, dtype=torch.float32):
    count = 1
    for n in shape:
        count *= n
    numbers = [(i + 3 * rank) % 5 for i in range(count)]
    return torch.tensor(numbers).reshape(shape).to(dtype)


def text(x):
    """Tensors as dtype, shape and numbers; lists of them likewise."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        return f"{x.dtype} {list(x.shape)} {x.tolist()}"
    if isinstance(x, (list, tuple)):
        return "[" + "; ".join(text(e) for e in x) + "]"
    return str(x)


def ends(fn, *args, **kwargs):
    """What a call returns, or the type of its error."""
    try:
        return text(fn(*args, **kwargs))
    except Exception as error:
        return kind(error)


def kind(error):
    """The nearest built-in type: subclasses of RuntimeError are a matter of taste."""
    for base in type(error).__mro__:
        if base.__module__ == "builtins":
            return base.__name__
    return type(error).__name__


# ---- every dtype and op --------------------------------------------------------------------------


def _dtype_case(call, dtype_name):
    def run(r):
        return call(r, getattr(torch, dtype_name))

    CASES[f"{call.__name__.strip('_')} {dtype_name}"] = run


def _all_reduce(r, dtype):
    t = value(r, 3, 2, dtype=dtype)
    dist.all_reduce(t)
    return t


def _broadcast(r, dtype):
    t = value(r, 5, dtype=dtype)
    dist.broadcast(t, 1)
    return t


def _all_gather(r, dtype):
    out = [torch.zeros(2, 2, dtype=dtype) for _ in range(2)]
    dist.all_gather(out, value(r, 2, 2, dtype=dtype))
    return out


def _gather(r, dtype):
    out = [torch.zeros(3, dtype=dtype) for _ in range(2)] if r == 1 else None
    dist.gather(value(r, 3, dtype=dtype), out, dst=1)
    return out


def _scatter(r, dtype):
    out = torch.zeros(3, dtype=dtype)
    dist.scatter(out, [value(5, 3, dtype=dtype), value(6, 3, dtype=dtype)] if r == 0 else None)
    return out


def _send_recv(r, dtype):
    t = value(r, 2, 3, dtype=dtype)
    if r == 0:
        dist.send(t, 1)
        return None
    return dist.recv(t, 0), t


def _all_to_all_single(r, dtype):
    out = torch.zeros(4, dtype=dtype)
    dist.all_to_all_single(out, value(r, 4, dtype=dtype))
    return out


for _call in (_all_reduce, _broadcast, _all_gather, _gather, _scatter, _send_recv,
              _all_to_all_single):
    for _name in DTYPES:
        if _call is not _gather or not _name.startswith("complex"):  # gloo cannot gather these
            _dtype_case(_call, _name)


def _op_case(op, dtype_name):
    def run(r):
        t = value(r, 4, dtype=getattr(torch, dtype_name))
        dist.all_reduce(t, getattr(ReduceOp, op))
        return t

    CASES[f"all_reduce {op} {dtype_name}"] = run


for _op in OPS:
    for _name in ("int32", "int64", "uint8", "float32", "float64"):
        # gloo has no AVG, and its bitwise operations on floats end the connection
        if _op != "AVG" and not (_op.startswith("B") and _name.startswith("f")):
            _op_case(_op, _name)


# ---- shapes, memory layouts, what happens to the graph -------------------------------------------


@case
def zero_dim(r):
    t = torch.tensor(r + 1.0)
    dist.all_reduce(t)
    out = [torch.tensor(0.0), torch.tensor(0.0)]
    dist.all_gather(out, torch.tensor(float(r)))
    return t, out


@case
def empty(r):
    t = torch.zeros(0, 3)
    dist.all_reduce(t)
    dist.broadcast(t, 0)
    return t


@case
def leaf_requiring_grad(r):
    t = torch.ones(2, requires_grad=True)
    dist.all_reduce(t)
    w = torch.ones(2, requires_grad=True)
    dist.broadcast(w, 0)
    out = [torch.zeros(2), torch.zeros(2)]
    dist.all_gather(out, t)
    return t, t.requires_grad, t.is_leaf, w, w.is_leaf, out[0].requires_grad


@case
def result_of_graph(r):
    t = torch.ones(2, requires_grad=True) * 2
    dist.all_reduce(t)
    return t, t.requires_grad, type(t.grad_fn).__name__ == "NoneType"


@case
def parameters(r):
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(r + 1.0)
    layer(torch.ones(1, 2)).sum().backward()
    for p in layer.parameters():
        dist.broadcast(p.data, 0)
        dist.all_reduce(p.grad)
        dist.broadcast(p, 0)
    return layer.weight, layer.weight.grad


# ---- every other call ----------------------------------------------------------------------------


@case
def into_tensor(r):
    rows, out = torch.zeros(4, 2), torch.zeros(2)
    dist.all_gather_into_tensor(rows, value(r, 2, 2))
    dist.reduce_scatter_tensor(out, value(r, 4))
    return rows, out


@case
def single(r):
    rows, out = torch.zeros(4), torch.zeros(2)
    dist.all_gather_single(rows, value(r, 2))
    dist.reduce_scatter_single(out, value(r, 4))
    return rows, out


@case
def base_names(r):
    rows, out = torch.zeros(4), torch.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist._all_gather_base(rows, value(r, 2))
        dist._reduce_scatter_base(out, value(r, 4))
    return rows, out


@case
def reduce_to_one(r):
    t = value(r, 3)
    dist.reduce(t, 1, ReduceOp.MAX)
    return t if r == 1 else None


@case
def reduce_scatter_list(r):
    out = torch.zeros(2, 2)
    dist.reduce_scatter(out, [value(r, 2, 2), value(r + 1, 2, 2)])
    return out


@case
def coalesced(r):
    a, b = value(r, 2), value(r, 3)
    dist.all_reduce_coalesced([a, b])
    outs = [[torch.zeros(2), torch.zeros(3)] for _ in range(2)]
    dist.all_gather_coalesced(outs, [value(r, 2), value(r, 3)])
    return a, b, outs


@case
def coalescing_manager(r):
    a, b = value(r, 2), value(r, 3)
    with dist._coalescing_manager():
        dist.all_reduce(a)
        dist.all_reduce(b)
    return a, b


@case
def coalescing_manager_async(r):
    a, b = value(r, 2), value(r, 3)
    with dist._coalescing_manager(async_ops=True) as cm:
        dist.all_reduce(a)
        dist.all_reduce(b)
    cm.wait()
    return a, b, len(cm.works)


@case
def split_sizes(r):
    out = torch.zeros(3 if r == 0 else 3, 2)
    mine = [1, 2] if r == 0 else [2, 1]
    rows = value(r, 3, 2)
    dist.all_to_all_single(out, rows, [1, 2] if r == 0 else [2, 1], mine)
    return out


@case
def split_sizes_list(r):
    out = torch.zeros(3)
    dist.all_to_all_single(out, value(r, 3), [1, 2] if r == 0 else [2, 1],
                           [1, 2] if r == 0 else [2, 1])
    return out


@case
def objects(r):
    mine = [{"rank": r}, None]
    dist.broadcast_object_list(mine, src=1)
    everyone = [None, None]
    dist.all_gather_object(everyone, ("x" * r, r))
    gathered = [None, None] if r == 0 else None
    dist.gather_object({r}, gathered)
    out = [None]
    dist.scatter_object_list(out, ["a", {"b": 2}] if r == 0 else None)
    longer = [None, "kept"]
    dist.scatter_object_list(longer, [1, 2] if r == 1 else [None, None], src=1)
    return mine, everyone, gathered, out, longer


@case
def object_messages(r):
    if r == 0:
        dist.send_object_list(["a", {"b": [1, 2]}, None], dst=1)
        return None
    got = [None] * 3
    return dist.recv_object_list(got, src=0), got


@case
def p2p(r):
    sent, got = value(r, 3), torch.zeros(3)
    ops = [dist.P2POp(dist.isend, sent, 1 - r), dist.P2POp(dist.irecv, got, 1 - r)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return got, repr(ops[0]).split(",")[1:]


@case
def tags(r):
    if r == 0:
        works = [dist.isend(value(i, 2), 1, tag=i) for i in (1, 2)]
        for work in works:
            work.wait()
        return None
    a, b = torch.zeros(2), torch.zeros(2)
    second, first = dist.irecv(b, 0, tag=2), dist.irecv(a, 0, tag=1)
    second.wait(), first.wait()
    return a, b


@case
def any_source(r):
    if r == 0:
        dist.send(value(0, 2), 1)
        return None
    t = torch.zeros(2)
    return dist.recv(t), t


@case
def works(r):
    t = torch.ones(2)
    work = dist.all_reduce(t, async_op=True)
    done = work.wait()
    future = dist.all_reduce(t, async_op=True).get_future()
    value_ = future.wait()
    chained = dist.all_reduce(t, async_op=True).get_future().then(lambda f: f.value()[0].sum())
    return (done, work.is_completed(), work.is_success(), value_, chained.wait(), t,
            isinstance(work, dist.Work), future.done(), work.exception())


@case
def barriers(r):
    dist.monitored_barrier()
    dist.monitored_barrier(timeout=datetime.timedelta(seconds=20), wait_all_ranks=True)
    return dist.barrier(), dist.barrier(async_op=True).wait()


@case
def process_group_methods(r):
    pg = dist.group.WORLD
    t = value(r, 2)
    pg.allreduce([t]).wait()
    u = value(r, 2)
    pg.allreduce(u, ReduceOp.MAX).wait()
    options = dist.AllreduceOptions()
    options.reduceOp = ReduceOp.MIN
    v = value(r, 2)
    pg.allreduce([v], options).wait()
    w = value(r, 2)
    pg.broadcast(w, 1).wait()
    outs = [torch.zeros(2), torch.zeros(2)]
    pg.allgather([outs], [value(r, 2)]).wait()
    part = torch.zeros(2)
    pg.reduce_scatter([part], [[value(r, 2), value(r + 1, 2)]]).wait()
    pg.barrier().wait()
    swapped = [torch.zeros(1), torch.zeros(1)]
    got = torch.zeros(2)
    works_ = [pg.send([value(r, 2)], 1 - r, 5), pg.recv([got], 1 - r, 5)]
    for work in works_:
        work.wait()
    single_ = torch.zeros(2)
    pg.alltoall_base(single_, value(r, 2), [], []).wait()
    return (t, u, v, w, outs, part, got, single_, swapped, pg.rank(), pg.size())


@case
def places(r):
    return (dist.get_rank(), dist.get_world_size(), dist.is_initialized(), dist.is_available(),
            dist.get_process_group_ranks(None), dist.get_global_rank(dist.group.WORLD, 1),
            dist.get_pg_count() >= 1, dist.is_torchelastic_launched(),
            dist.group.WORLD.group_desc, dist.get_debug_level().name,
            dist.is_backend_available("gloo"), dist.is_backend_available("nothing"),
            dist.supports_complex(ReduceOp.SUM), dist.supports_complex(ReduceOp.MAX),
            dist.GroupMember.NON_GROUP_MEMBER)


@case
def groups(r):
    one = dist.new_group([1])
    both = dist.new_group([1, 0])
    t = value(r, 2)
    dist.all_reduce(t, group=both)
    inside = dist.get_rank(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = value(r, 2)
        dist.all_reduce(u, group=one)
    mine, everyone = dist.new_subgroups(1)
    listed, _ = dist.new_subgroups_by_enumeration([[0, 1]])
    return (t, inside, u, dist.get_world_size(one), dist.get_process_group_ranks(both),
            dist.get_world_size(mine), len(everyone), dist.get_process_group_ranks(listed),
            dist.get_rank(both), both.group_desc)


@case
def mesh(r):
    two = dist.init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
    t = value(r, 2)
    dist.all_reduce(t, group=two["dp"].get_group())
    u = value(r, 2)
    dist.all_reduce(u, group=two.get_group("tp"))
    flat = two._flatten()
    plain = dist.init_device_mesh("cpu", (2,))
    listed = dist.DeviceMesh("cpu", [[0, 1]])
    from_group = dist.DeviceMesh.from_group(dist.group.WORLD, "cpu")
    return (repr(two), repr(two["tp"]), repr(plain), repr(listed), repr(flat), repr(from_group), t, u,
            two.get_coordinate(), two.get_local_rank("dp"), two.size(), two.size(0), two.shape,
            two.ndim, two.mesh, two["dp"].mesh, two["tp"].mesh, two.mesh_dim_names, two.get_rank(),
            two == dist.init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp")),
            two == plain, len(two.get_all_groups()), two.device_type,
            ends(two.__getitem__, "pp"), ends(plain.__getitem__, "dp"), ends(two.get_group),
            ends(two.get_local_rank), ends(two.__getitem__, ("tp", "dp")),
            ends(dist.init_device_mesh, "cpu", (3,)), ends(dist.init_device_mesh, "cuda:0", (2,)),
            ends(dist.init_device_mesh, "cpu", (2,), mesh_dim_names=("a", "b")),
            ends(dist.init_device_mesh, "cpu", (2, 1), mesh_dim_names=("a", "a")),
            ends(dist.DeviceMesh.from_group, [], "cpu"), ends(two.get_group, "pp"))


@case
def more_questions(r):
    both = dist.new_group([0, 1], group_desc="both of them")
    options = dist.ReduceOptions()
    return (both.group_desc, dist.get_group_rank(both, 1), dist.constants.default_pg_timeout,
            options.reduceOp == ReduceOp.SUM, options.rootRank, options.timeout,
            dist.BroadcastOptions().rootTensor, dist.BarrierOptions().device_ids,
            ReduceOp.SUM == ReduceOp.SUM, ReduceOp.SUM == ReduceOp.MAX, ReduceOp.AVG.name,
            dist.Backend("GLOO"), dist.Backend.NCCL, dist.Backend.UNDEFINED,
            [level.name for level in (dist.DebugLevel.OFF, dist.DebugLevel.DETAIL)],
            issubclass(dist.DistBackendError, dist.DistError), issubclass(dist.DistError, RuntimeError),
            ends(dist.init_device_mesh, "cpu", (1, 2), mesh_dim_names="ab"),
            dist.get_default_backend_for_device("cuda"), dist.is_ucc_available())


# ---- gradients -----------------------------------------------------------------------------------


def gradient(call, *shape):
    """What a call gives, and the gradient of a loss that is different on each rank."""
    def run(r):
        x = value(r, *shape).double().requires_grad_()
        outs = call(r, x)
        outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
        loss = sum(((i + 1.0) * (r + 2.0) * out * out).sum() for i, out in enumerate(outs))
        loss.backward()
        return outs, x.grad

    return run


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def gradient_cases():
    import torch.distributed._functional_collectives as C
    import torch.distributed.nn.functional as F

    group = dist.group.WORLD
    return {
        "all_reduce": gradient(lambda r, x: F.all_reduce(x), 2, 2),
        "broadcast": gradient(lambda r, x: F.broadcast(x, 1), 3),
        "gather": gradient(lambda r, x: F.gather(x, 1), 2),
        "scatter": gradient(lambda r, x: F.scatter(list(x.unbind(0)), 1), 2, 3),
        "all_gather": gradient(lambda r, x: F.all_gather(x), 2, 1),
        "reduce_scatter": gradient(
            lambda r, x: F.reduce_scatter(zeros(3), [t.contiguous() for t in x.unbind(0)]), 2, 3),
        "all_to_all": gradient(
            lambda r, x: F.all_to_all([zeros(2), zeros(2)], [t.contiguous() for t in x.unbind(0)]),
            2, 2),
        "all_to_all_single": gradient(lambda r, x: F.all_to_all_single(zeros(4), x), 4),
        "all_to_all_single, sizes": gradient(
            lambda r, x: F.all_to_all_single(zeros(3), x, *([[1, 2], [1, 2]], [[2, 1], [2, 1]])[r]),
            3),
        "functional all_reduce": gradient(lambda r, x: C.all_reduce(x, "sum", group), 2),
        "functional all_gather": gradient(lambda r, x: C.all_gather_tensor_autograd(x, 1, group), 2, 1),
        "functional all_to_all": gradient(
            lambda r, x: C.all_to_all_single_autograd(x, *([[1, 2], [1, 2]], [[2, 1], [2, 1]])[r],
                                                      group), 3),
        "functional reduce_scatter": gradient(
            lambda r, x: C.reduce_scatter_tensor_autograd(x, "sum", 0, group), 4),
    }


@case
def gradients(r):
    found = []
    for name, run in gradient_cases().items():
        found.append(f"{name}: {text(run(r))}")
    return found


@case
def functional(r):
    import torch.distributed._functional_collectives as C

    x, group = value(r, 2, 2), dist.group.WORLD
    mesh_ = dist.init_device_mesh("cpu", (2, 1))
    found = (C.all_reduce(x, "max", group), C.broadcast(x, 1, group),
             C.all_gather_tensor(x, 1, [0, 1]), C.reduce_scatter_tensor(x, "sum", 1, (mesh_, 0)),
             C.all_to_all_single(x, None, None, group),
             C.permute_tensor(value(r, 3), [1, 0], group),
             *C.all_reduce_coalesced([x, x + 1], "sum", group), C.all_reduce(x, "sum", (mesh_, 1)))
    return [C.wait_tensor(t) for t in found]


# ---- futures and stores --------------------------------------------------------------------------


@case
def futures(r):
    Future = torch.futures.Future
    first, second = Future(), Future()
    seen = []
    doubled = first.then(lambda f: 2 * f.value())
    first.add_done_callback(lambda f: seen.append(f.value()))
    failing = first.then(lambda f: {}[f.value()])
    before = first.done(), doubled.done()
    first.set_result(21)
    both = torch.futures.collect_all([first, second])
    waiting = both.done()
    second.set_exception(ValueError("second"))
    return (before, first.done(), doubled.wait(), seen, waiting, both.done(), ends(failing.wait)[-5:],
            ends(second.wait), ends(second.value), ends(both.wait), ends(first.set_result, 1),
            torch.futures.wait_all([first, doubled]), ends(torch.futures.wait_all, [first, second]),
            torch.futures.collect_all([first, doubled]).wait()[1].value(),
            ends(Future().value), ends(first.set_exception, 3))


@case
def stores(r):
    store = dist.HashStore()
    store.set("a", "1")
    store.add("n", 3)
    store.append("a", "2")
    inside = dist.PrefixStore("p", store)
    inside.set("b", b"x")
    return (store.get("a"), store.add("n", 4), store.get("n"), store.check(["a"]),
            store.check(["zz"]), inside.get("b"), store.get("p/b"), store.delete_key("a"),
            store.compare_set("c", "", "new"), store.compare_set("c", "other", "newer"),
            store.compare_set("c", "new", "newest"), store.get("c"),
            isinstance(store, dist.Store))


# ---- errors that every rank sees before anything is sent -----------------------------------------


@case
def wrong_arguments(r):
    ones, ints = torch.ones(2), torch.ones(2, dtype=torch.int64)
    both = dist.new_group([0, 1])
    return [
        ends(dist.all_reduce, [1.0]),
        ends(dist.all_reduce, "x"),
        ends(dist.broadcast, ones),
        ends(dist.broadcast, [ones], 0),
        ends(dist.broadcast, ones, 0, group_src=0),
        ends(dist.broadcast, ones, 7, group=both),
        ends(dist.all_gather, ones, ones),
        ends(dist.all_gather, [ones, ints], ones),
        ends(dist.all_gather, [ones, ones], ints),
        ends(dist.gather, ones, None if r == 0 else [ones, ones]),
        ends(dist.scatter, ones, None if r == 0 else [ones, ones]),
        ends(dist.reduce_scatter, ones, [ints, ints]),
        ends(dist.reduce_scatter, ones, ones),
        ends(dist.reduce, ones),
        ends(dist.all_to_all_single, ones, ints),
        ends(dist.all_to_all, ones, [ones]),
        ends(dist.send, ones, r),
        ends(dist.send, ones),
        ends(dist.send, [ones], 1 - r),
        ends(dist.recv, [ones], 1 - r),
        ends(dist.P2POp, dist.send, ones, 0),
        ends(dist.P2POp, dist.isend, [ones], 0),
        ends(dist.batch_isend_irecv, [ones]),
        ends(dist.get_group_rank, both, 5),
        ends(dist.get_global_rank, both, 5),
        ends(dist.new_group, [5]),
        ends(dist.new_subgroups, 3),
        ends(dist.new_subgroups, 0),
        ends(dist.new_subgroups_by_enumeration, []),
        ends(dist.init_process_group, "gloo"),
        ends(dist.scatter_object_list, [], [1, 2]),
        ends(dist.Backend, "nothing"),
        ends(dist.Backend, 3),
        ends(dist.all_reduce, torch.ones(2, dtype=torch.complex64), ReduceOp.MAX),
        ends(dist.all_reduce_coalesced, [ones, ints]),
    ]


def main(rank):
    found = {}
    for name, fn in CASES.items():
        try:
            found[name] = text(fn(rank))
        except Exception as error:
            found[name] = f"{kind(error)}: {error}"
        dist.barrier()
    return found


def one_process(rank, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=30))
    found = main(rank)
    with open(f"{folder}/{rank}", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[2:] == ["threads"]:
        both_ranks = dist.run_local(2, main, timeout=100)
    else:
        import torch.multiprocessing

        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(one_process, (folder,), nprocs=2)
            both_ranks = [json.loads(pathlib.Path(folder, str(r)).read_text()) for r in (0, 1)]
    with open(sys.argv[1], "w") as file:
        json.dump(both_ranks, file, indent=1)
