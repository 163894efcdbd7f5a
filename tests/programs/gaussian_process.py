"""Gaussian process regression: marginal likelihood by Cholesky, prediction with its variance."""

import math

import numpy as np
import torch


def kernel(a, b, log_scale, log_length):
    distance = (a.unsqueeze(1) - b.unsqueeze(0)) ** 2
    return torch.exp(log_scale) * torch.exp(-0.5 * distance / torch.exp(2 * log_length))


def main():
    rng = np.random.default_rng(16)
    dtype = torch.get_default_dtype()
    x = torch.tensor(np.sort(rng.uniform(-3, 3, 25)), dtype=dtype)
    y = torch.sin(2 * x) + 0.1 * torch.tensor(rng.standard_normal(25), dtype=dtype)
    theta = torch.tensor([0.0, 0.0, -2.0], dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    out = []
    for _ in range(15):
        optimizer.zero_grad()
        scale, length, noise = theta.unbind()
        k = kernel(x, x, scale, length) + torch.exp(noise) * torch.eye(25, dtype=dtype)
        factor = torch.linalg.cholesky(k)
        alpha = torch.cholesky_solve(y[:, None], factor)
        nll = (0.5 * y @ alpha.squeeze(-1) + factor.diagonal().log().sum()
               + 0.5 * 25 * math.log(2 * math.pi))
        nll.backward()
        optimizer.step()
        out.append(nll.item())
    with torch.no_grad():
        new = torch.linspace(-3, 3, 11, dtype=dtype)
        cross = kernel(new, x, scale, length)
        mean = cross @ alpha
        solved = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
        variance = torch.exp(scale) - (solved**2).sum(dim=0)
    return [*out, theta.detach().numpy(), mean.squeeze().numpy(), variance.numpy()]


if __name__ == "__main__":
    print(main())
