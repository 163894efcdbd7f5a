"""Autocast and GradScaler: regions, threads, the cache, custom functions, overflow."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

import disttorch as torch
import disttorch.distributed as dist
from disttorch import amp, nn
from disttorch.autograd.autocast import switch
from disttorch.nn import functional as F
from disttorch.ops.autocast import POLICIES


def product_type(**options):
    with torch.autocast("cpu", **options):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


# ---------------------------------------------------------------- regions
def test_regions_nest_and_end():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")
        assert (a @ a).dtype is torch.float16
        with torch.autocast("cpu", enabled=False):
            assert (a @ a).dtype is torch.float32
            with torch.autocast("cpu"):  # the dtype in force, not the default one
                assert (a @ a).dtype is torch.float16
        assert (a @ a).dtype is torch.float16
    assert (a @ a).dtype is torch.float32 and not switch.on
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16


def test_an_exception_ends_the_region():
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu"):
        raise ZeroDivisionError
    assert not switch.on and not torch.is_autocast_enabled("cpu")


def test_decorated_functions_may_call_themselves():
    @torch.autocast("cpu")
    def f(n):
        return [(torch.ones(1, 1) @ torch.ones(1, 1)).dtype] + (f(n - 1) if n else [])

    assert f(3) == [torch.bfloat16] * 4 and not switch.on
    with pytest.raises(TypeError, match="requires a callable"):
        torch.autocast("cpu")(3)


def test_other_threads_are_not_cast():
    seen, inside, done = [], threading.Event(), threading.Event()

    def other():
        inside.wait(10)
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with torch.autocast("cpu"):
        inside.set()
        assert done.wait(10)
    thread.join()
    assert seen == [torch.float32]


def test_float64_integers_and_given_types_are_left_alone():
    with torch.autocast("cpu"):
        a = torch.ones(2, 2, dtype=torch.float64)
        assert (a @ a).dtype is torch.float64
        i = torch.ones(2, 2, dtype=torch.int64)
        assert (i @ i).dtype is torch.int64
        half = torch.ones(2, 2, dtype=torch.float16)
        assert (half @ half).dtype is torch.bfloat16


def test_bad_regions():
    with pytest.raises(ValueError, match="device_type"):
        torch.autocast(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="unsupported autocast device_type 'tpu'"):
        torch.autocast("tpu")
    with pytest.warns(UserWarning, match="target dtype is not supported"):
        assert product_type(dtype=torch.float64) is torch.float32
    assert product_type() is torch.bfloat16
    with pytest.raises(RuntimeError, match="unknown device type"):
        torch.get_autocast_dtype("tpu")


# ---------------------------------------------------------------- gradients and the cache
def test_gradients_have_the_types_of_their_tensors():
    layer, x = nn.Linear(3, 2), torch.ones(4, 3, requires_grad=True)
    with torch.autocast("cpu"):
        loss = layer(x).square().mean()
    loss.backward()
    assert loss.dtype is torch.bfloat16
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert x.grad.dtype is torch.float32 and x.grad.abs().sum().item() > 0


@pytest.mark.parametrize("cache, casts", [(True, 1), (False, 2)])
def test_a_weight_is_cast_once_in_a_region(cache, casts):
    w, x = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2)
    with torch.autocast("cpu", cache_enabled=cache):
        a, b = x @ w, x @ w
        cast_nodes = {id(y.grad_fn.next_functions[1][0]) for y in (a, b)}
        assert len(cast_nodes) == casts
        (a.sum() + b.sum()).backward()
    assert w.grad.tolist() == [[4, 4], [4, 4]]


def test_the_cache_sees_changes_and_grad_modes():
    w, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
    with torch.autocast("cpu"):
        with torch.no_grad():
            assert (x @ w).item() == 1
            w.mul_(2)
        y = x @ w
        assert y.item() == 2 and y.requires_grad  # the cast under no_grad has no graph
        y.backward()
        w.data = torch.full((1, 1), 5.0)
        assert (x @ w).item() == 5
    assert w.grad.item() == 1


def test_accumulation_equals_the_whole_batch():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1), torch.randn(8, 4)
    twin = copy.deepcopy(layer)
    for part in x.split(2):
        with torch.autocast("cpu"):
            (layer(part).float().sum() / 8).backward()
    with torch.autocast("cpu"):
        twin(x).float().mean().backward()
    assert torch.allclose(layer.weight.grad, twin.weight.grad, atol=1e-2)


def test_custom_functions():
    types = []

    class Cast(torch.autograd.Function):
        @staticmethod
        @amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
        def forward(ctx, x):
            types.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return x * 2

        @staticmethod
        @amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            types.append((g.dtype, torch.is_autocast_enabled("cpu")))
            return g * 2

    class Follow(Cast):
        @staticmethod
        @amp.custom_fwd(device_type="cpu")
        def forward(ctx, x):
            types.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return x * 2

    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu"):
        y = Cast.apply(x)
    y.sum().backward()
    assert types == [(torch.float32, False), (torch.float32, False)]
    types.clear()
    with torch.autocast("cpu"):
        y = Follow.apply(x)
    y.sum().backward()  # as its forward ran, also outside of the region
    assert types == [(torch.bfloat16, True), (torch.bfloat16, True)]


# ---------------------------------------------------------------- the lists for GPUs
LOWER = (
    lambda a, b, v: a @ b, lambda a, b, v: torch.mv(a, v), lambda a, b, v: torch.addmm(a, a, b),
    lambda a, b, v: F.linear(a, b), lambda a, b, v: torch.einsum("ij,jk", a, b),
    lambda a, b, v: F.prelu(a, v[:1]),
    lambda a, b, v: F.scaled_dot_product_attention(a[None], b[None], a[None]),
)
FLOAT32 = (
    lambda a, b, v: a.exp(), lambda a, b, v: torch.log1p(a), lambda a, b, v: a**2,
    lambda a, b, v: a.pow(b), lambda a, b, v: a.rsqrt(), lambda a, b, v: 1 / a.reciprocal(),
    lambda a, b, v: a.sum(), lambda a, b, v: a.cumsum(0), lambda a, b, v: torch.prod(a, 0),
    lambda a, b, v: F.softmax(a, -1), lambda a, b, v: a.log_softmax(0),
    lambda a, b, v: F.layer_norm(a, (3,)), lambda a, b, v: torch.norm(a),
    lambda a, b, v: torch.linalg.vector_norm(a), lambda a, b, v: a.logsumexp(1),
    lambda a, b, v: F.mse_loss(a, b), lambda a, b, v: F.cross_entropy(a, torch.arange(3)),
    lambda a, b, v: F.binary_cross_entropy_with_logits(a, b), lambda a, b, v: F.softplus(a),
    lambda a, b, v: F.cosine_similarity(a, b), lambda a, b, v: torch.cdist(a, b),
)
WIDEST = (
    lambda a, b, v: torch.dot(v, v.float()), lambda a, b, v: torch.atan2(a, b.float()),
    lambda a, b, v: torch.addcmul(a, b.float(), b), lambda a, b, v: torch.tensordot(a, b.float()),
    lambda a, b, v: torch.scatter_add(a, 0, torch.zeros(3, 3, dtype=torch.int64), b.float()),
)


def test_the_lists_for_gpus(monkeypatch):
    """PyTorch's documented lists, tried on CPU tensors: the rest of the way is the same."""
    monkeypatch.setitem(POLICIES, "cpu", POLICIES["cuda"])
    for calls, expected in ((LOWER, torch.float16), (FLOAT32, torch.float32),
                            (WIDEST, torch.float32)):
        for dtype in (torch.float16, torch.float32):
            a, b = torch.rand(3, 3).add(0.5).to(dtype), torch.rand(3, 3).add(0.5).to(dtype)
            with torch.autocast("cpu", dtype=torch.float16):
                found = [call(a, b, a[0]).dtype for call in calls]
            assert found == [expected] * len(calls)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.dot(a[0].half(), b[0].half()).dtype is torch.float16
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(a, b)
        with pytest.raises(RuntimeError, match="Unexpected floating"):
            torch.dot(a[0].bfloat16(), b[0].bfloat16())


# ---------------------------------------------------------------- several ranks
def train_on_ranks(rank, model, x, y):
    whole = copy.deepcopy(model)
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    n = dist.get_world_size()
    runs = []
    for m, part in ((ddp, slice(rank, None, n)), (whole, slice(None))):
        optimizer, scaler = torch.optim.SGD(m.parameters(), 0.5), amp.GradScaler("cpu", 1024.0)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                out = m(x[part])
                assert out.dtype is torch.float16
                loss = F.cross_entropy(out, y[part])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append([p.detach() for p in m.parameters()])
    for ours, expected in zip(*runs):
        assert ours.dtype is torch.float32 and torch.allclose(ours, expected, atol=5e-3)
        everyones = [torch.empty_like(ours) for _ in range(n)]
        dist.all_gather(everyones, ours)
        assert all(torch.equal(e, ours) for e in everyones)


def test_with_ddp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    given = model, torch.randn(8, 4), torch.arange(8) % 2
    dist.run_local(2, lambda rank: train_on_ranks(rank, *given), timeout=60)


# ---------------------------------------------------------------- loss scaling
def scaled_step(scaler, grad, **options):
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler.scale((p * torch.tensor(grad)).sum()).backward()
    scaler.step(optimizer, **options)
    scaler.update()
    return p.tolist()


def test_scale_unscale_and_skip():
    scaler = amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    assert scaled_step(scaler, [0.5, 0.25]) == [0.5, 0.75]
    assert scaler.get_scale() == 1024
    assert scaled_step(scaler, [float("inf"), 1.0]) == [1, 1]  # skipped
    assert scaler.get_scale() == 512
    assert scaled_step(scaler, [1.0, float("nan")]) == [1, 1]
    assert scaler.get_scale() == 256
    scaled_step(scaler, [1.0, 1.0])
    assert scaler.get_scale() == 256
    scaled_step(scaler, [1.0, 1.0])
    assert scaler.get_scale() == 512  # two good steps in a row
    scaler.scale(torch.ones(1))
    scaler.update(8.0)
    assert scaler.get_scale() == 8


def test_clipping_sees_unscaled_gradients():
    p = nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([p], lr=1.0), amp.GradScaler("cpu", 65536.0)
    scaler.scale((p * torch.tensor([3.0, 4.0])).sum()).backward()
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_([p], 1.0).item() == 5
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert p.tolist() == pytest.approx([0.4, 0.2])
    with pytest.raises(RuntimeError, match="step\\(\\) has already"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        scaler.unscale_(optimizer)
    scaler.update()


def test_scaler_misuse_and_disabled():
    scaler, optimizer = amp.GradScaler("cpu"), torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(optimizer)
    scaler.scale(torch.ones(1))
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()
    with pytest.raises(AssertionError, match="No inf checks were recorded for"):
        scaler.step(optimizer)
    half = nn.Parameter(torch.ones(1, dtype=torch.float16))
    half.grad = torch.ones(1, dtype=torch.float16)
    with pytest.raises(ValueError, match="FP16"):
        scaler.unscale_(torch.optim.SGD([half]))
    off = amp.GradScaler("cpu", enabled=False)
    x = torch.ones(1)
    assert off.scale(x) is x and off.state_dict() == {} and off.get_scale() == 1.0
    assert scaled_step(off, [0.5, 0.5]) == [0.5, 0.5]
    with pytest.raises(RuntimeError, match="state dict is empty"):
        scaler.load_state_dict({})
    with pytest.raises(AssertionError, match="growth factor"):
        amp.GradScaler("cpu", growth_factor=1.0)


def test_scaler_state_goes_on():
    first = amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    scaled_step(first, [1.0, 1.0])
    for again in (amp.GradScaler("cpu"), pickle.loads(pickle.dumps(first))):
        again.load_state_dict(first.state_dict())
        scaled_step(again, [1.0, 1.0])
        scaled_step(again, [1.0, 1.0])
        assert again.get_scale() == 128
    nested = first.scale([torch.ones(1), (torch.ones(1), torch.ones(2))])
    assert nested[1][1].tolist() == [64, 64] and isinstance(nested[1], tuple)


def test_old_names():
    with pytest.warns(FutureWarning, match="torch.amp.autocast\\('cpu'"):
        region = torch.cpu.amp.autocast()
    with region:
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is torch.bfloat16
    with pytest.warns(FutureWarning, match="torch.amp.GradScaler\\('cpu'"):
        assert torch.cpu.amp.GradScaler().get_scale() == 65536
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            assert not amp.GradScaler().is_enabled()
        with pytest.warns() as caught:
            torch.cuda.amp.autocast()
        assert {w.category for w in caught} == {FutureWarning, UserWarning}


def test_only_operations_of_the_lists_ask_autocast():
    from disttorch.ops.core import REGISTRY

    named = set().union(*POLICIES.values())
    assert {n for n, op in REGISTRY.items() if op.casts} == named & set(REGISTRY)
    assert REGISTRY["matmul"].casts and not REGISTRY["plain_add"].casts


def test_a_profiler_sees_what_autocast_does_not_look_at():
    x = torch.ones(3).requires_grad_()
    with torch.profiler.profile() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        torch.tanh(x + x)
    names = {e.key for e in seen.key_averages()}
    assert any("add" in n for n in names) and any("tanh" in n for n in names)
    assert torch.ops.core.REGISTRY["tanh"].casts is False  # as before it watched
