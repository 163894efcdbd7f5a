"""Word vectors: skip-gram with negative samples, then nearest neighbours by cosine."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

TEXT = """the quick brown fox jumps over the lazy dog while the quiet brown cat sleeps near the
quick dog and the lazy fox"""


def main():
    rng = np.random.default_rng(20)
    words = TEXT.split()
    vocabulary = {word: i for i, word in enumerate(sorted(set(words)))}
    ids = [vocabulary[w] for w in words]
    pairs = [(ids[i], ids[j]) for i in range(len(ids)) for j in range(i - 2, i + 3)
             if i != j and 0 <= j < len(ids)]
    centre, context = torch.tensor(pairs, dtype=torch.long).unbind(dim=1)
    size = len(vocabulary)

    inside, outside = nn.Embedding(size, 8), nn.Embedding(size, 8)
    for table in (inside, outside):
        table.weight.data.copy_(torch.from_numpy(rng.standard_normal((size, 8)) * 0.2))
    optimizer = torch.optim.SGD([*inside.parameters(), *outside.parameters()], lr=0.8)
    losses = []
    for _ in range(12):
        negative = torch.from_numpy(rng.integers(0, size, (len(pairs), 4)))
        v = inside(centre)
        positive = F.logsigmoid((v * outside(context)).sum(dim=1))
        scores = torch.bmm(outside(negative), v.unsqueeze(2)).squeeze(2)
        loss = -(positive + F.logsigmoid(-scores).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    unit = F.normalize(inside.weight.detach(), dim=1)
    similar = F.cosine_similarity(unit[vocabulary["fox"]].unsqueeze(0), unit, dim=1)
    return [*losses, similar.numpy(), similar.topk(3).indices.tolist()]


if __name__ == "__main__":
    print(main())
