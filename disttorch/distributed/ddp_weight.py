"""The mean over all samples where ranks have different numbers of them."""

from __future__ import annotations

from collections.abc import Callable

from ..backend import CPU
from .process_group import ProcessGroup


def weighted_scale(group: ProcessGroup, count: float, loss: str) -> Callable[[], float]:
    """What this rank's gradients are multiplied by before they are averaged over n ranks.

    With rank r's gradients g of a mean over c samples, the mean over all is the sum of c·g / Σc,
    the average of g·(n·c/Σc): exactly g where all counts are equal, so that nothing changes then.
    Of a sum over samples it is the average of g·(n/Σc).

    Args:
        count: c; added up over the ranks while the forward or backward goes on.
        loss: "mean" or "sum".

    Returns:
        A function to be called when the first bucket is full.

    Raises:
        ValueError: a negative count; another `loss`.
    """
    if loss not in ("mean", "sum"):
        raise ValueError(f'weighted: loss must be "mean" or "sum", got {loss!r}')
    if not count >= 0:
        raise ValueError(f"weighted: count must be at least 0, got {count}")
    total = CPU.array([float(count)])
    work = group.ranks.all_reduce(total, async_op=True) if group.size() > 1 else None

    def scale() -> float:
        if work is not None:
            work.wait(group.timeout)
        if total[0] == 0:
            raise RuntimeError("weighted: the counts of all ranks are zero, so there is no mean")
        return group.size() * (count if loss == "mean" else 1) / float(total[0])

    return scale
