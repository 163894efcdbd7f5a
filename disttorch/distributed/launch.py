"""The older `python -m torch.distributed.launch`: `run` under another name.

Scripts read LOCAL_RANK from the environment; the `--local-rank` argument that PyTorch's launcher
passed before version 2 is not given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import run


def main(args: Sequence[str] | None = None) -> None:
    """Start a job and wait for it; see `run.main`. `--use-env`, long the default, is accepted."""
    arguments = sys.argv[1:] if args is None else list(args)
    run.main([each for each in arguments if each not in ("--use-env", "--use_env")])


if __name__ == "__main__":
    main()
