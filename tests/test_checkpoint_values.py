"""Checkpoints: values that are no tensors, planners, other formats, names."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
from collections import OrderedDict

import checkpoint_states as states
import pytest
from checkpoint_states import manifest_of, read_safetensors, same, save_from

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed.checkpoint import values
from disttorch.distributed.checkpoint.nested import flatten_state_dict, unflatten_state_dict

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


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
