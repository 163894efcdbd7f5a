"""A linear-chain CRF: forward algorithm in log space, Viterbi decoding, masks for lengths."""

import numpy as np
import torch


def log_partition(emission, transition, mask):
    alpha = emission[:, 0]
    for t in range(1, emission.size(1)):
        scores = alpha.unsqueeze(2) + transition + emission[:, t].unsqueeze(1)
        alpha = torch.where(mask[:, t, None], torch.logsumexp(scores, dim=1), alpha)
    return alpha.logsumexp(dim=1)


def path_score(emission, transition, tags, mask):
    score = emission.gather(2, tags.unsqueeze(-1)).squeeze(-1).mul(mask).sum(1)
    moves = transition[tags[:, :-1], tags[:, 1:]]
    return score + (moves * mask[:, 1:]).sum(1)


def viterbi(emission, transition):
    score, back = emission[0], []
    for e in emission[1:]:
        best, arg = (score.unsqueeze(1) + transition).max(dim=0)
        score = best + e
        back.append(arg)
    path = [score.argmax().item()]
    for arg in reversed(back):
        path.append(arg[path[-1]].item())
    return path[::-1]


def main():
    rng = np.random.default_rng(37)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((5, 6, 4)), dtype=dtype)
    tags = x[..., :3].argmax(-1)
    mask = torch.arange(6).unsqueeze(0) < torch.tensor([6, 4, 5, 6, 3]).unsqueeze(1)
    w = torch.tensor(rng.standard_normal((4, 3)) * 0.1, dtype=dtype, requires_grad=True)
    transition = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.SGD([w, transition], lr=0.3)
    out = []
    for _ in range(12):
        emission = x @ w
        gap = log_partition(emission, transition, mask)
        gap = gap - path_score(emission, transition, tags, mask)
        loss = gap.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    emission = (x @ w).detach()
    paths = [viterbi(e[m], transition.detach()) for e, m in zip(emission, mask)]
    return [*out, transition.grad.numpy(), *paths]


if __name__ == "__main__":
    print(main())
