"""Deep Interest Network (Zhou et al. 2017): a user's history, weighted by the item in question."""

from __future__ import annotations

import disttorch as torch
from disttorch import nn


class Dice(nn.Module):
    """The paper's activation: a PReLU whose step follows the distribution of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = torch.sigmoid(self.norm(x))
        return part * x + (1 - part) * self.alpha * x


class DIN(nn.Module):
    """History [B, T] and item [B] (ids, 0: nothing) to logits [B].

    Args:
        items: number of ids, 0 included.
        width: of an embedding.
        hidden: widths of the last layers; attention_hidden: of the unit that weights the history.
    """

    def __init__(self, items: int, width: int = 16, hidden: tuple = (64, 32),
                 attention_hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items, width, padding_idx=0)
        self.attention = nn.Sequential(
            nn.Linear(4 * width, attention_hidden), nn.PReLU(), nn.Linear(attention_hidden, 1)
        )
        layers: list[nn.Module] = []
        for a, b in zip((3 * width, *hidden), hidden):
            layers += [nn.Linear(a, b), Dice(b)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, history: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        past, wanted = self.embedding(history), self.embedding(item)  # [B, T, C], [B, C]
        interest = self.interest(past, wanted, history.ne(0))
        return self.layers(torch.cat([interest, wanted, interest * wanted], dim=1)).squeeze(1)

    def interest(self, past, wanted, mask) -> torch.Tensor:
        """The sum of the history weighted by its fit to the item: [B, C].

        The weights are not normalised, as in the paper: their sum says how strong the interest is.
        """
        item = wanted.unsqueeze(1).expand_as(past)
        pairs = torch.cat([past, item, past - item, past * item], dim=-1)
        weights = self.attention(pairs).squeeze(-1).masked_fill(~mask, 0.0)
        return torch.bmm(weights.unsqueeze(1), past).squeeze(1)
