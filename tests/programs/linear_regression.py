"""Linear regression: gradient descent by hand against the normal equations."""

import numpy as np
import torch


def main():
    rng = np.random.default_rng(0)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((64, 3)), dtype=dtype)
    true_w = torch.tensor([1.5, -2.0, 0.5], dtype=dtype)
    y = x @ true_w + 0.7 + 0.05 * torch.tensor(rng.standard_normal(64), dtype=dtype)

    w = torch.zeros(3, dtype=dtype, requires_grad=True)
    b = torch.zeros((), dtype=dtype, requires_grad=True)
    losses = []
    for _ in range(60):
        loss = ((x @ w + b - y) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            for p in (w, b):
                p -= 0.1 * p.grad
                p.grad.zero_()
        losses.append(loss.item())

    design = torch.cat([x, torch.ones(64, 1, dtype=dtype)], dim=1)
    exact = torch.linalg.solve(design.T @ design, design.T @ y)
    return [*losses, w.detach().numpy(), b.item(), exact.numpy()]


if __name__ == "__main__":
    print(main())
