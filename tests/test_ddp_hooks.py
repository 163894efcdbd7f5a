"""Communication hooks of DistributedDataParallel: bytes, values, convergence."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from ddp_models import (
    TINY,
    assert_gradients_match,
    assert_same_on_all_ranks,
    batch,
    build,
    ddp_and_whole,
    loss_of,
    mlp,
    whole_batch,
)

import disttorch as torch
import disttorch.distributed as dist
from disttorch import nn, optim
from disttorch.distributed.algorithms.ddp_comm_hooks import (
    DDPCommHookType,
    debugging_hooks,
    default_hooks,
    powerSGD_hook,
    register_ddp_comm_hook,
    topk_hook,
)
from disttorch.nn.parallel import DistributedDataParallel as DDP


def on_ranks(n, scenario):
    dist.run_local(n, lambda rank: scenario(), timeout=60)


def step(ddp, whole, number):
    ddp.zero_grad()
    whole.zero_grad()
    loss_of(ddp(batch(number, dist.get_rank(), next(ddp.parameters()).dtype))).backward()
    loss_of(whole(whole_batch(number, next(whole.parameters()).dtype))).backward()


# ---- the protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True},
                                     {"find_unused_parameters": True}])
def test_a_hook_gets_every_bucket_and_its_result_counts(n, options):
    def scenario():
        ddp, whole = ddp_and_whole(mlp, bucket_cap_mb=TINY, **options)
        seen = []

        def hook(state, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            assert state == "state" and isinstance(bucket, dist.GradBucket)
            parts = bucket.gradients()
            assert [p.shape for p in parts] == [p.shape for p in bucket.parameters()]
            assert sum(p.numel() for p in parts) == bucket.buffer().numel()
            for part, p in zip(parts, bucket.parameters()):
                assert part.tolist() == p.grad.tolist()  # this rank's, not divided
            seen.append((bucket.index(), bucket.is_last()))
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda f: f.value()[0] * 2 / dist.get_world_size())

        ddp.register_comm_hook("state", hook)
        for number in range(3):
            seen.clear()
            step(ddp, whole, number)
            for p in whole.parameters():
                p.grad *= 2
            assert_gradients_match(ddp, whole)
            count = len(seen)
            assert count > 1 and seen == [(i, i == count - 1) for i in range(count)]

    on_ranks(n, scenario)


def test_what_is_no_hook_is_refused():
    def scenario():
        ddp, _ = ddp_and_whole(mlp)
        with pytest.raises(TypeError, match="must be callable"):
            ddp.register_comm_hook(None, 1)

        def wrong(state, bucket: int):
            return None

        with pytest.raises(ValueError, match="bucket annotation should be dist.GradBucket"):
            ddp.register_comm_hook(None, wrong)

        def wrong_too(state, bucket) -> int:
            return 1

        with pytest.raises(ValueError, match="return annotation"):
            ddp.register_comm_hook(None, wrong_too)
        ddp.register_comm_hook(None, lambda state, bucket: bucket.buffer())
        with pytest.raises(RuntimeError, match="can only be called once"):
            ddp.register_comm_hook(None, debugging_hooks.noop_hook)
        with pytest.raises(TypeError, match="must return a torch.futures.Future"):
            loss_of(ddp(batch(0, 0))).backward()
        bucket = dist.GradBucket(0, torch.zeros(4), [torch.zeros(4)], True)
        with pytest.raises(ValueError, match="has 4 elements, the new buffer 3"):
            bucket.set_buffer(torch.zeros(3))
        ddp, _ = ddp_and_whole(mlp)

        def short(state, bucket):
            future = torch.futures.Future()
            future.set_result(bucket.buffer()[:1])
            return future

        ddp.register_comm_hook(None, short)
        with pytest.raises(RuntimeError, match="one tensor of the bucket's 419 elements"):
            loss_of(ddp(batch(0, 0))).backward()

    on_ranks(1, scenario)


def test_noop_leaves_each_rank_its_own():
    def scenario():
        rank = dist.get_rank()
        ddp, _ = ddp_and_whole(mlp)
        register_ddp_comm_hook(DDPCommHookType.NOOP, ddp)
        alone = build(mlp, 0)
        dist.reset_ledger()
        for number in range(2):
            ddp.zero_grad()
            alone.zero_grad()
            loss_of(ddp(batch(number, rank))).backward()
            loss_of(alone(batch(number, rank))).backward()
            for p, q in zip(ddp.parameters(), alone.parameters()):
                assert p.grad.tolist() == q.grad.tolist()
        assert "all_reduce" not in dist.ledger()

    on_ranks(2, scenario)


# ---- the mean, in few bits -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_allreduce_hook_changes_nothing(n):
    def scenario():
        for register in (
            lambda ddp: ddp.register_comm_hook(None, default_hooks.allreduce_hook),
            lambda ddp: ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE),
            lambda ddp: DDPCommHookType.ALLREDUCE.value(model=ddp, state=dist.group.WORLD),
        ):
            ddp, whole = ddp_and_whole(mlp, bucket_cap_mb=TINY)
            register(ddp)
            for number in range(3):
                step(ddp, whole, number)
                assert_gradients_match(ddp, whole)

    on_ranks(n, scenario)


HALVING = {
    "fp16": (default_hooks.fp16_compress_hook, 2e-3),
    "bf16": (default_hooks.bf16_compress_hook, 2e-2),
    "fp16 wrapper": (default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook), 2e-3),
    "bf16 wrapper": (default_hooks.bf16_compress_wrapper(default_hooks.allreduce_hook), 2e-2),
}


@pytest.mark.parametrize("name", HALVING)
def test_sixteen_bits_halve_the_bytes(name):
    hook, tolerance = HALVING[name]

    def scenario():
        n = dist.get_world_size()
        ddp = DDP(build(mlp, dist.get_rank(), torch.float32), bucket_cap_mb=TINY)
        whole = build(mlp, 0, torch.float32)
        ddp.register_comm_hook(None, hook)
        size = sum(p.numel() * 4 for p in ddp.parameters())
        for number in range(3):
            dist.reset_ledger()
            step(ddp, whole, number)
            entry = dist.ledger()["all_reduce"]
            assert entry["payload_bytes"] == size // 2
            assert entry["lower_bound_bytes"] == pytest.approx(size * (n - 1) / n)
            for p, q in zip(ddp.parameters(), whole.parameters()):
                assert p.grad.dtype is torch.float32
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), tolerance, tolerance)
            assert_same_on_all_ranks([p.grad for p in ddp.parameters()])

    on_ranks(2, scenario)


def test_builtin_fp16():
    def scenario():
        ddp = DDP(build(mlp, 0, torch.float32))
        ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
        dist.reset_ledger()
        loss_of(ddp(batch(0, dist.get_rank(), torch.float32))).backward()
        size = sum(p.numel() * 2 for p in ddp.parameters())
        assert dist.ledger()["all_reduce"]["payload_bytes"] == size
        assert ddp._get_ddp_logging_data()["comm_hook"] == "builtin_fp16_compress"

    on_ranks(2, scenario)


# ---- PowerSGD ------------------------------------------------------------------------------------


def low_rank_net():
    return nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))


VARIANTS = {
    "layers": powerSGD_hook.powerSGD_hook,
    "batched": powerSGD_hook.batched_powerSGD_hook,
    "half": default_hooks.bf16_compress_wrapper(powerSGD_hook.powerSGD_hook),
}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("same_shape", [False, True])
def test_powersgd_is_exact_where_the_rank_suffices(n, same_shape):
    """Gradients of a linear layer have at most the rank of the whole batch."""

    def scenario():
        n, rank = dist.get_world_size(), dist.get_rank()
        rows = 2

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(12, 10), nn.Linear(12, 10)

            def forward(self, x):
                return self.a(x) * torch.tanh(self.b(x))

        ddp, whole = ddp_and_whole(Net)
        state = powerSGD_hook.PowerSGDState(
            None, n * rows, start_powerSGD_iter=2, min_compression_rate=0.1,
            batch_tensors_with_same_shape=same_shape,
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        for number in range(5):
            parts = [
                torch.tensor(np.random.default_rng(100 * number + r).normal(size=(rows, 12)))
                for r in range(n)
            ]
            ddp.zero_grad()
            whole.zero_grad()
            loss_of(ddp(parts[rank])).backward()
            loss_of(whole(torch.cat(parts))).backward()
            assert_gradients_match(ddp, whole, 1e-9)
        for error in state.error_dict.values():
            # What one rank's gradient has beyond the mean comes back in the others' errors.
            total = error.clone()
            dist.all_reduce(total)
            assert total.abs().max().item() < 1e-9
        assert state.compression_stats()[0] > 0

    on_ranks(n, scenario)


def test_powersgd_sends_little_and_feeds_its_error_back():
    def scenario():
        rank = dist.get_rank()
        ddp = DDP(build(low_rank_net, rank, torch.float32))
        plain = build(low_rank_net, 0, torch.float32)
        state = powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=2)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        sent, exact = [], []
        for number in range(40):  # the same data: the sum of what is sent must follow the sum
            dist.reset_ledger()
            step(ddp, plain, 0)
            if number < 2:
                assert_gradients_match(ddp, plain)
                continue
            sent.append(ddp.module[2].weight.grad.clone())
            exact.append(plain[2].weight.grad.clone())
        size = sum(p.numel() * 4 for p in ddp.parameters())
        assert dist.ledger()["all_reduce"]["payload_bytes"] < size / 2
        before = float(torch.linalg.norm(sent[0] - exact[0]) / torch.linalg.norm(exact[0]))
        after = float(torch.linalg.norm(sum(sent) - sum(exact)) / torch.linalg.norm(sum(exact)))
        assert before > 0.05  # one alone is far off
        assert after < before / 5
        rate, whole, small = state.compression_stats()
        assert rate == whole / small > 1
        assert_same_on_all_ranks([p.grad for p in ddp.parameters()])

    on_ranks(2, scenario)


@pytest.mark.parametrize("variant", [*VARIANTS, "topk"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_compressed_training_converges(variant, n):
    def scenario():
        rank = dist.get_rank()
        draw = np.random.default_rng(5)
        x = torch.tensor(draw.normal(size=(6 * n, 5))).float()
        y = torch.tanh(x[:, :3] * 2)
        ddp = DDP(build(low_rank_net, rank, torch.float32))
        if variant == "topk":
            ddp.register_comm_hook(topk_hook.TopKState(density=0.1), topk_hook.topk_hook)
        else:
            state = powerSGD_hook.PowerSGDState(
                None, 2, start_powerSGD_iter=2, orthogonalization_epsilon=1e-8
            )
            ddp.register_comm_hook(state, VARIANTS[variant])
        optimizer = optim.SGD(ddp.parameters(), lr=0.05)
        rows = slice(6 * rank, 6 * rank + 6)
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = ((ddp(x[rows]) - y[rows]) ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 5, losses[::30]
        assert_same_on_all_ranks(ddp.parameters())

    on_ranks(n, scenario)


def test_columns_are_orthonormal_or_zero():
    for shape in ((2, 6, 3), (1, 5, 1), (3, 4, 4)):
        a = torch.tensor(np.random.default_rng(0).normal(size=shape))
        a[0, :, -1] = a[0, :, 0] * 2 if shape[2] > 1 else 0.0  # a column that adds nothing
        powerSGD_hook._orthogonalize(a)
        gram = (a.transpose(1, 2) @ a).numpy()
        for i, g in enumerate(gram):
            wanted = np.eye(shape[2])
            if i == 0:
                wanted[-1, -1] = 0
            np.testing.assert_allclose(g, wanted, atol=1e-12)


def test_powersgd_state():
    with pytest.raises(ValueError, match="start_powerSGD_iter. > 1"):
        powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=1)
    with pytest.raises(ValueError, match="density must be in"):
        topk_hook.TopKState(density=0)
    with pytest.raises(ValueError, match="start_iter must be at least 1"):
        topk_hook.TopKState(start_iter=0)

    def scenario():
        state = powerSGD_hook.PowerSGDState(dist.group.WORLD, 3)
        state.iter = 7
        again = pickle.loads(pickle.dumps(state))
        assert again.iter == 7 and again.matrix_approximation_rank == 3
        assert again.process_group is dist.group.WORLD
        assert again.rng.random() == state.rng.random()
        assert copy.copy(state).iter == 7

    on_ranks(1, scenario)


# ---- top-k ---------------------------------------------------------------------------------------


def test_topk_sends_the_largest_and_keeps_the_rest():
    def scenario():
        rank, n = dist.get_rank(), dist.get_world_size()
        ddp, _ = ddp_and_whole(mlp)
        state = topk_hook.TopKState(density=0.02, start_iter=1)
        ddp.register_comm_hook(state, topk_hook.topk_hook)
        alone = build(mlp, 0)
        carried = 0.0
        for number in range(4):
            ddp.zero_grad()
            alone.zero_grad()
            dist.reset_ledger()
            loss_of(ddp(batch(number, rank))).backward()
            loss_of(alone(batch(number, rank))).backward()
            if number < 1:
                continue
            order = [i for b in ddp.reducer.buckets for i in b.members]
            parameters = list(alone.parameters())
            flat = np.concatenate([parameters[i].grad.numpy().ravel() for i in order]) + carried
            k = int(np.ceil(0.02 * flat.size))
            kept = np.zeros_like(flat)
            places = np.argsort(-np.abs(flat))[:k]
            kept[places] = flat[places]
            carried = flat - kept
            np.testing.assert_allclose(state.errors[0].numpy(), carried, 1e-12, 1e-12)
            everyone = [None] * n
            dist.all_gather_object(everyone, kept)
            mine = np.concatenate(
                [list(ddp.parameters())[i].grad.numpy().ravel() for i in order]
            )
            np.testing.assert_allclose(mine, sum(everyone) / n, 1e-12, 1e-12)
        assert state.sent == 3 * 2 * k and state.elements == 3 * flat.size

    on_ranks(2, scenario)


# ---- eight bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["QUANTIZE_PER_TENSOR", "QUANTIZE_PER_CHANNEL"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_eight_bits(kind, n):
    def scenario():
        ddp = DDP(build(mlp, dist.get_rank(), torch.float32))
        whole = build(mlp, 0, torch.float32)
        register_ddp_comm_hook(DDPCommHookType[kind], ddp)
        dist.reset_ledger()
        for number in range(2):
            step(ddp, whole, number)
            largest = max(p.grad.abs().max().item() for p in whole.parameters())
            for p, q in zip(ddp.parameters(), whole.parameters()):
                # Half a code on each side of it, and ranks' spans may be several times the mean's
                assert (p.grad - q.grad).abs().max().item() < largest * n / 64
            assert_same_on_all_ranks([p.grad for p in ddp.parameters()])
        if n > 1:
            codes = dist.ledger()["all_gather"]["payload_bytes"]
            size = sum(p.numel() for p in ddp.parameters())
            assert codes < 2 * n * (size + 600) and "all_reduce" not in dist.ledger()

    on_ranks(n, scenario)
