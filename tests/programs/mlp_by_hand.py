"""A two-layer network with tensors and autograd only, and its gradient checked by hand."""

import math

import numpy as np
import torch


def main():
    rng = np.random.default_rng(3)
    dtype = torch.get_default_dtype()

    def parameter(*shape):
        values = rng.standard_normal(shape) / math.sqrt(shape[0])
        return torch.tensor(values, dtype=dtype, requires_grad=True)

    x = torch.linspace(-2, 2, 50, dtype=dtype)[:, None]
    y = torch.sin(2 * x) + 0.2 * x.pow(2)
    w1, b1, w2, b2 = parameter(1, 16), parameter(16), parameter(16, 1), parameter(1)
    losses = []
    for _ in range(50):
        hidden = torch.tanh(x.mm(w1) + b1)
        hidden.retain_grad()
        out = hidden.mm(w2) + b2
        loss = (out - y).pow(2).mean()
        loss.backward()
        by_hand = (2 * (out - y) / y.numel()).mm(w2.t())
        assert torch.allclose(hidden.grad, by_hand, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for p in [w1, b1, w2, b2]:
                p.add_(p.grad, alpha=-0.1)
                p.grad = None
        losses.append(loss.item())
    return [*losses, w1.detach().numpy().copy(), hidden.grad.norm().item()]


if __name__ == "__main__":
    print(main())
