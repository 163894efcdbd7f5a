"""An LSTM cell as a Module with one fused gate matrix: remember the first of a sequence."""

import numpy as np
import torch
import torch.nn as nn


class Cell(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.hidden = hidden
        self.x = nn.Linear(inputs, 4 * hidden)
        self.h = nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = Cell(2, 10), nn.Linear(10, 1)

    def forward(self, xs):
        h = xs.new_zeros(xs.size(0), self.cell.hidden)
        state, outputs = (h, h.clone()), []
        for x in xs.transpose(0, 1):
            state = self.cell(x, state)
            outputs.append(state[0])
        return self.out(torch.stack(outputs, dim=1)).flatten(1)


def main():
    rng = np.random.default_rng(22)
    model = Model()
    for name, p in model.named_parameters():
        values = np.zeros(p.shape) if name.endswith("bias") else rng.standard_normal(p.shape) * 0.3
        p.data = torch.tensor(values, dtype=p.dtype)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3, alpha=0.9)
    losses = []
    for _ in range(15):
        xs = torch.tensor(rng.standard_normal((16, 7, 2)), dtype=torch.get_default_dtype())
        target = xs[:, 0, 0].sign()
        out = model(xs)
        loss = nn.functional.huber_loss(out[:, -1], target) + 0.01 * out.diff(dim=1).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    return [*losses, model.cell.h.weight.grad.numpy()]


if __name__ == "__main__":
    print(main())
