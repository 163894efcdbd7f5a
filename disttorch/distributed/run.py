"""torchrun: starts the ranks of a script on this machine.

    python -m torch.distributed.run --nproc-per-node 2 train.py     (under disttorch as torch)
    main(["--nproc-per-node", "2", "train.py"])

The work is done by disttorch's launcher in a process of its own, which takes torchrun's options as
they are: see `python -m launcher --help`.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_LAUNCHER = "launcher"  # a process of its own: no import leads from here to it

# Option -> what argparse is told about it; the launcher checks the values.
_OPTIONS: dict[tuple[str, ...], dict[str, Any]] = {
    ("--nnodes",): {"default": "1:1"},
    ("--nproc-per-node",): {"default": "1"},
    ("--rdzv-backend",): {"default": "static"},
    ("--rdzv-endpoint",): {"default": ""},
    ("--rdzv-id",): {"default": "none"},
    ("--rdzv-conf",): {"default": ""},
    ("--standalone",): {"action": "store_true"},
    ("--max-restarts",): {"type": int, "default": 0},
    ("--monitor-interval",): {"type": float, "default": 0.1},
    ("--start-method",): {"default": "spawn"},
    ("--role",): {"default": "default"},
    ("-m", "--module"): {"action": "store_true"},
    ("--no-python",): {"action": "store_true"},
    ("--log-dir",): {},
    ("-r", "--redirects"): {"default": "0"},
    ("-t", "--tee"): {"default": "0"},
    ("--local-ranks-filter",): {"default": ""},
    ("--node-rank",): {"type": int, "default": 0},
    ("--master-addr",): {"default": "127.0.0.1"},
    ("--master-port",): {"type": int, "default": 29500},
    ("--local-addr",): {},
}  # fmt: skip


def get_args_parser() -> argparse.ArgumentParser:
    """A parser of torchrun's options, spelt with hyphens or underscores."""
    parser = argparse.ArgumentParser(
        prog="torchrun", description="Starts the ranks of a script on this machine."
    )
    for names, settings in _OPTIONS.items():
        underscored = [name.replace("-", "_").replace("__", "--", 1) for name in names[-1:]]
        both = dict.fromkeys([*names, *underscored])
        parser.add_argument(*both, **settings)
    parser.add_argument("training_script")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser


def parse_args(args: Sequence[str] | None) -> argparse.Namespace:
    """The options as `run` takes them; None: those of the command line."""
    return get_args_parser().parse_args(args)


def run(args: argparse.Namespace) -> None:
    """Start what parsed options describe and wait for it.

    Raises:
        SystemExit: with the job's exit status, if that is not 0.
    """
    found: list[str] = []
    parser = get_args_parser()
    for names, settings in _OPTIONS.items():
        name = names[-1][2:].replace("-", "_")
        value = getattr(args, name, parser.get_default(name))
        if settings.get("action") == "store_true":
            found += [names[-1]] if value else []
        elif value != parser.get_default(name):
            found += [names[-1], str(value)]
    main([*found, args.training_script, *args.training_script_args])


def main(args: Sequence[str] | None = None) -> None:
    """Start a job and wait for it.

    Args:
        args: options, script and its arguments; None: those of the command line.

    Raises:
        SystemExit: with the job's exit status, if that is not 0.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    job = subprocess.Popen([sys.executable, "-m", _LAUNCHER, *arguments])
    before = {}
    try:
        # Ctrl-C reaches the launcher by itself, which ends the ranks; SIGTERM reaches only us.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: job.terminate())
    except ValueError:
        pass  # not the main thread: signals are somebody else's
    try:
        status = job.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    main()
