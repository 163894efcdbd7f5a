"""Train a small convolutional network on scikit-learn's handwritten digits.

    python examples/digits_cnn.py
    python examples/digits_cnn.py --epochs 30 --width 32 --out runs/wide

The result is a picture: the losses, the confusion matrix of the held-out digits, and those that
the network gets wrong.
"""

from __future__ import annotations

from typing import Any

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn
from disttorch.utils.data import DataLoader, TensorDataset, random_split
from small import Run, draw_loss, load_digits, new_figure, parser, positive, run

HELD_OUT = 360  # of 1797


class DigitNet(nn.Module):
    """Images [B, 1, 8, 8] to logits [B, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions: more digits than there are."""
    moved = torch.empty_like(images)
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2)).tolist()
    for i, (row, column) in enumerate(offsets):
        moved[i] = padded[i, :, row : row + 8, column : column + 8]
    return moved


@torch.no_grad()
def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple:
    """Return (mean loss, logits) in evaluation mode."""
    model.eval()
    logits = model(images)
    model.train()
    return F.cross_entropy(logits, labels).item(), logits


def draw(rows: list[dict], images, labels, logits) -> Any:
    """Return the figure: losses, confusion matrix, wrong digits."""
    figure = new_figure(13, 4)
    left, middle, right = figure.subfigures(1, 3)
    draw_loss(left.subplots(), rows, "epoch", "cross entropy")
    predicted = logits.argmax(dim=1)
    table = torch.bincount(labels * 10 + predicted, minlength=100).reshape(10, 10)
    axes = middle.subplots()
    axes.imshow(table.float().sqrt().tolist(), cmap="Blues")
    for i, row in enumerate(table.tolist()):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, count, ha="center", va="center", fontsize=8,
                          color="white" if i == j else "black")
    axes.set(xlabel="predicted", ylabel="digit", xticks=range(10), yticks=range(10))
    accuracy = (predicted == labels).float().mean().item()
    axes.set_title(f"held-out digits: {accuracy:.1%} right")
    wrong = (predicted != labels).nonzero().flatten().tolist()
    # with few mistakes, the rest of the places goes to the least certain of the right ones
    certainty = logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    shown = (wrong + [i for i in certainty.argsort().tolist() if i not in wrong])[:12]
    for i, place in zip(shown, right.subplots(3, 4).flat):
        place.imshow(images[i, 0].tolist(), cmap="gray_r")
        color = "firebrick" if i in wrong else "black"
        place.set_title(f"{labels[i].item()} as {predicted[i].item()}", fontsize=9, color=color)
        place.axis("off")
    right.suptitle("mistakes (red) and close calls", fontsize=10)
    return figure


def main() -> None:
    """Run the example."""
    options = parser(__doc__)
    options.add_argument("--epochs", type=positive, default=20, help="(default: 20)")
    options.add_argument("--batch", type=positive, default=64, help="batch size (default: 64)")
    options.add_argument("--width", type=positive, default=16, help="channels (default: 16)")
    options.add_argument("--lr", type=float, default=1e-2, help="learning rate (default: 1e-2)")
    given = options.parse_args()
    images, labels = load_digits()
    progress = Run("digits-cnn", given, given.epochs, "images")
    parts = random_split(TensorDataset(images, labels), [len(images) - HELD_OUT, HELD_OUT])
    training, held_out = parts
    loader = DataLoader(training, given.batch, shuffle=True, drop_last=True)
    test_images, test_labels = images[held_out.indices], labels[held_out.indices]

    model = DigitNet(given.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, given.lr, total_steps=given.epochs * len(loader)
    )
    seen = 0
    for epoch in range(1, given.epochs + 1):
        total = 0.0
        for batch, wanted in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(shifted(batch)), wanted)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
            seen += len(batch)
        val_loss, logits = evaluate(model, test_images, test_labels)
        accuracy = (logits.argmax(dim=1) == test_labels).float().mean().item()
        progress.log(epoch, seen, total / len(loader), val_loss, accuracy=accuracy)
    figure = draw(progress.folder.rows(), test_images, test_labels, logits)
    progress.finish(model, figure, f"{accuracy:.2%} of {HELD_OUT} held-out digits are right")


if __name__ == "__main__":
    run(main)
