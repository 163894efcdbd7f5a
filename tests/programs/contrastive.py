"""InfoNCE with a learned temperature over two noisy views, and its symmetric form."""

import numpy as np
import torch
import torch.nn.functional as F


def main():
    rng = np.random.default_rng(28)
    dtype = torch.get_default_dtype()

    def noise(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=dtype)

    base = noise(16, 6)
    encoder = torch.nn.Linear(6, 4, bias=False)
    encoder.weight.data.copy_(noise(4, 6) * 0.5)
    log_temperature = torch.nn.Parameter(torch.tensor(np.log(0.2), dtype=dtype))
    optimizer = torch.optim.SGD([
        {"params": encoder.parameters()}, {"params": [log_temperature], "lr": 0.01}],
        lr=0.5, momentum=0.9, nesterov=True)
    labels = torch.arange(16)
    out = []
    for _ in range(15):
        a = F.normalize(encoder(base + 0.3 * noise(16, 6)), dim=-1)
        b = F.normalize(encoder(base + 0.3 * noise(16, 6)), dim=-1)
        logits = a @ b.T * log_temperature.neg().exp().clamp(max=100)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        # The same for all pairs at once: NT-Xent
        z = torch.cat((a, b))
        similar = (z @ z.T / 0.5).fill_diagonal_(-1e9)
        nt_xent = F.cross_entropy(similar, (torch.arange(32) + 16) % 32)
        optimizer.zero_grad()
        (loss + 0.1 * nt_xent).backward()
        optimizer.step()
        rank = (logits.diag()[:, None] < logits).sum(1).float().mean()
        out += [loss.item(), nt_xent.item(), log_temperature.item(), rank.item()]
    return out


if __name__ == "__main__":
    print(main())
