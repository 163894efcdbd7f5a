"""Attention on the GPU: its own kernels and cuDNN's against the formula in float64."""

from __future__ import annotations

import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend import namespace_of
from disttorch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]

ERROR = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-4, torch.float64: 1e-9}
FLASH, CUDNN, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
EFFICIENT = SDPBackend.EFFICIENT_ATTENTION


def cudnn_is_there() -> bool:
    from disttorch.backend.gpu import cudnn

    return cudnn.enabled()


def made(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def close(got, want, name):
    got = got.detach().cpu().to(torch.float64)
    assert got.shape == want.shape, name
    limit = ERROR[close.dtype] * max(want.abs().max().item(), 0.02) if want.numel() else 0
    assert not want.numel() or (got - want).abs().max().item() <= limit, name


def run(tensors, g, **options):
    """(out, gradients of the tensors) on the device that they are on."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = F.scaled_dot_product_attention(*tensors, **options)
    return out, torch.autograd.grad(out, tensors, g.to(out.device, out.dtype))


def check(q, k, v, **options):
    """The GPU's values and gradients against the CPU's, which computes in float64."""
    torch.manual_seed(3)
    g = made(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    mask = options.get("attn_mask")
    wide = {} if mask is None else {"attn_mask": mask if mask.dtype is torch.bool else mask.double()}
    want = run([t.double() for t in (q, k, v)], g.double(), **{**options, **wide})
    here = {} if mask is None else {"attn_mask": mask.cuda()}
    got = run([t.cuda() for t in (q, k, v)], g, **{**options, **here})
    close.dtype = q.dtype
    assert got[0].dtype is q.dtype and got[0].is_cuda
    close(got[0], want[0].detach(), "out")
    for name, a, b in zip(("dq", "dk", "dv"), got[1], want[1]):
        close(a, b, name)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "dtype"), [
    (64, torch.bfloat16), (128, torch.float16), (32, torch.float16), (40, torch.bfloat16),
    (96, torch.bfloat16)])
def test_own_kernels(width, dtype, causal):
    q, k, v = (made(2, 2, n, width, dtype=dtype) for n in (65, 130, 130))
    with sdpa_kernel(FLASH):
        check(q, k, v, is_causal=causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_the_kernels_do_not_serve(dtype):
    """float32, float64, and 16-bit floats with kernels switched off."""
    q, k, v = (made(2, 2, n, 24, dtype=dtype) for n in (17, 33, 33))
    with sdpa_kernel(MATH):
        check(q, k, v, is_causal=True)
        check(q, k, v, attn_mask=torch.arange(17)[:, None] > torch.arange(33) % 9)


def test_blocks_of_several_heads(monkeypatch):
    """Above a size, weights are computed anew, a few heads at once."""
    from disttorch.ops import attention

    monkeypatch.setattr(attention, "KEPT_SCORES", 0)
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 20 * 7)  # of 20 rows
    xp = namespace_of(torch.zeros(1, device="cuda")._data)
    monkeypatch.setattr(xp, "attention_room", lambda: 0)
    q, k, v = (made(2, 3, n, 4, dtype=torch.float32) for n in (9, 7, 7))
    check(q, k, v)
    check(q, k, v, is_causal=True)


def test_views_of_a_projection():
    packed = made(2, 33, 3, 2, 64)
    views = [packed[:, :, i].transpose(1, 2) for i in range(3)]
    check(*views, is_causal=True)
    on_gpu = packed.cuda()
    out = F.scaled_dot_product_attention(*(on_gpu[:, :, i].transpose(1, 2) for i in range(3)))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kernels", [FLASH, MATH])
def test_heads_that_share_keys(kernels):
    q, k, v = made(2, 6, 20, 32), made(2, 2, 40, 32), made(2, 2, 40, 32)
    with sdpa_kernel(kernels):
        check(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("kind", ["bool", "blind", "added", "broadcast"])
def test_masks(kind):
    q, k, v = (made(2, 2, n, 64) for n in (20, 70, 70))
    mask = {"bool": torch.randn(20, 70) > 0, "blind": torch.arange(20)[:, None] > torch.arange(70),
            "added": made(2, 1, 20, 70), "broadcast": made(1, 70)}[kind]
    check(q, k, v, attn_mask=mask)


def test_the_gradient_of_a_mask():
    q, k, v = (made(1, 2, n, 16, dtype=torch.float32) for n in (5, 7, 7))
    masks = [torch.zeros(5, 7, device=d).requires_grad_() for d in ("cpu", "cuda")]
    for m in masks:
        out = F.scaled_dot_product_attention(*(t.to(m.device) for t in (q, k, v)), attn_mask=m)
        out.sin().sum().backward()
    assert (masks[0].grad - masks[1].grad.cpu()).abs().max().item() < 1e-5


def test_dropout_is_seeded_and_the_same_in_backward():
    """The output is linear in the values: their gradient tells the weights after dropout."""
    q, k, v = (made(2, 2, 70, 64, dtype=torch.float16).cuda() for _ in range(3))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        x = v.detach().requires_grad_()
        out = F.scaled_dot_product_attention(q, k, x, dropout_p=0.4, is_causal=True)
        g = torch.ones_like(out)
        (grad,) = torch.autograd.grad(out, x, g)
        a, b = (grad.double() * v.double()).sum().item(), out.detach().double().sum().item()
        assert abs(a - b) < 0.02 * (v.double().abs().sum().item() ** 0.5 + abs(b))
        outs.append(out.detach())
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("shapes", [
    ((2, 2, 0, 32), (2, 2, 5, 32)), ((0, 2, 4, 32), (0, 2, 5, 32)), ((1, 1, 1, 32), (1, 1, 1, 32)),
    ((3, 8), (4, 8)), ((2, 3, 8), (2, 4, 8))])
def test_small_and_empty(shapes):
    q, k = made(*shapes[0]), made(*shapes[1])
    check(q, k, made(*shapes[1]))


def test_large_scores():
    """Scores of ±10³⁰, and rows of a thousand keys."""
    q, k = (made(1, 1, n, 64, dtype=torch.float32) * 1e15 for n in (3, 1000))
    q, k, v = (t.bfloat16().cuda() for t in (q, k, made(1, 1, 1000, 64)))
    out = F.scaled_dot_product_attention(q, k, v)
    assert out.isfinite().all().item()


def test_two_runs_give_the_same_bits_where_asked():
    """By whoever serves it; backward of cuDNN adds up in no fixed order, so that one is not taken."""
    q, k, v = (made(2, 2, 130, 64).cuda() for _ in range(3))
    g = made(2, 2, 130, 64)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run((q, k, v), g, is_causal=True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    with sdpa_kernel(FLASH):
        third, fourth = (run((q, k, v), g, is_causal=True) for _ in range(2))
    for a, b in ((first, second), (third, fourth)):
        assert torch.equal(a[0], b[0]) and all(map(torch.equal, a[1], b[1]))


def test_a_graph_of_the_gradient():
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        q, k, v = (made(1, 2, 6, 8).to(device, dtype).requires_grad_() for _ in range(3))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        grads = torch.autograd.grad(out.float().square().sum(), (q, k, v), create_graph=True)
        second = torch.autograd.grad(sum(a.float().square().sum() for a in grads), (q, k, v))
        results.append([a.cpu().double() for a in second])
    for a, b in zip(*results):
        assert (a - b).abs().max().item() < 0.06 * a.abs().max().item()


def test_wide_heads():
    """By cuDNN where it has plans, else by products and a softmax."""
    q, k, v = (made(1, 2, 130, 256) for _ in range(3))
    check(q, k, v, is_causal=True)
    check(q, k[:, :1], v[:, :1, :, :192], enable_gqa=True)


def test_views_with_the_sequence_first():
    """As nn.MultiheadAttention makes them: L×B×H×E in memory, and so is the result."""
    packed = made(33, 2, 3, 2, 64)
    views = [packed[:, :, i].permute(1, 2, 0, 3) for i in range(3)]
    check(*views)
    on_gpu = packed.cuda()
    out = F.scaled_dot_product_attention(*(on_gpu[:, :, i].permute(1, 2, 0, 3) for i in range(3)))
    assert out.permute(2, 0, 1, 3).is_contiguous()


def test_a_float32_mask_and_a_lower_right_one():
    q, k, v = (made(2, 2, n, 64) for n in (20, 70, 70))
    mask = torch.randn(20, 70).bfloat16()
    run_with = [F.scaled_dot_product_attention(q.cuda(), k.cuda(), v.cuda(), m.cuda())
                for m in (mask, mask.float())]
    assert torch.equal(*run_with)
    bias = torch.nn.attention.bias.causal_lower_right(20, 70)
    got = F.scaled_dot_product_attention(q.cuda(), k.cuda(), v.cuda(), bias)
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), bias._materialize())
    assert (got.cpu().double() - want).abs().max().item() < 0.03


def test_which_kernels_may_serve(recwarn):
    cuda, x = torch.backends.cuda, made(1, 2, 8, 64).cuda()
    assert cuda.is_flash_attention_available()

    def answers(*given):
        params = cuda.SDPAParams(*given, 0.0, True, False)
        asked = (cuda.can_use_flash_attention, cuda.can_use_efficient_attention,
                 cuda.can_use_cudnn_attention)
        return [may(params, debug) for debug in (False, True) for may in asked]

    assert answers(x, x, x, None) == [True, True, cudnn_is_there()] * 2
    recwarn.clear()
    assert answers(x.float(), x.float(), x.float(), None) == [False] * 6 and len(recwarn) == 3
    with sdpa_kernel([MATH, EFFICIENT]):
        assert answers(x, x, x, x[0, 0, :, :8] > 0) == [False, True, False] * 2


def test_what_no_allowed_kernel_serves_is_refused():
    x = made(1, 2, 8, 64, dtype=torch.float32).cuda()
    for kernels in ([FLASH], [FLASH, EFFICIENT], [CUDNN], []):
        with sdpa_kernel(kernels), pytest.raises(RuntimeError, match="No available kernel"):
            F.scaled_dot_product_attention(x, x, x)
    with sdpa_kernel([FLASH, MATH]):
        F.scaled_dot_product_attention(x, x, x)
    with sdpa_kernel(EFFICIENT):
        F.scaled_dot_product_attention(x.half(), x.half(), x.half(), dropout_p=0.5)


@pytest.mark.parametrize("order", [[FLASH, CUDNN], [CUDNN, FLASH]])
def test_the_order_of_kernels(order):
    from disttorch.backend.gpu.attention import _switches

    q, k, v = (made(1, 2, 130, 64) for _ in range(3))
    with sdpa_kernel(order, set_priority=True):
        assert _switches()[0] == (order[0] is CUDNN and cudnn_is_there())
        check(q, k, v, is_causal=True)
    assert _switches()[0] == cudnn_is_there()


@pytest.mark.parametrize("kernels", [FLASH, CUDNN])
def test_replays_of_a_graph_are_what_eager_calls_give(kernels):
    """Forward and backward; cuDNN's workspace is the graph's, and its sums come in no fixed order."""
    if kernels is CUDNN and not cudnn_is_there():
        pytest.skip("cuDNN or its frontend is not installed")
    q, k, v, g = (made(1, 2, 130, 64).cuda() for _ in range(4))

    def work():
        with sdpa_kernel(kernels):
            out, grads = run((q, k, v), g, is_causal=True)
        return out.detach(), *grads

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = work()
    for _ in range(2):
        for t in (q, k, v, g):
            t.copy_(made(1, 2, 130, 64))
        graph.replay()
        for name, a, b in zip(("out", "dq", "dk", "dv"), replayed, work()):
            if kernels is FLASH or name == "out":
                assert torch.equal(a, b), name
            else:
                assert (a - b).abs().max().item() <= 0.02 * b.abs().max().item(), name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "heads"), [(64, 4), (128, 2)])
def test_cudnn_against_own(width, heads, causal):
    if not cudnn_is_there():
        pytest.skip("cuDNN or its frontend is not installed")
    from disttorch.backend.gpu import attention_own, cudnn_attention

    q, k, v = made(2, 4, 130, width), made(2, heads, 200, width), made(2, heads, 200, width)
    with sdpa_kernel(CUDNN):
        check(q, k, v, is_causal=causal, enable_gqa=True)
    q, k, v = (t.cuda()._data for t in (q, k, v))
    xp = namespace_of(q)
    by_cudnn = cudnn_attention.forward(xp, q, k, v, causal, 0.125)
    assert by_cudnn is not None
    _, logs = by_cudnn(q, k, v, ())
    _, own_logs = attention_own.forward(xp, q, k, v, causal, 0.125, True)(q, k, v, ())
    assert abs(logs - own_logs).max().item() < 1e-3  # the same statistics
    out = xp.empty(q.shape, q.dtype)
    assert cudnn_attention.backward(xp, out, q, k, v, out, causal, 0.125) is not None
