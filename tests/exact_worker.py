"""One rank of a real job: trains and says the digest of its weights.

Arguments: model, optimizer, steps, and a checkpoint's path, which is written after every third step.
A model as gpt:sharded is trained in that layout (`exact_layouts`).
DIE holds START:RANK:STEP for ranks that then kill themselves by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import exact_layouts
import exact_models

import disttorch.distributed as dist


def main() -> None:
    name, optimizer, steps, *checkpoint = sys.argv[1:]
    dist.init_process_group()
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def visit(step: int) -> None:
        if f"{start}:{dist.get_rank()}:{step}" in os.environ.get("DIE", "").split():
            os.kill(os.getpid(), signal.SIGKILL)

    path = Path(checkpoint[0]) if checkpoint else None
    name, _, layout = name.partition(":")
    if layout:
        digest = exact_layouts.train(name, optimizer, layout, int(steps))
    else:
        digest = exact_models.train(name, optimizer, int(steps), path, 3, visit)["digest"]
    name = f"rank {dist.get_rank()} of {dist.get_world_size()}"
    moved = dist.ledger().get("tree_all_reduce", {"received_bytes": 0, "lower_bound_bytes": 0})
    sys.stdout.write(
        f"{name}: {digest}\n"
        f"{name} received {moved['received_bytes']:.0f} bytes, "
        f"at least {moved['lower_bound_bytes']:.0f}\n"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
