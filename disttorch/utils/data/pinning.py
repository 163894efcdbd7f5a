"""Batches in page-locked host memory (``DataLoader(pin_memory=True)``): a GPU copies them by itself.

Batches of workers are copied by a thread, while the main one computes. Without workers the copy is made
where the batch is, as in PyTorch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ... import cuda
from ...tensor import Tensor


def pin_memory(data: Any) -> Any:
    """The same data with its tensors in page-locked memory.

    Containers are kept as they are, but for tuples, which become lists. An object with a method
    ``pin_memory`` is asked itself; what is neither stays.
    """
    if isinstance(data, Tensor) or hasattr(data, "pin_memory"):
        return data.pin_memory()
    if isinstance(data, (str, bytes)):
        return data
    if isinstance(data, Mapping):
        return _like(data, MutableMapping, {k: pin_memory(v) for k, v in data.items()}, dict.items)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(pin_memory, data))
    if isinstance(data, tuple):
        return [pin_memory(v) for v in data]
    if isinstance(data, Sequence):
        return _like(data, MutableSequence, [pin_memory(v) for v in data], enumerate)
    return data


def _like(data, mutable: type, pinned, places):
    """A container of the kind of ``data`` with the new items; a plain one where that cannot be made."""
    try:
        if isinstance(data, mutable):  # a copy keeps what else the object knows
            made: Any = copy.copy(data)
            for place, value in places(pinned):
                made[place] = value
            return made
        return type(data)(pinned)
    except TypeError:
        return pinned


def device_for(pin: bool, device: str) -> int | None:
    """The number of the GPU to pin for, None to leave batches where they are.

    Raises:
        ValueError: for a device that is no GPU.
    """
    if not pin:
        return None
    if not cuda.is_available():
        warnings.warn(
            "'pin_memory' argument is set as true but no GPU is found: batches stay in ordinary memory.",
            stacklevel=3,
        )
        return None
    if device and not device.startswith("cuda"):
        raise ValueError(f"pin_memory_device must be a GPU such as 'cuda:0', got {device!r}")
    return cuda.which.device_number(device or None)


class Pinner:
    """A thread that pins batches in order.

    Args:
        index: of the GPU: a new thread would begin on the first.
    """

    def __init__(self, index: int):
        self._index = index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pin_memory")

    def begin(self, batch: Any) -> Future:
        """Let the thread pin a batch; ``pinned`` of the result waits for it."""
        return self._thread.submit(self._pin, batch)

    def _pin(self, batch: Any) -> Any:
        with cuda.device(self._index):
            return pin_memory(batch)

    def close(self) -> None:
        """End the thread once what it was given is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def pinned(answer: Any) -> Any:
    """A batch, waited for if a thread still pins it; raises what went wrong there."""
    if not isinstance(answer, Future):
        return answer
    try:
        return answer.result()
    except Exception as error:
        error.add_note("in the thread that pins batches (pin_memory=True)")
        raise


__all__ = ["Pinner", "device_for", "pin_memory", "pinned"]
