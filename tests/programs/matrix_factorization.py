"""Recommendations: user and item embeddings with biases, trained on observed ratings."""

import numpy as np
import torch
from torch import nn


class Factors(nn.Module):
    def __init__(self, users, items, rank):
        super().__init__()
        self.user = nn.Embedding(users, rank)
        self.item = nn.Embedding(items, rank)
        self.user_bias = nn.Embedding(users, 1)
        self.item_bias = nn.Embedding(items, 1)
        self.mean = nn.Parameter(torch.zeros(()))

    def forward(self, u, i):
        dot = (self.user(u) * self.item(i)).sum(-1)
        return dot + self.user_bias(u).squeeze(-1) + self.item_bias(i).squeeze(-1) + self.mean


def main():
    rng = np.random.default_rng(19)
    model = Factors(12, 9, 4)
    for p in model.parameters():
        nn.init.constant_(p, 0.0)
        p.data += torch.as_tensor(0.3 * rng.standard_normal(tuple(p.shape)), dtype=p.dtype)
    users, items = (torch.from_numpy(rng.integers(0, n, 120)) for n in (12, 9))
    ratings = torch.from_numpy(rng.integers(1, 6, 120)).to(model.mean.dtype)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.2, weight_decay=1e-3)
    losses = []
    for _ in range(10):
        for u, i, r in zip(users.split(40), items.split(40), ratings.split(40)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(u, i), r)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        scores = model.user.weight @ model.item.weight.T + model.item_bias.weight.T
        best = scores.topk(3, dim=1)
    return [*losses, best.values.numpy(), best.indices.numpy()]


if __name__ == "__main__":
    print(main())
