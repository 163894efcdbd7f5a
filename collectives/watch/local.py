"""The watch between ranks that are threads of one process: the same sentences, without a socket."""

from __future__ import annotations

from collections.abc import Sequence

from ..flight import Recorder
from . import report as wr
from .base import ANSWER, BaseWatch, GaveUp, end_of
from .report import Ended, Report


class LocalWatch(BaseWatch):
    """One rank's view; `LocalWatch.make` gives all ranks of a job theirs.

    Attributes:
        thread: `threading.get_ident()` of the thread that is this rank; set it there.
    """

    def __init__(self, rank: int, recorders: Sequence[Recorder], timeout: float | None) -> None:
        super().__init__(rank, len(recorders), recorders[rank], timeout)
        self.thread: int | None = None
        self._all: list[LocalWatch] = []

    @staticmethod
    def make(recorders: Sequence[Recorder], timeout: float | None = None) -> list[LocalWatch]:
        """Watches of the ranks that these are the recorders of, in rank order."""
        made = [LocalWatch(rank, recorders, timeout) for rank in range(len(recorders))]
        for watch in made:
            watch.recorder.rank, watch.recorder.size = watch.rank, watch.size
            watch._all = made
        return made

    def left(self, status: int = 0) -> None:
        self._say(Ended(self.rank, wr.LEFT, "", status, self.recorder.furthest()))

    def failed(self, error: BaseException | str, status: int = 1) -> None:
        self._say(end_of(self.rank, error, status, self.recorder))

    def _say(self, end: Ended) -> None:
        for other in self._all:
            known = other._ended.get(self.rank)
            if known is None or known.how == wr.LEFT:
                end.order = len(other._ended) if known is None else known.order
                other._ended[self.rank] = end
                other.trouble = True

    def ask(
        self, ranks: Sequence[int], seconds: float = ANSWER, group: str = ""
    ) -> dict[int, Report | None]:
        found: dict[int, Report | None] = {}
        for rank in ranks:
            other = self._all[rank]
            gone = rank in self._ended or other.thread is None
            found[rank] = None if gone else wr.report(other.recorder, rank, group, other.thread)
        return found

    def close(self) -> None:
        pass

    def _silence(self, rank: int) -> str:
        return self._ended[rank].sentence() if rank in self._ended else "its thread has not begun"

    def _tell_gave_up(self, gave_up: GaveUp) -> None:
        for other in self._all:
            if other is not self:
                other._given_up.append(gave_up)
                other.trouble = True
