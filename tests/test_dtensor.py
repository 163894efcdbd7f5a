"""DTensor on threads: parts, redistribution, arithmetic, norms, what is refused, optimizers."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.device_mesh import init_device_mesh
from disttorch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    ones,
    randn,
    zeros,
)
from disttorch.distributed.tensor._utils import compute_local_shape_and_global_offset
from disttorch.ops.random import own_stream

X = np.arange(35.0).reshape(7, 5) - 11


def on_ranks(*sizes):
    """Run a scenario as a test, on threads, at several numbers of ranks."""

    def made(scenario):
        @pytest.mark.parametrize("n", sizes)
        def test(n):
            dist.run_local(n, lambda rank: scenario(), timeout=60)

        test.__name__, test.__doc__ = f"test_{scenario.__name__}", scenario.__doc__
        globals()[test.__name__] = test
        return scenario

    return made


def line():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def x() -> torch.Tensor:
    return torch.tensor(X)


def part_of(value: np.ndarray, mesh, placements) -> np.ndarray:
    shape, offset = compute_local_shape_and_global_offset(value.shape, mesh, placements)
    return value[tuple(slice(o, o + s) for o, s in zip(offset, shape))]


@on_ranks(1, 2, 3, 4)
def parts_and_redistribution():
    mesh = line()
    for a, b in itertools.product((Shard(0), Shard(1), Replicate()), repeat=2):
        d = distribute_tensor(x(), mesh, [a])
        assert d.shape == (7, 5) and d.numel() == 35 and d.size(1) == 5 and d.stride() == (5, 1)
        assert d.to_local().tolist() == part_of(X, mesh, [a]).tolist()
        e = d.redistribute(mesh, [b])
        assert e.placements == (b,)
        assert e.to_local().tolist() == part_of(X, mesh, [b]).tolist()
        assert e.full_tensor().tolist() == X.tolist()
    assert distribute_tensor(x(), mesh, [Shard(-1)]).placements == (Shard(1),)


@on_ranks(4)
def grids():
    """Every way to lie on 2 × 2 to every other one; the first axis cuts first."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    ways = list(itertools.product((Shard(0), Shard(1), Replicate()), repeat=2))
    for a, b in itertools.product(ways, repeat=2):
        e = distribute_tensor(x(), mesh, a).redistribute(placements=b)
        assert e.to_local().tolist() == part_of(X, mesh, b).tolist(), (a, b)
        assert e.full_tensor().tolist() == X.tolist()
    rank = dist.get_rank()
    nested = compute_local_shape_and_global_offset((7,), mesh, [Shard(0), Shard(0)])
    assert nested == [((2,), (0,)), ((2,), (2,)), ((2,), (4,)), ((1,), (6,))][rank]


@on_ranks(1, 2, 3)
def values_still_to_be_reduced():
    n, rank, mesh = dist.get_world_size(), dist.get_rank(), line()
    for op, wanted in (
        ("sum", n * (n + 1) / 2), ("avg", (n + 1) / 2), ("max", n), ("min", 1),
        ("product", float(np.prod(np.arange(1, n + 1)))),
    ):  # fmt: skip
        d = DTensor.from_local(torch.full((5,), rank + 1.0), mesh, [Partial(op)])
        assert d.shape == (5,)
        assert d.full_tensor().tolist() == [wanted] * 5
        cut = d.redistribute(placements=[Shard(0)])
        assert cut.to_local().tolist() == [wanted] * cut.to_local().numel()
        assert d.to_local().tolist() == [rank + 1.0] * 5  # as it was
    d = DTensor.from_local(torch.full((5,), rank + 1.0), mesh, [Partial()])
    assert ((d + d) * 2).full_tensor().tolist() == [2.0 * n * (n + 1)] * 5
    for refused in (lambda: d.sqrt(), lambda: d * d, lambda: d + 1, lambda: d.norm()):
        with pytest.raises(RuntimeError, match="still to be reduced"):
            refused()
    with pytest.raises(RuntimeError, match="Partial"):
        distribute_tensor(torch.ones(4), mesh, [Shard(0)]).redistribute(placements=[Partial()])


@on_ranks(1, 2, 3)
def elementwise_operations():
    mesh = line()
    for placed in (Shard(0), Shard(1), Replicate()):
        d = distribute_tensor(x(), mesh, [placed])
        for use in (
            lambda t: t * 2 + t - 1, lambda t: -t / 3, lambda t: t.abs().sqrt(), lambda t: t**2,
            lambda t: 1 - t, lambda t: t.clamp(-1, 1), lambda t: (t > 0).to(torch.float64),
            lambda t: t.lerp(t * 2, 0.25), lambda t: t.addcmul(t, t, value=0.5), lambda t: t.half(),
            lambda t: t.clone().mul_(3).add_(t, alpha=2), lambda t: t * torch.tensor(2.0),
        ):  # fmt: skip
            got = use(d)
            assert got.placements == (placed,)
            assert got.full_tensor().tolist() == use(x()).tolist()
        for reduce in (
            lambda t: t.sum(), lambda t: t.mean(), lambda t: t.max(), lambda t: t.min(),
            lambda t: t.norm(), lambda t: t.norm(1), lambda t: t.norm(float("inf")),
            lambda t: (t > -100).all().to(torch.float64), lambda t: (t > 22).any(),
        ):  # fmt: skip
            got = reduce(d)
            assert got.shape == ()
            np.testing.assert_allclose(got.item(), reduce(x()).item(), 1e-12)
            np.testing.assert_allclose(got.full_tensor().item(), reduce(x()).item(), 1e-12)
        d.zero_()
        assert d.full_tensor().tolist() == [[0.0] * 5] * 7
        d.copy_(x())
        assert d.full_tensor().tolist() == X.tolist()


@on_ranks(2)
def what_is_not_built_says_so():
    mesh = line()
    d, e = distribute_tensor(x(), mesh, [Shard(0)]), distribute_tensor(x(), mesh, [Shard(1)])
    for use in (
        lambda: torch.nn.functional.linear(x(), d), lambda: d @ d.clone(), lambda: d.t(), lambda: d[0],
        lambda: torch.add(d, d), lambda: torch.cat([d, d]), lambda: d.sum(0), lambda: torch.stack([d]),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"Shard\(dim=0\)"):
            use()
    with pytest.raises(NotImplementedError, match="^linear: "):
        torch.nn.functional.linear(x(), d)
    for use, says in (
        (lambda: d + e, "redistribute"), (lambda: d * x(), "mixed"), (lambda: d.tolist(), "ranks"),
        (lambda: pickle.dumps(d), "checkpoint"), (lambda: float(d), "ranks"),
        (lambda: d.copy_(torch.ones(2, 2)), "shape"),
        (lambda: DTensor.from_local(x(), mesh, [Shard(0)], shape=(7, 5)), "same time"),
        (lambda: DTensor.from_local(x(), mesh, [Shard(0)], shape=(9, 5), stride=(5, 1)), "part"),
        (lambda: setattr(d, "grad", e), "redistribute"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=says):
            use()
    with pytest.raises(ValueError, match="length"):
        distribute_tensor(x(), mesh, [Shard(0), Shard(0)])
    with pytest.raises(IndexError, match="dims"):
        distribute_tensor(x(), mesh, [Shard(2)])
    with pytest.raises(TypeError):
        DTensor(x())


@on_ranks(1, 2, 3)
def gradients_flow_through_parts_and_wholes():
    mesh = line()
    weights = torch.tensor(np.cos(X))
    for placed in (Shard(0), Shard(1), Replicate()):
        p = nn.Parameter(distribute_tensor(x(), mesh, [placed]))
        assert isinstance(p, DTensor) and isinstance(p, nn.Parameter) and p.is_leaf
        (p.full_tensor() ** 2 * weights).sum().backward()
        np.testing.assert_allclose(p.grad.full_tensor().numpy(), (2 * X * np.cos(X)), 1e-12)
        assert p.grad.placements == (placed,) and p.grad.shape == (7, 5)
        p.grad = None
        (p.to_local() * 3).sum().backward()
        assert p.grad.full_tensor().tolist() == (np.ones((7, 5)) * 3).tolist()
        p.grad = None
        (p * p).redistribute(placements=[Replicate()]).to_local().sum().backward()
        np.testing.assert_allclose(p.grad.full_tensor().numpy(), 2 * X)
        seen: list = []
        p.register_post_accumulate_grad_hook(lambda t, seen=seen: seen.append(t.grad.placements))
        p.full_tensor().sum().backward()
        assert seen == [(placed,)]
        twin = copy.deepcopy(p)
        assert isinstance(twin, nn.Parameter) and twin.full_tensor().tolist() == X.tolist()


@on_ranks(1, 2, 3)
def clipping_and_optimizers():
    """A mixture of sharded, replicated and ordinary parameters trains as one process does."""
    mesh = line()
    for rule in (
        lambda ps: optim.SGD(ps, 0.1, momentum=0.9), lambda ps: optim.AdamW(ps, 0.1),
        lambda ps: optim.Adagrad(ps, 0.1), lambda ps: optim.RMSprop(ps, 0.01),
        lambda ps: optim.NAdam(ps, 0.1), lambda ps: optim.Lion(ps, 0.1) if hasattr(optim, "Lion")
        else optim.Adamax(ps, 0.1),
    ):  # fmt: skip
        plain = [nn.Parameter(x()) for _ in range(3)]
        mixed = [
            nn.Parameter(distribute_tensor(x(), mesh, [Shard(0)])),
            nn.Parameter(distribute_tensor(x(), mesh, [Replicate()])),
            nn.Parameter(x()),
        ]
        opts = [rule(plain), rule(mixed)]
        for step in range(3):
            for i, (p, q) in enumerate(zip(plain, mixed)):
                grad = torch.tensor(np.sin(X + step + i))
                p.grad = grad.clone()
                q.grad = (
                    distribute_tensor(grad, mesh, q.placements) if isinstance(q, DTensor) else grad
                )
            for norm_type in (2.0, 1.0, float("inf")):
                got = nn.utils.clip_grad_norm_(mixed, 1.5, norm_type)
                wanted = nn.utils.clip_grad_norm_(plain, 1.5, norm_type)
                np.testing.assert_allclose(got.full_tensor().numpy(), wanted.numpy(), 1e-12)
            for o in opts:
                o.step()
        for p, q in zip(plain, mixed):
            q = q.full_tensor() if isinstance(q, DTensor) else q
            np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), 1e-10)
        state = opts[1].state_dict()["state"]
        tensors = [v for k, v in state[0].items() if k not in ("step", "mu_product")]
        assert tensors and all(isinstance(v, DTensor) and v.shape == (7, 5) for v in tensors)
        opts[1].load_state_dict(copy.deepcopy(opts[1].state_dict()))
        opts[1].step()
    mixed[0].grad.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(mixed, 1.0, error_if_nonfinite=True)


@on_ranks(2)
def optimizers_that_need_whole_matrices_refuse():
    p = nn.Parameter(distribute_tensor(x(), line(), [Shard(0)]))
    p.grad = distribute_tensor(x(), line(), [Shard(0)])
    if hasattr(optim, "Muon"):
        with pytest.raises(NotImplementedError, match="DTensor"):
            optim.Muon([p]).step()


@on_ranks(1, 3)
def factories():
    mesh = line()
    assert zeros(4, 5, device_mesh=mesh, placements=[Shard(0)]).full_tensor().tolist() == [[0.0] * 5] * 4
    assert ones((4, 5), device_mesh=mesh, placements=[Shard(1)]).sum().item() == 20
    with own_stream(3):
        got = randn(4, 5, device_mesh=mesh, placements=[Shard(0)])
    with own_stream(3):
        wanted = torch.empty(4, 5).normal_()
    assert got.full_tensor().tolist() == wanted.tolist()


@on_ranks(2)
def modules_of_distributed_tensors():
    def cut(name, module, mesh):
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(distribute_tensor(module.weight, mesh, [Shard(0)]))

    model = distribute_module(nn.Sequential(nn.Linear(3, 5)), line(), cut)
    assert model[0].weight.placements == (Shard(0),) and model[0].bias.placements == (Replicate(),)
    model = model.to(torch.float64)
    assert model[0].weight.dtype is torch.float64
    state = model.state_dict()
    assert state["0.weight"].to_local().shape == ((3, 3) if dist.get_rank() == 0 else (2, 3))
    whole = {k: v.full_tensor() * 0 for k, v in state.items()}
    model.load_state_dict(whole)
    assert model[0].weight.sum().item() == 0


def test_the_norm_of_one_shard_is_noticed(monkeypatch):
    from disttorch.distributed.tensor import _norms

    monkeypatch.setattr(_norms, "_over_ranks", lambda groups, value, p: value)
    with pytest.raises(AssertionError):
        dist.run_local(2, lambda rank: clipping_and_optimizers(), timeout=60)
