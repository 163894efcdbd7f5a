"""Copies of state dicts, so that training may go on while they are written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ...autograd import no_grad
from ...tensor import Tensor
from .metadata import STATE_DICT_TYPE
from .planner_helpers import is_dtensor
from .stateful import RankLocal


@no_grad()
def copy_state_dict(value: Any) -> Any:
    """A copy that shares nothing with the original: tensors on the CPU, parts of DTensors as such."""
    if is_dtensor(value) or hasattr(value, "__create_chunk_list__"):
        return _copy_sharded(value)
    if isinstance(value, Tensor):
        kept = value.detach()
        return kept.clone() if kept.device.type == "cpu" else kept.cpu()
    if isinstance(value, RankLocal):
        return RankLocal(copy_state_dict(value.value), value.rank)
    if isinstance(value, Mapping):
        return {key: copy_state_dict(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_state_dict(entry) for entry in value)
    return copy.deepcopy(value)


def _copy_sharded(value: Any) -> Any:
    from .shards import LocalShards

    return LocalShards.copy_of(value)


@runtime_checkable
class AsyncStager(Protocol):
    """What `async_save` makes its copy with."""

    @property
    def should_synchronize_after_execute(self) -> bool:
        """Whether `synchronize_staging` must be called before training goes on."""
        ...

    def stage(self, state_dict: STATE_DICT_TYPE) -> Future[STATE_DICT_TYPE] | STATE_DICT_TYPE:
        """A copy of the state dict, or a future of one."""
        ...

    def synchronize_staging(self) -> None:
        """Wait until the original may be changed."""

    def close(self) -> None:
        """Let go of everything."""


class BlockingAsyncStager:
    """Copies at once, in the calling thread.

    Args:
        cache_staged_state_dict, type_check: accepted as in PyTorch; every copy is a new one.
    """

    should_synchronize_after_execute = False

    def __init__(self, cache_staged_state_dict: bool = False, type_check: bool = False) -> None:
        self.cache_staged_state_dict, self.type_check = cache_staged_state_dict, type_check

    def stage(self, state_dict: STATE_DICT_TYPE) -> STATE_DICT_TYPE:
        """A copy of the state dict."""
        return copy_state_dict(state_dict)

    def synchronize_staging(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class StagingOptions:
    """How `DefaultStager` copies: only `use_async_staging` matters here."""

    use_pinned_memory: bool = True
    use_shared_memory: bool = True
    use_async_staging: bool = True
    use_non_blocking_copy: bool = True


class DefaultStager:
    """Copies in a thread of its own, or at once without `use_async_staging`.

    With a thread, parameters may be changed only after the future of `stage`, or
    `AsyncSaveResponse.staging_completion`, is done.
    """

    should_synchronize_after_execute = False

    def __init__(self, config: StagingOptions | None = None) -> None:
        self.config = config or StagingOptions()
        self._pool = ThreadPoolExecutor(1, "stage") if self.config.use_async_staging else None
        self._last: Future | None = None

    def stage(self, state_dict: STATE_DICT_TYPE, **kwargs: Any) -> Any:
        """A copy of the state dict, or a future of one."""
        if self._pool is None:
            return copy_state_dict(state_dict)
        self._last = self._pool.submit(copy_state_dict, state_dict)
        return self._last

    def synchronize_staging(self) -> None:
        """Wait until the last copy is made."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


__all__ = ["AsyncStager", "BlockingAsyncStager", "DefaultStager", "StagingOptions", "copy_state_dict"]
