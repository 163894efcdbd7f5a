"""Equal parameters on the CPU and on the GPU, and gradients for both: for tests of optimizers."""

from __future__ import annotations

import numpy as np

import disttorch as torch

SHAPES = ((3, 5), (1,), (), (0,), (67,), (2, 32768 + 5), (16,))  # one is longer than a chunk


def host(t):
    """A tensor's values as a NumPy array."""
    t = t.detach().cpu()
    return (t.float() if t.dtype is torch.bfloat16 else t).numpy()


def pairs(dtype=torch.float32, shapes=SHAPES, seed=0):
    """Equal parameters on the CPU and on the GPU."""
    rng = np.random.default_rng(seed)
    mine = [torch.tensor(rng.standard_normal(s)).to(dtype).requires_grad_() for s in shapes]
    return mine, [p.detach().cuda().requires_grad_() for p in mine]


def give_gradients(mine, theirs, seed, leave_out=()):
    """Equal gradients for both, none for the parameters of these numbers."""
    rng = np.random.default_rng(100 + seed)
    for i, (p, q) in enumerate(zip(mine, theirs)):
        drawn = torch.tensor(rng.standard_normal(tuple(p.shape))).to(p.dtype)
        p.grad = None if i in leave_out else drawn
        q.grad = None if p.grad is None else p.grad.cuda()
