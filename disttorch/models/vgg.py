"""VGG (Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image
Recognition"), with and without batch norm; names of parameters as in torchvision.
"""

from __future__ import annotations

import disttorch as torch
from disttorch import nn

# channels of the convolutions, "M" for a 2x2 max pool
LAYOUTS = {
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512,
              "M"],
}


def feature_layers(layout: list, batch_norm: bool) -> nn.Sequential:
    """The convolutional part of a VGG."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in layout:
        if entry == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        layers.append(nn.Conv2d(channels, entry, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(entry))
        layers.append(nn.ReLU(inplace=True))
        channels = entry
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    Args:
        layout: channels of the convolutions in order, ``"M"`` for a pool.
        num_classes: size of the last layer.
        batch_norm: a batch norm after each convolution.
        hidden: width of the two hidden linear layers.
        dropout: their dropout probability.
    """

    def __init__(self, layout: list, num_classes: int = 1000, batch_norm: bool = False,
                 hidden: int = 4096, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = feature_layers(layout, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        channels = [entry for entry in layout if entry != "M"][-1]
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, hidden),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg11(**options) -> VGG:
    """VGG-11 (configuration A); options as of ``VGG``."""
    return VGG(LAYOUTS["vgg11"], **options)


def vgg16(**options) -> VGG:
    """VGG-16 (configuration D); options as of ``VGG``."""
    return VGG(LAYOUTS["vgg16"], **options)
