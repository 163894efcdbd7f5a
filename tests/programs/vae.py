"""A variational autoencoder with given noise: reparametrisation and the analytic KL term."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(10, 16), nn.SiLU())
        self.mu, self.log_var = nn.Linear(16, 2), nn.Linear(16, 2)
        self.decode = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 10))

    def forward(self, x, noise):
        h = self.encode(x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + noise * torch.exp(0.5 * log_var)
        return self.decode(z), mu, log_var


def main():
    rng = np.random.default_rng(30)
    dtype = torch.get_default_dtype()
    model = VAE()
    for p in model.parameters():
        p.data.copy_(torch.as_tensor(rng.standard_normal(tuple(p.shape)) * 0.3))
    prototypes = torch.from_numpy(rng.random((3, 10)) > 0.5).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    out = []
    for _ in range(20):
        x = prototypes[torch.from_numpy(rng.integers(0, 3, 24))]
        noise = torch.from_numpy(rng.standard_normal((24, 2))).to(x)
        logits, mu, log_var = model(x, noise)
        rebuilt = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum") / len(x)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp()) / len(x)
        loss = rebuilt + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out += [rebuilt.item(), kl.item()]
    return [*out, mu.detach().numpy(), logits.sigmoid().gt(0.5).eq(x.bool()).all(1).sum().item()]


if __name__ == "__main__":
    print(main())
