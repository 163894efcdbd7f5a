"""disttorch.distributed.checkpoint: what is written, and what comes back, whoever reads it."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import warnings
from collections import OrderedDict

import checkpoint_states as states
import pytest

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed.checkpoint import values
from disttorch.distributed.checkpoint.nested import flatten_state_dict, unflatten_state_dict
from disttorch.distributed.device_mesh import DeviceMesh
from disttorch.distributed.tensor import DTensor, Partial, Shard
from disttorch.distributed.tensor._api import _spec_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def save_from(n: int, layout: str, folder, state=None) -> None:
    state = states.tensors() if state is None else state
    dist.run_local(
        n, lambda r: dcp.save(states.laid_out(state, layout, r, n), checkpoint_id=folder) and None
    )


def load_on(n: int, layout: str, folder, expected=None) -> None:
    expected = states.tensors() if expected is None else expected

    def rank_main(rank: int) -> None:
        state = states.laid_out(states.zeros(), layout, rank, n)
        dcp.load(state, checkpoint_id=folder)
        states.check(state, expected, (layout, n))

    dist.run_local(n, rank_main)


# ---- other numbers of ranks, other layouts ----------------------------------------------------------


@pytest.mark.parametrize("layout", states.LAYOUTS)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_layout_reads_every_other(tmp_path, layout, n):
    save_from(n, layout, tmp_path)
    for other in states.LAYOUTS:
        for m in (1, 2, 3, 4):
            load_on(m, other, tmp_path)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_there_and_back_gives_the_same_bits(tmp_path, n, m):
    save_from(n, "rows", tmp_path / "a")

    def again(rank: int) -> None:
        state = states.laid_out(states.zeros(), "columns", rank, m)
        dcp.load(state, checkpoint_id=tmp_path / "a")
        dcp.save(state, checkpoint_id=tmp_path / "b")

    dist.run_local(m, again)
    load_on(n, "rows", tmp_path / "b")


def test_large_tensors_are_read_in_pieces(tmp_path, monkeypatch):
    from disttorch.distributed.checkpoint import export, tensor_files

    for module in (tensor_files, export):
        monkeypatch.setattr(module, "SLAB", 640)
    monkeypatch.setattr(tensor_files, "BLOCK", 100)
    monkeypatch.setattr("disttorch.distributed.checkpoint.manifest.BLOCK", 100)
    state = {"w": torch.arange(1500.0).reshape(50, 30)}
    state["deep"] = torch.arange(960.0).reshape(2, 4, 12, 10)

    def saved(rank: int) -> None:
        dcp.save(states.laid_out(state, "columns", rank, 3), checkpoint_id=tmp_path / "c")

    dist.run_local(3, saved)
    for layout in states.LAYOUTS:

        def loaded(rank: int, layout=layout) -> None:
            mine = states.laid_out({k: torch.zeros_like(t) for k, t in state.items()}, layout, rank, 4)
            dcp.load(mine, checkpoint_id=tmp_path / "c")
            states.check(mine, state, layout)

        dist.run_local(4, loaded)
    [path] = dcp.export_safetensors(tmp_path / "c", tmp_path / "all.safetensors", prefix=None)
    states.check(read_safetensors(path), state)


# ---- who writes what --------------------------------------------------------------------------------


def manifest_of(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())["checkpoint"]


def bytes_written(folder) -> list[int]:
    """Of tensors, by rank."""
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    return [
        os.path.getsize(folder / f) - manifest_of(folder)["files"][f]["header"] for f in files
    ]


def test_replicas_are_written_once_and_spread_over_the_ranks(tmp_path):
    state = {f"w{i}": torch.full((5000 + i,), float(i)) for i in range(24)}
    save_from(4, "plain", tmp_path, state)
    written = bytes_written(tmp_path)
    total = sum(t.nbytes for t in state.values())
    assert sum(written) == total
    assert max(written) <= total / 4 + 500


def test_small_replicas_come_from_one_rank(tmp_path):
    """Buffers that differ between ranks, as those of normalisations may, are not mixed."""

    def saved(rank: int) -> None:
        state = {f"buffer{i}": torch.full((10,), float(rank)) for i in range(8)}
        dcp.save({**state, "value": rank}, checkpoint_id=tmp_path)

    dist.run_local(3, saved)
    found = dcp.load_keys(checkpoint_id=tmp_path)
    assert found.pop("value") == 0
    assert all((t == 0).all() for t in found.values())


def test_replicas_of_shards_are_written_once(tmp_path):
    state = {"w": torch.arange(64.0).reshape(8, 8)}
    save_from(4, "grid", tmp_path, state)
    assert sum(bytes_written(tmp_path)) == 256


def test_no_tensor_travels_between_ranks(tmp_path):
    """Plans and results do: as many bytes for large tensors as for small ones."""

    def sent(rank: int, size: int) -> float:
        state = states.laid_out({"w": torch.zeros(size, 4)}, "rows", rank, 2)
        before = total_payload()
        dcp.save(state, checkpoint_id=tmp_path / f"{size}")
        dcp.load(state, checkpoint_id=tmp_path / f"{size}")
        return total_payload() - before

    small = dist.run_local(2, sent, (4,))
    large = dist.run_local(2, sent, (40_000,))
    assert large[0] - small[0] < 2000 < 640_000
    assert small[0] > 0


def total_payload() -> float:
    return sum(row["payload_bytes"] for row in dist.ledger().values())


def test_ranks_may_have_different_keys(tmp_path):
    def saved(rank: int) -> None:
        dcp.save({f"layer{rank}": torch.full((2,), float(rank)), "all": 1}, checkpoint_id=tmp_path)

    dist.run_local(3, saved)

    def loaded(rank: int) -> None:
        other = (rank + 1) % 3
        state = {f"layer{other}": torch.zeros(2), "all": 0}
        dcp.load(state, checkpoint_id=tmp_path)
        assert state[f"layer{other}"].tolist() == [other] * 2 and state["all"] == 1

    dist.run_local(3, loaded)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: torch.zeros(2 + r), "'x' is a tensor of shape (2,)"),
        (lambda r: torch.zeros(2) if r else 5, "'x' is no tensor on rank 0 and a tensor"),
        (lambda r: torch.zeros(2).to(torch.float64 if r else torch.float32), "float64 on rank 1"),
        (lambda r: dcp.LocalShards((4,), [((r,), torch.zeros(2))]), "overlapping chunks"),
        (lambda r: dcp.LocalShards((5,), [((2 * r,), torch.zeros(2))]), "tensor-volume: 5"),
        (lambda r: dcp.LocalShards((3,), [((2 * r,), torch.zeros(2))]), "out of bounds chunk"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_fit_together_are_refused(tmp_path, make, message):
    def saved(rank: int) -> str:
        with pytest.raises(dcp.CheckpointException) as caught:
            dcp.save({"x": make(rank)}, checkpoint_id=tmp_path)
        return str(caught.value)

    for text in dist.run_local(2, saved):
        assert message in text
    assert not (tmp_path / "manifest.json").exists()


def on_some(ranks: list[int], whole: torch.Tensor) -> DTensor:
    """Shards of its rows on some ranks; others hold nothing of it."""
    mesh = DeviceMesh("cpu", ranks)
    local = torch.zeros(0, 2)
    if dist.get_rank() in ranks:
        local = whole.chunk(2)[mesh.get_local_rank()].clone()
    return DTensor._wrap(local, _spec_of(mesh, (Shard(0),), torch.Size((5, 2)), local))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_tensor_that_some_ranks_have_no_part_of(tmp_path, asynchronous):
    """On a mesh of ranks 0 and 2 of three; loaded on one of ranks 1 and 2."""
    whole = torch.arange(10.0).reshape(5, 2)

    def saved(rank: int) -> None:
        w = on_some([0, 2], whole)
        if asynchronous:
            dcp.async_save({"w": w}, checkpoint_id=tmp_path).result()
        else:
            dcp.save({"w": w}, checkpoint_id=tmp_path)

    def loaded(rank: int) -> None:
        w = on_some([1, 2], torch.zeros(5, 2))
        dcp.load({"w": w}, checkpoint_id=tmp_path)
        if rank:
            assert torch.equal(w.to_local(), whole[:3] if rank == 1 else whole[3:])

    dist.run_local(3, saved)
    assert sum(bytes_written(tmp_path)) == 40
    dist.run_local(3, loaded)


def test_a_partial_sum_is_not_saved(tmp_path):
    def saved(rank: int) -> None:
        mesh = dist.init_device_mesh("cpu", (2,))
        w = DTensor.from_local(torch.ones(3), mesh, [Partial()])
        with pytest.raises(dcp.CheckpointException, match="terms of a sum"):
            dcp.save({"w": w}, checkpoint_id=tmp_path)

    dist.run_local(2, saved)


def test_a_value_of_each_rank(tmp_path):
    def saved(rank: int) -> None:
        dcp.save({"own": dcp.RankLocal({"rank": rank})}, checkpoint_id=tmp_path)

    dist.run_local(2, saved)

    def loaded(rank: int):
        state = {"own": dcp.RankLocal()}
        dcp.load(state, checkpoint_id=tmp_path)
        return state["own"].value, state["own"].found

    assert dist.run_local(3, loaded) == [({"rank": 0}, True), ({"rank": 1}, True), (None, False)]


def test_a_failing_rank_fails_all_and_leaves_the_checkpoint_before(tmp_path):
    save_from(2, "plain", tmp_path)

    def saved(rank: int) -> None:
        value = object() if rank == 1 else 3
        with pytest.raises(dcp.CheckpointException) as caught:
            dcp.save(
                {"ok": torch.ones(4), f"bad{rank}": value},
                storage_writer=dcp.FileSystemWriter(tmp_path, overwrite=True),
            )
        assert list(caught.value.failures) == [1]
        assert isinstance(caught.value.failures[1][0], pickle.PicklingError)
        assert "builtins.object" in str(caught.value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.run_local(2, saved)
    dcp.verify(tmp_path)
    load_on(3, "rows", tmp_path)


# ---- one process ------------------------------------------------------------------------------------


NESTED = {
    "model": OrderedDict(a=torch.arange(3.0), b={"c": torch.ones(2, 2)}),
    "list": [torch.zeros(1), {"x": 1}, [2, 3]],
    "plain": [1, 2.5, "three"],
    "pair": (0.9, 0.999),
    "ints": {0: torch.ones(1), 1: {"step": 3}},
    "none": None, "text": "ä\ud800", "inf": float("-inf"), "bytes": b"\x00\xff", "big": 1 << 80,
    "set": {1, 2}, "dtype": torch.float16, "size": torch.Size([2, 3]), "empty": {}, "z": 1 + 2j,
    "odd": {(1, 2): "tuple key"}, "leaf": ({"$": 1, 5: [None]},), "device": torch.device("cpu"),
    "holds": (torch.arange(2), "in a tuple"),
}  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype is b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_nested_values_come_back(tmp_path):
    dcp.save(NESTED, checkpoint_id=tmp_path)
    found = dcp.load_keys(checkpoint_id=tmp_path)
    expected = {k: v for k, v in NESTED.items() if k != "empty"}  # PyTorch's loses them, too
    expected["model"] = dict(expected["model"])
    expected["odd"] = {"(1, 2)": "tuple key"}
    assert same(found, expected)
    assert list(found) == list(expected)
    assert same(dcp.load_keys("ints.1", checkpoint_id=tmp_path), {"ints": {1: {"step": 3}}})


def test_values_are_json_in_the_manifest_where_that_can_be(tmp_path):
    dcp.save({"lr": 0.1, "betas": (0.9, 0.99)}, checkpoint_id=tmp_path)
    entries = manifest_of(tmp_path)["entries"]
    assert entries["lr"] == {"kind": "value", "value": 0.1}
    assert entries["betas"] == {"kind": "value", "value": {"$": "tuple", "v": [0.9, 0.99]}}


@pytest.mark.parametrize(
    "value", [NESTED["leaf"], float("nan"), slice(1, None, 2), range(3), frozenset({1})]
)
def test_values_come_back_as_what_they_were(value):
    again = values.decode(values.encode(value))
    assert type(again) is type(value) and (again == value or value != value)


def test_a_value_that_would_need_code_is_refused():
    with pytest.raises(pickle.PicklingError, match="Evil"):
        values.encode({"x": type("Evil", (), {})()})
    with pytest.raises(pickle.UnpicklingError, match="unknown kind"):
        values.decode(b"P" + pickle.dumps(os.system))
    hostile = values.ARCHIVE + b"not a zip file"
    with pytest.raises(RuntimeError):
        values.decode(hostile)


def test_flatten_and_back():
    flat, paths = flatten_state_dict({"a": {"b": [torch.ones(1), 2]}, "c": [1, 2]})
    assert list(flat) == ["a.b.0", "a.b.1", "c"]
    assert same(unflatten_state_dict(flat, paths), {"a": {"b": [torch.ones(1), 2]}, "c": [1, 2]})
    with pytest.raises(ValueError, match="duplicated flatten key a.b"):
        flatten_state_dict({"a": {"b": 1}, "a.b": 2})


class Counter:
    """A Stateful of a user's."""

    def __init__(self) -> None:
        self.n, self.taken = 0, []

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_stateful_objects_and_places_are_kept(tmp_path):
    counter, weight = Counter(), torch.ones(3)
    counter.n = 5
    dcp.save({"counter": counter, "w": weight, "step": 9}, checkpoint_id=tmp_path)
    other, place = Counter(), torch.zeros(3, dtype=torch.float64)
    state = {"counter": other, "w": place, "step": 0}
    dcp.load(state, checkpoint_id=tmp_path)
    assert state["counter"] is other and other.n == 5
    assert state["w"] is place and place.tolist() == [1, 1, 1] and state["step"] == 9


def test_a_view_and_a_parameter_are_written_into(tmp_path):
    dcp.save({"w": torch.arange(6.0).reshape(2, 3)}, checkpoint_id=tmp_path)
    memory = torch.zeros(3, 4)
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    dcp.load({"w": memory[:2, 1:].detach()}, checkpoint_id=tmp_path)
    assert memory.tolist() == [[0, 0, 1, 2], [0, 3, 4, 5], [0, 0, 0, 0]]
    dcp.load({"w": parameter}, checkpoint_id=tmp_path)
    assert parameter.requires_grad and parameter.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"missing": torch.zeros(1)}, "Missing key in checkpoint state_dict: missing."),
        ({"w": torch.zeros(4)}, "Size mismatch between saved (3,) and current: (4,) for w"),
        ({"w": 3}, "was saved as a tensor of shape (3,)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, state, message):
    dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path)
    with pytest.raises(dcp.CheckpointException) as caught:
        dcp.load(state, checkpoint_id=tmp_path)
    assert message in str(caught.value)


def test_partial_load(tmp_path):
    dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path)
    state = {"w": torch.zeros(3), "new": torch.zeros(2)}
    dcp.load(state, checkpoint_id=tmp_path, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert state["w"].tolist() == [1, 1, 1] and state["new"].tolist() == [0, 0]


def test_an_existing_checkpoint(tmp_path):
    dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path)
    with pytest.raises(dcp.CheckpointException, match="overwrite=False"):
        dcp.save({"w": torch.zeros(3)}, storage_writer=dcp.FileSystemWriter(tmp_path, overwrite=False))
    with pytest.warns(UserWarning, match="Detected an existing checkpoint"):
        dcp.save({"w": torch.full((3,), 7.0)}, checkpoint_id=tmp_path)
    assert len(os.listdir(tmp_path)) == 2, "the files of the one before are gone"
    assert dcp.load_keys(checkpoint_id=tmp_path)["w"].tolist() == [7, 7, 7]


@pytest.mark.parametrize(("threads", "one_file", "files"), [(3, True, 3), (2, False, 8)])
def test_several_files_for_a_rank(tmp_path, threads, one_file, files):
    writer = dcp.FileSystemWriter(tmp_path, single_file_per_rank=one_file, thread_count=threads)
    dcp.save(states.tensors(), storage_writer=writer)
    assert len(os.listdir(tmp_path)) == files + 1
    states.check(dcp.load_keys(checkpoint_id=tmp_path), states.tensors())


def test_planners_can_be_extended_as_in_pytorch(tmp_path):
    class Half(dcp.DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            for item in plan.items:
                if item.tensor_data is not None:
                    item.tensor_data.properties.dtype = torch.float16
            return plan

        def resolve_data(self, write_item):
            data = super().resolve_data(write_item)
            return data if write_item.tensor_data is None else data.to(torch.float16)

    dcp.save({"w": torch.arange(3.0), "n": 1}, checkpoint_id=tmp_path, planner=Half())
    assert same(dcp.load_keys(checkpoint_id=tmp_path), {"w": torch.arange(3.0).half(), "n": 1})


def read_safetensors(path) -> dict:
    from disttorch.serialization import safetensors

    return safetensors.load_file(path)


def test_files_are_safetensors(tmp_path):
    save_from(2, "rows", tmp_path, {"w": torch.arange(12.0).reshape(4, 3), "all": torch.tensor([1, 2])})
    found = {}
    for name in os.listdir(tmp_path):
        if name.endswith(".safetensors"):
            found |= read_safetensors(tmp_path / name)
    assert found["w[0:2,0:3]"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["w[2:4,0:3]"].tolist() == [[6, 7, 8], [9, 10, 11]]


# ---- other formats ----------------------------------------------------------------------------------


def test_export_to_one_file_and_to_several(tmp_path):
    state = {"model": {k: t for k, t in states.tensors().items() if k != "complex"}, "step": 3}

    def saved(rank: int) -> None:
        mine = {"model": states.laid_out(state["model"], "rows", rank, 3), "step": 3}
        dcp.save(mine, checkpoint_id=tmp_path / "c")

    dist.run_local(3, saved)
    [path] = dcp.export_safetensors(tmp_path / "c", tmp_path / "model.safetensors")
    states.check(read_safetensors(path), state["model"])
    assert set(read_safetensors(path)) == set(state["model"])
    *paths, index = dcp.export_safetensors(tmp_path / "c", tmp_path / "out", max_shard_size=200)
    assert len(paths) > 1
    table = json.loads(pathlib.Path(index).read_text())
    found = {}
    for part in paths:
        tensors = read_safetensors(part)
        assert {table["weight_map"][name] for name in tensors} == {os.path.basename(part)}
        found |= tensors
    states.check(found, state["model"])
    assert table["metadata"]["total_size"] == sum(t.nbytes for t in state["model"].values())
    with pytest.raises(ValueError, match="no tensors below the key 'nobody'"):
        dcp.export_safetensors(tmp_path / "c", tmp_path / "x", prefix="nobody")


def test_a_sharded_load_of_plain_safetensors(tmp_path):
    """What was exported, in several files, into every layout of three ranks."""
    state = {k: t for k, t in states.tensors().items() if k != "complex"}
    dcp.save(state, checkpoint_id=tmp_path / "c")
    folder = tmp_path / "hub"
    dcp.export_safetensors(tmp_path / "c", folder, prefix=None, max_shard_size=200)
    for layout in states.LAYOUTS:

        def loaded(rank: int, layout=layout) -> None:
            zeros = {k: t for k, t in states.zeros().items() if k in state}
            mine = states.laid_out(zeros, layout, rank, 3)
            dcp.load(mine, storage_reader=dcp.HuggingFaceStorageReader(folder))
            states.check(mine, state, layout)

        dist.run_local(3, loaded)
    one = sorted(folder.glob("*.safetensors"))[0]
    single = dcp.load_keys(storage_reader=dcp.HuggingFaceStorageReader(one))
    assert single and all(torch.equal(t, state[k]) for k, t in single.items())
    one.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(dcp.CheckpointException, match=f"{one.name}: the tensor .* truncated"):
        dcp.load(dict(state), storage_reader=dcp.HuggingFaceStorageReader(folder))
    with pytest.raises(dcp.CheckpointException, match="no files"):
        dcp.load(dict(state), storage_reader=dcp.HuggingFaceStorageReader(tmp_path / "none"))


def test_tensors_without_memory_get_some(tmp_path):
    dcp.save({"w": torch.arange(6.0).reshape(2, 3), "l": [torch.ones(2)]}, checkpoint_id=tmp_path)
    state = {"w": torch.empty(2, 3, device="meta"), "l": [torch.empty(2, device="meta")]}
    dcp.load(state, checkpoint_id=tmp_path)
    assert state["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and state["l"][0].tolist() == [1, 1]


def test_to_and_from_single_files(tmp_path):
    from disttorch.distributed.checkpoint.format_utils import dcp_to_torch_save, main, torch_save_to_dcp

    state = {"model": {"w": torch.arange(4.0)}, "step": 3, "betas": (0.9, 0.99)}
    save_from(1, "plain", tmp_path / "unused", {})
    dcp.save(state, checkpoint_id=tmp_path / "c")
    dcp_to_torch_save(tmp_path / "c", tmp_path / "file.pt")
    assert same(torch.load(tmp_path / "file.pt"), state)
    torch_save_to_dcp(tmp_path / "file.pt", tmp_path / "d")
    assert same(dcp.load_keys(checkpoint_id=tmp_path / "d"), state)
    main(["torch_to_dcp", str(tmp_path / "file.pt"), str(tmp_path / "e")])
    main(["dcp_to_torch", str(tmp_path / "e"), str(tmp_path / "again.pt")])
    assert same(torch.load(tmp_path / "again.pt"), state)


@pytest.mark.parametrize("layout", states.LAYOUTS)
def test_a_single_file_is_sent_from_one_rank(tmp_path, layout):
    from disttorch.distributed.checkpoint.format_utils import (
        BroadcastingTorchSaveReader,
        DynamicMetaLoadPlanner,
    )

    torch.save({"model": states.tensors()}, tmp_path / "file.pt")

    def loaded(rank: int) -> None:
        state = {"model": states.laid_out(states.zeros(), layout, rank, 3)}
        reader = BroadcastingTorchSaveReader(tmp_path / "file.pt", coordinator_rank=0)
        dcp.load(state, storage_reader=reader, planner=DynamicMetaLoadPlanner())
        states.check(state["model"], states.tensors())
        wrong = {"model": {"matrix": torch.zeros(3)}}
        with pytest.raises(dcp.CheckpointException, match=r"expected a tensor of shape \(3,\)"):
            dcp.load(wrong, storage_reader=reader, planner=DynamicMetaLoadPlanner())

    dist.run_local(3, loaded)


# ---- names ------------------------------------------------------------------------------------------


def test_names_as_in_pytorch():
    from disttorch.distributed.checkpoint import format_utils, staging, state_dict  # noqa: F401
    from disttorch.distributed.checkpoint.api import CheckpointException  # noqa: F401
    from disttorch.distributed.checkpoint.planner import SavePlan, WriteItemType  # noqa: F401
    from disttorch.distributed.checkpoint.state_dict import (  # noqa: F401
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        get_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
        set_state_dict,
    )
    from disttorch.distributed.checkpoint.state_dict_loader import load  # noqa: F401
    from disttorch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse  # noqa: F401

    assert dist.checkpoint is dcp
    assert not issubclass(dcp.CheckpointException, Exception)


def test_the_deprecated_names(tmp_path):
    with pytest.warns(FutureWarning, match="save_state_dict"):
        dcp.save_state_dict({"w": torch.ones(2)}, dcp.FileSystemWriter(tmp_path), no_dist=True)
    state = {"w": torch.zeros(2)}
    with pytest.warns(FutureWarning, match="load_state_dict"):
        dcp.load_state_dict(state, dcp.FileSystemReader(tmp_path), no_dist=True)
    assert state["w"].tolist() == [1, 1]


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="no whole checkpoint: there is no such folder"):
        dcp.load({"w": torch.ones(1)}, checkpoint_id=tmp_path / "nowhere")
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(dcp.CheckpointException, match="PyTorch's own format"):
        dcp.load({"w": torch.ones(1)}, checkpoint_id=tmp_path)
    with pytest.raises(RuntimeError, match="`checkpoint_id` must be specified"):
        dcp.load({})
    with pytest.raises(RuntimeError, match="Cannot detect which"):
        dcp.save({}, checkpoint_id="s3://bucket/key")
