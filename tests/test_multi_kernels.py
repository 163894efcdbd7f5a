"""Kernels over sorted indices and over many tensors, on the CPU (tests/cuda_host)."""

from __future__ import annotations

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cuda_host import kernel

from disttorch.backend.gpu import multi

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
rng = np.random.default_rng(0)


def ordered(index, size, tile):
    """(keys, positions) by the radix sort, a block for each ``tile`` keys."""
    n, before = index.size, None
    keys, grid = np.zeros(n, np.uint32), -(-n // tile)
    kernel("sort", "index_keys", INDEX=index.dtype.name)((2,), (256,), (index, keys, n, size))
    for shift in range(0, max(1, (size - 1).bit_length()), 8):
        counts = np.zeros(grid * 256, np.uint32)
        kernel("sort", "sort_count", INDEX="int64")((grid,), (256,), (keys, counts, n, tile, shift))
        to, positions = np.zeros(n, np.uint32), np.zeros(n, np.uint32)
        kernel("sort", "sort_move", INDEX="int64")(
            (grid,), (256,), (keys, before, to, positions, counts, n, tile, shift))
        keys, before = to, positions
    return keys, before


@pytest.mark.parametrize("count, size, tile, dtype", [
    (1, 1, 256, "int64"), (10, 3, 256, "int32"), (5000, 700, 1024, "int64"),
    (3000, 70_000, 512, "int64"),
    (300, 1 << 31, 256, "int64"), (1024, 256, 256, "int32")])
def test_the_sort_is_stable(count, size, tile, dtype):
    index = rng.integers(0, min(size, 1 << 31), count).astype(dtype)
    keys, positions = ordered(index, size, tile)
    order = np.argsort(index, kind="stable")
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(keys, index[order])


@pytest.mark.parametrize("name, near", [("float32", 1e-6), ("float64", 1e-14), ("float16", 1e-3),
                                        ("bfloat16", 8e-3)])
@pytest.mark.parametrize("count, rows, width", [(700, 13, 16), (333, 50, 5), (65, 1, 8), (33, 2, 3)])
def test_sums_of_sorted_rows(count, rows, width, name, near):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    index = rng.integers(0, rows, count)
    index[:count // 2] = 0
    index[-1] = rows + 2  # out of range: left out
    values, out = (rng.standard_normal(s).astype(dtype) for s in ((count, width), (rows, width)))
    want, scale = out.astype(np.float64), np.abs(out.astype(np.float64))
    np.add.at(want, index[:-1], values[:-1].astype(np.float64))
    np.add.at(scale, index[:-1], np.abs(values[:-1].astype(np.float64)))
    keys, positions = ordered(index, rows, 256)
    runs, lanes = -(-count // 32), 16 // dtype.itemsize
    parts = np.full((runs, 2, width), np.nan, np.float64 if name == "float64" else np.float32)
    packed = int(width % lanes == 0)
    grid = (-(-runs * (width // lanes if packed else width) // 128),)
    kernel("scatter", "sum_sorted", ELEMENT=name)(
        grid, (128,), (keys, positions, values, out, parts, count, width, rows, 32, packed))
    kernel("scatter", "join_sorted", ELEMENT=name)(
        grid, (128,), (keys, out, parts, count, width, rows, 32, packed))
    assert (np.abs(out.astype(np.float64) - want) <= near * scale).all()


def test_a_table_is_the_structure_that_the_kernels_take():
    for lists in (1, 5, 6):
        most, layout, kind = multi._layout(lists)
        assert layout.itemsize == kind.SIZE <= 3840 and kind.SIZE % 8 == 0 and most % 2 == 0
        assert layout.fields["count"][1] == most * (8 * lists + 12)


def test_indices_out_of_range_are_noted():
    flag, index = np.zeros(4, np.int64), np.array([0, 3, -2, 4], np.int32)
    check = kernel("sort", "check_index", INDEX="int32")
    check((1,), (32,), (index, 4, -2, 5, flag))
    assert flag[0] == 0
    check((1,), (32,), (index, 4, 0, 5, flag))
    assert flag.tolist() == [1, -2, 0, 5]
