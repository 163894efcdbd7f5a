"""Checkpoints to and from single files of `disttorch.save` or `torch.save`.

    python -m disttorch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ... import ops
from ...autograd import no_grad
from ...futures import Future
from ...serialization.archive import load as load_file
from ...serialization.archive import save as save_file
from ...tensor import Size, Tensor
from .default_planner import DefaultLoadPlanner
from .filesystem import FileSystemWriter
from .metadata import (
    STATE_DICT_TYPE,
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from .nested import flatten_state_dict
from .planner import LoadPlan, LoadPlanner, ReadItem
from .planner_helpers import is_tensor
from .state_dict_loader import load_keys
from .state_dict_saver import save_on
from .storage import StorageReader
from .utils import Ranks, group_of


def dcp_to_torch_save(
    dcp_checkpoint_dir: str | os.PathLike, torch_save_path: str | os.PathLike
) -> None:
    """Write a checkpoint into one file that `torch.load` reads. Holds it in memory as a whole."""
    save_file(load_keys(checkpoint_id=dcp_checkpoint_dir), torch_save_path)


def torch_save_to_dcp(
    torch_save_path: str | os.PathLike, dcp_checkpoint_dir: str | os.PathLike
) -> None:
    """Write a checkpoint of what a file of `torch.save` holds: a dict. Runs no code from it."""
    content = load_file(torch_save_path, map_location="cpu")
    if not isinstance(content, dict):
        raise TypeError(
            f"{torch_save_path} holds a {type(content).__name__}, a checkpoint is made of a dict"
        )
    save_on(Ranks(None), content, FileSystemWriter(dcp_checkpoint_dir))


class DynamicMetaLoadPlanner(DefaultLoadPlanner):
    """Takes the state dict for what the file holds; goes with `BroadcastingTorchSaveReader`.

    Raises:
        RuntimeError: a value that is no tensor.
    """

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)
        found: dict[str, STORAGE_TYPES] = {}
        for key, value in self.state_dict.items():
            if not is_tensor(value):
                raise RuntimeError(
                    f"Non-tensor value identified at {key}. At this time {type(self).__name__} only "
                    "supports loading Tensors."
                )
            whole = ChunkStorageMetadata(Size([0] * len(value.shape)), Size(value.shape))
            found[key] = TensorStorageMetadata(
                TensorProperties(value.dtype), Size(value.shape), [whole]
            )
        self.metadata = Metadata(found)


class BroadcastingTorchSaveReader(StorageReader):
    """Reads a file of `torch.save` on one rank, which sends it tensor by tensor; each keeps its part.

    Goes with `DynamicMetaLoadPlanner`; all ranks must ask for the same keys. Runs no code from the
    file.

    Args:
        checkpoint_id: the file.
        coordinator_rank: who reads it.
    """

    def __init__(
        self, checkpoint_id: str | os.PathLike | None = None, coordinator_rank: int = 0
    ) -> None:
        self.checkpoint_id, self.coordinator_rank = checkpoint_id, coordinator_rank

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        self.checkpoint_id = checkpoint_id

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({})  # the planner makes it

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        if self.checkpoint_id is None:
            raise ValueError("checkpoint_id must be set before setting up storage reader")

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        assert isinstance(planner, DynamicMetaLoadPlanner) and planner.metadata is not None
        wanted = planner.metadata.state_dict_metadata
        ranks = Ranks(group_of(None, False), self.coordinator_rank)

        def content() -> dict[str, Any]:
            flat = flatten_state_dict(load_file(self.checkpoint_id, map_location="cpu"))[0]
            for key, saved in wanted.items():
                assert isinstance(saved, TensorStorageMetadata)
                found = flat[key].shape if isinstance(flat.get(key), Tensor) else flat.get(key)
                if found is None or tuple(found) != tuple(saved.size):
                    raise RuntimeError(
                        f"{self.checkpoint_id} has {found} at the key {key!r}, expected a tensor of "
                        f"shape {tuple(saved.size)}"
                    )
            return flat

        held: list[dict[str, Any]] = []
        ranks.broadcast("read", lambda: held.append(content()))  # or all ranks raise
        for key, saved in wanted.items():
            whole = self._whole(key, saved, held, ranks)
            for item in plan.items:
                if item.dest_index.fqn == key:
                    self._take(whole, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _whole(self, key: str, saved: Any, held: list, ranks: Ranks) -> Tensor:
        dtype, size = saved.properties.dtype, tuple(saved.size)
        whole = held[0][key].to(dtype).contiguous() if held else ops.empty(size, dtype=dtype)
        if ranks.group is not None and whole.numel():
            ranks.group.broadcast(whole._data, self.coordinator_rank)
        return whole

    def _take(self, whole: Tensor, item: ReadItem, planner: LoadPlanner) -> None:
        for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths)):
            whole = whole.narrow(dim, start, length)
        target = planner.resolve_tensor(item).detach()
        target.copy_(whole)
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return os.path.isfile(checkpoint_id)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="format_utils", description=__doc__)
    parser.add_argument("mode", choices=["torch_to_dcp", "dcp_to_torch"])
    parser.add_argument("src")
    parser.add_argument("dst")
    chosen = parser.parse_args(arguments)
    convert = torch_save_to_dcp if chosen.mode == "torch_to_dcp" else dcp_to_torch_save
    convert(chosen.src, chosen.dst)


__all__ = [
    "BroadcastingTorchSaveReader", "DynamicMetaLoadPlanner", "dcp_to_torch_save", "torch_save_to_dcp",
]  # fmt: skip

if __name__ == "__main__":
    main()
