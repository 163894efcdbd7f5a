"""The table that chooses how a collective is carried out, and its file."""

from __future__ import annotations

import json

import pytest

from collectives import selection
from collectives.algorithms import ALGORITHMS, FIXED_TREE, POWER_OF_TWO, UNEQUAL
from collectives.selection import algorithm, tuned


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No table of this machine's user takes part, and none is left behind."""
    monkeypatch.delenv("DISTTORCH_TUNING", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(selection, "_tuned", None)
    yield
    selection.use({})


@pytest.mark.parametrize("call", ALGORITHMS)
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_chosen_can_be_taken(call, deterministic, unequal):
    if unequal and call not in UNEQUAL:
        return
    for n in range(1, 20):
        for nbytes in (0, 8, 4096, 1 << 16, 1 << 24, 1 << 40):
            way = algorithm(call, nbytes, n, deterministic, unequal)
            assert way in ALGORITHMS[call]
            assert n & (n - 1) == 0 or way not in POWER_OF_TWO.get(call, ())
            assert not unequal or way in UNEQUAL[call]
            if deterministic and call in FIXED_TREE and n & (n - 1):
                assert way in FIXED_TREE[call]


def test_small_and_large():
    assert algorithm("all_reduce", 8, 4) == "recursive_doubling"
    assert algorithm("all_reduce", 1 << 28, 6) == "ring"
    assert algorithm("all_reduce", 1 << 28, 6, deterministic=True) == "direct"
    assert algorithm("all_reduce", 8, 6, deterministic=True) == "tree"


def test_tuned_rows_come_first(tmp_path, monkeypatch):
    file = selection.save_table(
        {"all_reduce": {2: [[4096, "native"], [65536, "direct"]], "4": [[None, "shm"]]}},
        tmp_path / "deep" / "table.json",
    )
    assert json.loads(file.read_text()) == {
        "all_reduce": {"2": [[4096, "native"], [65536, "direct"]], "4": [[None, "shm"]]}
    }
    assert [path.name for path in file.parent.iterdir()] == ["table.json"]
    monkeypatch.setenv("DISTTORCH_TUNING", str(file))
    assert tuned("all_reduce", 4096, 2) == "native"
    assert tuned("all_reduce", 4097, 3) == "direct"  # 3 ranks: as 2
    assert tuned("all_reduce", 65537, 3) is None
    assert tuned("all_reduce", 8, 9) == "shm"
    assert tuned("all_reduce", 8, 1) is None and tuned("broadcast", 8, 2) is None
    assert algorithm("all_reduce", 8, 2) == "direct"  # the first row that is one
    assert algorithm("all_reduce", 65537, 3) == "ring"  # no row: the built-in
    assert algorithm("all_reduce", 8, 4) == "recursive_doubling"
    assert algorithm("broadcast", 8, 2) == "binomial"
    selection.use({})
    assert tuned("all_reduce", 4096, 2) is None
    assert algorithm("all_reduce", 8, 2) == "recursive_doubling"


def test_default_file(tmp_path):
    assert selection.load_table() == {}
    file = selection.save_table({"reduce": {"2": [[None, "tree"]]}})
    assert file == tmp_path / ".cache" / "disttorch" / "tuning.json"
    assert algorithm("reduce", 8, 2) == "tree"
    assert selection.table() == {"reduce": {2: [(float("inf"), "tree")]}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object of calls, not list"),
        ({"allreduce": {}}, "unknown call 'allreduce'; known are all_reduce, reduce"),
        ({"reduce": [8]}, r"reduce: must be an object of numbers of ranks, got \[8\]"),
        ({"reduce": {"two": []}}, "reduce: 'two' is no number of ranks"),
        ({"reduce": {"0": []}}, "reduce: '0' is no number of ranks"),
        ({"reduce": {"2": "tree"}}, "reduce, 2 ranks: must be a list"),
        ({"reduce": {"2": [["tree"]]}}, r"\['tree'\] is not \[max_bytes, way\]"),
        ({"reduce": {"2": [["8", "tree"]]}}, "max_bytes must be a number from 0, or null, got '8'"),
        ({"reduce": {"2": [[-1, "tree"]]}}, "max_bytes must be a number from 0, or null, got -1"),
        ({"reduce": {"2": [[8, "tree"], [8, "shm"]]}}, "max_bytes must grow, got 8 after 8"),
        ({"reduce": {"2": [[8, "ring"]]}}, "unknown way 'ring'; known are binomial, tree, direct, shm"),
    ],
)
def test_refused_tables(value, message, tmp_path):
    file = tmp_path / "table.json"
    with pytest.raises(ValueError, match=message):
        selection.save_table(value, file)
    assert not file.exists()
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"table.json: .*{message}.*correct or remove"):
        selection.load_table(file)


def test_refused_files(tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    monkeypatch.setenv("DISTTORCH_TUNING", str(file))
    with pytest.raises(FileNotFoundError, match="no tuning table at .*unset DISTTORCH_TUNING"):
        algorithm("reduce", 8, 2)
    file.write_text("{")
    with pytest.raises(ValueError, match="tuning table .*correct or remove"):
        algorithm("reduce", 8, 2)
