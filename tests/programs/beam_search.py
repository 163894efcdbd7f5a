"""Greedy, beam and top-p decoding of a fixed random language model."""

import numpy as np
import torch


def beam_search(log_p, start, width, length):
    vocabulary = log_p.size(-1)
    tokens = torch.tensor([[start]])
    scores = torch.zeros(1, dtype=log_p.dtype)
    for _ in range(length):
        total = scores[:, None] + log_p[tokens[:, -1]]
        scores, flat = total.view(-1).topk(min(width, total.numel()))
        beam = torch.div(flat, vocabulary, rounding_mode="floor")
        tokens = torch.cat([tokens[beam], (flat % vocabulary).unsqueeze(1)], dim=1)
    return tokens, scores


def nucleus(log_p, p):
    ordered, index = log_p.exp().sort(dim=-1, descending=True)
    beyond = ordered.cumsum(-1) - ordered > p
    kept = ordered.masked_fill(beyond, 0)
    out = torch.zeros_like(kept).scatter_(-1, index, kept)
    return out / out.sum(-1, keepdim=True)


@torch.no_grad()
def main():
    rng = np.random.default_rng(38)
    logits = torch.tensor(rng.standard_normal((9, 9)) * 2, dtype=torch.get_default_dtype())
    log_p = torch.log_softmax(logits, dim=-1)
    greedy, token = [], torch.tensor(0)
    while len(greedy) < 8 and token != 7:
        token = log_p[token].argmax()
        greedy.append(token.item())
    tokens, scores = beam_search(log_p, 0, 3, 6)
    check = log_p[tokens[:, :-1], tokens[:, 1:]].sum(dim=1)
    assert torch.allclose(check, scores, rtol=1e-4)
    allowed = nucleus(log_p, 0.8)
    repeated = torch.isin(torch.arange(9), tokens[0])
    penalised = torch.where(repeated & (logits[3] > 0), logits[3] / 1.3, logits[3] * 1.3)
    return [greedy, tokens.numpy(), scores.numpy(), allowed.numpy(), (allowed > 0).sum(-1).numpy(),
            penalised.numpy()]


if __name__ == "__main__":
    print(main())
