"""A small detector in the manner of YOLOv3 (Redmon and Farhadi 2018): two scales, anchor boxes.

Shapes: B images, A anchors per scale, C classes, N boxes. Boxes are (centre x, centre y, width,
height) in pixels; a prediction holds them first, then the objectness, then the classes.
"""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn

# (width, height) in pixels of the anchors of each scale, coarse scale first
ANCHORS = (((48.0, 48.0), (80.0, 56.0), (56.0, 96.0)), ((16.0, 16.0), (28.0, 20.0), (20.0, 32.0)))
STRIDES = (16, 8)


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
        )


class Residual(nn.Module):
    """Half the channels and back, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels // 2, kernel=1), ConvBlock(channels // 2, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class YOLO(nn.Module):
    """Images [B, 3, H, W] to one raw prediction per scale, [B, A, H/stride, W/stride, 5 + C].

    Args:
        num_classes: C.
        width: channels of the first layer.
        anchors: per scale, coarse first.
    """

    def __init__(self, num_classes: int = 20, width: int = 16, anchors=ANCHORS) -> None:
        super().__init__()
        self.num_classes, self.strides = num_classes, STRIDES
        for index, sizes in enumerate(anchors):
            self.register_buffer(f"anchors{index}", torch.tensor(sizes))
        self.fine = nn.Sequential(
            ConvBlock(3, width),
            ConvBlock(width, width * 2, stride=2),
            ConvBlock(width * 2, width * 4, stride=2),
            Residual(width * 4),
            ConvBlock(width * 4, width * 8, stride=2),
            Residual(width * 8),
        )
        self.coarse = nn.Sequential(
            ConvBlock(width * 8, width * 16, stride=2), Residual(width * 16)
        )
        self.lateral = ConvBlock(width * 16, width * 4, kernel=1)
        outputs = len(anchors[0]) * (5 + num_classes)
        self.coarse_head = nn.Conv2d(width * 16, outputs, kernel_size=1)
        self.fine_head = nn.Sequential(
            ConvBlock(width * 12, width * 8), nn.Conv2d(width * 8, outputs, kernel_size=1)
        )

    def forward(self, images: torch.Tensor) -> tuple:
        fine = self.fine(images)
        coarse = self.coarse(fine)
        larger = F.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest")
        heads = self.coarse_head(coarse), self.fine_head(torch.cat([larger, fine], dim=1))
        return tuple(self._by_anchor(head) for head in heads)

    def _by_anchor(self, head: torch.Tensor) -> torch.Tensor:
        B, _, H, W = head.shape
        return head.view(B, -1, 5 + self.num_classes, H, W).permute(0, 1, 3, 4, 2)

    def decode(self, predictions: tuple) -> torch.Tensor:
        """Boxes in pixels, objectness and class probabilities: [B, all anchors, 5 + C]."""
        decoded = []
        for index, (raw, stride) in enumerate(zip(predictions, self.strides)):
            sizes = getattr(self, f"anchors{index}")
            B, A, H, W, entries = raw.shape
            y, x = torch.meshgrid(
                torch.arange(H, device=raw.device), torch.arange(W, device=raw.device),
                indexing="ij",
            )
            corner = torch.stack([x, y], dim=-1)
            centre = (raw[..., :2].sigmoid() + corner) * stride
            size = raw[..., 2:4].clamp(max=8).exp() * sizes[:, None, None, :]
            boxes = torch.cat([centre, size, raw[..., 4:].sigmoid()], dim=-1)
            decoded.append(boxes.reshape(B, A * H * W, entries))
        return torch.cat(decoded, dim=1)

    def loss(self, predictions: tuple, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss per image.

        Each true box belongs to the anchor, over all scales, whose shape fits it best, in the cell
        of its centre.

        Args:
            predictions: what ``forward`` gave.
            targets: [N, 6] (index of the image, class, x, y, width, height).
        """
        counts = [len(getattr(self, f"anchors{i}")) for i in range(len(predictions))]
        anchors = torch.cat([getattr(self, f"anchors{i}") for i in range(len(predictions))])
        best = shape_iou(targets[:, 4:6], anchors).argmax(dim=1)
        total, first = predictions[0].new_zeros(()), 0
        for raw, stride, sizes, count in zip(
            predictions, self.strides, anchors.split(counts), counts
        ):
            mine = (best >= first) & (best < first + count)
            total = total + scale_loss(raw, stride, sizes, targets[mine], best[mine] - first)
            first += count
        return total / predictions[0].shape[0]


def shape_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of sizes [N, 2] and [M, 2] laid on one corner: [N, M]."""
    both = torch.minimum(a[:, None, :], b[None, :, :]).prod(dim=-1)
    return both / (a.prod(dim=-1)[:, None] + b.prod(dim=-1)[None, :] - both)


def scale_loss(raw, stride, sizes, targets, anchor) -> torch.Tensor:
    """The summed loss of one scale: box, objectness everywhere, class where there is an object."""
    wanted = torch.zeros_like(raw[..., 4])
    image, label = targets[:, 0].long(), targets[:, 1].long()
    position = targets[:, 2:4] / stride
    cell = position.long()
    column = cell[:, 0].clamp(0, raw.shape[3] - 1)
    row = cell[:, 1].clamp(0, raw.shape[2] - 1)
    wanted[image, anchor, row, column] = 1.0
    found = raw[image, anchor, row, column]
    offset = position - torch.stack([column, row], dim=1)
    box = F.mse_loss(found[:, :2].sigmoid(), offset, reduction="sum") + F.mse_loss(
        found[:, 2:4], (targets[:, 4:6] / sizes[anchor]).log(), reduction="sum"
    )
    objectness = F.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="sum")
    classes = F.one_hot(label, raw.shape[-1] - 5).to(raw.dtype)
    return box + objectness + F.binary_cross_entropy_with_logits(
        found[:, 5:], classes, reduction="sum"
    )


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes [N, 4] and [M, 4] (centre and size): [N, M]."""
    low = torch.maximum((a[:, :2] - a[:, 2:] / 2)[:, None], (b[:, :2] - b[:, 2:] / 2)[None])
    high = torch.minimum((a[:, :2] + a[:, 2:] / 2)[:, None], (b[:, :2] + b[:, 2:] / 2)[None])
    both = (high - low).clamp(min=0).prod(dim=-1)
    return both / (a[:, 2:].prod(dim=-1)[:, None] + b[:, 2:].prod(dim=-1)[None, :] - both)


def non_maximum_suppression(boxes, scores, iou_threshold: float = 0.5) -> torch.Tensor:
    """Indices of the boxes kept: best first, none overlapping a better one by more than allowed.

    Args:
        boxes: [N, 4]; scores: [N].
        iou_threshold: the largest overlap of two boxes that are both kept.
    """
    order = scores.argsort(descending=True)
    overlaps = box_iou(boxes[order], boxes[order]) > iou_threshold
    kept: list[int] = []
    for i in range(len(order)):
        if not any(overlaps[i, j].item() for j in kept):
            kept.append(i)
    return order[torch.tensor(kept, dtype=torch.int64)]
