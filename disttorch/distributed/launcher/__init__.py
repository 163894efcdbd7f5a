"""Starting a function's ranks from a script: `torch.distributed.launcher.api`."""

from __future__ import annotations

from .api import LaunchConfig, elastic_launch, launch_agent

__all__ = ["LaunchConfig", "elastic_launch", "launch_agent"]
