"""Hamiltonian Monte Carlo and Langevin dynamics on a banana-shaped density, given noise."""

import numpy as np
import torch


def energy(q):
    x, y = q[..., 0], q[..., 1]
    return 0.5 * (x**2 / 2 + (y - x**2 / 2) ** 2 / 0.5)


def gradient(q):
    with torch.enable_grad():
        q = q.detach().requires_grad_(True)
        return torch.autograd.grad(energy(q).sum(), q)[0]


def leapfrog(q, p, step, count):
    p = p - step / 2 * gradient(q)
    for i in range(count):
        q = q + step * p
        p = p - (step if i < count - 1 else step / 2) * gradient(q)
    return q, p


def main():
    rng = np.random.default_rng(39)
    dtype = torch.get_default_dtype()

    def noise(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=dtype)

    q, accepted, means = torch.zeros(20, 2, dtype=dtype), 0, []
    with torch.no_grad():
        for _ in range(15):
            p = noise(20, 2)
            start = energy(q) + 0.5 * (p * p).sum(-1)
            new, p = leapfrog(q.clone(), p, 0.2, 5)
            change = energy(new) + 0.5 * (p * p).sum(-1) - start
            accept = torch.tensor(rng.random(20), dtype=dtype).log() < -change
            q = torch.where(accept.unsqueeze(-1), new, q)
            accepted += int(accept.sum())
            means.append(q.mean(dim=0).numpy().copy())
    chain = torch.ones(20, 2, dtype=dtype)
    for k in range(15):
        step = 0.1 / (1 + k) ** 0.5
        chain = chain - step * gradient(chain) + (2 * step) ** 0.5 * noise(20, 2)
    return [*means, accepted, chain.numpy(), torch.var(chain, dim=0, unbiased=False).numpy(),
            torch.corrcoef(chain.T).numpy()]


if __name__ == "__main__":
    print(main())
