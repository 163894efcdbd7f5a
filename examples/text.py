"""Real text for a character-level model: read files, split them, turn characters into integers.

The default text is the source code of the Python standard library on this very machine: several
megabytes that need no download. Files are held out whole, chosen by a hash of their name, so the
split is the same on every rank and does not move when other files come or go.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import disttorch as torch

HELD_OUT_SHARE = 0.1
# Tests hold odd literals on purpose; the others are generated tables, not prose or code.
SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test",
    "encodings", "pydoc_data", "__phello__",
}
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # how the id of all rare characters is shown
RAREST_SHARE = 1e-5  # rarer characters share one id: they cannot be learnt from this text
LARGEST_VOCABULARY = 4096


class UserError(Exception):
    """Something the person who started the run can put right; its text is one clear sentence."""


def standard_library_files() -> dict[str, Path]:
    """Return the Python sources of this machine's standard library by relative name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".py":
                files[path.relative_to(root).as_posix()] = path
    if not files:
        raise UserError(f"no Python sources in {root}; name text files with --data")
    return files


def given_files(patterns: list[str]) -> dict[str, Path]:
    """Return the files that ``patterns`` (paths or globs, ``**`` allowed) name."""
    files = {}
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        found = [Path(match) for match in matches if os.path.isfile(match)]
        if not found:
            raise UserError(
                f"--data {pattern} matches no file; give text files or a quoted glob "
                "such as 'books/**/*.txt'"
            )
        files.update((path.as_posix(), path) for path in found)
    return files


def name_hash(name: str, purpose: str) -> float:
    """Map a file name to a number in [0, 1), the same on every machine, another per purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{name}".encode()).digest()[:4], "big") / 2**32


def read_within(files: dict[str, Path], largest_bytes: float) -> dict[str, str]:
    """Read files up to a total size; where that is too small, a random-looking choice of them."""
    texts: dict[str, str] = {}
    total = 0
    for name in sorted(files, key=lambda name: name_hash(name, "choice")):
        try:
            raw = files[name].read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {files[name]}: {error.strerror}") from error
        if texts and total + len(raw) > largest_bytes:
            continue
        total += len(raw)
        texts[name] = raw.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return texts


def split_by_file(texts: dict[str, str]) -> tuple[str, str]:
    """Return (training text, held-out text). A single file is cut: its last tenth is held out."""
    if len(texts) == 1:
        (whole,) = texts.values()
        cut = int(len(whole) * (1 - HELD_OUT_SHARE))
        return whole[:cut], whole[cut:]
    hashes = {name: name_hash(name, "split") for name in texts}
    held_out = {name for name in texts if hashes[name] < HELD_OUT_SHARE}
    if not held_out or len(held_out) == len(texts):
        held_out = {min(hashes, key=hashes.__getitem__)}
    training = "\n".join(texts[name] for name in sorted(texts) if name not in held_out)
    return training, "\n".join(texts[name] for name in sorted(held_out))


class Vocabulary:
    """Characters and their ids; id 0 stands for every character that is not listed."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._ids = _WithFallback((ord(c), chr(i)) for i, c in enumerate(characters, start=1))

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Collect the characters of ``text`` that are frequent enough to be learnt."""
        counts = Counter(text).most_common(LARGEST_VOCABULARY - 1)
        kept = (c for c, n in counts if n >= RAREST_SHARE * len(text) and c != UNKNOWN)
        return cls("".join(sorted(kept)))

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> torch.Tensor:
        """Return the ids of ``text``: int16, shape [len(text)]."""
        # The ids are written as characters, so that str.translate and the codec do the loop.
        raw = bytearray(text.translate(self._ids).encode("utf-16-le"))
        return torch.frombuffer(raw, dtype=torch.int16)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; the id of rare characters is shown as U+FFFD."""
        return "".join(self.characters[i - 1] if i else UNKNOWN for i in ids)


class _WithFallback(dict):
    """A table for str.translate that maps whatever it does not hold to id 0."""

    def __missing__(self, key: int) -> str:
        return chr(0)


@dataclass
class Corpus:
    """Training and held-out ids (int16, 1-D), the vocabulary, and what identifies the text."""

    training: torch.Tensor
    held_out: torch.Tensor
    vocabulary: Vocabulary
    fingerprint: str
    source: str

    @classmethod
    def load(cls, patterns: list[str] | None, largest_mb: float) -> Corpus:
        """Read ``patterns`` or, without any, the standard library, up to ``largest_mb`` MB."""
        files = given_files(patterns) if patterns else standard_library_files()
        texts = read_within(files, largest_mb * 1e6)
        training, held_out = split_by_file(texts)
        if not training or not held_out:
            raise UserError(f"the text has {len(training) + len(held_out)} characters: too small")
        vocabulary = Vocabulary.of(training)
        digest = hashlib.sha256(training.encode("utf-8", "replace") + b"\0")
        digest.update(held_out.encode("utf-8", "replace"))
        kind = "given files" if patterns else "Python standard library"
        source = (
            f"{kind}: {len(texts)} files, {len(training) / 1e6:.2f} M characters to train on, "
            f"{len(held_out) / 1e6:.2f} M held out, {len(vocabulary)} ids"
        )
        return cls(
            vocabulary.encode(training),
            vocabulary.encode(held_out),
            vocabulary,
            digest.hexdigest()[:16],
            source,
        )


class TrainingWindows:
    """One global order of training windows that does not depend on the number of ranks.

    Each epoch cuts the text into windows without overlap, from another offset, and shuffles them.
    Batch ``step`` is the next ``global_batch`` windows of that order; a rank takes its contiguous
    part of it. The position in the data is therefore a function of the step alone.

    Args:
        ids: the text, int16, shape [characters].
        context: characters per window.
        global_batch: windows per step over all ranks.
        seed: what the order is drawn from.
    """

    def __init__(self, ids: torch.Tensor, context: int, global_batch: int, seed: int) -> None:
        self.ids, self.context, self.global_batch, self.seed = ids, context, global_batch, seed
        # One character more than the window is its last target, one window is left for the offset.
        self.per_epoch = (len(ids) - 1) // context - 1
        if self.per_epoch < global_batch:
            raise UserError(
                f"the training text is too small: {len(ids)} characters give "
                f"{max(self.per_epoch, 0)} windows of {context}, and --global-batch asks for "
                f"{global_batch} at a time"
            )
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int, part: int, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs, targets) of part ``part`` of ``parts`` of the batch of ``step``.

        Both are int64 of shape [global_batch / parts, context], on the device of the text.
        """
        epoch, index = divmod(step, self.per_epoch // self.global_batch)
        if epoch != self._epoch:
            self._starts, self._epoch = self._order(epoch), epoch
        size = self.global_batch // parts
        first = index * self.global_batch + part * size
        return windows(self.ids, self._starts[first : first + size], self.context)

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator()
        generator.manual_seed(self.seed * 1_000_003 + epoch)
        offset = int(torch.randint(self.context, (1,), generator=generator))
        return torch.randperm(self.per_epoch, generator=generator) * self.context + offset


def held_out_starts(ids: torch.Tensor, context: int, count: int) -> torch.Tensor:
    """Return the starts (int64) of up to ``count`` windows spread evenly over ``ids``."""
    possible = (len(ids) - 1) // context
    if possible < 1:
        raise UserError(
            f"the held-out text has {len(ids)} characters, fewer than a window of {context} "
            "and its target; give more text with --data or a smaller --context"
        )
    count = min(count, possible)
    return torch.arange(count) * (len(ids) - context - 1) // max(count - 1, 1)


def windows(
    ids: torch.Tensor, starts: torch.Tensor, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut windows and their targets, one character later: int64, [len(starts), context] each."""
    positions = starts.unsqueeze(1) + torch.arange(context + 1)
    cut = ids[positions.to(ids.device)].long()
    return cut[:, :-1], cut[:, 1:]
