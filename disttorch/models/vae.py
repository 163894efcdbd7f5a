"""A variational autoencoder (Kingma and Welling 2013) of linear layers, for small images."""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


class VAE(nn.Module):
    """Pixels in [0, 1], [B, inputs], to (logits of the pixels, mean, log variance).

    Args:
        inputs: pixels of an image.
        hidden: width of the hidden layers.
        latent: size of the code.
    """

    def __init__(self, inputs: int = 784, hidden: int = 400, latent: int = 20) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, inputs)
        )

    def encode(self, x: torch.Tensor) -> tuple:
        """Mean and log variance of the code, [B, latent] each."""
        x = self.encoder(x)
        return self.mean(x), self.log_variance(x)

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> tuple:
        """``noise`` [B, latent] is drawn from a normal distribution if it is not given."""
        mean, log_variance = self.encode(x)
        if noise is None:
            noise = torch.randn_like(mean)
        code = mean + noise * torch.exp(0.5 * log_variance)
        return self.decoder(code), mean, log_variance

    def sample(self, count: int) -> torch.Tensor:
        """Pixels in [0, 1] of ``count`` images from random codes."""
        device = self.mean.weight.device
        return torch.sigmoid(self.decoder(torch.randn(count, self.latent, device=device)))


def vae_loss(logits, mean, log_variance, x, beta: float = 1.0) -> torch.Tensor:
    """The negative evidence lower bound, mean over the batch, in nats.

    Args:
        logits, mean, log_variance: what the model gave for ``x``.
        x: the pixels, in [0, 1].
        beta: weight of the divergence (Higgins et al. 2017).
    """
    likelihood = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return (likelihood + beta * divergence) / x.shape[0]
