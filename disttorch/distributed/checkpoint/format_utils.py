"""Checkpoints to and from single files of `disttorch.save` or `torch.save`.

    python -m disttorch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE
"""

from __future__ import annotations

import argparse
import os

from ...serialization.archive import load as load_file
from ...serialization.archive import save as save_file
from .filesystem import FileSystemWriter
from .state_dict_loader import load_keys
from .state_dict_saver import save_on
from .utils import Ranks


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


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="format_utils", description=__doc__)
    parser.add_argument("mode", choices=["torch_to_dcp", "dcp_to_torch"])
    parser.add_argument("src")
    parser.add_argument("dst")
    chosen = parser.parse_args(arguments)
    convert = torch_save_to_dcp if chosen.mode == "torch_to_dcp" else dcp_to_torch_save
    convert(chosen.src, chosen.dst)


if __name__ == "__main__":
    main()

__all__ = ["dcp_to_torch_save", "torch_save_to_dcp"]
