"""disttorch.distributed.checkpoint: what is written, and what comes back, whoever reads it."""

from __future__ import annotations

import pickle
import warnings

import checkpoint_states as states
import pytest
from checkpoint_states import bytes_written, load_on, read_safetensors, save_from

import disttorch as torch
import disttorch.distributed as dist
import disttorch.distributed.checkpoint as dcp
from disttorch.distributed.device_mesh import DeviceMesh
from disttorch.distributed.tensor import DTensor, Partial, Shard
from disttorch.distributed.tensor._api import _spec_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


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
