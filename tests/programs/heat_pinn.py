"""A physics-informed network for du/dt = d2u/dx2: residual by second derivatives of the net."""

import math

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, rng, dtype, sizes=(2, 16, 16, 1)):
        super().__init__()
        self.layers = nn.ModuleList()
        for n, m in zip(sizes, sizes[1:]):
            layer = nn.Linear(n, m)
            weight = rng.standard_normal((m, n)) / math.sqrt(n)
            layer.weight = nn.Parameter(torch.tensor(weight, dtype=dtype))
            layer.bias = nn.Parameter(torch.zeros(m, dtype=dtype))
            self.layers.append(layer)

    def forward(self, t, x):
        h = torch.stack((t, x), dim=-1)
        for layer in self.layers[:-1]:
            h = torch.tanh(layer(h))
        return self.layers[-1](h)[..., 0]


def derivative(u, x):
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def main():
    rng = np.random.default_rng(7)
    dtype = torch.get_default_dtype()
    net = Net(rng, dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        t = torch.tensor(rng.random(32) * 0.1, dtype=dtype, requires_grad=True)
        x = torch.tensor(rng.random(32), dtype=dtype, requires_grad=True)
        u = net(t, x)
        u_t, u_x = derivative(u, t), derivative(u, x)
        residual = u_t - derivative(u_x, x)
        zero = torch.zeros_like(t)
        start = net(zero, x) - torch.sin(math.pi * x)
        edges = torch.cat((net(t, zero), net(t, torch.ones_like(t))))
        loss = residual.square().mean() + start.square().mean() + edges.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(main())
