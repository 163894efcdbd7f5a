"""Sample inputs of all registered ops, made for a test: see ``disttorch.ops.samples``."""

from __future__ import annotations

import numpy as np

import disttorch as torch
from disttorch.ops.core import REGISTRY
from disttorch.tensor import Tensor


class Maker:
    """Draws the tensors of sample inputs, reproducibly.

    ``m(3, 4)`` is a float64 tensor that requires grad, drawn from [low, high] and kept away from
    the points in ``avoid`` (kinks, where no derivative exists).
    """

    def __init__(self, seed=0, dtype=torch.float64, requires_grad=True):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.requires_grad = dtype, requires_grad

    def __call__(self, *shape, low=-2.0, high=2.0, avoid=()):
        a = self.rng.uniform(low, high, shape)
        for point in avoid:
            near = np.abs(a - point) < 0.1
            a = np.where(near, a + np.where(a >= point, 0.15, -0.15), a)
        t = torch.tensor(np.asarray(a)).to(self.dtype)
        return t.requires_grad_(self.requires_grad)

    def constant(self, *shape, **options):
        """Like the call, without a gradient."""
        return self(*shape, **options).detach()

    def zeroed(self, *shape):
        """Like the call, with zeros among the elements."""
        t = self.constant(*shape)
        t._data.reshape(-1)[::3] = 0
        return t.requires_grad_(self.requires_grad)

    def complex(self, *shape):
        a = self.rng.uniform(-2, 2, shape) + 1j * self.rng.uniform(-2, 2, shape)
        return torch.tensor(np.asarray(a)).requires_grad_(self.requires_grad)

    def int(self, *shape, low=0, high=9):
        return torch.tensor(self.rng.integers(low, high, shape))

    def index(self, size, *shape):
        """Indices below ``size``."""
        return torch.tensor(self.rng.integers(0, max(size, 1), shape))

    def permutation(self, n):
        return torch.tensor(self.rng.permutation(n))

    def bool(self, *shape):
        return torch.tensor(self.rng.integers(0, 2, shape).astype(bool))


def cases(op, **options):
    return op.samples(Maker(**options)) if op.samples else []


def flatten_inputs(case):
    """(all tensors of a call, a function that rebuilds the call from new ones)."""
    found = []

    def walk(value):
        if isinstance(value, Tensor):
            found.append(value)
            return ("t", len(found) - 1)
        if isinstance(value, list):
            return ("l", [walk(v) for v in value])
        return ("v", value)

    args = [walk(a) for a in case.args]
    kwargs = {k: walk(v) for k, v in case.kwargs.items()}

    def build(spec, tensors):
        kind, value = spec
        if kind == "t":
            return tensors[value]
        return [build(v, tensors) for v in value] if kind == "l" else value

    def call(function, tensors):
        return function(*(build(a, tensors) for a in args),
                        **{k: build(v, tensors) for k, v in kwargs.items()})

    return found, call


def differentiable_ops():
    return sorted(n for n, op in REGISTRY.items() if op.differentiable and op.samples)


def sampled_ops():
    return sorted(n for n, op in REGISTRY.items() if op.samples)
