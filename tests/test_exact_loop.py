"""The loop over virtual shards: what gradients and buffers come out, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from exact_models import Cnn, build, loss_of, mlp

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.amp import GradScaler
from disttorch.distributed.exact import (
    ExactDataParallel,
    VirtualShardSampler,
    random_stream,
    surroundings,
)
from disttorch.ops.random import own_stream
from disttorch.utils.data import DataLoader


def batch(samples, seed=0, width=33, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=g).to(dtype)
    return x, torch.randint(0, 10, (samples,), generator=g)


def on(n, fn, timeout=60):
    return dist.run_local(n, lambda rank: fn(), timeout=timeout)


def linear(dtype=torch.float32):
    with own_stream(1):
        return nn.Linear(33, 10).to(dtype)


# ---- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(n):
    def rank():
        model, whole = ExactDataParallel(linear(torch.float64), 6), linear(torch.float64)
        x, y = batch(24, dtype=torch.float64)
        loss = model.backward(lambda x, y: loss_of(model(x), y), x, y, whole=True)
        expected = loss_of(whole(x), y)
        expected.backward()
        np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
        for p, q in zip(model.parameters(), whole.parameters()):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-10, atol=1e-14)
        assert model.step_number == 1

    on(n, rank)


def test_gradients_from_before_are_added_to():
    def rank():
        model = ExactDataParallel(linear(), 4)
        parts = []
        for seed in (0, 1):
            model.zero_grad()
            model.backward(lambda x, y: loss_of(model(x), y), *batch(8, seed), whole=True)
            parts.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
        for seed in (0, 1):
            model.backward(lambda x, y: loss_of(model(x), y), *batch(8, seed), whole=True)
        for p, first, second in zip(model.parameters(), *parts):
            assert torch.equal(p.grad, first + second)

    on(2, rank)


class Branches(nn.Module):
    """`often` is used by one shard, `never` by none."""

    def __init__(self):
        super().__init__()
        self.base, self.often, self.never = (nn.Linear(33, 10) for _ in range(3))

    def forward(self, x, more):
        return self.base(x) + self.often(x) if more else self.base(x)


def test_parameters_that_few_shards_use():
    def rank():
        with own_stream(1):
            model = ExactDataParallel(Branches(), 4)
        x, y = batch(8)
        for shard in model.shards():
            part, target = x[2 * shard : 2 * shard + 2], y[2 * shard : 2 * shard + 2]
            loss_of(model(part, shard == 2), target).backward()
        assert model.module.never.weight.grad is None
        alone = Branches()
        alone.load_state_dict(model.module.state_dict())
        loss_of(alone(x[4:6], True), y[4:6]).backward()
        got, wanted = model.module.often.weight.grad, alone.often.weight.grad / 4
        assert torch.equal(got, wanted)

    for n in (1, 2, 4):
        on(n, rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    def rank():
        model = ExactDataParallel(linear(dtype), 6, bucket_cap_mb=1e-6)
        model.backward(lambda x, y: loss_of(model(x).float(), y), *batch(12, dtype=dtype), whole=True)
        assert model.module.weight.grad.dtype is dtype
        return [p.grad.float().numpy().tobytes() for p in model.parameters()]

    assert len({tuple(r) for n in (1, 2, 3) for r in on(n, rank)}) == 1


@pytest.mark.parametrize("cap", [25, 1e-3])
def test_buckets_do_not_show_in_the_bits(cap):
    def rank():
        model = ExactDataParallel(build("mlp"), 4, seed=0, bucket_cap_mb=cap)
        model.backward(lambda x, y: loss_of(model(x), y), *batch(16), whole=True)
        return b"".join(p.grad.numpy().tobytes() for p in model.parameters())

    (wanted,) = on(1, lambda: (ExactDataParallel(build("mlp"), 4, seed=0), rank())[1])
    assert set(on(2, rank)) == {wanted}


def test_an_infinite_gradient_in_one_shard_skips_the_step_on_every_rank():
    def rank():
        model = ExactDataParallel(linear(), 4)
        opt = optim.SGD(model.parameters(), 0.1)
        scaler = GradScaler("cpu", init_scale=4.0)
        before = model.digest()
        x, y = batch(8)
        x[5] = float("inf")  # of shard 2, which the second rank has
        for part, target in model.shards(x, y, whole=True):
            scaler.scale(loss_of(model(part), target)).backward()
        scaler.step(opt)
        scaler.update()
        assert scaler.get_scale() == 2.0 and model.digest() == before

    on(2, rank)


@pytest.mark.parametrize(("V", "n"), [(2, 2), (4, 2), (4, 4), (8, 4)])
def test_one_reduction_of_the_gradients_and_one_of_the_loss(V, n):
    def rank():
        model = ExactDataParallel(linear(torch.float64), V)
        x, y = batch(V, dtype=torch.float64)
        dist.reset_ledger()
        model.backward(lambda x, y: loss_of(model(x), y), x, y, whole=True)
        counted = dist.ledger()["tree_all_reduce"]
        # 330 weights, and for each parameter a count, and one of the samples; then the mean loss
        size = 8 * (330 + 10 + 2 + 1) + 8 * (1 + 1 + 1)
        assert counted["calls"] == 2 and counted["payload_bytes"] == size
        return counted

    on(n, rank)


# ---- buffers ---------------------------------------------------------------------------------------


def test_running_statistics_move_once_towards_the_mean_of_the_shards():
    def rank():
        model = ExactDataParallel(nn.BatchNorm1d(33, momentum=0.25), 4)
        x, _ = batch(24)
        for (part,) in model.shards([x], whole=True):
            model(part).square().sum().backward()
        bn = model.module
        parts = x.reshape(4, 6, 33)
        mean, var = parts.mean(1).mean(0), parts.var(1).mean(0)
        np.testing.assert_allclose(bn.running_mean.numpy(), 0.25 * mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(bn.running_var.numpy(), 0.75 + 0.25 * var.numpy(), rtol=1e-5)
        assert bn.num_batches_tracked.item() == 1
        return model.digest()

    assert len({d for n in (1, 2, 4) for d in on(n, rank)}) == 1


class Replaces(nn.Module):
    """Puts new tensors in the place of its buffers; `fixed` is never touched."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(33))
        self.register_buffer("seen", torch.zeros(33))
        self.register_buffer("fixed", torch.full((7,), 1 / 3))

    def forward(self, x):
        self.seen = self.seen + x.detach().sum(0)
        return x * self.weight


def test_buffers_that_are_replaced():
    def rank():
        model = ExactDataParallel(Replaces(), 3)
        x, _ = batch(12)
        for part in model.shards(x, whole=True):
            model(part).sum().backward()
        np.testing.assert_allclose(model.module.seen.numpy(), x.numpy().sum(0) / 3, atol=1e-5)
        assert torch.equal(model.module.fixed, torch.full((7,), 1 / 3))
        return model.digest()

    assert len({d for n in (1, 3) for d in on(n, rank)}) == 1


class Counts(nn.Module):
    """An integer buffer that depends on the data."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(33))
        self.register_buffer("positive", torch.tensor(0))

    def forward(self, x):
        self.positive += (x > 0).sum()
        return x * self.weight


@pytest.mark.parametrize("n", [1, 2])
def test_integers_without_a_mean_are_refused(n):
    def rank():
        model = ExactDataParallel(Counts(), 2)
        for part in model.shards(batch(12)[0], whole=True):
            model(part).sum().backward()

    with pytest.raises(RuntimeError, match="buffer 'positive' of torch.int64 ended in different"):
        on(n, rank, 10)


# ---- random numbers --------------------------------------------------------------------------------


def test_streams_are_named_and_restored():
    with own_stream(5):
        before = torch.rand(3)
        rest = torch.rand(3)
    with own_stream(5):
        assert torch.equal(torch.rand(3), before)
        with random_stream(1, 2, 3):
            inside = torch.rand(3)
            with random_stream(1, 2, 4):
                assert not torch.equal(torch.rand(3), inside)
        assert torch.equal(torch.rand(3), rest)
    with random_stream(1, 2, 3):
        assert torch.equal(torch.rand(3), inside)


def test_masks_differ_between_shards_and_steps():
    def rank():
        model = ExactDataParallel(linear(), 4, seed=3)
        drawn = []
        for _ in range(2):
            for _ in model.shards(torch.ones(4, 1)):
                drawn.append(torch.rand(2).tolist())
                model.module.weight.sum().backward()
        with torch.no_grad():
            drawn += [torch.rand(2).tolist() for _ in model.shards(torch.ones(4, 1))]
        assert len({tuple(d) for d in drawn}) == len(drawn) == 12

    on(1, rank)


# ---- guards ----------------------------------------------------------------------------------------


def test_forward_outside_of_the_loop():
    def rank():
        model = ExactDataParallel(mlp(), 2)
        with pytest.raises(RuntimeError, match="outside of `for ... in model.shards"):
            model(batch(2)[0])
        with torch.no_grad():
            model(batch(2)[0])
        model.eval()
        model(batch(2)[0])

    on(1, rank)


def test_backward_after_the_loop():
    def rank():
        model = ExactDataParallel(mlp(), 2)
        with pytest.raises(RuntimeError, match="no virtual shard had a gradient: call backward"):
            losses = [loss_of(model(x), y) for x, y in model.shards(*batch(4), whole=True)]
        return "losses" in locals()

    assert on(2, rank) == [False, False]


def test_a_loop_that_is_left():
    def rank():
        model = ExactDataParallel(mlp(), 4)
        outside = torch.random.get_rng_state()
        for _ in model.shards(batch(4)[0]):
            break
        assert torch.equal(torch.random.get_rng_state(), outside)
        with pytest.raises(RuntimeError, match="left in virtual shard 0 of 4 on rank 0"):
            model.shards(batch(4)[0])
        other = ExactDataParallel(mlp(), 4)
        outside = torch.random.get_rng_state()
        try:
            for shard in other.shards():
                if shard == 2:
                    raise KeyError("on purpose")
        except KeyError as error:
            kept = error  # its traceback keeps the loop alive
        with pytest.raises(RuntimeError, match="left in virtual shard 2 of 4"):
            other.shards()
        assert kept and torch.equal(torch.random.get_rng_state(), outside)

    with own_stream(0):
        on(1, rank)


def test_refused_arguments():
    def rank():
        with pytest.raises(ValueError, match=r"5 virtual shards cannot be held in equal parts by 2"):
            ExactDataParallel(mlp(), 5)
        with pytest.raises(ValueError, match="no parameter of the module requires grad"):
            ExactDataParallel(mlp().requires_grad_(False), 2)
        model = ExactDataParallel(mlp(), 4)
        with pytest.raises(ValueError, match="a batch of 3 samples on rank . cannot be cut into 2"):
            model.shards(batch(3)[0])
        with pytest.raises(ValueError, match=r"have \[2, 4\] samples"):
            model.shards(batch(2)[0], batch(4)[1])
        with pytest.raises(ValueError, match="3 values given, but this rank has 2 of the 4"):
            model.mean([1, 2, 3])

    on(2, rank)


def test_shards_of_other_sizes_on_other_ranks():
    def rank():
        model = ExactDataParallel(linear(), 2)
        model.backward(lambda x, y: loss_of(model(x), y), *batch(4 + 2 * dist.get_rank()))

    with pytest.raises(RuntimeError, match=r"shards have [46] samples on rank [01], but 10 in all 2"):
        on(2, rank, 10)


def test_a_parameter_that_is_unfrozen_later():
    def rank():
        net = mlp()
        net[0].weight.requires_grad_(False)
        model = ExactDataParallel(net, 2)
        net[0].weight.requires_grad_(True)
        with pytest.raises(RuntimeError, match=r"'0.weight' was frozen"):
            model.shards(batch(2)[0])

    on(1, rank)


class SyncBatchNorm(nn.BatchNorm1d):
    """A stand-in, known by its name."""


def test_statistics_over_ranks_are_refused():
    def rank():
        net = nn.Sequential(nn.Linear(3, 3), SyncBatchNorm(3))
        with pytest.raises(RuntimeError, match="'1' is a SyncBatchNorm"):
            ExactDataParallel(net, 2)

    on(1, rank)


def test_ranks_get_the_state_of_the_first_and_must_have_one_model():
    def rank():
        with own_stream(dist.get_rank()):
            model = ExactDataParallel(mlp(), 4, seed=dist.get_rank())
        assert model.seed == 0
        model.audit()
        with torch.no_grad():
            if dist.get_rank() == 1:
                model.module[3].bias += 1
        with pytest.raises(RuntimeError, match=r"'3.bias' and 0 more tensors differ between ranks 0"):
            model.audit()
        with pytest.raises(RuntimeError, match="the models of ranks . and . differ"):
            ExactDataParallel(nn.Linear(3, 2 + dist.get_rank()), 4)

    on(2, rank)


def test_surroundings_that_differ_are_named(monkeypatch):
    real = surroundings.fingerprint

    def other(device="cpu"):
        return real(device) | {"cpu": str(dist.get_rank()), "numpy": f"2.{dist.get_rank()}"}

    def rank():
        with pytest.raises(RuntimeError, match=r"ranks 0 and 1 .* numpy: 2.0 on rank 0, 2.1 on rank 1"):
            ExactDataParallel(mlp(), 2)

    monkeypatch.setattr(surroundings, "fingerprint", other)
    on(2, rank)
    with pytest.warns(UserWarning, match="ranks 0 and 1 differ: cpu: 0 on rank 0, 1 on rank 1"):
        on(2, lambda: ExactDataParallel(mlp(), 2, strict=False))
    monkeypatch.setattr(surroundings, "fingerprint",
                        lambda d="cpu": real(d) | {"cpu": str(dist.get_rank())})
    with pytest.warns(UserWarning, match="cpu: 0 on rank 0"):  # another name, the same probe
        on(2, lambda: ExactDataParallel(mlp(), 2))


def test_a_checkpoint_tells_where_it_comes_from():
    def rank():
        model = ExactDataParallel(mlp(), 4, seed=5)
        state = model.state_dict()
        model.load_state_dict(state)
        state["_extra_state"]["fingerprint"]["blas"] = "another"
        with pytest.warns(UserWarning, match="bits may differ from here on: blas: .* another in the"):
            model.load_state_dict(state)
        with pytest.raises(Exception, match="trained with 4 virtual shards, this model has 2"):
            ExactDataParallel(mlp(), 2).load_state_dict(model.state_dict())

    on(1, rank)


def test_the_probe_sees_another_number_of_threads_or_is_blind_to_it():
    """What is promised is one digest for one number of threads."""
    surroundings.fix_threads(1)
    found = surroundings.fingerprint()
    assert found["blas threads"] == "1" and found["probe"] == surroundings.probe()


# ---- the sampler -----------------------------------------------------------------------------------


def batches(n, state=None, **options):
    """Every step's samples of all ranks together, by virtual shard."""
    parts = []
    for rank in range(n):
        sampler = VirtualShardSampler(range(50), 12, 6, num_replicas=n, rank=rank, **options)
        loader = DataLoader(list(range(50)), sampler.local_batch_size, sampler=sampler)
        if state:
            loader.load_state_dict(state)
        parts.append([step.tolist() for step in loader])
    return [sum(step, []) for step in zip(*parts)]


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}])
def test_samples_do_not_depend_on_the_number_of_ranks(options):
    wanted = batches(1, **options)
    assert [batches(n, **options) for n in (2, 3, 6)] == [wanted] * 3
    assert [len(step) for step in wanted] == [12] * (4 if "drop_last" in options else 5)
    seen = sum(wanted, [])
    assert len(set(seen)) == (48 if "drop_last" in options else 50)


def test_a_pass_goes_on_on_other_ranks():
    sampler = VirtualShardSampler(range(50), 12, 6, num_replicas=3, rank=1)
    sampler.set_epoch(4)
    loader = DataLoader(list(range(50)), sampler.local_batch_size, sampler=sampler)
    for step, _ in enumerate(loader, 1):
        if step == 2:
            state = loader.state_dict()
            break
    alone = VirtualShardSampler(range(50), 12, 6, num_replicas=1, rank=0)
    alone.set_epoch(4)
    rest = list(alone)[24:]
    assert sum(batches(2, state), []) == rest
    assert rest != sum(batches(1)[2:], [])
    with pytest.raises(ValueError, match="5 samples are no whole steps of 4"):
        sampler.state_dict(5)
    with pytest.raises(ValueError, match="batch_size=12, this one has batch_size=6"):
        VirtualShardSampler(range(50), 6, 6, num_replicas=1, rank=0).load_state_dict(state["sampler"])


def test_refused_batches():
    with pytest.raises(ValueError, match="a global batch of 10 samples cannot be cut into 6"):
        VirtualShardSampler(range(50), 10, 6, num_replicas=1, rank=0)
    with pytest.raises(ValueError, match="4 samples give no batch of 6"):
        VirtualShardSampler(range(4), 6, 6, drop_last=True, num_replicas=1, rank=0)


def test_evaluation_in_shards_reduces_nothing_but_what_is_asked_for():
    def rank():
        model = ExactDataParallel(Cnn(), 4).eval()
        x, y = torch.ones(8, 3, 9, 9), torch.zeros(8, dtype=torch.int64)
        dist.reset_ledger()
        with torch.no_grad():
            losses = [loss_of(model(a), b) for a, b in model.shards(x, y, whole=True)]
        assert "tree_all_reduce" not in dist.ledger() and model.step_number == 0
        right = model.sum([1, 2]).item()
        return model.mean(losses).item(), right

    (first, right), second = on(2, rank)
    assert (first, right) == second and right == 6
