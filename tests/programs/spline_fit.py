"""Piecewise linear and cubic Hermite interpolation with learned knots: searchsorted and gather."""

import numpy as np
import torch


def locate(knots, x):
    i = torch.searchsorted(knots, x, right=True).clamp(1, len(knots) - 1) - 1
    width = knots[i + 1] - knots[i]
    return i, width, (x - knots[i]) / width


def linear(knots, values, x):
    i, _, t = locate(knots, x)
    return torch.lerp(values.gather(0, i), values.gather(0, i + 1), t)


def hermite(knots, values, slopes, x):
    i, width, t = locate(knots, x)
    h00, h10 = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t
    h01, h11 = -2 * t**3 + 3 * t**2, t**3 - t**2
    return (h00 * values[i] + h10 * width * slopes[i] + h01 * values[i + 1]
            + h11 * width * slopes[i + 1])


def main():
    rng = np.random.default_rng(33)
    dtype = torch.get_default_dtype()
    x = torch.tensor(np.sort(rng.uniform(0, 6, 50)), dtype=dtype)
    y = torch.sin(x) + 0.3 * torch.cos(3 * x)
    knots = torch.linspace(0, 6, 9, dtype=dtype)
    gaps = torch.zeros(8, dtype=dtype, requires_grad=True)  # knots that move but keep their order
    values = torch.zeros(9, dtype=dtype, requires_grad=True)
    slopes = torch.zeros(9, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([gaps, values, slopes], lr=0.05)
    out = []
    for _ in range(25):
        moving = torch.nn.functional.pad(6 * torch.softmax(gaps, 0).cumsum(0), (1, 0))
        loss = (linear(moving, values, x) - y).square().mean()
        loss = loss + (hermite(knots, values, slopes, x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    buckets = torch.bucketize(x, knots)
    return [*out, moving.detach().numpy(), torch.histc(x, bins=6, min=0, max=6).numpy(),
            buckets.numpy(), torch.trapezoid(y, x).item()]


if __name__ == "__main__":
    print(main())
