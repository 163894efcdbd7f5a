"""Random programs of views, in-place changes and arithmetic: the same gradients as PyTorch's.

A program that PyTorch refuses somewhere may be one that we run, when the values are well defined
(an operand that overlaps what is written, an expanded tensor that is filled): where the two sides
took different steps their results are not comparable, and such programs must stay rare.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning")]

ACTIONS = (
    lambda m, t, o: t * o,
    lambda m, t, o: t + o,
    lambda m, t, o: t.t() if t.ndim == 2 else t.unsqueeze(0),
    lambda m, t, o: t[0],
    lambda m, t, o: t[..., 1:],
    lambda m, t, o: t.mul_(o if o is not t else 2.0),
    lambda m, t, o: t.add_(o, alpha=0.5),
    lambda m, t, o: assign(t, 0, o.sum()),
    lambda m, t, o: assign(t, (..., slice(0, 1)), t[..., 1:2] * 2),
    lambda m, t, o: t.view(-1),
    lambda m, t, o: t.exp(),
    lambda m, t, o: t.sigmoid_(),
    lambda m, t, o: t.reshape(t.numel()),
    lambda m, t, o: t.expand(2, *t.shape) if t.ndim < 3 else t.sum(0),
    lambda m, t, o: t.copy_(o),
    lambda m, t, o: t.detach(),
    lambda m, t, o: m.where(t > 0, t, o),
    lambda m, t, o: t.clamp_(min=-0.5),
    lambda m, t, o: t.masked_fill_(t > 1, 0.3),
    lambda m, t, o: t.diagonal() if t.ndim == 2 else t * 2,
    lambda m, t, o: t.zero_(),
    lambda m, t, o: m.cat([t.reshape(-1), o.reshape(-1)])[:6],
)


def assign(t, index, value):
    t[index] = value
    return t


def run(m, seed):
    """(what each step did, gradients of the leaves or the kind of error of backward)."""
    rng = random.Random(seed)

    def draw(*shape):
        return m.tensor(np.random.RandomState(rng.randrange(10**6)).randn(*shape))

    leaves = [draw(3, 4).requires_grad_(), draw(4).requires_grad_()]
    pool, log = [leaves[0] * 1.0, leaves[1] * 1.0, draw(3, 4)], []
    for _ in range(rng.randint(3, 9)):
        t, action, o = rng.choice(pool), rng.randrange(len(ACTIONS)), rng.choice(pool)
        try:
            result = ACTIONS[action](m, t, o)
        except (RuntimeError, IndexError) as error:
            log.append((action, type(error).__name__))
            continue
        log.append((action, tuple(result.shape), bool(result.requires_grad)))
        if not any(result is p for p in pool):
            pool.append(result)
    wanted = [p for p in pool if p.requires_grad]
    if not wanted:
        return log, None
    try:
        sum(p.pow(2).sum() * (i + 1) for i, p in enumerate(wanted)).backward()
    except RuntimeError:
        return log, "refused"
    return log, [None if t.grad is None else t.grad.numpy().copy() for t in leaves]


@pytest.mark.parametrize("block", range(10))
def test_gradients_of_random_programs(block):
    comparable = with_gradients = 0
    for seed in range(100 * block, 100 * block + 100):
        (ours_log, ours), (theirs_log, theirs) = run(dt, seed), run(torch, seed)
        if ours_log != theirs_log:
            continue
        comparable += 1
        if theirs is None or isinstance(theirs, str):
            assert ours == theirs, f"seed {seed}"
            continue
        with_gradients += 1
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None), f"seed {seed}"
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=f"seed {seed}")
    assert comparable >= 90 and with_gradients >= 60, (comparable, with_gradients)
