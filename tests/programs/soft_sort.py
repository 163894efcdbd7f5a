"""Differentiable ranking: SoftSort, a straight-through top-k, quantiles through sort."""

import numpy as np
import torch


def soft_sort(scores, temperature):
    ordered = scores.sort(descending=True, dim=-1).values
    distance = (ordered.unsqueeze(-1) - scores.unsqueeze(-2)).abs()
    return torch.softmax(-distance / temperature, dim=-1)


def straight_through_top_k(scores, k):
    soft = torch.softmax(scores, dim=-1)
    index = soft.topk(k, dim=-1).indices
    hard = torch.zeros_like(soft).scatter(-1, index, 1.0)
    return hard - soft.detach() + soft


def main():
    rng = np.random.default_rng(35)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((10, 6, 3)), dtype=dtype)
    relevance = x @ torch.tensor([1.0, -0.5, 0.2], dtype=dtype)
    w = torch.tensor(rng.standard_normal(3), dtype=dtype, requires_grad=True)
    want = torch.argsort(relevance, dim=1, descending=True)
    out = []
    for _ in range(15):
        scores = x @ w
        matrix = soft_sort(scores, 0.5)
        loss = -matrix.gather(2, want.unsqueeze(2)).clamp_min(1e-9).log().mean()
        gate = straight_through_top_k(scores, 2)
        loss = loss - 0.1 * (gate * relevance).sum(1).mean()
        loss.backward()
        with torch.no_grad():
            w -= 0.3 * w.grad
        w.grad = None
        out.append(loss.item())
    scores = x @ w
    ordered, order = torch.sort(scores, dim=1, stable=True)
    inverse = torch.empty_like(order).scatter_(1, order, torch.arange(6).expand(10, 6))
    assert torch.equal(ordered.gather(1, inverse), scores)
    kth = scores.kthvalue(2, dim=1)
    (ordered[:, -2:].sum() + kth.values.sum() + scores.median(dim=1).values.sum()
     + torch.quantile(scores, 0.3, dim=1).sum()).backward()
    return [*out, inverse.numpy(), kth.indices.numpy(), w.grad.numpy(),
            scores.detach().cummax(dim=1).values.numpy()]


if __name__ == "__main__":
    print(main())
