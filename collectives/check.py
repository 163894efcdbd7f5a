"""Whether the ranks of a group made the same call, and the sentence that says who did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .call import Call
from .work import MismatchError

Exchange = Callable[[np.ndarray, np.ndarray], None]
TEXT_BYTES = 1024  # of a call as text, where ranks tell each other


def same(group: str, calls: Mapping[int, Call]) -> None:
    """Raise MismatchError where ranks made different calls.

    Args:
        group: its name.
        calls: of every rank of the group.
    """
    if len({call.fingerprint for call in calls.values()}) > 1:
        number = next(iter(calls.values())).number
        raise mismatch(group, number, {rank: str(call) for rank, call in calls.items()})


def compare(call: Call, members: Sequence[int], exchange: Exchange) -> None:
    """Return when all ranks have come with the same call; else raise MismatchError on every rank.

    Args:
        call: this rank's.
        members: the job's number of each rank.
        exchange: all-gathers a small array into one for all ranks.
    """
    everyone = np.empty(len(members), np.int64)
    exchange(np.array([call.fingerprint], np.int64), everyone)
    if (everyone == call.fingerprint).all():
        return
    mine = np.zeros(TEXT_BYTES, np.uint8)
    text = str(call).encode()[:TEXT_BYTES]
    mine[: len(text)] = np.frombuffer(text, np.uint8)
    texts = np.empty(len(members) * TEXT_BYTES, np.uint8)
    exchange(mine, texts)
    rows = texts.reshape(-1, TEXT_BYTES)
    calls = {
        member: row.tobytes().rstrip(b"\0").decode(errors="replace")
        for member, row in zip(members, rows)
    }
    raise mismatch(call.group, call.number, calls)


def compare_counts(
    call: Call,
    members: Sequence[int],
    exchange: Exchange,
    out_counts: Sequence[int],
    in_counts: Sequence[int],
) -> None:
    """Raise MismatchError on every rank where a rank expects another count than is sent to it.

    Args:
        out_counts, in_counts: what this rank expects from and sends to each rank.
    """
    n = len(members)
    everyone = np.empty(2 * n * n, np.int64)
    exchange(np.array([*in_counts, *out_counts], np.int64), everyone)
    table = everyone.reshape(n, 2, n).tolist()
    sent, expected = ([row[i] for row in table] for i in (0, 1))
    fits(call, members, sent, expected)


def mismatch(group: str, number: int, calls: Mapping[int, str]) -> MismatchError:
    """The error that every rank raises.

    Args:
        group: its name.
        number: of the call in the group.
        calls: each rank's call as text. Texts that differ only in the place of the call are the
            same call.
    """
    kinds = Counter(_without_place(text) for text in calls.values())
    ((most, times), *_) = kinds.most_common(1)
    blame = ""
    if 2 * times > len(calls) and len(kinds) > 1:
        odd = [rank for rank, text in calls.items() if _without_place(text) != most]
        blame = f" ({rank_list(odd)} {'differs' if len(odd) == 1 else 'differ'} from the others)"
    by_text: dict[str, list[int]] = {}
    for rank in sorted(calls):
        by_text.setdefault(calls[rank], []).append(rank)
    each = "; ".join(f"{rank_list(ranks)}: {text}" for text, ranks in by_text.items())
    return MismatchError(
        f"ranks of group {group!r} made different calls as call {number}{blame}: {each}"
    )


def fits(
    call: Call,
    members: Sequence[int],
    sent: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
) -> None:
    """Raise MismatchError where a rank expects another count than is sent to it.

    Args:
        call: this rank's.
        members: the job's number of each rank.
        sent: of every rank, the elements that it sends to each rank.
        expected: of every rank, the elements that it expects from each rank.
    """
    odd = [
        (source, target)
        for source, row in enumerate(sent)
        for target, column in enumerate(expected)
        if row[target] != column[source]
    ]
    if not odd:
        return
    # A rank that disagrees with everybody else is the one that differs.
    involved = Counter(rank for pair in odd for rank in pair)
    ((worst, times), *rest) = involved.most_common()
    alone = len(sent) > 2 and times == len(odd) and all(other < times for _, other in rest)
    blame = f" (rank {members[worst]} differs from the others)" if alone else ""
    source, target = odd[0]
    raise MismatchError(
        f"{call}, call {call.number} of group {call.group!r}: the counts do not fit{blame}: rank "
        f"{members[source]} sends {sent[source][target]} elements to rank {members[target]}, which "
        f"expects {expected[target][source]} from it"
    )


def rank_list(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 0, 1 and 3"."""
    names = [str(rank) for rank in ranks]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def _without_place(text: str) -> str:
    return text.rpartition(" at ")[0] or text
