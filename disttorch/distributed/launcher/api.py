"""A function as the ranks of a job on this machine, with torchrun's variables in their environment.

    results = elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2), train)(epochs)
    results[0]                                # what rank 0 returned
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_SECRET = "DISTTORCH_JOB_SECRET"  # what the ranks show each other when they connect


@dataclass
class LaunchConfig:
    """How many ranks, and how they start.

    Args:
        min_nodes, max_nodes: both 1; jobs over several nodes are for `torch.distributed.run`.
        nproc_per_node: ranks.
        run_id: name of the job; "": a random one.
        role: ROLE_NAME of the ranks.
        start_method: "spawn", "fork" or "forkserver".
        max_restarts: how often PyTorch would start a failed job again; here it is never.
        rdzv_backend, rdzv_endpoint, rdzv_configs, rdzv_timeout, monitor_interval, local_addr,
        metrics_cfg, event_log_handler, logs_specs, local_ranks_filter, log_line_prefix_template:
            accepted as in PyTorch. Ranks of one machine need no rendezvous of launchers, and write
            where this process writes.

    Raises:
        ValueError: more than one node; no ranks.
    """

    min_nodes: int
    max_nodes: int
    nproc_per_node: int
    logs_specs: Any = None
    run_id: str = ""
    role: str = "default_role"
    rdzv_endpoint: str = ""
    rdzv_backend: str = "static"
    rdzv_configs: dict[str, Any] = field(default_factory=dict)
    rdzv_timeout: int = -1
    max_restarts: int = 0
    monitor_interval: float = 0.1
    start_method: str = "spawn"
    log_line_prefix_template: str | None = None
    metrics_cfg: dict[str, str] = field(default_factory=dict)
    local_addr: str | None = None
    event_log_handler: str = "null"
    local_ranks_filter: Any = None

    def __post_init__(self) -> None:
        if self.max_nodes != 1:
            raise ValueError(
                f"LaunchConfig(max_nodes={self.max_nodes}): ranks start on this machine only; over "
                "several, run 'python -m torch.distributed.run' on each"
            )
        if self.nproc_per_node < 1:
            raise ValueError(f"LaunchConfig(nproc_per_node={self.nproc_per_node}): at least 1")


class elastic_launch:
    """Calls a function, or a program, as the ranks of a job.

    Args:
        config: how many.
        entrypoint: a function that processes can be given (of a module), or a program's path.
    """

    def __init__(self, config: LaunchConfig, entrypoint: Callable | str | None) -> None:
        self._config, self._entrypoint = config, entrypoint

    def __call__(self, *args: Any) -> dict[int, Any]:
        """Run it with `args` on every rank; returns what each rank returned (None for programs).

        Raises:
            ChildFailedError: a rank failed; the others were ended.
        """
        return launch_agent(self._config, self._entrypoint, list(args))


def launch_agent(
    config: LaunchConfig, entrypoint: Callable | str | None, args: list[Any]
) -> dict[int, Any]:
    """Run `entrypoint(*args)` as the ranks of a job; see `elastic_launch`."""
    from ...multiprocessing import ProcessException, start_processes

    if entrypoint is None:
        raise ValueError("launch_agent: no entrypoint")
    n = config.nproc_per_node
    shared = _shared_variables(config)
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        context = start_processes(
            _rank_main, (entrypoint, args, shared, folder), n, False, False, config.start_method
        )
        try:
            while not context.join():
                pass
        except ProcessException as error:
            rank = error.error_index
            code = getattr(error, "exit_code", 1)
            failure = ProcessFailure(rank, error.pid, code, message=error.msg.strip())
            name = entrypoint if isinstance(entrypoint, str) else entrypoint.__qualname__
            raise ChildFailedError(name, {rank: failure}) from error
        results = {}
        for rank in range(n):
            with open(os.path.join(folder, str(rank)), "rb") as file:
                results[rank] = pickle.load(file)
    return results


def _rank_main(
    rank: int, entrypoint: Callable | str, args: list[Any], shared: dict[str, str], folder: str
) -> None:
    mine = ("RANK", "LOCAL_RANK", "ROLE_RANK")
    os.environ.update(shared, **dict.fromkeys(mine, str(rank)))
    if isinstance(entrypoint, str):
        result = None
        status = subprocess.call([entrypoint, *map(str, args)])
        if status:
            raise SystemExit(status if status > 0 else 128 - status)
    else:
        result = entrypoint(*args)
    with open(os.path.join(folder, str(rank)), "wb") as file:
        pickle.dump(result, file)


def _shared_variables(config: LaunchConfig) -> dict[str, str]:
    n = str(config.nproc_per_node)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "ROLE_WORLD_SIZE": n, "NODE_RANK": "0",
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": config.role,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": config.run_id or secrets.token_hex(8),
        _SECRET: os.environ.get(_SECRET) or secrets.token_hex(32),
    }  # fmt: skip


__all__ = ["LaunchConfig", "elastic_launch", "launch_agent"]
