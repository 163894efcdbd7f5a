"""What goes wrong with checkpoints, told alike on every rank."""

from __future__ import annotations

import pickle
import traceback

WRAPPED_EXCEPTION = tuple[BaseException, traceback.StackSummary]


class DamagedCheckpoint(RuntimeError):
    """A checkpoint is not what its manifest says: torn, missing or altered; the text names the file."""


class CheckpointException(BaseException):
    """Some ranks could not save or load; raised on all of them.

    Like PyTorch's it is no `Exception`: `except Exception` does not catch it.

    Attributes:
        failures: rank -> (what it raised, where).
    """

    def __init__(self, msg: str, failures: dict[int, WRAPPED_EXCEPTION]) -> None:
        super().__init__(msg, failures)
        self._failures = failures

    @property
    def failures(self) -> dict[int, WRAPPED_EXCEPTION]:
        """Rank -> (what it raised, the places that led there)."""
        return self._failures

    def __str__(self) -> str:
        lines = [f"CheckpointException in {self.args[0]!r} on ranks {sorted(self._failures)}\n"]
        for rank, (error, stack) in sorted(self._failures.items()):
            lines.append(f"rank {rank}, most recent call last:\n")
            lines += traceback.format_list(stack or [])
            lines += traceback.format_exception_only(type(error), error)
        return "".join(lines)


def wrap_exception(error: BaseException) -> WRAPPED_EXCEPTION:
    """An exception and its stack in a form that travels between ranks."""
    frames = traceback.extract_tb(error.__traceback__)
    # Without the code objects that frames of Python 3.13 hold and that cannot be pickled
    stack = traceback.StackSummary.from_list(
        [(f.filename, f.lineno or 0, f.name, f.line) for f in frames]
    )
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # one with arguments of its own: its text must do
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error, stack


__all__ = ["CheckpointException", "DamagedCheckpoint"]
