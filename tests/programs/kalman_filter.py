"""A Kalman filter whose log likelihood is differentiated to fit the noise levels."""

import math

import numpy as np
import torch


def log_likelihood(ys, log_q, log_r, dt=0.1):
    dtype = ys.dtype
    transition = torch.tensor([[1.0, dt], [0.0, 1.0]], dtype=dtype)
    observe = torch.tensor([[1.0, 0.0]], dtype=dtype)
    q = log_q.exp() * torch.tensor([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]], dtype=dtype)
    r = log_r.exp().reshape(1, 1)
    mean, cov = torch.zeros(2, 1, dtype=dtype), torch.eye(2, dtype=dtype)
    total, means = 0.0, []
    for y in ys:
        mean, cov = transition @ mean, transition @ cov @ transition.T + q
        innovation = y.view(1, 1) - observe @ mean
        spread = observe @ cov @ observe.T + r
        gain = cov @ observe.T @ torch.inverse(spread)
        mean = mean + gain @ innovation
        cov = (torch.eye(2, dtype=dtype) - gain @ observe) @ cov
        total = total - 0.5 * (torch.logdet(spread) + math.log(2 * math.pi)
                               + (innovation.T @ torch.linalg.solve(spread, innovation)).squeeze())
        means.append(mean.squeeze(1))
    return total, torch.stack(means)


def main():
    rng = np.random.default_rng(15)
    dtype = torch.get_default_dtype()
    path = np.sin(np.linspace(0, 3, 25)) + 0.2 * rng.standard_normal(25)
    ys = torch.from_numpy(path).type(dtype)
    log_q = torch.zeros((), dtype=dtype, requires_grad=True)
    log_r = torch.zeros((), dtype=dtype, requires_grad=True)
    out = []
    for _ in range(6):
        value, means = log_likelihood(ys, log_q, log_r)
        (-value).backward()
        for p in (log_q, log_r):
            p.data -= 0.05 * p.grad
            p.grad = None
        out += [value.item(), log_q.item(), log_r.item()]
    return [*out, means.detach().numpy()]


if __name__ == "__main__":
    print(main())
