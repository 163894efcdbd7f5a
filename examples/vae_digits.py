"""Train a variational autoencoder on scikit-learn's digits and look at what it has learnt.

    python examples/vae_digits.py
    python examples/vae_digits.py --latent 8 --beta 0.5

The result is a picture: the losses, digits beside their reconstructions, and the plane of codes:
where the digits lie in it and what the decoder makes of its points.
"""

from __future__ import annotations

from typing import Any

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.models.vae import VAE, vae_loss
from disttorch.utils.data import DataLoader, TensorDataset
from small import Run, draw_loss, load_digits, new_figure, parser, positive, run

HELD_OUT = 297
GRID = 13  # digits per side of the picture of the plane
REACH = 2.2  # standard deviations that it shows


@torch.no_grad()
def bound(model: VAE, pixels: torch.Tensor, beta: float) -> float:
    """The loss on held-out digits, with the mean code instead of a drawn one."""
    return vae_loss(*model(pixels, torch.zeros(len(pixels), model.latent)), pixels, beta).item()


def tiled(pixels: torch.Tensor, columns: int) -> torch.Tensor:
    """Digits [N, 64] side by side in rows of ``columns``, with a gap between any two."""
    tiles = F.pad(pixels.reshape(-1, columns, 8, 8), (1, 1, 1, 1))
    return tiles.permute(0, 2, 1, 3).reshape(len(tiles) * 10, columns * 10)


@torch.no_grad()
def sampled_plane(model: VAE) -> torch.Tensor:
    """What the decoder makes of a grid of codes, as one picture."""
    line = torch.linspace(-REACH, REACH, GRID)
    y, x = torch.meshgrid(line.flip(0), line, indexing="ij")
    codes = torch.stack([x.flatten(), y.flatten()], dim=1)
    if model.latent > 2:  # other numbers stay at zero, their most likely value
        codes = torch.cat([codes, torch.zeros(len(codes), model.latent - 2)], dim=1)
    return tiled(torch.sigmoid(model.decoder(codes)), GRID)


def draw(rows: list[dict], model: VAE, pixels: torch.Tensor, labels: torch.Tensor) -> Any:
    """Return the figure."""
    figure = new_figure(13, 8)
    (loss, pairs), (cloud, plane) = figure.subplots(2, 2)
    draw_loss(loss, rows, "epoch", "negative evidence bound (nats)")
    with torch.no_grad():
        logits, mean, _ = model(pixels, torch.zeros(len(pixels), model.latent))
    chosen = [int((labels == digit).nonzero()[k]) for k in (0, 1) for digit in range(10)]
    lines = [
        values[chosen[first : first + 10]]
        for first in (0, 10)
        for values in (pixels, torch.sigmoid(logits))
    ]
    pairs.imshow(tiled(torch.cat(lines), 10).tolist(), cmap="gray_r", vmin=0, vmax=1)
    pairs.set_title("held-out digits, below each line its reconstructions")
    pairs.axis("off")
    dots = cloud.scatter(mean[:, 0].tolist(), mean[:, 1].tolist(), c=labels.tolist(), cmap="tab10",
                         s=14)
    cloud.legend(*dots.legend_elements(), title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
    cloud.set(xlabel="first latent number", ylabel="second", title="codes of held-out digits")
    plane.imshow(sampled_plane(model).tolist(), cmap="gray_r", vmin=0, vmax=1,
                 extent=(-REACH, REACH, -REACH, REACH))
    plane.set(xlabel="first latent number", ylabel="second", title="digits made from codes")
    return figure


def main() -> None:
    """Run the example."""
    options = parser(__doc__)
    options.add_argument("--epochs", type=positive, default=120, help="(default: 120)")
    options.add_argument("--batch", type=positive, default=100, help="batch size (default: 100)")
    options.add_argument("--hidden", type=positive, default=256, help="width (default: 256)")
    options.add_argument("--latent", type=int, default=2, help="size of the code, 2 or more")
    options.add_argument("--beta", type=float, default=0.6, help="divergence's weight (default: 0.6)")
    options.add_argument("--lr", type=float, default=2e-3, help="learning rate (default: 2e-3)")
    given = options.parse_args()
    if given.latent < 2:
        options.error(f"--latent {given.latent}: the pictures need at least 2")
    images, labels = load_digits()
    pixels = images.flatten(1)
    progress = Run("vae-digits", given, given.epochs, "images")
    order = torch.randperm(len(pixels))
    training, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
    loader = DataLoader(TensorDataset(pixels[training]), given.batch, shuffle=True)

    model = VAE(64, given.hidden, given.latent)
    optimizer = torch.optim.Adam(model.parameters(), lr=given.lr)
    seen = 0
    for epoch in range(1, given.epochs + 1):
        total = 0.0
        for (batch,) in loader:
            optimizer.zero_grad()
            loss = vae_loss(*model(batch), batch, given.beta)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            seen += len(batch)
        if epoch == 1 or epoch % 5 == 0 or epoch == given.epochs:
            val_loss = bound(model, pixels[held_out], given.beta)
            progress.log(epoch, seen, total / len(training), val_loss)
    figure = draw(progress.folder.rows(), model, pixels[held_out], labels[held_out])
    progress.finish(model, figure, f"negative evidence bound of held-out digits: {val_loss:.2f} nats")


if __name__ == "__main__":
    run(main)
