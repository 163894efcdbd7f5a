"""Batch normalisation from statistics, with running averages as buffers, and mixup targets."""

import numpy as np
import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, width, momentum=0.1, eps=1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x):
        if self.training:
            var, mean = torch.var_mean(x, dim=0, correction=0)
            with torch.no_grad():
                self.mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.var.lerp_(x.var(dim=0, unbiased=True), self.momentum)
        else:
            mean, var = self.mean, self.var
        return (x - mean) / torch.sqrt(var + self.eps) * self.gamma + self.beta


def main():
    rng = np.random.default_rng(50)
    dtype = torch.get_default_dtype()
    net = nn.Sequential(nn.Linear(5, 8), Norm(8), nn.PReLU(), nn.Linear(8, 3))
    for layer in (net[0], net[3]):
        layer.weight.data.copy_(torch.from_numpy(rng.standard_normal(tuple(layer.weight.shape))))
        nn.init.zeros_(layer.bias)
    # normalising takes the bias out again: its gradient is rounding noise, which NAdam would scale up
    net[0].bias.requires_grad_(False)
    optimizer = torch.optim.NAdam([p for p in net.parameters() if p.requires_grad], lr=0.01)
    x = torch.tensor(rng.standard_normal((32, 5)) * 3 + 1, dtype=dtype)
    labels = x.argmax(dim=1) % 3
    out = []
    for _ in range(12):
        share = float(rng.beta(0.4, 0.4))
        other = torch.from_numpy(rng.permutation(32))
        logits = net(share * x + (1 - share) * x[other])
        mixed = share * nn.functional.one_hot(labels, 3) + (1 - share) * nn.functional.one_hot(
            labels[other], 3)
        loss = nn.functional.cross_entropy(logits, mixed.to(dtype))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    net.eval()
    with torch.no_grad():
        out.append(net(x).numpy())
    return [*out, net[1].mean.numpy(), net[1].var.numpy(), net.training]


if __name__ == "__main__":
    print(main())
