"""Meshes of ranks: layout, slices, groups; against the mesh written out as an array."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

import disttorch as torch
import disttorch.distributed as dist
from disttorch.distributed.device_mesh import DeviceMesh, init_device_mesh
from disttorch.distributed.mesh_layout import Axis

NAMES = ("pp", "dp", "tp")


def on_ranks(n, fn):
    return dist.run_local(n, lambda rank: fn(rank), timeout=60)


def total(group) -> float:
    """The sum of the job's ranks over a group, as the group itself adds it."""
    tensor = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(tensor, group=group)
    return tensor.item()


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4), (4, 1), (2, 1, 2), (1, 1, 4)])
def test_every_axis(shape):
    """Groups, coordinates and slices of every axis, and of every pair of axes."""
    grid = np.arange(4).reshape(shape)

    def run(rank):
        names = NAMES[: len(shape)]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        assert (mesh.shape, mesh.ndim, mesh.size()) == (shape, len(shape), 4)
        assert mesh.mesh.tolist() == grid.tolist() and mesh.mesh.dtype == torch.int32
        place = tuple(int(i[0]) for i in np.where(grid == rank))
        assert mesh.get_coordinate() == place and mesh.get_rank() == rank
        for dim, name in enumerate(names):
            line = np.moveaxis(grid, dim, -1)[tuple(np.delete(place, dim))].tolist()
            part = mesh[name]
            assert mesh.size(dim) == shape[dim] == part.size()
            assert part.mesh.tolist() == line and part.ndim == 1 and part.mesh_dim_names == (name,)
            assert mesh.get_local_rank(name) == place[dim] == part.get_local_rank()
            assert mesh.get_group(name) is part.get_group() is mesh.get_group(dim)
            assert dist.get_process_group_ranks(part.get_group()) == line
            assert total(part.get_group()) == sum(line)
        assert mesh.get_all_groups() == [mesh.get_group(name) for name in names]
        for a in range(len(names)):
            for b in range(a + 1, len(names)):
                both = mesh[names[a], names[b]]
                rest = [place[d] for d in range(len(shape)) if d not in (a, b)]
                plane = np.moveaxis(grid, (a, b), (-2, -1))[tuple(rest)]
                assert both.mesh.tolist() == plane.tolist()
                assert both.get_coordinate() == (place[a], place[b])
                assert both.get_group(names[b]) is mesh.get_group(b)
                flat = both._flatten()
                assert flat.mesh_dim_names == (f"{names[a]}_{names[b]}",)
                assert flat.mesh.tolist() == plane.reshape(-1).tolist()
                assert total(flat.get_group()) == plane.sum()
                assert both._flatten() is flat
                assert mesh.get_group(flat.mesh_dim_names[0]) is flat.get_group()

    on_ranks(4, run)


def test_eight_ranks_in_three_axes():
    def run(rank):
        mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        outer = mesh["pp", "tp"]
        flat = outer._flatten("model")
        grid = np.arange(8).reshape(2, 2, 2)
        mine = grid[:, (rank // 2) % 2, :]
        assert outer.mesh.tolist() == mine.tolist() and flat.mesh.tolist() == mine.reshape(-1).tolist()
        assert total(flat.get_group()) == mine.sum()
        assert repr(mesh) == "DeviceMesh((pp=2, dp=2, tp=2), 'cpu', stride=(4, 2, 1))"
        assert repr(outer) == "DeviceMesh((pp=2, tp=2), 'cpu', stride=(4, 1))"
        assert repr(flat) == "DeviceMesh((model=4), 'cpu', stride=((4, 1),))"
        assert outer["tp"] == mesh["tp"] and hash(outer["tp"]) == hash(mesh["tp"])
        divided = init_device_mesh("cpu", (8,), mesh_dim_names=("world",))._unflatten(
            0, (2, 4), ("replicate", "shard")
        )
        assert divided.mesh.tolist() == np.arange(8).reshape(2, 4).tolist()
        assert total(divided["shard"].get_group()) == sum(range(rank // 4 * 4, rank // 4 * 4 + 4))
        return flat.get_local_rank()

    assert on_ranks(8, run) == [0, 1, 0, 1, 2, 3, 2, 3]


def test_a_mesh_in_any_order():
    """The ranks at each place may be any; groups go along the axes all the same."""

    def run(rank):
        mesh = DeviceMesh("cpu", [[2, 0], [1, 3]], mesh_dim_names=("a", "b"))
        turned = DeviceMesh("cpu", torch.tensor([[2, 0], [1, 3]]))
        assert turned != mesh and turned.mesh.tolist() == [[2, 0], [1, 3]]
        assert repr(turned) == "DeviceMesh((2, 2), 'cpu', stride=(2, 1))"
        return mesh["a"].mesh.tolist(), mesh["b"].mesh.tolist(), mesh.get_coordinate(), total(
            mesh["b"].get_group()
        ), mesh["b"].get_local_rank()

    assert on_ranks(4, run) == [
        ([0, 3], [2, 0], (0, 1), 2, 0), ([2, 1], [1, 3], (1, 0), 4, 0),
        ([2, 1], [2, 0], (0, 0), 2, 1), ([0, 3], [1, 3], (1, 1), 4, 1),
    ]  # fmt: skip


def test_a_mesh_of_some_ranks():
    def run(rank):
        mesh = DeviceMesh("cpu", [0, 2], mesh_dim_names=("x",))
        inside = rank in (0, 2)
        assert mesh.get_coordinate() == ((rank // 2,) if inside else None)
        assert mesh.mesh.tolist() == [0, 2]
        if inside:
            return total(mesh.get_group())
        with pytest.raises(RuntimeError, match="rank 1 has no group"):
            mesh.get_group()
        return None

    assert on_ranks(3, run) == [2, None, 2]


def test_of_groups():
    def run(rank):
        mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu", mesh_dim_names=("all",))
        assert mesh.get_group() is dist.group.WORLD and mesh["all"] is mesh
        assert DeviceMesh.from_group(dist.group.WORLD, "cpu", [0, 1, 2, 3]) != mesh
        rows = [[0, 1], [2, 3]]
        a, _ = dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])
        b, _ = dist.new_subgroups_by_enumeration(rows)
        two = DeviceMesh.from_group([a, b], "cpu", rows, mesh_dim_names=("a", "b"))
        assert two.get_group("a") is a and two["b"].get_group() is b
        for arguments, message in (
            (([], "cpu"), "at least one ProcessGroup"),
            (([a, b], "cpu"), "Must pass mesh if"),
            (([a, b], "cpu", rows), "Must pass mesh_dim_names if"),
            ((dist.group.WORLD, "cpu", [1, 0, 2, 3]), "Invalid mesh"),
        ):
            with pytest.raises(ValueError, match=message):
                DeviceMesh.from_group(*arguments)
        with pytest.raises(ValueError, match="ndim equal to number of ProcessGroups"):
            DeviceMesh.from_group([a, b], "cpu", [0, 1], mesh_dim_names=("a",))

    on_ranks(4, run)


def test_refused():
    def run(rank):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        plain = init_device_mesh("cpu", (2, 2))
        flat = mesh._flatten("ab")
        for call, error, message in (
            (lambda: init_device_mesh("cpu", (8,)), RuntimeError, "bigger than default world size 4"),
            (lambda: init_device_mesh("cuda:0", (4,)), RuntimeError, "Device type with index"),
            (lambda: init_device_mesh("cpu", (4,), mesh_dim_names=("a", "b")), RuntimeError,
             "same length"),
            (lambda: init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "a")), RuntimeError,
             "must be unique"),
            (lambda: DeviceMesh("cpu", [0, 0]), ValueError, "names a rank twice"),
            (lambda: DeviceMesh("cpu", [0.5]), ValueError, "must hold ranks"),
            (lambda: DeviceMesh("cpu"), TypeError, "argument is required"),
            (lambda: plain["a"], RuntimeError, "without mesh_dim_names"),
            (lambda: plain._flatten(), RuntimeError, "without mesh_dim_names"),
            (lambda: mesh["c"], KeyError, "Valid mesh_dim_names are"),
            (lambda: mesh["b", "a"], KeyError, "ascending order"),
            (lambda: mesh["a", "ab"], RuntimeError, "overlapping"),
            (lambda: mesh["a"]["b"], KeyError, "Valid mesh_dim_names are"),
            (lambda: mesh.get_group(), RuntimeError, "`mesh_dim` needs to be specified"),
            (lambda: mesh.get_local_rank(), RuntimeError, "`mesh_dim` needs to be specified"),
            (lambda: mesh.get_group("c"), KeyError, "'c' does not exist"),
            (lambda: mesh._flatten("a"), ValueError, "already exists"),
            (lambda: mesh["a"]._flatten("ab"), ValueError, "has been created before"),
            (lambda: mesh._unflatten("c", (2,), ("d",)), ValueError, "is not in"),
            (lambda: mesh._unflatten(2, (2,), ("d",)), ValueError, "out of range"),
            (lambda: mesh._unflatten(0, (3,), ("d",)), ValueError, "product must be 2"),
            (lambda: mesh._unflatten(0, (2,), ("d", "e")), RuntimeError, "same length"),
            (lambda: init_device_mesh("cpu", (4,), backend_override={0: "mpi"}),
             NotImplementedError, "backend_override"),
        ):
            with pytest.raises(error, match=message):
                call()
        assert flat.size() == 4

    on_ranks(4, run)


def test_equality():
    def run(rank):
        def make(shape=(2, 2), names=("a", "b")):
            return init_device_mesh("cpu", shape, mesh_dim_names=names)

        assert make() == make() and hash(make()) == hash(make()) and make() is not make()
        assert make() != make((4, 1)) and make() != make(names=("a", "c")) and make() != 3
        assert make()["a"] == make()["a"] != make()["b"]
        assert make((1, 4))["b"] == make((1, 4), ("x", "b"))["b"]

    on_ranks(4, run)


def test_detail_shows_the_ranks():
    def run(rank):
        mesh = init_device_mesh("cpu", (2,))
        try:
            dist.set_debug_level(dist.DebugLevel.DETAIL)
            return repr(mesh)
        finally:
            dist.barrier()
            dist.set_debug_level(dist.DebugLevel.OFF)

    assert set(on_ranks(2, run)) == {"DeviceMesh((2,), 'cpu', stride=(1,), Mesh: [0, 1])"}


def test_a_mesh_begins_the_job():
    """Without a default group it makes one: a script may begin with its mesh."""
    assert not dist.is_initialized() and "RANK" not in os.environ
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("dp",))
    assert dist.is_initialized() and mesh.get_group() is dist.group.WORLD
    assert dist.DeviceMesh is DeviceMesh and dist.init_device_mesh is init_device_mesh
    dist.destroy_process_group()


def test_axes_join():
    assert Axis.of([(2, 4), (4, 1)]) == Axis((8,), (1,))
    assert Axis.of([(2, 8), (4, 1)]) == Axis((2, 4), (8, 1))
    assert Axis.of([(1, 4)]) == Axis((), ()) and Axis.of([(1, 4)]).size == 1
    assert Axis.of([(2, 8), (2, 1)]).offsets == [0, 1, 8, 9]
    assert pickle.loads(pickle.dumps(Axis((2,), (1,)))) == Axis((2,), (1,))
