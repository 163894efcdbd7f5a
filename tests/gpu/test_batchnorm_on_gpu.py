"""Batch normalisation on the GPU against the CPU in float64."""

from __future__ import annotations

import numpy as np
import pytest
from gpu import laid

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
all_types = pytest.mark.parametrize("name", laid.DTYPES)
SHAPES = {"rows": (40, 6), "1d": (3, 4, 9), "2d": (3, 5, 3, 7), "wide": (3, 8, 4, 8),
          "3d": (2, 3, 2, 3, 4)}


def stats(c, name):
    r = np.random.default_rng(5)
    wide = [torch.tensor(a).to(getattr(torch, name)).double()
            for a in (r.standard_normal(c), r.random(c) + 0.5)]
    return wide, [t.to(getattr(torch, name)).cuda() for t in wide]


@all_types
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_running_statistics(case, training, name):
    shape = SHAPES[case]
    pairs = [laid.drawn(i, s, name) for i, s in enumerate((shape, shape[1:2], shape[1:2]), 1)]
    wide, there = stats(shape[1], name)

    def normal(x, w, b):
        mean, var = (t.clone() for t in (there if x.is_cuda else wide))
        out = F.batch_norm(x, mean, var, w, b, training, 0.3, 1e-3)
        running[x.is_cuda] = mean, var
        return out

    running = {}
    laid.check(normal, pairs, name, 4)
    for got, want in zip(running[True], running[False]):
        laid.near(got, want, name, 2)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 3, 3, 3), (1, 16, 2, 3, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_channels_last(shape, training, name):
    _, there = stats(shape[1], "float32")
    wide = [t.cpu().double() for t in there]
    laid.check(lambda x: F.batch_norm(x, *(there if x.is_cuda else wide), training=training),
               [laid.drawn(1, shape, name, True)], name, 4, last=True)


def test_float32_parameters_with_16_bit_data():
    layer, plain = nn.BatchNorm2d(8).cuda(), nn.BatchNorm2d(8).double()
    wide, x = laid.drawn(1, (4, 8, 3, 3), "bfloat16", True)
    out, want = layer(x), plain(wide)
    laid.near(out, want, "bfloat16", 2)
    laid.near(layer.running_mean, plain.running_mean, "float32")
    laid.near(layer.running_var, plain.running_var, "float32")
    out.sum().backward()
    assert layer.weight.grad.dtype is torch.float32 and x.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batches_are_counted(momentum):
    layer = nn.BatchNorm2d(8, momentum=momentum).cuda()
    plain = nn.BatchNorm2d(8, momentum=momentum)
    version = layer.num_batches_tracked._version
    for i in range(3):
        wide, x = laid.drawn(i, (4, 8, 3, 3), "float32", True)
        layer(x), plain(wide.float())
    assert layer.num_batches_tracked.item() == 3 and layer.num_batches_tracked._version > version
    laid.near(layer.running_mean, plain.running_mean, "float32")
    layer.eval()(x)
    assert layer.num_batches_tracked.item() == 3


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 8, 40, 41), (3, 264, 9, 9), (2, 3, 50, 37)])
def test_many_rows(shape, name):
    """Several blocks a channel, uneven parts, more channels than one tile has."""
    pairs = [laid.drawn(i, s, name, len(s) == 4) for i, s in enumerate(
        (shape, shape[1:2], shape[1:2]), 1)]
    laid.check(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), pairs, name, 6)


def test_large_mean_keeps_its_digits():
    x = 1e4 + np.random.default_rng(0).standard_normal((8, 3, 40)).astype(np.float32)
    var = torch.ones(3, device="cuda")
    F.batch_norm(torch.tensor(x).cuda(), torch.zeros(3, device="cuda"), var, training=True, momentum=1.0)
    np.testing.assert_allclose(var.cpu().numpy(), x.astype(np.float64).var((0, 2), ddof=1), rtol=1e-4)


def test_instance_norm_and_nothing():
    laid.check(lambda x: F.instance_norm(x), [laid.drawn(1, (2, 3, 4, 5), "float32")], "float32", 4)
    empty = torch.zeros(0, 3, 2, 2, device="cuda", requires_grad=True)
    out = F.batch_norm(empty, torch.zeros(3, device="cuda"), torch.ones(3, device="cuda"))
    assert out.shape == empty.shape


@all_types
def test_group_norm(name):
    pairs = [laid.drawn(i, s, name) for i, s in enumerate(((3, 6, 4, 5), (6,), (6,)), 1)]
    laid.check(lambda x, w, b: F.group_norm(x, 3, w, b, 1e-3), pairs, name, 4)


def test_second_derivatives():
    def penalty(device):
        x = torch.tensor(np.random.default_rng(0).standard_normal((3, 2, 4))).to(device).requires_grad_()
        (g,) = torch.autograd.grad((F.batch_norm(x, None, None, training=True) ** 3).sum(), x,
                                   create_graph=True)
        (g ** 2).sum().backward()
        return x.grad.cpu().numpy()

    np.testing.assert_allclose(penalty("cuda"), penalty("cpu"), rtol=1e-7, atol=1e-8)
