"""Which way a collective takes: by call, bytes and number of ranks, from a small table.

A table is {call: {ranks: [[max_bytes, way], …]}}: the first row that is large enough, and whose way
can be taken, wins. `max_bytes` null has no limit; a number of ranks that is not listed uses the next
smaller one. A way is one of `algorithms.ALGORITHMS[call]`, or "shm" (memory that the ranks of one node
share), "hierarchy" (nodes first), "native" (the MPI library's own call). Where a tuned table, a JSON
file, has no row that fits, the built-in one decides between the algorithms.

Bytes are those of the buffer of all_reduce, reduce and broadcast, of one rank's part in gather and
scatter, of all parts together in the other calls. All ranks must use the same table.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .algorithms import ALGORITHMS, FIXED_TREE, POWER_OF_TWO, UNEQUAL

Rows = list[tuple[float, str]]
Table = dict[str, dict[int, Rows]]

#: Ways that are no algorithms over messages.
OTHER_WAYS = ("shm", "hierarchy", "native")

_ANY = float("inf")
_KIB = 1024

# Rows of the deterministic mode come last: without it, an earlier one always fits.
_BUILT_IN: Table = {
    "all_reduce": {
        1: [(16 * _KIB, "recursive_doubling"), (_ANY, "recursive_halving_doubling")],
        3: [(16 * _KIB, "recursive_doubling"), (_ANY, "ring")],
        4: [(16 * _KIB, "recursive_doubling"), (_ANY, "recursive_halving_doubling")],
        5: [(16 * _KIB, "recursive_doubling"), (_ANY, "ring")],
        8: [
            (16 * _KIB, "recursive_doubling"),
            (1024 * _KIB, "recursive_halving_doubling"),
            (_ANY, "ring"),
        ],
    },
    "reduce": {1: [(64 * _KIB, "binomial"), (_ANY, "direct")]},
    "reduce_scatter": {1: [(64 * _KIB, "halving"), (_ANY, "ring")]},
    "broadcast": {
        1: [(_ANY, "binomial")],
        3: [(64 * _KIB, "binomial"), (_ANY, "scatter_all_gather")],
    },
    "all_gather": {1: [(_ANY, "ring")], 3: [(64 * _KIB, "bruck"), (_ANY, "ring")]},
    "gather": {1: [(_ANY, "linear")], 3: [(4 * _KIB, "binomial"), (_ANY, "linear")]},
    "scatter": {1: [(_ANY, "linear")], 3: [(4 * _KIB, "binomial"), (_ANY, "linear")]},
    "all_to_all": {1: [(_ANY, "pairwise")], 4: [(8 * _KIB, "bruck"), (_ANY, "pairwise")]},
    "barrier": {1: [(_ANY, "dissemination")]},
}
_FIXED_TREE_ROWS: dict[str, Rows] = {
    "all_reduce": [(16 * _KIB, "tree"), (_ANY, "direct")],
    "reduce": [(16 * _KIB, "tree"), (_ANY, "direct")],
    "reduce_scatter": [(_ANY, "direct")],
}
_LAST_ROWS: dict[str, Rows] = {"gather": [(_ANY, "linear")], "scatter": [(_ANY, "linear")]}

_tuned: Table | None = None


def algorithm(
    call: str, nbytes: int, n: int, deterministic: bool = False, unequal: bool = False
) -> str:
    """The algorithm over messages that a call takes: a key of `ALGORITHMS[call]`.

    Args:
        call: "all_reduce", …
        nbytes: see above; the same on every rank.
        n: number of ranks.
        deterministic: reductions must follow the fixed tree by rank order.
        unequal: ranks' parts have different sizes.

    Raises:
        KeyError: no such call.
        ValueError: the tuned table's file is wrong (see `load_table`).
    """
    if _tuned is None:
        _load()
    return _algorithm(call, nbytes, n, deterministic, unequal)


def tuned(call: str, nbytes: int, n: int) -> str | None:
    """The way that the tuned table names, which may also be one of `OTHER_WAYS`; None without a row."""
    if _tuned is None:
        _load()
    return _tuned_way(call, nbytes, n)


def use(table: Table) -> None:
    """Take this tuned table (`parse`, `load_table`) from now on; an empty one leaves the built-in."""
    global _tuned
    _tuned = table
    _algorithm.cache_clear()
    _tuned_way.cache_clear()


def table() -> Table:
    """The tuned table in use; empty where there is none."""
    return _tuned if _tuned is not None else _load()


def _load() -> Table:
    use(load_table())
    assert _tuned is not None
    return _tuned


@lru_cache(maxsize=4096)
def _tuned_way(call: str, nbytes: int, n: int) -> str | None:
    rows = _rows_for((_tuned or {}).get(call, {}), n)
    return next((way for limit, way in rows if nbytes <= limit), None)


@lru_cache(maxsize=4096)
def _algorithm(call: str, nbytes: int, n: int, deterministic: bool, unequal: bool) -> str:
    rows = [
        *_rows_for((_tuned or {}).get(call, {}), n),
        *_rows_for(_BUILT_IN[call], n),
        *_FIXED_TREE_ROWS.get(call, []),
        *_LAST_ROWS.get(call, []),
    ]
    for limit, way in rows:
        if nbytes <= limit and _can_take(call, way, n, deterministic, unequal):
            return way
    raise AssertionError(f"no algorithm for {call} of {nbytes} bytes on {n} ranks")


def _rows_for(by_ranks: dict[int, Rows], n: int) -> Rows:
    fitting = [ranks for ranks in by_ranks if ranks <= n]
    return by_ranks[max(fitting)] if fitting else []


def _can_take(call: str, way: str, n: int, deterministic: bool, unequal: bool) -> bool:
    power_of_two = n & (n - 1) == 0
    if way in OTHER_WAYS or (way in POWER_OF_TWO.get(call, ()) and not power_of_two):
        return False
    if unequal and way not in UNEQUAL[call]:
        return False
    if not deterministic or call not in FIXED_TREE:
        return True
    # At distances 1, 2, 4, … the fixed tree is what a power of two of ranks computes anyway.
    return way in FIXED_TREE[call] or (way == "recursive_doubling" and power_of_two)


# ---- the file --------------------------------------------------------------------------------------


def table_path() -> Path:
    """Where the tuned table is: $DISTTORCH_TUNING, else ~/.cache/disttorch/tuning.json."""
    named = os.environ.get("DISTTORCH_TUNING", "")
    return Path(named) if named else Path.home() / ".cache" / "disttorch" / "tuning.json"


def load_table(path: str | os.PathLike[str] | None = None) -> Table:
    """Read a tuned table; an empty one if `path` is None and there is no file at `table_path`.

    Raises:
        FileNotFoundError: the file that `path` or DISTTORCH_TUNING names is not there.
        ValueError: it holds no valid table.
    """
    file = table_path() if path is None else Path(path)
    if path is None and not os.environ.get("DISTTORCH_TUNING") and not file.exists():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no tuning table at {file}: correct or unset DISTTORCH_TUNING, or write the table"
        ) from None
    try:
        return parse(json.loads(text))
    except ValueError as error:  # JSON's own errors are ValueErrors
        raise ValueError(f"tuning table {file}: {error}; correct or remove the file") from None


def save_table(table: Any, path: str | os.PathLike[str] | None = None) -> Path:
    """Check a table and write it to `path` (default: `table_path`); returns where.

    Raises:
        ValueError: it is no valid table; nothing is written.
    """
    text = for_json(parse(table))
    file = table_path() if path is None else Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: another job may be reading it.
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=file.name, delete=False, encoding="utf-8"
    ) as temporary:
        json.dump(text, temporary, indent=1)
        temporary.write("\n")
    os.replace(temporary.name, file)
    return file


def for_json(table: Table) -> dict[str, Any]:
    """A table as `parse` takes it."""
    return {
        call: {
            str(n): [[None if limit == _ANY else limit, way] for limit, way in rows]
            for n, rows in by_ranks.items()
        }
        for call, by_ranks in table.items()
    }


def share(exchange: Callable[[bytes], list[bytes]]) -> None:
    """Take rank 0's table on every rank: with different ones they would go different ways.

    Args:
        exchange: an all-gather of bytes.
    """
    mine = json.dumps(for_json(table())).encode()
    use(parse(json.loads(exchange(mine)[0])))


def parse(value: Any) -> Table:
    """Check what came from JSON and turn it into a table.

    Raises:
        ValueError: says where it is wrong, and what is allowed there.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object of calls, not {type(value).__name__}")
    result: Table = {}
    for call, by_ranks in value.items():
        if call not in ALGORITHMS:
            raise ValueError(f"unknown call {call!r}; known are {', '.join(ALGORITHMS)}")
        if not isinstance(by_ranks, dict):
            raise ValueError(f"{call}: must be an object of numbers of ranks, got {by_ranks!r}")
        result[call] = {}
        for ranks, rows in by_ranks.items():
            if not str(ranks).isdigit() or int(ranks) < 1:
                raise ValueError(f"{call}: {ranks!r} is no number of ranks")
            result[call][int(ranks)] = _parse_rows(rows, call, f"{call}, {ranks} ranks")
    return result


def _parse_rows(rows: Any, call: str, where: str) -> Rows:
    if not isinstance(rows, (list, tuple)):
        raise ValueError(f"{where}: must be a list of [max_bytes, way], got {rows!r}")
    result: Rows = []
    for row in rows:
        if not isinstance(row, (list, tuple)) or len(row) != 2:
            raise ValueError(f"{where}: {row!r} is not [max_bytes, way]")
        limit, way = row
        if limit is None:
            limit = _ANY
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
            raise ValueError(f"{where}: max_bytes must be a number from 0, or null, got {row[0]!r}")
        if result and limit <= result[-1][0]:
            raise ValueError(f"{where}: max_bytes must grow, got {row[0]!r} after {result[-1][0]:g}")
        if way not in ALGORITHMS[call] and way not in OTHER_WAYS:
            known = ", ".join((*ALGORITHMS[call], *OTHER_WAYS))
            raise ValueError(f"{where}: unknown way {way!r}; known are {known}")
        result.append((limit, way))
    return result
