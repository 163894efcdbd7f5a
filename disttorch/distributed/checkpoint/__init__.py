"""Checkpoints of many ranks: PyTorch's `torch.distributed.checkpoint`, in a format of our own.

    import disttorch.distributed.checkpoint as dcp
    dcp.save({"model": model, "step": step}, checkpoint_id="run/step-100")
    dcp.load(state, checkpoint_id="run/step-100")     # other ranks, another layout: all the same

```
state_dict_saver, state_dict_loader    the steps of saving and loading
default_planner, planner_helpers       who writes or reads which box of which tensor
filesystem, tensor_files, manifest     safetensors files, and the manifest that makes them one
values, nested                         what is no tensor; nested dicts
manager, run_state                     checkpoints of a run: retention, the last whole one, everything
state_dict                             models and optimizers by parameter names, whole or in parts
format_utils, export, hf_storage       other formats
```
"""

from __future__ import annotations

from .api import CheckpointException, DamagedCheckpoint
from .default_planner import DefaultLoadPlanner, DefaultSavePlanner
from .export import export_safetensors
from .filesystem import FileSystemReader, FileSystemWriter, verify
from .hf_storage import HuggingFaceStorageReader
from .manager import CheckpointManager
from .metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from .planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from .run_state import RunState
from .shards import LocalShards
from .state_dict_loader import load, load_keys, load_state_dict
from .state_dict_saver import async_save, save, save_state_dict
from .stateful import RankLocal, Stateful
from .storage import StorageReader, StorageWriter

__all__ = [
    "BytesStorageMetadata", "CheckpointException", "CheckpointManager", "ChunkStorageMetadata",
    "DamagedCheckpoint", "DefaultLoadPlanner", "DefaultSavePlanner", "FileSystemReader",
    "FileSystemWriter", "HuggingFaceStorageReader", "LoadPlan", "LoadPlanner", "LocalShards",
    "Metadata", "MetadataIndex", "RankLocal", "ReadItem", "RunState", "SavePlan", "SavePlanner",
    "Stateful", "StorageReader", "StorageWriter", "TensorStorageMetadata", "WriteItem",
    "async_save", "export_safetensors", "load", "load_keys", "load_state_dict", "save",
    "save_state_dict", "verify",
]  # fmt: skip
