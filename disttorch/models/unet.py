"""U-Net (Ronneberger et al. 2015): pixels to classes of pixels, with skip connections."""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


class DoubleConv(nn.Sequential):
    """Twice: a 3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Twice the size, joined with the features of that size from the way down.

    Args:
        inputs, outputs: channels before and after; the skip has as many as the output.
        bilinear: resize by interpolation instead of a transposed convolution.
    """

    def __init__(self, inputs: int, outputs: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                nn.Conv2d(inputs, outputs, 1),
            )
        else:
            self.up = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        self.conv = DoubleConv(2 * outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        # an odd size was rounded down by the pool on the way
        rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Images [B, channels, H, W] to logits [B, classes, H, W].

    Args:
        in_channels, num_classes: of the image and of the result.
        width: channels at full size; they double with each halving.
        depth: how many times the size is halved.
        bilinear: see ``Up``.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 2, width: int = 64, depth: int = 4,
                 bilinear: bool = False) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.stem = DoubleConv(in_channels, width)
        self.pool = nn.MaxPool2d(2)
        self.downs = nn.ModuleList([DoubleConv(a, b) for a, b in zip(widths, widths[1:])])
        self.ups = nn.ModuleList(
            [Up(b, a, bilinear) for a, b in zip(widths[-2::-1], widths[:0:-1])]
        )
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(self.pool(x))
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)
