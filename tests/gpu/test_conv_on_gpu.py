"""Convolutions on the GPU, by cuDNN and by own kernels, against the CPU in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gpu import laid

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend.gpu import cudnn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
    pytest.mark.filterwarnings("default:cuDNN has no plan"),  # own kernels compute it then
]
all_types = pytest.mark.parametrize("name", laid.DTYPES)
ENGINES = ["own", pytest.param("cudnn", marks=pytest.mark.skipif(
    not cudnn.available(), reason=f"no cuDNN: {cudnn.why_not()}"))]


@pytest.fixture(params=ENGINES, autouse=True)
def engine(request):
    """Each test without cuDNN and, where it is installed, with it: plans that give the same bits on
    every run, float32 without TF32."""
    by_cudnn = request.param == "cudnn"
    with torch.backends.cudnn.flags(enabled=by_cudnn, allow_tf32=False, deterministic=True):
        yield request.param


CASES = {  # function, input, weight, options
    "1d": (F.conv1d, (2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
    "2d": (F.conv2d, (2, 8, 5, 6), (8, 8, 3, 3), {"padding": 1}),
    "strided": (F.conv2d, (2, 8, 7, 6), (4, 8, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": (F.conv2d, (2, 3, 7, 6), (4, 3, 3, 2), {"dilation": (1, 2), "padding": (0, 1)}),
    "grouped": (F.conv2d, (2, 16, 5, 5), (8, 8, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": (F.conv2d, (2, 6, 5, 4), (12, 1, 3, 3), {"groups": 6, "padding": 1}),
    "pointwise": (F.conv2d, (3, 8, 3, 4), (16, 8, 1, 1), {}),
    "pointwise strided": (F.conv2d, (2, 8, 5, 4), (4, 8, 1, 1), {"stride": 2}),
    "same": (F.conv2d, (2, 3, 5, 5), (2, 3, 2, 4), {"padding": "same"}),
    "3d": (F.conv3d, (1, 2, 4, 5, 3), (3, 2, 2, 3, 2), {"padding": (1, 1, 0)}),
    "transposed": (F.conv_transpose2d, (2, 4, 3, 4), (4, 3, 3, 3),
                   {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed grouped": (F.conv_transpose2d, (1, 4, 3, 3), (4, 2, 2, 2), {"groups": 2, "stride": 2}),
}


@all_types
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, name):
    function, shape, kernel, options = CASES[case]
    outs = kernel[0]
    if "transposed" in case:
        outs = kernel[1] * options.get("groups", 1)
    pairs = [laid.drawn(1, shape, name), laid.drawn(2, kernel, name), laid.drawn(3, (outs,), name)]
    laid.check(lambda x, w, b: function(x, w, b, **options), pairs, name)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["2d", "strided", "grouped", "depthwise", "pointwise", "3d"])
def test_channels_last(case, name):
    function, shape, kernel, options = CASES[case]
    pairs = [laid.drawn(1, shape, name, True), laid.drawn(2, kernel, name, True)]
    laid.check(lambda x, w: function(x, w, **options), pairs, name, last=True)


def test_one_channels_last_operand_is_enough():
    x, w = laid.drawn(1, (2, 4, 5, 5), "float32"), laid.drawn(2, (3, 4, 3, 3), "float32", True)
    out, gx, gw = laid.check(lambda x, w: F.conv2d(x, w), [x, w], "float32")
    assert laid.is_last(out) and laid.is_last(gw)


def test_views_as_operands():
    wide, there = laid.drawn(1, (2, 5, 6, 10), "float32")
    w = laid.drawn(2, (3, 2, 3, 3), "float32")
    laid.check(lambda x, w: F.conv2d(x[:, 1:5:2, :, ::2], w), [(wide, there), w], "float32")


def test_nothing_in_the_batch():
    x = torch.zeros(0, 3, 5, 5, device="cuda", requires_grad=True)
    w = torch.ones(2, 3, 3, 3, device="cuda", requires_grad=True)
    out = F.conv2d(x, w, padding=1)
    out.sum().backward()
    assert out.shape == (0, 2, 5, 5) and x.grad.shape == x.shape and not w.grad.cpu().any()


def test_second_derivatives():
    def penalty(device):
        r = np.random.default_rng(0)
        x, w = (torch.tensor(r.standard_normal(s)).to(device).requires_grad_()
                for s in ((1, 2, 4, 4), (3, 2, 3, 3)))
        (g,) = torch.autograd.grad((F.conv2d(x, w, padding=1) ** 2).sum(), x, create_graph=True)
        (g ** 2).sum().backward()
        return x.grad.cpu().numpy(), w.grad.cpu().numpy()

    for a, b in zip(penalty("cuda"), penalty("cpu")):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_infinities_pass():
    x = torch.zeros(1, 1, 4, 4, device="cuda")
    x[0, 0, 1, 1] = float("inf")
    out = F.conv2d(x, torch.ones(1, 1, 2, 2, device="cuda")).cpu()
    assert torch.isinf(out[0, 0, :2, :2]).all() and not out[0, 0, 2, 2]


def test_a_small_network_in_both_layouts():
    from disttorch.models import resnet18

    def train(format, device):
        torch.manual_seed(0)
        model = resnet18(width=4, num_classes=3, small_images=True).to(device, memory_format=format)
        r = np.random.default_rng(0)
        x = torch.tensor(r.standard_normal((2, 3, 8, 8)), dtype=torch.float32).to(
            device, memory_format=format)
        loss = F.cross_entropy(model(x), torch.tensor([0, 2]).to(device))
        loss.backward()
        return float(loss), [p.grad.cpu().numpy() for p in model.parameters()]

    want, grads = train(torch.contiguous_format, "cpu")
    for format in (torch.contiguous_format, torch.channels_last):
        loss, found = train(format, "cuda")
        assert abs(loss - want) < 1e-3
        for a, b in zip(found, grads):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * max(1, np.abs(b).max()))


def test_bfloat16_and_tf32_as_a_network_uses_them(engine):
    """The plans that are taken by default: any that the heuristics put first."""
    with torch.backends.cudnn.flags(deterministic=False, allow_tf32=True):
        for name, room in (("bfloat16", 4e-2), ("float32", 5e-3)):
            (wide, x), (wide_w, w) = (laid.drawn(i, s, name, True)
                                      for i, s in ((1, (2, 16, 9, 9)), (2, (32, 16, 3, 3))))
            out = F.conv2d(x, w, stride=2, padding=1)
            want = F.conv2d(wide, wide_w, stride=2, padding=1)
            out.sum().backward()
            want.sum().backward()
            for a, b in ((out, want), (x.grad, wide.grad), (w.grad, wide_w.grad)):
                a, b = a.detach().cpu().double().numpy(), b.detach().numpy()
                np.testing.assert_allclose(a, b, rtol=0, atol=room * max(1, np.abs(b).max()))
            assert laid.is_last(out) and laid.is_last(x.grad) and laid.is_last(w.grad)


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
@pytest.mark.parametrize("last", [False, True])
def test_benchmark_gives_the_same_values(engine, name, last):
    """Plans chosen by their time, the bias in one graph where that is faster."""
    pairs = [laid.drawn(i, s, name, last and len(s) == 4) for i, s in enumerate(
        ((2, 8, 7, 6), (16, 8, 3, 3), (16,)), 1)]
    with torch.backends.cudnn.flags(benchmark=True, benchmark_limit=4):
        laid.check(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), pairs, name,
                   last=last or None)


def test_bias_in_both_layouts():
    """By 16-byte accesses and by single elements: widths that fill them, and not."""
    for name in laid.DTYPES:
        for outs, size in ((8, (4, 4)), (3, (4, 4)), (8, (3, 3)), (5, (3, 3))):
            for last in (False, True):
                pairs = [laid.drawn(i, s, name, last and len(s) == 4) for i, s in enumerate(
                    ((2, 4, *size), (outs, 4, 1, 1), (outs,)), 1)]
                laid.check(lambda x, w, b: F.conv2d(x, w, b), pairs, name)


def test_plans_are_kept_and_refusals_told(engine):
    if engine != "cudnn":
        pytest.skip("concerns cuDNN")
    x, w = (torch.ones(s, device="cuda").bfloat16() for s in ((2, 8, 6, 6), (8, 8, 3, 3)))
    F.conv2d(x, w)
    before = len(cudnn._plans)
    F.conv2d(x, w)
    assert len(cudnn._plans) == before
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        F.conv2d(x, w)
    assert not told, "cuDNN has no plan for an ordinary convolution"
