"""The decorator of a script's main function, and the error of a job of which a rank failed."""

from __future__ import annotations

import datetime
import functools
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def record(fn: Callable, error_handler: Any = None) -> Callable:
    """Decorate a script's main function: what it raises is written down before the process ends.

    The launcher shows a failing rank's traceback in any case. Where TORCHELASTIC_ERROR_FILE names a
    file, an exception is written there as JSON: "message" with "message", "extraInfo" ("py_callstack",
    "timestamp"), as torchrun's agents write it.

    Args:
        error_handler: accepted as in PyTorch; an object whose `record_exception(error)` is called in
            place of that.
    """

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except SystemExit as end:
            if end.code == 0:
                return None
            raise
        except Exception as error:
            if error_handler is not None:
                error_handler.record_exception(error)
            else:
                _write_down(error)
            raise

    return wrapper


def _write_down(error: Exception) -> None:
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    text = "".join(traceback.format_exception(error))
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    content = {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


@dataclass
class ProcessFailure:
    """How one rank ended.

    Args:
        local_rank: on its node.
        pid: of its process.
        exitcode: its status; minus the signal that ended it.
        error_file: where `record` wrote.
    """

    local_rank: int
    pid: int
    exitcode: int
    error_file: str = "<N/A>"
    message: str = ""
    timestamp: int = field(default_factory=lambda: int(time.time()))

    def signal_name(self) -> str:
        """The signal's name; "<N/A>" for an ordinary end."""
        return signal.Signals(-self.exitcode).name if self.exitcode < 0 else "<N/A>"

    def timestamp_isoformat(self) -> str:
        """When, as YYYY-MM-DD_HH:MM:SS."""
        return datetime.datetime.fromtimestamp(self.timestamp).isoformat(sep="_")


class ChildFailedError(Exception):
    """Ranks of a job failed.

    Args:
        name: of the job's program.
        failures: rank -> how it ended; at least one.
    """

    def __init__(self, name: str, failures: dict[int, ProcessFailure]) -> None:
        if not failures:
            raise ValueError("ChildFailedError needs at least one failure")
        self.name, self.failures = name, failures
        rank, first = self.get_first_failure()
        others = f", and {len(failures) - 1} more ranks" if len(failures) > 1 else ""
        super().__init__(
            f"{name} failed: rank {rank} (local rank {first.local_rank}, pid {first.pid}) ended with "
            f"status {first.exitcode} at {first.timestamp_isoformat()}{others}. {first.message}".rstrip()
        )

    def get_first_failure(self) -> tuple[int, ProcessFailure]:
        """The rank that failed first, and how."""
        return min(self.failures.items(), key=lambda item: item[1].timestamp)


__all__ = ["ChildFailedError", "ProcessFailure", "record"]
