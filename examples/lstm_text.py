"""Train a character-level LSTM on real text and let it write.

    python examples/lstm_text.py
    python examples/lstm_text.py --data 'books/*.txt' --width 256 --steps 2000

Without --data the text is the Python standard library of this machine. The result is a text that the
model has written, and a picture: the losses, and how sure it is of each character of a held-out piece.
"""

from __future__ import annotations

from typing import Any

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.models.lstm_lm import LSTMLanguageModel
from disttorch.nn.utils import clip_grad_norm_
from small import Run, draw_loss, new_figure, parser, positive, run
from text import Corpus, TrainingWindows, Vocabulary, held_out_starts, windows

EVAL_WINDOWS = 64
SHOWN = (12, 56)  # lines and columns of the piece in the picture


@torch.no_grad()
def validate(model: LSTMLanguageModel, held_out: torch.Tensor, context: int) -> float:
    """Return the mean loss over windows spread over the held-out text."""
    model.eval()
    starts = held_out_starts(held_out, context, EVAL_WINDOWS)
    inputs, targets = windows(held_out, starts, context)
    loss = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())
    model.train()
    return loss.item()


@torch.no_grad()
def draw(rows: list[dict], model: LSTMLanguageModel, held_out: torch.Tensor,
         vocabulary: Vocabulary) -> Any:
    """Return the figure: losses, and a held-out piece coloured by its probabilities."""
    figure = new_figure(13, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    draw_loss(left, rows, "step", "loss (nats per character)")
    count = SHOWN[0] * SHOWN[1]
    ids = held_out[: count + 1].long().unsqueeze(0)
    model.eval()
    logits, _ = model(ids[:, :-1])
    chance = logits.softmax(dim=-1).gather(2, ids[:, 1:].unsqueeze(2)).reshape(*SHOWN)
    right.imshow(chance.tolist(), cmap="RdYlGn", vmin=0, vmax=1, alpha=0.6, aspect="auto")
    letters = vocabulary.decode(ids[0, 1:].tolist()).replace("\n", "\N{RETURN SYMBOL}")
    for i, letter in enumerate(letters):
        if letter.strip():
            right.text(i % SHOWN[1], i // SHOWN[1], letter, ha="center", va="center", fontsize=8,
                       family="monospace", parse_math=False)
    right.set_title("a held-out piece: green where the model expected the character")
    right.axis("off")
    return figure


def main() -> None:
    """Run the example."""
    options = parser(__doc__)
    options.add_argument("--data", nargs="+", help="text files or quoted globs")
    options.add_argument("--max-mb", type=float, default=4.0, help="of text (default: 4)")
    options.add_argument("--steps", type=positive, default=400, help="(default: 400)")
    options.add_argument("--batch", type=positive, default=16, help="windows (default: 16)")
    options.add_argument("--context", type=positive, default=64, help="characters (default: 64)")
    options.add_argument("--width", type=positive, default=128, help="(default: 128)")
    options.add_argument("--layers", type=positive, default=1, help="LSTM layers (default: 1)")
    options.add_argument("--lr", type=float, default=1e-2, help="learning rate (default: 1e-2)")
    options.add_argument("--prompt", default="def ", help="what the text continues")
    options.add_argument("--length", type=int, default=500, help="of the text (default: 500)")
    given = options.parse_args()
    corpus = Corpus.load(given.data, given.max_mb)
    training = TrainingWindows(corpus.training, given.context, given.batch, given.seed)
    progress = Run("lstm-text", given, given.steps, "characters")
    progress.progress.note(corpus.source)

    model = LSTMLanguageModel(len(corpus.vocabulary), given.width, given.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps, given.lr / 20)
    every = max(given.steps // 20, 1)
    total, count, val_loss = 0.0, 0, None
    for step in range(1, given.steps + 1):
        inputs, targets = training.batch(step - 1, 0, 1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        total, count = total + loss.item(), count + 1
        if step == 1 or step % every == 0 or step == given.steps:
            val_loss = validate(model, corpus.held_out, given.context)
            done = step * given.batch * given.context
            progress.log(step, done, total / count, val_loss)
            total, count = 0.0, 0
    figure = draw(progress.folder.rows(), model, corpus.held_out, corpus.vocabulary)
    prompt = corpus.vocabulary.encode(given.prompt or "\n").long().unsqueeze(0)
    written = corpus.vocabulary.decode(model.generate(prompt, given.length, 0.7)[0].tolist())
    progress.folder.sample.write_text(written + "\n", encoding="utf-8")
    progress.finish(
        model, figure,
        f"{' written ':-^60}\n{written}\n{'':-^60}\nvalidation loss {val_loss:.3f} nats per character",
    )


if __name__ == "__main__":
    run(main)
