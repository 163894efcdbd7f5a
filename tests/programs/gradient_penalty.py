"""WGAN-GP: a critic whose gradient norm on interpolated samples is pushed to one."""

import numpy as np
import torch
from torch import nn


def penalty(critic, real, fake, alpha):
    mixed = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    score = critic(mixed)
    (gradient,) = torch.autograd.grad(
        outputs=score, inputs=mixed, grad_outputs=torch.ones_like(score),
        create_graph=True, retain_graph=True,
    )
    return ((gradient.view(gradient.size(0), -1).norm(2, dim=1) - 1) ** 2).mean()


def main():
    rng = np.random.default_rng(8)
    dtype = torch.get_default_dtype()

    def noise(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=dtype)

    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16),
                           nn.LeakyReLU(0.2), nn.Linear(16, 1))
    generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(inplace=True), nn.Linear(16, 2))
    for module in (*critic, *generator):
        if isinstance(module, nn.Linear):
            module.weight.data = noise(*module.weight.shape) * 0.4
            module.bias.data.fill_(0.01)
    d_opt = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    g_opt = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    out = []
    for _ in range(10):
        for _ in range(2):
            real = noise(32, 2) * 0.3 + torch.tensor([1.0, -1.0], dtype=dtype)
            fake = generator(noise(32, 3)).detach()
            alpha = torch.tensor(rng.random((32, 1)), dtype=dtype)
            gp = penalty(critic, real, fake, alpha)
            d_loss = critic(fake).mean() - critic(real).mean() + 10 * gp
            d_opt.zero_grad()
            d_loss.backward()
            d_opt.step()
            out += [gp.item(), d_loss.item()]
        g_loss = -critic(generator(noise(32, 3))).mean()
        g_opt.zero_grad()
        g_loss.backward()
        g_opt.step()
        out.append(g_loss.item())
    return out


if __name__ == "__main__":
    print(main())
