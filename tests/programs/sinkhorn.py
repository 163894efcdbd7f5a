"""Entropic optimal transport in log space, and points that follow its gradient."""

import numpy as np
import torch


def sinkhorn(x, y, epsilon=0.1, steps=40):
    cost = torch.cdist(x, y, p=2) ** 2
    n, m = cost.shape
    log_a = torch.full((n,), -np.log(n), dtype=x.dtype)
    log_b = torch.full((m,), -np.log(m), dtype=x.dtype)
    f, g = torch.zeros(n, dtype=x.dtype), torch.zeros(m, dtype=x.dtype)
    for _ in range(steps):
        f = epsilon * (log_a - torch.logsumexp((g[None] - cost) / epsilon, dim=1))
        g = epsilon * (log_b - torch.logsumexp((f[:, None] - cost) / epsilon, dim=0))
    plan = torch.exp((f[:, None] + g[None] - cost) / epsilon)
    return (plan * cost).sum(), plan


def main():
    rng = np.random.default_rng(48)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((12, 2)) * 0.3, dtype=dtype, requires_grad=True)
    angle = torch.linspace(0, 2 * torch.pi, 16, dtype=dtype)[:-1]
    y = torch.column_stack((angle.cos(), angle.sin()))
    out = []
    for _ in range(8):
        value, plan = sinkhorn(x, y)
        (gradient,) = torch.autograd.grad(value, [x])
        x = (x - gradient).detach().requires_grad_()
        out.append(value.item())
    return [*out, plan.detach().numpy(), plan.sum(1).detach().numpy(), x.detach().numpy()]


if __name__ == "__main__":
    print(main())
