"""Message passing on a graph: degree normalisation, index_add, scatter softmax attention."""

import numpy as np
import torch
import torch.nn.functional as F


def scatter_softmax(score, index, size):
    top = torch.full((size,), float("-inf"), dtype=score.dtype)
    top = top.scatter_reduce(0, index, score.detach(), reduce="amax")
    e = (score - top[index]).exp()
    total = torch.zeros(size, dtype=score.dtype).scatter_add(0, index, e)
    return e / total.gather(0, index)


def main():
    rng = np.random.default_rng(27)
    dtype = torch.get_default_dtype()
    n = 20
    group = torch.arange(n) % 2
    close = torch.tensor(rng.random((n, n))) < torch.where(group[:, None] == group, 0.5, 0.1)
    close = close.triu(1) | close.triu(1).T | torch.eye(n, dtype=torch.bool)
    source, target = close.nonzero(as_tuple=True)
    degree = torch.zeros(n, dtype=dtype).index_add(0, target, torch.ones(len(target), dtype=dtype))
    norm = (degree[source] * degree[target]).rsqrt()

    def p(*shape):
        return torch.tensor(rng.standard_normal(shape) * 0.5, dtype=dtype, requires_grad=True)

    features = torch.tensor(rng.standard_normal((n, 5)), dtype=dtype)
    w1, w2, a = p(5, 8), p(8, 2), p(16)
    optimizer = torch.optim.Adam([w1, w2, a], lr=0.05)
    known = torch.tensor([0, 1, 2, 3, 10, 11])
    losses = []
    for _ in range(15):
        h = features @ w1
        h = torch.zeros_like(h).index_add(0, target, h.index_select(0, source) * norm[:, None])
        h = F.elu(h)
        score = F.leaky_relu(torch.cat([h[source], h[target]], dim=1) @ a, 0.2)
        share = scatter_softmax(score, target, n)
        out = torch.zeros(n, 2, dtype=dtype).index_add(0, target, share[:, None] * (h @ w2)[source])
        loss = F.cross_entropy(out[known], group[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    agree = (out.argmax(1) == group).sum()
    return [*losses, len(source), a.grad.numpy(), agree.item(), degree.numpy()]


if __name__ == "__main__":
    print(main())
