"""What the tests of convolutional layers on the GPU share: values, layouts, comparisons."""

from __future__ import annotations

import numpy as np

import disttorch as torch

DTYPES = {"float32": 3e-5, "float64": 1e-11, "float16": 5e-3, "bfloat16": 4e-2}


def drawn(seed, shape, name, last=False):
    """Values that the type holds exactly: (on the CPU in float64, on the GPU), both with gradients."""
    values = torch.tensor(np.random.default_rng(seed).standard_normal(shape))
    wide = values.to(getattr(torch, name)).double()
    there = wide.to(getattr(torch, name)).cuda()
    if last:
        there = there.to(memory_format=format_of(shape))
    return wide.requires_grad_(), there.requires_grad_()


def format_of(shape):
    return torch.channels_last if len(shape) == 4 else torch.channels_last_3d


def near(got, want, name, scale=1.0):
    """Equal to the tolerance of the type, of the same shape and of that type."""
    assert got.dtype is getattr(torch, name) and got.shape == want.shape
    got, want = got.detach().cpu().double().numpy(), want.detach().double().numpy()
    room = DTYPES[name] * scale * max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=room)


def is_last(t) -> bool:
    return t.is_contiguous(memory_format=format_of(t.shape))


def check(function, pairs, name, scale=2.0, last=None):
    """A function's values and gradients on the GPU against those in float64 on the CPU, twice the same
    bits. ``pairs``: from ``drawn``; with ``last`` the result and the first gradient have that layout."""
    want = function(*(p[0] for p in pairs))
    g = torch.tensor(np.random.default_rng(9).standard_normal(tuple(want.shape)))
    g = g.to(getattr(torch, name)).double()
    want.backward(g)
    seen = []
    for _ in range(2):
        for _, t in pairs:
            t.grad = None
        out = function(*(p[1] for p in pairs))
        there = g.to(getattr(torch, name)).cuda()
        out.backward(there.to(memory_format=format_of(g.shape)) if last else there)
        seen.append([out, *(t.grad for _, t in pairs)])
    near(seen[0][0], want, name, scale)
    for (wide, _), found in zip(pairs, seen[0][1:]):
        near(found, wide.grad, name, scale * 2)
    for a, b in zip(*seen):
        assert torch.equal(a.detach().cpu(), b.detach().cpu()), "two runs differ"
    if last:
        assert is_last(seen[0][0]) and is_last(seen[0][1])
    return seen[0]
