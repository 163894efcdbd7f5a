"""Soft dynamic time warping: a table filled in place, differentiated through."""

import numpy as np
import torch


def soft_dtw(x, y, gamma):
    distance = (x[:, None] - y[None]) ** 2
    n, m = distance.shape
    table = torch.full((n + 1, m + 1), 1e6, dtype=x.dtype)
    table[0, 0] = 0.0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            around = torch.stack((table[i - 1, j - 1], table[i - 1, j], table[i, j - 1]))
            softmin = -gamma * torch.logsumexp(-around / gamma, dim=0)
            table[i, j] = distance[i - 1, j - 1] + softmin
    return table[n, m]


def edit_distance(a, b):
    rows = torch.arange(len(b) + 1)
    for i, ca in enumerate(a, 1):
        new = rows.clone()
        new[0] = i
        for j, cb in enumerate(b, 1):
            new[j] = min(rows[j] + 1, new[j - 1] + 1, rows[j - 1] + (ca != cb))
        rows = new
    return rows[-1].item()


def main():
    rng = np.random.default_rng(36)
    dtype = torch.get_default_dtype()
    target = torch.sin(torch.linspace(0, 3, 7, dtype=dtype))
    x = torch.tensor(rng.standard_normal(6) * 0.3, dtype=dtype, requires_grad=True)
    out = []
    for _ in range(8):
        loss = soft_dtw(x, target, 0.5)
        loss.backward()
        with torch.no_grad():
            x.sub_(0.1 * x.grad)
            x.grad.zero_()
        out.append(loss.item())
    return [*out, x.detach().numpy(), edit_distance("kitten", "sitting")]


if __name__ == "__main__":
    print(main())
