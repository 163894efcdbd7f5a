"""A character RNN by hand, truncated backpropagation through time, greedy sampling."""

import numpy as np
import torch
import torch.nn.functional as F

TEXT = "hello world, hello tensors, hello gradients. "


def main():
    rng = np.random.default_rng(21)
    dtype = torch.get_default_dtype()
    letters = sorted(set(TEXT))
    index = {c: i for i, c in enumerate(letters)}
    data = torch.tensor([index[c] for c in TEXT * 2])
    v, h = len(letters), 24

    def p(*shape):
        return torch.tensor(rng.standard_normal(shape) * 0.2, dtype=dtype, requires_grad=True)

    wx, wh, bh, wy, by = params = [p(v, h), p(h, h), p(h), p(h, v), p(v)]
    cache = [torch.zeros_like(q) for q in params]
    state, losses = torch.zeros(h, dtype=dtype), []
    for start in range(0, len(data) - 11, 10):
        state = state.detach()
        logits = []
        for t in range(start, start + 10):
            state = torch.tanh(wx[data[t]] + state @ wh + bh)
            logits.append(state @ wy + by)
        loss = F.nll_loss(F.log_softmax(torch.stack(logits), -1), data[start + 1 : start + 11])
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for q, g, c in zip(params, grads, cache):
                g.clamp_(-1, 1)
                c.addcmul_(g, g)
                q.addcdiv_(g, c.sqrt().add_(1e-6), value=-0.1)
        losses.append(loss.item())
    text, letter = [], data[0]
    with torch.no_grad():
        for _ in range(12):
            state = torch.tanh(wx[letter] + state @ wh + bh)
            letter = torch.argmax(state @ wy + by)
            text.append(int(letter))
    return [*losses, text]


if __name__ == "__main__":
    print(main())
