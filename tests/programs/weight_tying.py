"""A language model whose output layer is its embedding: one parameter, two uses, one gradient."""

import numpy as np
import torch
import torch.nn as nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.mix = nn.Linear(12, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.mix(self.embed(ids).flatten(1))))


def main():
    rng = np.random.default_rng(42)
    model = Model()
    assert len(list(model.parameters())) == 3 and len(model.state_dict()) == 4
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.tensor(rng.standard_normal(tuple(p.shape)) * 0.5))
    calls = []
    model.embed.weight.register_hook(lambda grad: calls.append(grad.abs().sum().item()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids = torch.from_numpy(rng.integers(0, 7, (30, 2)))
    target = (ids.sum(1) % 6) + 1
    out = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss(label_smoothing=0.05)(model(ids), target)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    assert model.out.weight is model.embed.weight
    return [*out, *calls, model.embed.weight.detach().numpy()]


if __name__ == "__main__":
    print(main())
