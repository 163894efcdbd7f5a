"""One rank of a real job: trains and says the digest of its weights.

Arguments: model, optimizer, steps, and a checkpoint's path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import exact_models

import disttorch.distributed as dist


def main() -> None:
    name, optimizer, steps, *checkpoint = sys.argv[1:]
    dist.init_process_group()
    result = exact_models.train(
        name, optimizer, int(steps), Path(checkpoint[0]) if checkpoint else None
    )
    line = f"rank {dist.get_rank()} of {dist.get_world_size()}: {result['digest']}\n"
    sys.stdout.write(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
