"""du/dt = k d2u/dx2 by explicit and implicit differences, and k recovered from the end state."""

import math

import numpy as np
import torch

POINTS, STEPS = 41, 60


def explicit(u, k, dt, dx):
    for _ in range(STEPS):
        laplacian = (u[2:] - 2 * u[1:-1] + u[:-2]) / dx**2
        u = torch.nn.functional.pad(u[1:-1] + dt * k * laplacian, (1, 1))
    return u


def implicit(u, k, dt, dx):
    n = u.shape[0] - 2
    main = torch.full((n,), 2.0, dtype=u.dtype)
    off = -torch.ones(n - 1, dtype=u.dtype)
    matrix = torch.diag(main) + torch.diag(off, 1) + torch.diag(off, -1)
    system = torch.eye(n, dtype=u.dtype) + dt * k / dx**2 * matrix
    inner = u[1:-1]
    for _ in range(STEPS):
        inner = torch.linalg.solve(system, inner)
    return torch.cat((u[:1], inner, u[-1:]))


def main():
    dtype = torch.get_default_dtype()
    x = torch.linspace(0, 1, POINTS, dtype=dtype)
    dx, dt = 1 / (POINTS - 1), 2e-4
    start = torch.sin(math.pi * x)
    start[0] = start[-1] = 0
    exact = torch.exp(torch.tensor(-math.pi**2 * dt * STEPS, dtype=dtype)) * start
    ends = [explicit(start, 1.0, dt, dx), implicit(start, 1.0, dt, dx)]
    assert all((end - exact).abs().max() < 1e-3 for end in ends)
    out = [end.numpy() for end in ends]

    k = torch.tensor(0.4, dtype=dtype, requires_grad=True)
    target = explicit(start, torch.tensor(1.0, dtype=dtype), dt, dx)
    for step in range(10):
        solve = explicit if step % 2 else implicit
        loss = torch.mean((solve(start, k, dt, dx) - target) ** 2)
        (gradient,) = torch.autograd.grad(loss, k)
        with torch.no_grad():
            k -= 40 * gradient
        out += [loss.item(), k.item()]
    # Two dimensions, periodic, all at once with roll
    grid = torch.tensor(np.random.default_rng(6).random((16, 16)), dtype=dtype)
    for _ in range(20):
        around = sum(grid.roll(s, dims=d) for s in (1, -1) for d in (0, 1))
        grid = grid + 0.2 * (around - 4 * grid)
    return [*out, grid.numpy(), grid.mean().item()]


if __name__ == "__main__":
    print(main())
