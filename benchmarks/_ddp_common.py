"""What the jobs of benchmarks/ddp.py share: the models, the ways to train them, how bytes are counted.

Standard library and `benchmarks.models` only: the jobs run in environments with different packages.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import socket
import types
from collections.abc import Callable
from typing import Any

from benchmarks.models import gpt, mlp, resnet18


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: `build(library, batch)`, samples per rank, and what fully_shard is given one by one."""

    title: str
    build: Callable[..., Any]
    batch: int
    units: Callable[[Any], list[Any]]


def _residual_blocks(model: Any) -> list[Any]:
    return [block for layer in (1, 2, 3, 4) for block in getattr(model, f"layer{layer}")]


CASES = {
    "mlp": Case("MLP 784-512-512-10, batch 128", mlp, 128, lambda model: [model[0], model[2], model[4]]),
    "gpt128": Case("GPT 4/128, 12 x 64 ids", gpt(4, 128, 12, 64), 12, lambda model: list(model.blocks)),
    "gpt384": Case("GPT 6/384, 4 x 256 ids", gpt(6, 384, 4, 256), 4, lambda model: list(model.blocks)),
    "resnet18": Case("ResNet-18 on 32x32, batch 32", resnet18, 32, _residual_blocks),
}
# "alone" trains on every rank without reducing anything: what the same step costs without its
# communication, while the other ranks use the machine's other cores.
MODES = ("alone", "ddp", "fsdp")
# A sample counts as undisturbed while others have used no more CPUs than this.
DISTURBED = 0.1


def job_arguments() -> argparse.Namespace:
    """What the parent tells a job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=("disttorch", "torch"), required=True)
    parser.add_argument("--model", choices=CASES, required=True)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--strong", action="store_true", help="ddp with the batch shared, too")
    parser.add_argument("--repeat", type=int, default=5, help="undisturbed samples of each mode")
    parser.add_argument("--most", type=int, default=10, help="samples at most, disturbed ones too")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one sample, about")
    parser.add_argument("--result", required=True, help="rank 0 writes its JSON here")
    options = parser.parse_args()
    options.modes = options.modes.split(",")
    return options


def volume(mode: str, parameters: int, n: int) -> float:
    """Bytes a rank must send per step at least, for `parameters` bytes (Rajbhandari et al., SC 2020).

    All-reduced: 2P(n-1)/n. Sharded: gathered for forward and for backward, and reduced: 3P(n-1)/n.
    """
    return {"alone": 0, "ddp": 2, "fsdp": 3}[mode.split()[0]] * parameters * (n - 1) / n


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used; 0 where that is not told."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    idle = ticks[3] + ticks[4]  # and waiting for a disk
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def bytes_sent_by_sockets() -> float:
    """Bytes that this process has handed to its open TCP connections, by Linux's count of each.

    What the kernel had to send again is not counted. nan on another system.
    """
    if not hasattr(socket, "TCP_INFO") or not os.path.isdir("/proc/self/fd"):
        return math.nan
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # closed meanwhile, or no TCP
        # linux/tcp.h, struct tcp_info: tcpi_bytes_sent at 200, tcpi_bytes_retrans at 208
        total += int.from_bytes(info[200:208], "little") - int.from_bytes(info[208:216], "little")
    return total


def bytes_sent(library: str, dist: types.ModuleType) -> float:
    """Bytes this rank has sent so far: by disttorch's ledger, or by the sockets that gloo uses."""
    if library == "torch":
        return bytes_sent_by_sockets()
    return int(sum(figures["sent_bytes"] for figures in dist.ledger().values()))
