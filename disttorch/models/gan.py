"""DCGAN (Radford et al. 2015): generator and discriminator of convolutions, for 32x32 images."""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Codes [B, latent] to images in (-1, 1), [B, channels, 32, 32].

    Args:
        latent: size of the code; channels: of the image.
        width: channels of the last hidden layer.
    """

    def __init__(self, latent: int = 100, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.latent = latent
        layers: list[nn.Module] = []
        sizes = [latent, width * 4, width * 2, width]
        for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            stride, padding = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(True),
            ]
        layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return self.layers(code[:, :, None, None])


class Discriminator(nn.Module):
    """Images [B, channels, 32, 32] to logits of "is real", [B]; options as of ``Generator``."""

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for inputs in (width, width * 2):
            layers += [
                nn.Conv2d(inputs, inputs * 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(inputs * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(nn.Conv2d(width * 4, 1, 4, 1, 0))
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).flatten()


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the discriminator's logits for real and for generated images."""
    return F.binary_cross_entropy_with_logits(
        real, torch.ones_like(real)
    ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """The generator's non-saturating loss: its images should be taken for real."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
