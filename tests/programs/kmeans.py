"""Lloyd's k-means: cdist, argmin, index_add, scatter_add, bincount."""

import numpy as np
import torch


def main():
    rng = np.random.default_rng(17)
    dtype = torch.get_default_dtype()
    centres = torch.tensor(rng.standard_normal((5, 3)) * 4, dtype=dtype)
    x = centres.repeat_interleave(30, dim=0)
    x = x + torch.tensor(rng.standard_normal(tuple(x.shape)), dtype=dtype)
    means = x[torch.from_numpy(rng.choice(150, 5, replace=False))].clone()
    out = []
    for _ in range(12):
        distance = torch.cdist(x, means)
        nearest, label = distance.min(dim=1)
        out.append((nearest**2).sum().item())
        sums = torch.zeros_like(means).index_add_(0, label, x)
        counts = torch.zeros(5, dtype=dtype).scatter_add_(0, label, torch.ones(150, dtype=dtype))
        moved = sums / counts.clamp(min=1).unsqueeze(-1)
        if torch.equal(moved, means):
            break
        means = moved
    sizes = torch.bincount(label, minlength=5)
    order = torch.argsort(means[:, 0])
    inertia = [(x[label == k] - means[k]).pow(2).sum().item() for k in range(5)]
    return [*out, sizes[order].numpy(), means[order].numpy(), *inertia, torch.unique(label).numpy()]


if __name__ == "__main__":
    print(main())
