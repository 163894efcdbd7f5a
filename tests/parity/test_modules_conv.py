"""Layers of convolutional networks against PyTorch: values, gradients, state, text, training."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt
from disttorch import nn

torch = pytest.importorskip("torch")
tnn = torch.nn
pytestmark = pytest.mark.parity

# name: (constructor, given an nn package; shapes of the inputs)
CASES = {}


def case(name, build, *shapes):
    assert name not in CASES
    CASES[name] = (build, shapes)


IMAGE = (2, 4, 7, 6)
for d, shape in ((1, (2, 4, 9)), (2, IMAGE), (3, (2, 4, 5, 4, 6))):
    for label, args, options in (
        ("plain", (6, 3), {}),
        ("strided", (6, 3), {"stride": 2, "padding": 1, "bias": False}),
        ("same", (6, 2), {"padding": "same", "dilation": 2}),
        ("valid", (5, 3), {"padding": "valid"}),
        ("groups", (6, 3), {"groups": 2, "padding": 2, "stride": (1, 2, 1)[:d]}),
        ("depthwise", (8, 3), {"groups": 4, "padding": 1, "dilation": (2, 1, 1)[:d]}),
        ("pointwise", (6, 1), {}),
        ("pointwise_strided", (6, 1), {"stride": 2}),
        ("reflect", (3, 3), {"padding": 2, "padding_mode": "reflect"}),
        ("replicate", (3, 3), {"padding": (1, 2, 1)[:d], "padding_mode": "replicate"}),
        ("circular", (3, 3), {"padding": "same", "padding_mode": "circular"}),
        ("even", (3, (2, 4, 2)[:d]), {"padding": (0, 1, 1)[:d]}),
    ):
        case(f"conv{d}d_{label}",
             lambda n, d=d, a=args, o=options: getattr(n, f"Conv{d}d")(4, *a, **o), shape)
    for label, args, options in (
        ("plain", (6, 3), {}),
        ("strided", (6, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ("dilated", (6, 2), {"dilation": 2, "bias": False}),
        ("groups", (6, 3), {"groups": 2, "stride": (1, 2, 3)[:d], "padding": 2}),
        ("depthwise", (8, 4), {"groups": 4, "stride": 2, "padding": 1}),
        ("pointwise", (3, 1), {"stride": 2, "output_padding": 1}),
    ):
        case(f"transposed{d}d_{label}",
             lambda n, d=d, a=args, o=options: getattr(n, f"ConvTranspose{d}d")(4, *a, **o),
             shape)
    for label, args, options in (
        ("plain", (2,), {}),
        ("overlap", (3, 2, 1), {}),
        ("ceil", (3, 2), {"ceil_mode": True}),
        ("ceil_pad", (2, 3, 1), {"ceil_mode": True}),
        ("dilated", (2, 1, 1), {"dilation": 2}),
    ):
        case(f"max_pool{d}d_{label}",
             lambda n, d=d, a=args, o=options: getattr(n, f"MaxPool{d}d")(*a, **o), shape)
    for label, args, options in (
        ("plain", (2,), {}),
        ("overlap", (3, 2, 1), {}),
        ("without_pad", (3, 2, 1), {"count_include_pad": False}),
        ("ceil", (3, 2, 1), {"ceil_mode": True}),
        ("ceil_without_pad", (2, 3, 1), {"ceil_mode": True, "count_include_pad": False}),
    ):
        case(f"avg_pool{d}d_{label}",
             lambda n, d=d, a=args, o=options: getattr(n, f"AvgPool{d}d")(*a, **o), shape)
    for label, sizes in (("one", 1), ("some", 2), ("uneven", (4, 3, 4)[:d]), ("more", 11)):
        for kind in ("Avg", "Max"):
            case(f"adaptive_{kind.lower()}_pool{d}d_{label}",
                 lambda n, d=d, k=kind, s=sizes: getattr(n, f"Adaptive{k}Pool{d}d")(s),
                 shape)
    case(f"lp_pool{d}d", lambda n, d=d: getattr(n, f"LPPool{d}d")(2, 2, ceil_mode=True), shape)
    for label, options in (
        ("plain", {}), ("no_affine", {"affine": False}), ("average", {"momentum": None}),
        ("no_stats", {"track_running_stats": False}), ("no_bias", {"bias": False, "eps": 1e-2}),
    ):
        case(f"batch_norm{d}d_{label}",
             lambda n, d=d, o=options: getattr(n, f"BatchNorm{d}d")(4, **o), shape)
    for label, options in (
        ("plain", {}), ("affine", {"affine": True}), ("no_bias", {"affine": True, "bias": False}),
        ("stats", {"track_running_stats": True, "affine": True}),
    ):
        case(f"instance_norm{d}d_{label}",
             lambda n, d=d, o=options: getattr(n, f"InstanceNorm{d}d")(4, **o), shape)
        case(f"instance_norm{d}d_{label}_unbatched",
             lambda n, d=d, o=options: getattr(n, f"InstanceNorm{d}d")(4, **o), shape[1:])
    sides = (2, 1, 0, 3, 1, 2)[: 2 * d]
    for kind in ("Reflection", "Replication", "Circular", "Zero"):
        case(f"{kind.lower()}_pad{d}d",
             lambda n, d=d, k=kind, s=sides: getattr(n, f"{k}Pad{d}d")(s), shape)
        case(f"{kind.lower()}_pad{d}d_cut",
             lambda n, d=d, k=kind: getattr(n, f"{k}Pad{d}d")((-1, 2, 1, -1, 0, 1)[: 2 * d]),
             shape)
    case(f"constant_pad{d}d",
         lambda n, d=d: getattr(n, f"ConstantPad{d}d")((1, -1) * d, 3.5), shape)
    for mode in ("nearest", ("linear", "bilinear", "trilinear")[d - 1]):
        for label, options in (
            ("twice", {"scale_factor": 2}), ("size", {"size": (5, 9, 3)[:d]}),
            ("shrunk", {"scale_factor": 0.6}),
            ("recomputed", {"scale_factor": 1.3, "recompute_scale_factor": True}),
        ):
            case(f"upsample_{mode}_{d}d_{label}",
                 lambda n, m=mode, o=options: n.Upsample(mode=m, **o), shape)
            if mode != "nearest":
                case(f"upsample_{mode}_{d}d_{label}_corners",
                     lambda n, m=mode, o=options: n.Upsample(mode=m, align_corners=True, **o),
                     shape)

for d in (2, 3):
    shape = (IMAGE, (2, 4, 5, 4, 6))[d - 2]
    case(f"avg_pool{d}d_divisor",
         lambda n, d=d: getattr(n, f"AvgPool{d}d")(2, 1, 1, divisor_override=3), shape)
    case(f"adaptive_avg_pool{d}d_none",
         lambda n, d=d: getattr(n, f"AdaptiveAvgPool{d}d")((None, 2, 3)[:d]), shape)
case("batch_norm1d_flat", lambda n: n.BatchNorm1d(5), (6, 5))
case("conv2d_unbatched", lambda n: n.Conv2d(4, 3, 3, padding=1), IMAGE[1:])
case("transposed2d_unbatched", lambda n: n.ConvTranspose2d(4, 3, 3), IMAGE[1:])
case("max_pool2d_unbatched", lambda n: n.MaxPool2d(2), IMAGE[1:])
for groups in (1, 2, 4):
    case(f"group_norm_{groups}", lambda n, g=groups: n.GroupNorm(g, 4), IMAGE)
case("group_norm_plain", lambda n: n.GroupNorm(2, 4, affine=False), (3, 4))
case("group_norm_no_bias", lambda n: n.GroupNorm(2, 4, 1e-2, bias=False), (3, 4, 5))
case("local_response_norm", lambda n: n.LocalResponseNorm(3, 0.1, 0.6, 2.0), IMAGE)
case("local_response_norm_even", lambda n: n.LocalResponseNorm(2), (2, 4, 5, 3, 2))
case("upsample_bicubic", lambda n: n.Upsample(scale_factor=1.7, mode="bicubic"), IMAGE)
case("upsample_bicubic_corners",
     lambda n: n.Upsample((5, 11), mode="bicubic", align_corners=True), IMAGE)
case("upsampling_nearest", lambda n: n.UpsamplingNearest2d(scale_factor=2), IMAGE)
case("upsampling_bilinear", lambda n: n.UpsamplingBilinear2d((3, 9)), IMAGE)
case("pixel_shuffle", lambda n: n.PixelShuffle(2), IMAGE)
case("pixel_unshuffle", lambda n: n.PixelUnshuffle(2), (2, 3, 4, 6))
case("channel_shuffle", lambda n: n.ChannelShuffle(2), IMAGE)
case("unfold", lambda n: n.Unfold((2, 3), (2, 1), (1, 0), (1, 2)), IMAGE)
case("fold", lambda n: n.Fold((4, 5), 2, padding=1), (2, 8, 30))
case("cosine_similarity", lambda n: n.CosineSimilarity(), (3, 4), (3, 4))
case("pairwise_distance", lambda n: n.PairwiseDistance(), (3, 4), (3, 4))
case("pairwise_distance_options", lambda n: n.PairwiseDistance(1.5, 0.1, True), (3, 4), (3, 4))
case("network", lambda n: n.Sequential(
    n.Conv2d(4, 8, 3, padding=1, bias=False), n.BatchNorm2d(8), n.ReLU(), n.MaxPool2d(2),
    n.Conv2d(8, 8, 3, groups=2, padding=1), n.GroupNorm(4, 8), n.ReLU(), n.AdaptiveAvgPool2d(2),
    n.Flatten(), n.Linear(32, 3)), IMAGE)

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}


def both(name, dtype):
    """The same module twice, from the same weights, all of them drawn at random."""
    build, shapes = CASES[name]
    rng = np.random.default_rng(3)
    theirs, ours = build(tnn), build(nn)
    for value in theirs.state_dict().values():
        if value.dtype.is_floating_point:
            value.copy_(torch.tensor(rng.uniform(0.3, 1.2, value.shape)))
    state = {k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()}
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"
    kinds = getattr(dt, dtype), getattr(torch, dtype)
    return ours.to(kinds[0]), theirs.to(kinds[1]), [rng.uniform(-2, 2, s) for s in shapes]


def close(mine, other, rtol):
    a, b = mine.detach().numpy(), other.detach().numpy()
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol, rtol * max(float(np.abs(b).max(initial=0)), 1.0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_three_training_steps(name, dtype):
    """Values, all gradients, updated weights and running statistics after each step."""
    ours, theirs, arrays = both(name, dtype)
    rtol, rng = TOLERANCE[dtype], np.random.default_rng(4)
    mine = [dt.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    other = [torch.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    for _ in range(3):
        y, z = ours(*mine), theirs(*other)
        close(y, z, rtol)
        g = rng.uniform(-1, 1, z.shape).astype(dtype)
        y.backward(dt.tensor(g))
        z.backward(torch.tensor(g))
        for a, b in [*zip(mine, other), *zip(ours.parameters(), theirs.parameters())]:
            assert b.grad is not None
            close(a.grad, b.grad, 4 * rtol)
            with dt.no_grad():
                a -= 0.1 * a.grad / a.grad.abs().max()
            with torch.no_grad():
                b -= 0.1 * b.grad / b.grad.abs().max()
            a.grad = b.grad = None
        for a, b in zip(ours.buffers(), theirs.buffers()):
            close(a, b, rtol)
    ours.eval(), theirs.eval()
    close(ours(*mine), theirs(*other), 4 * rtol)


@pytest.mark.parametrize("name", CASES)
def test_text_and_state(name):
    build, _ = CASES[name]
    ours, theirs = build(nn), build(tnn)
    assert repr(ours) == repr(theirs)
    a, b = ours.state_dict(), theirs.state_dict()
    assert [(k, tuple(v.shape), str(v.dtype)) for k, v in a.items()] == [
        (k, tuple(v.shape), str(v.dtype)) for k, v in b.items()
    ]
    assert a._metadata == b._metadata


def test_every_module_of_the_family_has_a_case():
    from disttorch.nn.modules import batchnorm, conv, padding, pooling, vision

    used = {type(m).__name__ for build, _ in CASES.values() for m in build(nn).modules()}
    elsewhere = {"CrossMapLRN2d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
                 "FractionalMaxPool2d", "FractionalMaxPool3d"}
    family = {n for module in (batchnorm, conv, padding, pooling, vision) for n in module.__all__}
    assert family - used == elsewhere


# ---------------------------------------------------------------- modules of two inputs, and random ones
def pair(array):
    return dt.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)


def same_gradients(outputs, inputs, rtol=1e-9):
    """Values of (mine, PyTorch's) and the gradients of their weighted sum."""
    y, z = outputs
    close(y, z, rtol)
    g = np.cos(np.arange(z.numel()) + 0.3).reshape(z.shape)
    y.backward(dt.tensor(g).to(y.dtype))
    z.backward(torch.tensor(g).to(z.dtype))
    for a, b in inputs:
        close(a.grad, b.grad, 4 * rtol)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_cross_map_lrn_values(size):
    """PyTorch's own backward is not the gradient of this forward: values only."""
    x, y = pair(np.random.default_rng(0).uniform(-2, 2, (2, 6, 3, 2)))
    ours, theirs = nn.CrossMapLRN2d(size, 0.1), tnn.CrossMapLRN2d(size, 0.1)
    assert repr(ours) == repr(theirs)
    close(ours(x), theirs(y), 1e-9)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [(2, None, 0), (3, 2, 1)])
def test_max_unpool(dims, options):
    rng = np.random.default_rng(1)
    shape = (2, 3, 7, 6, 4)[: 2 + dims]
    x, y = pair(rng.uniform(-2, 2, shape))
    pooled = [
        getattr(n, f"MaxPool{dims}d")(*options, return_indices=True)(t)
        for n, t in ((nn, x), (tnn, y))
    ]
    np.testing.assert_array_equal(pooled[0][1].numpy(), pooled[1][1].numpy())
    makers = [getattr(n, f"MaxUnpool{dims}d")(*options) for n in (nn, tnn)]
    assert repr(makers[0]) == repr(makers[1])
    if options[0] == 3:  # windows overlap: which of equal places wins is not defined
        with pytest.raises(ValueError) as mine:
            makers[0](*pooled[0], output_size=(50,) * dims)
        assert "output_size" in str(mine.value)
        return
    outputs = [m(*p, output_size=shape) for m, p in zip(makers, pooled)]
    same_gradients(outputs, [(x, y)])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("by_ratio", [True, False])
def test_fractional_max_pool(dims, by_ratio):
    rng = np.random.default_rng(2)
    array, samples = rng.uniform(-2, 2, (2, 3, 9, 8, 7)[: 2 + dims]), rng.uniform(0, 1, (2, 3, dims))
    x, y = pair(array)
    size = {"output_ratio": 0.5} if by_ratio else {"output_size": (5, 4, 3)[:dims]}
    both_ = [
        getattr(n, f"FractionalMaxPool{dims}d")(
            (2, 3, 2)[:dims], return_indices=True, _random_samples=p.tensor(samples), **size)(t)
        for n, p, t in ((nn, dt, x), (tnn, torch, y))
    ]
    np.testing.assert_array_equal(both_[0][1].numpy(), both_[1][1].numpy())
    same_gradients([b[0] for b in both_], [(x, y)])
    dt.manual_seed(0)
    module = getattr(nn, f"FractionalMaxPool{dims}d")(2, output_ratio=0.7)
    assert not np.array_equal(module(x).detach().numpy(), module(x).detach().numpy())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_max_pool_indices(dims):
    rng = np.random.default_rng(3)
    array = rng.integers(0, 3, (2, 3, 7, 5, 6)[: 2 + dims]).astype("float64")  # many equal maxima
    results = [
        getattr(f, f"adaptive_max_pool{dims}d")(p.tensor(array), (3, 2, 4)[:dims], True)
        for f, p in ((nn.functional, dt), (tnn.functional, torch))
    ]
    for a, b in zip(*results):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (2, 1, 0, 2), (3, 2, 1, 1, True)])
def test_max_pool_indices(options):
    rng = np.random.default_rng(4)
    array = rng.integers(0, 3, (2, 3, 8, 7)).astype("float32")
    array[0, 0, 2, 3] = np.nan
    results = [
        f.max_pool2d(p.tensor(array), *options, return_indices=True)
        for f, p in ((nn.functional, dt), (tnn.functional, torch))
    ]
    for a, b in zip(*results):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# ---------------------------------------------------------------- functions
MODES = ["bilinear", "nearest", "bicubic"]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", MODES)
def test_grid_sample(mode, padding_mode, align_corners):
    rng = np.random.default_rng(5)
    for dims in (2, 3):
        if dims == 3 and mode == "bicubic":
            continue
        x, y = pair(rng.uniform(-2, 2, (2, 3, 5, 4, 6)[: 2 + dims]))
        g, h = pair(rng.uniform(-2.3, 2.3, (2, *(3, 4, 2)[:dims], dims)))
        outputs = [f.grid_sample(a, b, mode, padding_mode, align_corners)
                   for f, a, b in ((nn.functional, x, g), (tnn.functional, y, h))]
        if mode == "nearest":  # PyTorch gives the grid a gradient of zeros
            same_gradients(outputs, [(x, y)])
        else:
            same_gradients(outputs, [(x, y), (g, h)], 1e-8)


@pytest.mark.parametrize("align_corners", [False, True])
def test_affine_grid(align_corners):
    rng = np.random.default_rng(6)
    for size in ((2, 3, 4, 5), (2, 1, 3, 4, 2)):
        dims = len(size) - 2
        t, u = pair(rng.uniform(-1, 1, (2, dims, dims + 1)))
        outputs = [f.affine_grid(a, size, align_corners)
                   for f, a in ((nn.functional, t), (tnn.functional, u))]
        same_gradients(outputs, [(t, u)])


RESIZED = [
    ("area", {"size": (3, 4)}), ("area", {"scale_factor": 0.5}), ("nearest-exact", {"size": (4, 9)}),
    ("nearest-exact", {"scale_factor": 1.6}), ("bilinear", {"size": (3, 2), "antialias": True}),
    ("bicubic", {"size": (3, 10), "antialias": True}),
    ("bilinear", {"scale_factor": 0.4, "antialias": True}),
    ("bicubic", {"size": (3, 4), "antialias": True, "align_corners": True}),
    ("nearest", {"scale_factor": (0.7, 1.9)}), ("bilinear", {"scale_factor": (2.0, 0.3)}),
]


@pytest.mark.parametrize("mode, options", RESIZED)
def test_interpolate(mode, options):
    x, y = pair(np.random.default_rng(7).uniform(-2, 2, (2, 3, 9, 8)))
    outputs = [f.interpolate(a, mode=mode, **options)
               for f, a in ((nn.functional, x), (tnn.functional, y))]
    same_gradients(outputs, [(x, y)], 1e-6 if "antialias" in options else 1e-9)


def test_nearest_over_many_sizes():
    """The rounding of places decides which pixel is copied."""
    for dims, dtype, mode in ((1, "float32", "nearest"), (1, "float64", "nearest-exact"),
                              (2, "float64", "nearest"), (2, "float32", "nearest-exact")):
        for n in range(1, 40, 3):
            array = np.arange(n, dtype=dtype)[(None,) * (1 + dims)]
            for size in range(1, 60):
                want = (1, size)[2 - dims:]
                a = nn.functional.interpolate(dt.tensor(array), want, mode=mode)
                b = tnn.functional.interpolate(torch.tensor(array), want, mode=mode)
                np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_padding_of_integers_and_more_dims():
    rng = np.random.default_rng(8)
    for pad, mode in (((1, 2, 0, 1, 2, 0), "constant"), ((2, 1), "reflect"), ((3, 3), "circular")):
        shape = (2, 3, 4, 5, 3) if mode == "constant" else (2, 3, 5)
        array = rng.integers(-5, 5, shape)
        a = nn.functional.pad(dt.tensor(array), pad, mode)
        b = tnn.functional.pad(torch.tensor(array), pad, mode)
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert str(a.dtype) == str(b.dtype)


def test_infinities_stay_where_they_are():
    array = np.zeros((1, 1, 7))
    array[0, 0, 0] = np.inf
    for name, args in (("adaptive_avg_pool1d", (3,)), ("interpolate", (14,)),
                       ("pad", ((2, 2), "reflect"))):
        results = [getattr(f, name)(p.tensor(array), *args)
                   for f, p in ((nn.functional, dt), (tnn.functional, torch))]
        np.testing.assert_array_equal(results[0].numpy(), results[1].numpy())


def test_complex_convolution():
    rng = np.random.default_rng(9)
    arrays = [rng.normal(size=s) + 1j * rng.normal(size=s) for s in ((2, 4, 6, 5), (6, 2, 3, 2))]
    pairs = [pair(a) for a in arrays]
    outputs = [f.conv2d(pairs[0][i], pairs[1][i], None, 2, 1, 1, 2)
               for i, f in enumerate((nn.functional, tnn.functional))]
    same_gradients(outputs, pairs)


def test_half_precision_accumulates_in_single():
    rng = np.random.default_rng(10)
    for dtype, rtol in (("float16", 2e-3), ("bfloat16", 2e-2)):
        x, w = rng.uniform(-1, 1, (2, 64, 8, 8)), rng.uniform(-1, 1, (8, 64, 3, 3))
        a, b = (
            f.conv2d(p.tensor(x).to(getattr(p, dtype)), p.tensor(w).to(getattr(p, dtype)))
            for f, p in ((nn.functional, dt), (tnn.functional, torch))
        )
        close(a.float(), b.float(), rtol)


# ---------------------------------------------------------------- errors
x4, x3 = (2, 4, 6, 6), (2, 4, 6)
ERRORS = {
    "channels": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 5, 3, 3)),
    "dims": lambda p, f: f.conv2d(p.zeros(2, 3), p.zeros(3, 5, 3, 3)),
    "small": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 7, 7)),
    "bias": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), p.zeros(4)),
    "groups": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 2, 3, 3), groups=2),
    "stride": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), stride=0),
    "padding": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), padding=-1),
    "same": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), padding="same", stride=2),
    "padding_word": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), padding="full"),
    "dtype": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3, dtype=p.float64)),
    "stride_count": lambda p, f: f.conv2d(p.zeros(x4), p.zeros(3, 4, 3, 3), stride=(1, 2, 3)),
    "not_tensor": lambda p, f: f.conv2d(3, p.zeros(3, 4, 3, 3)),
    "output_padding": lambda p, f: f.conv_transpose2d(
        p.zeros(x4), p.zeros(4, 3, 3, 3), output_padding=1),
    "transposed_channels": lambda p, f: f.conv_transpose2d(p.zeros(x4), p.zeros(3, 3, 3, 3)),
    "pool_size": lambda p, f: f.max_pool2d(p.zeros(x4), 9),
    "pool_pad": lambda p, f: f.max_pool2d(p.zeros(x4), 2, padding=2),
    "pool_dims": lambda p, f: f.max_pool2d(p.zeros(2, 3), 2),
    "pool_stride": lambda p, f: f.max_pool2d(p.zeros(x4), 2, 0),
    "divisor": lambda p, f: f.avg_pool2d(p.zeros(x4), 2, divisor_override=0),
    "norm_one": lambda p, f: f.batch_norm(p.zeros(1, 3), None, None, training=True),
    "instance_one": lambda p, f: f.instance_norm(p.zeros(2, 3, 1)),
    "group_norm": lambda p, f: f.group_norm(p.zeros(2, 4, 3), 3),
    "group_norm_weight": lambda p, f: f.group_norm(p.zeros(2, 4, 3), 2, p.zeros(3)),
    "norm_eval": lambda p, f: f.batch_norm(p.zeros(2, 3), p.zeros(2), p.zeros(2)),
    "pad_odd": lambda p, f: f.pad(p.zeros(x4), (1,)),
    "pad_long": lambda p, f: f.pad(p.zeros(2), (1, 1, 1, 1)),
    "pad_reflect": lambda p, f: f.pad(p.zeros(x3), (6, 0), "reflect"),
    "pad_circular": lambda p, f: f.pad(p.zeros(x3), (7, 0), "circular"),
    "pad_mode": lambda p, f: f.pad(p.zeros(x3), (1, 1), "mirror"),
    "pad_dims": lambda p, f: f.pad(p.zeros(2), (1, 1), "reflect"),
    "pad_negative": lambda p, f: f.pad(p.zeros(2, 3), (-2, -2)),
    "pad_value": lambda p, f: f.pad(p.zeros(x3), (1, 1), "reflect", 2.0),
    "size_and_scale": lambda p, f: f.interpolate(p.zeros(x4), 3, 2.0),
    "no_size": lambda p, f: f.interpolate(p.zeros(x4)),
    "mode_dims": lambda p, f: f.interpolate(p.zeros(x3), 3, mode="bilinear"),
    "corners": lambda p, f: f.interpolate(p.zeros(x4), 3, mode="nearest", align_corners=True),
    "size_count": lambda p, f: f.interpolate(p.zeros(x4), (3, 3, 3)),
    "antialias": lambda p, f: f.interpolate(p.zeros(x3), 3, mode="linear", antialias=True),
    "shuffle": lambda p, f: f.pixel_shuffle(p.zeros(x4), 3),
    "unshuffle": lambda p, f: f.pixel_unshuffle(p.zeros(x4), 5),
    "channel_shuffle": lambda p, f: f.channel_shuffle(p.zeros(x4), 3),
    "grid_mode": lambda p, f: f.grid_sample(p.zeros(x4), p.zeros(2, 3, 3, 2), "cubic"),
    "grid_batch": lambda p, f: f.grid_sample(
        p.zeros(x4), p.zeros(3, 3, 3, 2), align_corners=False),
    "grid_last": lambda p, f: f.grid_sample(p.zeros(x4), p.zeros(2, 3, 3, 3), align_corners=False),
    "theta": lambda p, f: f.affine_grid(p.zeros(2, 3, 3), (2, 1, 3, 3), False),
    "fold": lambda p, f: f.fold(p.zeros(2, 8, 9), (5, 5), 2),
    "fold_channels": lambda p, f: f.fold(p.zeros(2, 7, 9), (4, 4), 2),
    "unfold_size": lambda p, f: f.unfold(p.zeros(x4), 9),
    "unpool": lambda p, f: f.max_unpool2d(p.zeros(x4), p.zeros(x4).long() + 900, 2),
    "fractional": lambda p, f: f.fractional_max_pool2d(p.zeros(x4), 2),
    "fractional_size": lambda p, f: f.fractional_max_pool2d(p.zeros(x4), 3, 6),
    "lrn": lambda p, f: f.local_response_norm(p.zeros(2, 3), 2),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_type(name):
    caught = []
    for package, functional in ((torch, tnn.functional), (dt, nn.functional)):
        with pytest.raises(Exception) as error:
            ERRORS[name](package, functional)
        caught.append(error)
    assert caught[0].type.__name__ == caught[1].type.__name__, caught[1].value
    assert len(str(caught[1].value)) > 10


MODULE_ERRORS = {
    "groups": lambda n, p: n.Conv2d(3, 4, 3, groups=2),
    "same": lambda n, p: n.Conv2d(3, 4, 3, 2, "same"),
    "mode": lambda n, p: n.Conv2d(3, 4, 3, padding_mode="mirror"),
    "transposed_mode": lambda n, p: n.ConvTranspose2d(3, 4, 3, padding_mode="reflect"),
    "output_size": lambda n, p: n.ConvTranspose2d(3, 4, 3, 2)(p.zeros(1, 3, 4, 4), [20, 9]),
    "norm_dims": lambda n, p: n.BatchNorm2d(3)(p.zeros(2, 3)),
    "norm_channels": lambda n, p: n.BatchNorm2d(3)(p.zeros(2, 4, 3, 3)),
    "norm_one": lambda n, p: n.BatchNorm1d(3)(p.zeros(1, 3)),
    "instance_channels": lambda n, p: n.InstanceNorm1d(3, affine=True)(p.zeros(2, 4, 3)),
    "group_norm": lambda n, p: n.GroupNorm(3, 4),
    "fractional": lambda n, p: n.FractionalMaxPool2d(2),
}


@pytest.mark.parametrize("name", MODULE_ERRORS)
def test_module_error_type(name):
    caught = []
    for package, module in ((torch, tnn), (dt, nn)):
        with pytest.raises(Exception) as error:
            MODULE_ERRORS[name](module, package)
        caught.append(error.type.__name__)
    assert caught[0] == caught[1]


def test_transposed_output_size():
    rng = np.random.default_rng(11)
    x, y = pair(rng.uniform(-1, 1, (1, 3, 4, 4)))
    theirs = tnn.ConvTranspose2d(3, 2, 3, stride=2, padding=1).double()
    ours = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1).double()
    ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    for size in ([7, 8], [1, 2, 8, 7]):
        close(ours(x, output_size=size), theirs(y, output_size=size), 1e-9)


# ---------------------------------------------------------------- lazy modules
LAZY = {
    "linear": (lambda n: n.LazyLinear(3), (2, 5)),
    "conv1d": (lambda n: n.LazyConv1d(4, 3, groups=2, padding=1), (2, 4, 6)),
    "conv2d": (lambda n: n.LazyConv2d(3, 3, bias=False), (2, 4, 6, 5)),
    "conv3d": (lambda n: n.LazyConv3d(3, 2), (2, 2, 4, 3, 3)),
    "transposed1d": (lambda n: n.LazyConvTranspose1d(3, 2, 2), (2, 4, 6)),
    "transposed2d": (lambda n: n.LazyConvTranspose2d(4, 2, groups=2), (2, 4, 3, 3)),
    "transposed3d": (lambda n: n.LazyConvTranspose3d(3, 2), (2, 2, 3, 3, 3)),
    "batch_norm1d": (lambda n: n.LazyBatchNorm1d(), (4, 3)),
    "batch_norm2d": (lambda n: n.LazyBatchNorm2d(affine=False), (2, 3, 4, 4)),
    "batch_norm3d": (lambda n: n.LazyBatchNorm3d(track_running_stats=False), (2, 3, 2, 4, 4)),
    "instance_norm1d": (lambda n: n.LazyInstanceNorm1d(), (2, 3, 5)),
    "instance_norm2d": (lambda n: n.LazyInstanceNorm2d(bias=False), (2, 3, 4, 4)),
    "instance_norm3d": (lambda n: n.LazyInstanceNorm3d(), (2, 3, 2, 4, 4)),
}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_module(name):
    build, shape = LAZY[name]
    array = np.random.default_rng(12).uniform(-1, 1, shape)
    ours, theirs = build(nn), build(tnn)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [repr(v) for v in ours.parameters()] == [repr(v) for v in theirs.parameters()]
    ours, theirs = ours.double(), theirs.double()
    theirs(torch.tensor(array))
    other = build(nn).double()
    ours(dt.tensor(array))
    assert repr(ours) == repr(theirs) and type(ours).__name__ == type(theirs).__name__
    assert not ours._forward_pre_hooks
    # an uninitialised module takes the shapes of what it loads
    state = {k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()}
    for module in (ours, other):
        assert str(module.load_state_dict(state)) == "<All keys matched successfully>"
        close(module.eval()(dt.tensor(array)), theirs.eval()(torch.tensor(array)), 1e-9)
        assert repr(module) == repr(theirs)
        assert all(v.dtype is dt.float64 for v in module.parameters())


def test_lazy_parameters_refuse_use():
    for package, module in ((dt, nn), (torch, tnn)):
        layer = module.LazyLinear(3)
        with pytest.raises(ValueError, match="uninitialized"):
            layer.weight.sum()
        with pytest.raises(RuntimeError, match="shape of an uninitialized"):
            layer.weight.shape  # noqa: B018
        with pytest.raises(RuntimeError):
            module.Linear(2, 3).load_state_dict(layer.state_dict())
        network = module.Sequential(module.LazyConv2d(2, 3), module.ReLU(), module.LazyBatchNorm2d())
        optimizer = package.optim.SGD(network.parameters(), 0.1)
        network(package.ones(1, 3, 5, 5)).sum().backward()
        optimizer.step()  # the parameters are the same objects as before
        assert network[0].weight.shape == (2, 3, 3, 3)
        assert all(p.grad is not None for p in network.parameters())
