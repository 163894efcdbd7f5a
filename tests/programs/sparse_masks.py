"""Magnitude pruning with masks kept through training by gradient hooks; proximal L1 steps."""

import numpy as np
import torch


def main():
    rng = np.random.default_rng(46)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((50, 10)), dtype=dtype)
    true_w = torch.zeros(10, dtype=dtype)
    true_w[[1, 4, 7]] = torch.tensor([2.0, -1.5, 1.0], dtype=dtype)
    y = torch.matmul(x, true_w)
    w = torch.tensor(rng.standard_normal(10), dtype=dtype, requires_grad=True)
    mask = torch.ones(10, dtype=torch.bool)
    handle = w.register_hook(lambda g: g * mask)
    out = []
    for round_ in range(4):
        for _ in range(6):
            loss = torch.mean((x.matmul(w) - y) ** 2)
            loss.backward()
            with torch.no_grad():
                w.sub_(w.grad, alpha=0.1)
            w.grad.zero_()
        keep = 10 - 2 * (round_ + 1) + 1
        threshold = w.detach().abs().kthvalue(10 - keep + 1).values
        mask = w.detach().abs() >= threshold
        w.data.masked_fill_(~mask, 0)
        out += [loss.item(), mask.sum().item(), mask.nonzero().flatten().tolist()]
    handle.remove()
    z = torch.zeros(10, dtype=dtype)
    for _ in range(25):  # iterative soft thresholding
        z = torch.nn.functional.softshrink(z - 0.2 * (x.T @ (x @ z - y)) / 50, 0.02)
        out.append(((x @ z - y) ** 2).mean().item())
    chosen = torch.masked_select(z, z != 0)
    dense = torch.zeros(10, dtype=dtype).masked_scatter(z != 0, chosen)
    return [*out, z.numpy(), len(chosen), torch.equal(dense, z), w.detach().numpy()]


if __name__ == "__main__":
    print(main())
