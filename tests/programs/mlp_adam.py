"""nn.Sequential trained with Adam on mini-batches; parameters set through a state dict."""

import numpy as np
import torch
from torch import nn


def main():
    rng = np.random.default_rng(4)
    dtype = torch.get_default_dtype()
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.Sigmoid(),
                          nn.Linear(24, 2))
    state = {name: torch.tensor(rng.standard_normal(tuple(p.shape)) * 0.4, dtype=dtype)
             for name, p in model.state_dict().items()}
    print(model.load_state_dict(state))

    x = torch.tensor(rng.standard_normal((60, 6)), dtype=dtype)
    y = torch.stack([x[:, :3].prod(dim=1), x[:, 3:].sum(dim=1).abs()], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    loss_fn = nn.MSELoss(reduction="sum")
    losses = []
    for epoch in range(6):
        order = torch.from_numpy(rng.permutation(60))
        total = 0.0
        for batch in order.split(16):
            optimizer.zero_grad(set_to_none=epoch % 2 == 0)
            loss = loss_fn(model(x[batch]), y[batch]) / len(batch)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return [*losses, count, *[p.detach().numpy().copy() for p in model.parameters()]]


if __name__ == "__main__":
    print(main())
