"""Gradients of collectives: against differences of the total loss, when one rank's input moves.

The loss is the sum over ranks of what each rank computes from its outputs. For every entry of every
rank's input, all ranks evaluate it twice while that entry is moved; the quotient must be what that
rank's backward gave. The same is done for the gradients themselves (double backward).
"""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed._functional_collectives as functional
import disttorch.distributed.nn.functional as F
from disttorch.distributed import ReduceOp

STEP = 1e-6


def numbers(rank: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Values of a size around 1, all different, away from 0."""
    random = np.random.default_rng([seed, rank])
    return random.uniform(0.5, 1.5, shape) * random.choice([-1, 1], shape)


def tensor(rank: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(numbers(rank, *shape, seed=seed), requires_grad=True)


class Case:
    """A call: the inputs of a rank, and what it makes of them (a tensor, or several)."""

    def __init__(self, name, inputs, call, least=1):
        self.name, self.inputs, self.call, self.least = name, inputs, call, least

    def outputs(self, inputs):
        found = self.call(*inputs)
        return [found] if isinstance(found, torch.Tensor) else list(found)

    def loss(self, inputs):
        """Curved, so that double backward is not zero, and different for every rank and output."""
        total = 0.0
        for i, out in enumerate(self.outputs(inputs)):
            weights = torch.tensor(numbers(dist.get_rank(), *out.shape, seed=77 + i))
            total = total + (weights * torch.sin(out)).sum()
        return total

    def product_with_gradients(self, inputs):
        """A number made of the gradients, to be differentiated in its turn."""
        grads = torch.autograd.grad(self.loss(inputs), inputs, create_graph=True)
        total = 0.0
        for i, grad in enumerate(grads):
            weights = torch.tensor(numbers(dist.get_rank(), *grad.shape, seed=990 + i))
            total = total + (weights * grad).sum()
        return total


def one(call, *shape):
    return lambda: [tensor(dist.get_rank(), *shape)], call


def per_rank(call, *shape):
    """One tensor for each rank."""

    def inputs():
        me, n = dist.get_rank(), dist.get_world_size()
        return [tensor(me, *shape, seed=10 + r) for r in range(n)]

    return inputs, call


def rows_for(r, me):
    """How many rows rank `me` sends to rank `r`: 0 for some pairs."""
    return (me + 2 * r) % 3


def uneven_parts():
    me, n = dist.get_rank(), dist.get_world_size()
    return [tensor(me, rows_for(r, me), 2, seed=20 + r) for r in range(n)]


def uneven_outputs():
    me, n = dist.get_rank(), dist.get_world_size()
    return [torch.zeros(rows_for(me, r), 2, dtype=torch.float64) for r in range(n)]


def sizes():
    me, n = dist.get_rank(), dist.get_world_size()
    return [rows_for(me, r) for r in range(n)], [rows_for(r, me) for r in range(n)]


def uneven_rows():
    return [tensor(dist.get_rank(), sum(sizes()[1]), 2)]


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def last() -> int:
    return dist.get_world_size() - 1


OPS = (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.MAX, ReduceOp.MIN, ReduceOp.PRODUCT,
       dist._make_nccl_premul_sum(-1.5))


def op_cases():
    for op in OPS:
        name = op.name
        yield Case(f"all_reduce {name}", *one(lambda x, op=op: F.all_reduce(x, op), 2, 2))
        yield Case(f"reduce {name}", *one(lambda x, op=op: F.reduce(x, last(), op), 3))
        yield Case(f"reduce_scatter {name}", *per_rank(
            lambda *parts, op=op: F.reduce_scatter(zeros(2), list(parts), op), 2))
    for op in ("sum", "avg", "max"):
        yield Case(f"functional all_reduce {op}", *one(
            lambda x, op=op: functional.all_reduce(x, op, dist.group.WORLD), 3))
        yield Case(f"functional reduce_scatter {op}", lambda: [
            tensor(dist.get_rank(), 2, 2 * dist.get_world_size())
        ], lambda x, op=op: functional.reduce_scatter_tensor(x, op, 1, list(range(last() + 1))))


def backwards(x):
    n = dist.get_world_size()
    return functional.permute_tensor(x, [(r + 1) % n for r in range(n)], dist.group.WORLD)


def through_a_mesh(x):
    n = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (1, n), mesh_dim_names=("dp", "tp"))
    return functional.all_gather_tensor(x, 1, (mesh, 1)), functional.all_reduce(x, "sum", mesh["dp"])


CASES = [
    *op_cases(),
    Case("zero-dim", *one(F.all_reduce)),
    Case("broadcast", *one(lambda x: F.broadcast(x, last()), 2, 2)),
    Case("all_gather", *one(F.all_gather, 3)),
    Case("all_gather transposed", *one(lambda x: F.all_gather(x.t()), 2, 3)),
    Case("gather", *one(lambda x: F.gather(x, last()), 2)),
    Case("scatter", *per_rank(lambda *parts: F.scatter(list(parts), last()), 2)),
    Case("all_to_all", uneven_parts,
         lambda *parts: F.all_to_all(uneven_outputs(), list(parts))),
    Case("all_to_all_single", lambda: [tensor(dist.get_rank(), 2 * dist.get_world_size())],
         lambda x: F.all_to_all_single(torch.zeros_like(x), x)),
    Case("all_to_all_single uneven", uneven_rows,
         lambda x: F.all_to_all_single(zeros(sum(sizes()[0]), 2), x, *sizes())),
    Case("_all_gather_base", *one(
        lambda x: F._all_gather_base(zeros(2 * dist.get_world_size(), 2), x), 2, 2)),
    Case("functional broadcast", *one(
        lambda x: functional.broadcast(x, last(), dist.group.WORLD), 2)),
    Case("functional all_gather", *one(
        lambda x: functional.all_gather_tensor_autograd(x, 1, dist.group.WORLD), 2, 2)),
    Case("functional all_to_all", uneven_rows,
         lambda x: functional.all_to_all_single_autograd(x, *sizes(), dist.group.WORLD)),
    Case("send and receive", *one(backwards, 2, 2)),
    Case("mesh", *one(through_a_mesh, 2, 1)),
    Case("two calls", *one(lambda x: F.all_gather(F.all_reduce(x * x) * x), 2)),
]


def check(value, inputs) -> None:
    """Compare the gradients of `value(inputs)`, summed over ranks, with differences."""
    me, n = dist.get_rank(), dist.get_world_size()
    grads = torch.autograd.grad(value(inputs), inputs)
    counts = [None] * n
    dist.all_gather_object(counts, [x.numel() for x in inputs])
    for rank in range(n):
        for i, count in enumerate(counts[rank]):
            for place in range(count):
                totals = []
                for step in (STEP, -STEP):
                    moved = [x.detach().clone() for x in inputs]
                    if me == rank:
                        moved[i].reshape(-1)[place] += step
                    moved = [x.requires_grad_() for x in moved]
                    total = torch.as_tensor(value(moved), dtype=torch.float64).detach()
                    dist.all_reduce(total)
                    totals.append(total.item())
                if me == rank:
                    wanted = (totals[0] - totals[1]) / (2 * STEP)
                    got = grads[i].reshape(-1)[place].item()
                    assert got == pytest.approx(wanted, rel=1e-6, abs=1e-7), (rank, i, place)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients(case, n):
    def run(rank):
        check(case.loss, case.inputs())
        check(case.product_with_gradients, case.inputs())

    dist.run_local(n, run, timeout=60)


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.PRODUCT])
def test_complex_gradients(op):
    """The gradient of |y|² that PyTorch's convention gives: 2 y times the conjugate derivative."""

    def run(rank):
        x = torch.tensor([complex(*numbers(rank, 2))], dtype=torch.complex128, requires_grad=True)
        out = F.all_reduce(x, op)
        (out * out.conj()).real.sum().backward()
        others = F.all_gather(x.detach())
        rest = 1.0
        for r, other in enumerate(others):
            if r != rank and op is ReduceOp.PRODUCT:
                rest = rest * other
        wanted = 3 * 2 * out.detach() * (rest.conj() if op is ReduceOp.PRODUCT else 1.0)
        assert torch.allclose(x.grad, wanted)

    dist.run_local(3, run, timeout=20)


def test_a_tie_is_shared():
    """Ranks that hold the same largest value get equal parts of its gradient."""

    def run(rank):
        x = torch.tensor([2.0 if rank < 2 else 1.0, float(rank)], requires_grad=True)
        F.all_reduce(x, ReduceOp.MAX).sum().backward()
        return x.grad.tolist()

    assert dist.run_local(3, run, timeout=20) == [[1.5, 0.0], [1.5, 0.0], [0.0, 3.0]]


def test_zeros_in_a_product():
    def run(rank):
        x = torch.tensor([0.0 if rank == 1 else rank + 2.0], requires_grad=True)
        F.all_reduce(x, ReduceOp.PRODUCT).sum().backward()
        return x.grad.item()

    assert dist.run_local(3, run, timeout=20) == [0.0, 3 * 8.0, 0.0]


def test_inputs_stay_as_they_are():
    def run(rank):
        x = tensor(rank, 2)
        before = x.detach().clone()
        for out in (F.all_reduce(x), F.reduce(x, 0), F.broadcast(x, 1), *F.all_gather(x)):
            out.data.fill_(9.0)
        assert torch.equal(x.detach(), before) and x._version == 0

    dist.run_local(2, run, timeout=20)


def test_results_in_the_memory_given():
    def run(rank):
        output = torch.zeros(2)
        x = torch.ones(4, requires_grad=True)
        got = F.reduce_scatter(output, list(x.chunk(2)))
        assert output.tolist() == [2.0, 2.0] and output._version == 1
        assert got.requires_grad and not output.requires_grad
        outs = [torch.zeros(1), torch.zeros(1)]
        F.all_to_all(outs, [torch.full((1,), 10.0 * rank + r) for r in range(2)])
        assert [o.item() for o in outs] == [rank, 10.0 + rank]

    dist.run_local(2, run, timeout=20)


def test_groups_and_ranks():
    """`src` counts in the job, gradients stay inside the group."""

    def run(rank):
        group = dist.new_group([1, 2])
        if rank == 0:
            with pytest.raises(ValueError, match="this rank is not in it"):
                F.all_reduce(torch.ones(1), group=group)
            return None
        x = torch.full((1,), float(rank), requires_grad=True)
        y = F.broadcast(x, 2, group)
        (y * rank).sum().backward()
        return y.item(), x.grad.item()

    assert dist.run_local(3, run, timeout=20) == [None, (2.0, 0.0), (2.0, 3.0)]


def test_group_forms():
    def run(rank):
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        x = torch.tensor([float(rank)])
        world = dist.group.WORLD
        sums = [
            functional.all_reduce(x, "sum", form).item()
            for form in (world, world.group_name, [0, 1, 2, 3], mesh["a"], (mesh, 1),
                         [[0, 1], [2, 3]], [[0, 3], [1, 2]])
        ]
        made = dist.get_pg_count()
        functional.all_reduce(x, "sum", [[0, 3], [1, 2]])  # found again
        assert dist.get_pg_count() == made
        for wrong in (mesh, (mesh, "a"), 3, [], [[0], [1, 2]]):
            with pytest.raises(ValueError, match="mesh|tuple|group"):
                functional.all_reduce(x, "sum", wrong)
        with pytest.raises(RuntimeError, match="Could not resolve the process group .*'none'"):
            functional.all_reduce(x, "sum", "none")
        return sums

    first, second, third, fourth = dist.run_local(4, run, timeout=20)
    assert first == [6, 6, 6, 2, 1, 1, 3] and fourth == [6, 6, 6, 4, 5, 5, 3]
    assert second == [6, 6, 6, 4, 1, 1, 3] and third == [6, 6, 6, 2, 5, 5, 3]


def test_functional_results_and_errors():
    def run(rank):
        world = dist.group.WORLD
        x = torch.arange(6.0).reshape(2, 3) + 10 * rank
        assert functional.all_gather_tensor(x, 0, world).shape == (4, 3)
        wide = functional.all_gather_tensor(x, 1, world)
        assert torch.equal(wide, torch.cat([x - 10 * rank, x - 10 * rank + 10], 1))
        both = functional.reduce_scatter_tensor_coalesced([x, x.t()], "sum", [0, 1], world)
        assert [tuple(t.shape) for t in both] == [(1, 3), (3, 1)]
        gathered = functional.all_gather_into_tensor_coalesced([x, x[0]], world)
        assert [tuple(t.shape) for t in gathered] == [(4, 3), (6,)]
        assert functional.wait_tensor(x) is x
        assert functional.all_reduce_coalesced([x], "max", world)[0][0, 0].item() == 10.0
        for call, message in (
            (lambda: functional.all_reduce(x, "median", world), "unknown reduction 'median'"),
            (lambda: functional.reduce_scatter_tensor(x, "sum", 1, world), "must be a multiple"),
            (lambda: functional.permute_tensor(x, [0, 0], world), "must be a permutation"),
            (lambda: functional.all_to_all_single(x, [1, 1], None, world), "both split sizes"),
            (lambda: F.scatter([x]), "one per rank is needed"),
            (lambda: F.all_to_all_single(x, x, [1, 2], [1, 1]), "output_split_sizes"),
            (lambda: F.reduce_scatter(x, [x[0], x[0]]), "all must be of one size"),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        with pytest.raises(TypeError, match="of type torch.Tensor"):
            F.all_reduce(3.0)
        y = torch.ones(1, dtype=torch.float64, requires_grad=True)
        z = F.all_reduce(y.to(torch.int64).double() * 0 + y, ReduceOp.SUM)
        z.sum().backward()
        assert y.grad.item() == 2.0

    dist.run_local(2, run, timeout=20)


def test_no_graph_without_a_need():
    def run(rank):
        assert F.all_reduce(torch.ones(1)).grad_fn is None
        with torch.no_grad():
            assert F.all_reduce(torch.ones(1, requires_grad=True)).grad_fn is None
        assert type(F.all_reduce(torch.ones(1, requires_grad=True)).grad_fn).__name__ == (
            "AllReduceBackward"
        )

    dist.run_local(2, run, timeout=20)


def test_a_model_cut_in_two():
    """A linear layer cut by columns and one by rows, as in tensor parallelism, against the whole."""
    first, second = numbers(0, 6, 4, seed=5), numbers(0, 3, 6, seed=6)
    batch = numbers(0, 5, 4, seed=7)
    whole = [torch.tensor(a, requires_grad=True) for a in (first, second)]
    loss = (torch.tanh(torch.tensor(batch) @ whole[0].t()) @ whole[1].t()).pow(2).sum()
    loss.backward()

    def run(rank):
        mine = slice(3 * rank, 3 * rank + 3)
        a = torch.tensor(first[mine], requires_grad=True)
        b = torch.tensor(second[:, mine].copy(), requires_grad=True)
        out = F.all_reduce(torch.tanh(torch.tensor(batch) @ a.t()) @ b.t())
        # Every rank computes the whole loss, so the loss of the job counts it twice.
        (out.pow(2).sum() / 2).backward()
        assert torch.allclose(a.grad, whole[0].grad[mine])
        assert torch.allclose(b.grad, whole[1].grad[:, mine])

    dist.run_local(2, run, timeout=20)
