"""Second-order MAML on sine waves: the outer gradient goes through the inner step."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def forward(params, x):
    w1, b1, w2, b2 = params
    return F.linear(torch.relu(F.linear(x, w1, b1)), w2, b2)


def main():
    rng = np.random.default_rng(10)
    dtype = torch.get_default_dtype()
    shapes = [(20, 1), (20,), (1, 20), (1,)]
    params = [torch.tensor(rng.standard_normal(s) * 0.5, dtype=dtype).requires_grad_()
              for s in shapes]
    optimizer = torch.optim.Adam(params, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        outer = 0
        for _ in range(3):
            amplitude, phase = rng.uniform(0.5, 2), rng.uniform(0, math.pi)
            x = torch.tensor(rng.uniform(-3, 3, (20, 1)), dtype=dtype)
            y = amplitude * torch.sin(x + phase)
            (xs, xq), (ys, yq) = x.chunk(2), y.chunk(2)
            inner = F.mse_loss(forward(params, xs), ys)
            grads = torch.autograd.grad(inner, params, create_graph=True)
            fast = [p - 0.05 * g for p, g in zip(params, grads)]
            outer = outer + F.mse_loss(forward(fast, xq), yq)
        outer.backward()
        optimizer.step()
        losses.append(outer.item())
    return losses


if __name__ == "__main__":
    print(main())
