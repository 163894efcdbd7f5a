"""Metric learning: triplet margin loss with the hardest positive and negative of a batch."""

import numpy as np
import torch
import torch.nn.functional as F


def hardest(z, labels):
    distance = torch.cdist(z, z)
    same = labels.unsqueeze(0).eq(labels.unsqueeze(1))
    self_pair = torch.eye(len(z), dtype=torch.bool)
    positive = distance.masked_fill(~same | self_pair, -float("inf")).argmax(dim=1)
    negative = distance.masked_fill(same, float("inf")).argmin(dim=1)
    return positive, negative


def main():
    rng = np.random.default_rng(29)
    dtype = torch.get_default_dtype()
    labels = torch.tensor([0, 1, 2] * 6)
    x = torch.tensor(rng.standard_normal((18, 5)), dtype=dtype) + labels[:, None] * 0.7
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    for p in net.parameters():
        p.data = torch.tensor(rng.standard_normal(tuple(p.shape)) * 0.4, dtype=dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    out = []
    for _ in range(15):
        z = net(x)
        with torch.no_grad():
            positive, negative = hardest(z, labels)
        d_pos = F.pairwise_distance(z, z[positive])
        d_neg = (z - z[negative] + 1e-6).norm(dim=1)
        loss = torch.clamp(d_pos - d_neg + 0.5, min=0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out += [loss.item(), d_pos.max().item(), d_neg.median().item()]
    z = z.detach()
    nearest = torch.cdist(z, z).fill_diagonal_(torch.inf)
    right = labels[nearest.argmin(1)] == labels
    return [*out, right.sum().item(), torch.count_nonzero(right).item()]


if __name__ == "__main__":
    print(main())
