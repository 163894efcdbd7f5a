"""A Module subclass with AdamW, parameter groups, gradient clipping and a cosine schedule."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(3, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.down = nn.Linear(width, 1, bias=False)

    def forward(self, x):
        x = self.norm(self.up(x))
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.down(x).squeeze(-1)


def main():
    rng = np.random.default_rng(5)
    dtype = torch.get_default_dtype()
    net = Net(12)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) * 0.3).to(dtype))
    decay = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                                   {"params": rest, "weight_decay": 0.0}], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
    x = torch.tensor(rng.uniform(-1, 1, (40, 3)), dtype=dtype)
    y = torch.cos(3 * x).sum(dim=-1)
    out = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.smooth_l1_loss(net(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), max_norm=0.5)
        optimizer.step()
        schedule.step()
        out += [loss.item(), norm.item(), optimizer.param_groups[0]["lr"]]
    return out


if __name__ == "__main__":
    print(main())
