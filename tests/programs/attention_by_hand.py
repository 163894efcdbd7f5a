"""Multi-head attention by hand, causal and padding masks, learned to copy the previous token."""

import math

import numpy as np
import torch


def attend(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def main():
    rng = np.random.default_rng(23)
    dtype = torch.get_default_dtype()
    batch, length, heads, width = 4, 7, 2, 8

    def p(*shape):
        values = rng.standard_normal(shape) / math.sqrt(shape[0])
        return torch.tensor(values, dtype=dtype).requires_grad_(True)

    table, place, qkv, proj = p(6, width), p(length, width), p(width, 3 * width), p(width, 6)
    lengths = torch.tensor([7, 5, 6, 7])
    valid = torch.arange(length) < lengths[:, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal & valid[:, None, None, :] | torch.eye(length, dtype=torch.bool)
    optimizer = torch.optim.Adam([table, place, qkv, proj], lr=0.05)
    losses = []
    for _ in range(20):
        tokens = torch.from_numpy(rng.integers(0, 6, (batch, length)))
        x = table[tokens] + place
        q, k, v = (x @ qkv).split(width, dim=-1)
        q, k, v = (t.view(batch, length, heads, -1).transpose(1, 2) for t in (q, k, v))
        y = attend(q, k, v, mask).transpose(1, 2).contiguous().view(batch, length, width)
        logits = (x + y) @ proj
        target = torch.roll(tokens, 1, dims=1).masked_fill(~valid, -100)
        target[:, 0] = -100
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.reshape(-1),
                                                 ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*losses, qkv.grad.numpy()]


if __name__ == "__main__":
    print(main())
