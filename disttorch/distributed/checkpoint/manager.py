"""The checkpoints of a run: one folder a step, the last whole one, and when old ones go."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from concurrent.futures import Future
from typing import Any

from ..process_group import ProcessGroup
from . import manifest
from .api import CheckpointException, DamagedCheckpoint
from .filesystem import FileSystemReader, FileSystemWriter, is_whole, sync_folder, verify
from .metadata import Metadata
from .staging import copy_state_dict
from .state_dict_loader import load_stateful_on
from .state_dict_saver import Worker, save_on, states_of
from .utils import Ranks, background_group_of, group_of

_STEP = re.compile(r"step-(\d+)")
_GONE = ".removed-"


class CheckpointManager:
    """Saves a run's state now and then, and finds the last whole one.

        manager = CheckpointManager("run/checkpoints", keep=3)
        start = manager.load_latest(state)          # None at the first start
        for step in range(start + 1 if start is not None else 0, steps):
            ...
            manager.save(step, state)

    A checkpoint is whole from the moment its manifest is there. What a killed save left is no
    checkpoint, and is removed with the next save. All methods are calls of all ranks.

    Args:
        root: the folder of the checkpoints, ``step-00000100`` and so on; seen by all ranks.
        keep: how many whole ones to keep; None: all. Older ones go after a newer one is whole.
        asynchronous: `save` returns when the state is copied, and a thread writes it.
        process_group: the ranks; None: all.
        writer: options of `FileSystemWriter`.

    Raises:
        ValueError: `keep` below 1.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        keep: int | None = None,
        *,
        asynchronous: bool = False,
        process_group: ProcessGroup | None = None,
        writer: dict[str, Any] | None = None,
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, or None to keep all, got {keep}")
        self.root, self.keep, self.asynchronous = os.fspath(root), keep, asynchronous
        self.process_group, self.options = process_group, dict(writer or {})
        self._last: Future | None = None

    def folder(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return os.path.join(self.root, f"step-{step:08d}")

    def steps(self) -> list[int]:
        """The steps that have a manifest and all files in their sizes, in order. Of this rank alone."""
        return [step for step in self._folders() if is_whole(self.folder(step))]

    def latest(self) -> int | None:
        """The last of `steps`; None without any."""
        return next((s for s in reversed(self._folders()) if is_whole(self.folder(s))), None)

    # ---- saving --------------------------------------------------------------------------------

    def save(self, step: int, state_dict: dict[str, Any]) -> Future | None:
        """Save a state dict as the checkpoint of a step; replaces one that the step has.

        Returns:
            None; if asynchronous, a future. A failed asynchronous save raises in the next `save`
            or in `wait`.

        Raises:
            CheckpointException: on all ranks; earlier checkpoints are as they were.
        """
        if not self.asynchronous:
            ranks = Ranks(group_of(self.process_group, False))
            self._write(ranks, step, states_of(state_dict))
            return None
        self.wait()
        group = background_group_of(self.process_group, False)
        worker = Worker.of(group)
        worker.wait()
        state = copy_state_dict(states_of(state_dict))
        self._last = worker.submit(lambda: self._write(Ranks(group), step, state))
        return self._last

    def wait(self) -> None:
        """Wait for the save that is under way; raise what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _write(self, ranks: Ranks, step: int, state: dict[str, Any]) -> Metadata:
        writer = FileSystemWriter(self.folder(step), **self.options)
        writer.warns = False  # a step that is saved again is to be replaced
        made = save_on(ranks, state, writer)
        ranks.broadcast("retention", lambda: self._retain(step) if ranks.is_coordinator else None)
        return made

    def _retain(self, newest: int) -> None:
        """Remove what is too old, once the newest is whole, and what killed saves left."""
        sync_folder(self.root)  # the new folder's name
        whole = self.steps()
        if newest not in whole:
            raise DamagedCheckpoint(f"{self.folder(newest)} is not whole right after it was saved")
        others = [step for step in whole if step != newest]
        oldest = None  # that is kept
        if self.keep is not None and len(others) >= self.keep:
            oldest = others[1 - self.keep] if self.keep > 1 else newest
        for step in self._folders():
            torn = not os.path.exists(self._manifest(step))
            if step != newest and (torn or (oldest is not None and step < oldest)):
                self._remove(step)
        for name in os.listdir(self.root):
            if name.startswith(_GONE):
                shutil.rmtree(os.path.join(self.root, name), ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Out of sight in one step, then file by file."""
        gone = os.path.join(self.root, f"{_GONE}{os.path.basename(self.folder(step))}")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(self.folder(step), gone)
        shutil.rmtree(gone, ignore_errors=True)

    # ---- loading -------------------------------------------------------------------------------

    def load_latest(self, state_dict: dict[str, Any], *, check: bool = True) -> int | None:
        """Load the last whole checkpoint into a state dict, in place.

        One that is torn, lacks a file or was altered is named in a warning, and the one before it
        is taken.

        Args:
            check: read and check all files first, shared by the ranks, so that nothing is loaded of
                a checkpoint that is damaged anywhere; False: the parts that are loaded are checked
                while they are.

        Returns:
            The step; None if there is no checkpoint.

        Raises:
            DamagedCheckpoint: there are checkpoints, and none of them is whole.
            CheckpointException: the checkpoint does not fit the state dict.
        """
        self.wait()
        ranks = Ranks(group_of(self.process_group, False))
        candidates = ranks.broadcast("list", self._with_manifest)
        damage: list[str] = []
        for step in reversed(candidates):
            found = self._damage(ranks, step, check)
            if found is None:
                try:
                    load_stateful_on(ranks, state_dict, FileSystemReader(self.folder(step)))
                    return step
                except CheckpointException as error:
                    errors = [e for e, _ in error.failures.values()]
                    if not all(isinstance(e, DamagedCheckpoint) for e in errors):
                        raise
                    found = "; ".join(map(str, errors))
            damage.append(found)
            if ranks.is_coordinator:
                warnings.warn(f"the checkpoint of step {step} is not used: {found}", stacklevel=2)
        if damage:
            raise DamagedCheckpoint(
                f"none of the {len(damage)} checkpoints in {self.root} is whole: {'; '.join(damage)}"
            )
        return None

    def _damage(self, ranks: Ranks, step: int, contents: bool) -> str | None:
        def look() -> str | None:
            try:
                verify(self.folder(step), contents, (ranks.rank, ranks.size))
            except DamagedCheckpoint as error:
                return str(error)
            return None

        found = [text for text in ranks.all_gather("check", look) if text is not None]
        return "; ".join(dict.fromkeys(found)) or None

    # ---- folders -------------------------------------------------------------------------------

    def _manifest(self, step: int) -> str:
        return os.path.join(self.folder(step), manifest.NAME)

    def _folders(self) -> list[int]:
        if not os.path.isdir(self.root):
            return []
        found = (_STEP.fullmatch(name) for name in os.listdir(self.root))
        return sorted(int(match[1]) for match in found if match)

    def _with_manifest(self) -> list[int]:
        return [step for step in self._folders() if os.path.exists(self._manifest(step))]


__all__ = ["CheckpointManager"]
