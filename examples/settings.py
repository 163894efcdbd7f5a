"""The command line of train_gpt.py: one dataclass field per option, and the checks on them."""

from __future__ import annotations

import argparse
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, NoReturn

from text import UserError


def option(
    default: Any,
    text: str,
    *,
    resumable: bool = False,
    least: float | None = None,
    kind: type = str,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare an option. A ``resumable`` one may be given anew when a run is resumed.

    ``kind`` is needed only where ``default`` is None; ``least`` is the smallest legal value.
    """
    metadata = {
        "text": text,
        "resumable": resumable,
        "least": least,
        "choices": choices,
        "kind": kind if default is None else type(default),
    }
    return field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Everything that defines a run; ``--global-batch`` sets ``global_batch`` and so on."""

    data: list[str] | None = option(
        None, "text files or quoted globs (default: the Python standard library)", kind=list
    )
    max_mb: float = option(16.0, "use at most this many MB of text", least=0)
    layers: int = option(2, "Transformer blocks", least=1)
    heads: int = option(4, "attention heads per block", least=1)
    width: int = option(128, "width of the model, a multiple of --heads", least=1)
    context: int = option(64, "characters that the model sees at once", least=1)
    tie: bool = option(False, "share the weights of the embedding and the output layer")
    dropout: float = option(0.0, "dropout probability", least=0)
    steps: int = option(1800, "optimizer steps in all", resumable=True, least=1)
    global_batch: int = option(16, "sequences per step over all ranks", least=1)
    accumulate: int = option(1, "parts in which a rank works through its share", least=1)
    lr: float = option(4e-3, "peak learning rate", least=0)
    warmup: int = option(100, "steps in which the learning rate rises to --lr", least=0)
    final_lr: float = option(0.05, "last learning rate as a fraction of --lr", least=0)
    weight_decay: float = option(0.1, "AdamW's decay of the matrices", least=0)
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", least=0)
    seed: int = option(1337, "seed of weights, data order and dropout", least=0)
    dtype: str = option(
        "float32", "type of weights and arithmetic", choices=("float32", "float64", "bfloat16")
    )
    device: str = option("cpu", "where to compute", resumable=True, choices=("cpu", "cuda"))
    log_every: int = option(20, "steps between logged steps", resumable=True, least=1)
    eval_every: int = option(300, "steps between validations", resumable=True, least=1)
    eval_windows: int = option(1024, "held-out windows per validation", resumable=True, least=1)
    save_every: int = option(300, "steps between checkpoints", resumable=True, least=1)
    keep: int = option(2, "checkpoints to keep", resumable=True, least=1)
    prompt: str = option("def ", "what the sample at the end continues", resumable=True)
    sample_length: int = option(400, "characters of the sample", resumable=True, least=0)
    temperature: float = option(0.8, "temperature of the sample", resumable=True, least=1e-3)
    top_k: int = option(20, "draw among the k likeliest; 0: among all", resumable=True, least=0)


class Parser(argparse.ArgumentParser):
    """An argument parser of which one rank speaks: mistakes are raised, help is shown once."""

    speaks = True

    def print_help(self, file: Any = None) -> None:
        if self.speaks:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all options")


def parse(arguments: list[str] | None, description: str, speaks: bool) -> dict[str, Any]:
    """Return the options that were given, by field name, with ``out`` and ``resume`` if given.

    ``speaks`` is true on the one rank that shows ``--help``.
    """
    # SUPPRESS: what was not given is absent, so that a resumed run can tell it from a default.
    parser = Parser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.speaks = speaks
    for entry in fields(Settings):
        parser.add_argument("--" + entry.name.replace("_", "-"), **_argument(entry))
    parser.add_argument("--out", help="folder of the run (default: runs/gpt-DATE-TIME)")
    parser.add_argument("--resume", help="run folder, or one checkpoint of a run, to continue")
    return vars(parser.parse_args(arguments))


def _argument(entry: Field) -> dict[str, Any]:
    text = entry.metadata["text"]
    kind = entry.metadata["kind"]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if entry.default is not None:
        text += f" (default: {entry.default})"
    if kind is list:
        return {"nargs": "+", "help": text}
    return {"type": kind, "choices": entry.metadata["choices"], "help": text}


def check(settings: Settings, world_size: int) -> None:
    """Raise UserError for values that make no run."""
    for entry in fields(Settings):
        value, least = getattr(settings, entry.name), entry.metadata["least"]
        if least is not None and not value >= least:
            name = entry.name.replace("_", "-")
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    if settings.width % settings.heads:
        raise UserError(
            f"--width {settings.width} is not a multiple of --heads {settings.heads}; "
            f"the nearest is {max(settings.width // settings.heads, 1) * settings.heads}"
        )
    if settings.dropout >= 1:
        raise UserError(f"--dropout is {settings.dropout}; it must be less than 1")
    parts = world_size * settings.accumulate
    if settings.global_batch % parts:
        below = settings.global_batch // parts * parts
        raise UserError(
            f"--global-batch {settings.global_batch} does not divide into {world_size} ranks x "
            f"{settings.accumulate} accumulation steps; take "
            + (f"{below} or {below + parts}" if below else f"{parts}")
        )


def resumed(saved: dict[str, Any], given: dict[str, Any], path: object) -> Settings:
    """Return the settings of a checkpoint with what may change replaced by what was given.

    Raises:
        UserError: naming the first option that was given and belongs to another model or run.
    """
    if saved.keys() != asdict(Settings()).keys():
        raise UserError(f"{path} was written by another version of this example")
    for entry in fields(Settings):
        name = entry.name
        if name in given and not entry.metadata["resumable"] and given[name] != saved[name]:
            raise UserError(
                f"{path} is of another model or run: {name} is {saved[name]} there and "
                f"{given[name]} here; leave --{name.replace('_', '-')} out to continue it"
            )
    return Settings(**{**saved, **given})
