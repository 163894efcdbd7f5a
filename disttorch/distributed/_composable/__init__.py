"""Earlier import paths of what is applied to a module in place."""

from ..fsdp import fully_shard

__all__ = ["fully_shard"]
