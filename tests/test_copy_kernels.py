"""Copies between any strides: plans and kernels on the CPU (tests/cuda_host), bit by bit."""

from __future__ import annotations

import cuda_host
import numpy as np
import pytest
from cuda_host import kernel

from disttorch.backend.gpu import moves

pytestmark = pytest.mark.skipif(not cuda_host.available(), reason="needs g++ and an x86-64 processor")
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def address(a):
    return a.__array_interface__["data"][0]


def placed(rng, shape, dtype, order=None, offset=0, gaps=()):
    """An array of random bytes: axes in any order of memory, gaps between rows, an odd start."""
    order = range(len(shape)) if order is None else order
    padded = [n + (gaps[d] if d < len(gaps) else 0) for d, n in enumerate(shape)]
    size = int(np.prod(padded)) + offset
    memory = rng.integers(0, 256, max(size, 1) * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    back = np.argsort(order)
    whole = memory[offset:size].reshape([padded[d] for d in order]).transpose(back)
    return whole[tuple(slice(0, n) for n in shape)]


def copied(target, source):
    """``target[...] = source`` by the kernels; the launches' names."""
    found = moves.plan(target.shape, source.strides, target.strides, target.itemsize,
                       address(source) & 15, address(target) & 15)
    if isinstance(found, int):
        assert found == target.nbytes
        target[...] = source
        return ["flat"]
    for launch in found:
        kernel("copies", launch.name, UNIT=launch.unit)(
            (launch.blocks,), (moves.BLOCK,), (source, target, launch.places, *launch.more))
    return [launch.name for launch in found]


def check(target, source):
    everything = target if target.base is None else target.base
    while everything.base is not None and isinstance(everything.base, np.ndarray):
        everything = everything.base
    before, want = everything.copy(), np.broadcast_to(source, target.shape).copy()
    names = copied(target, np.broadcast_to(source, target.shape))
    np.testing.assert_array_equal(target, want)
    marks = np.zeros_like(everything)  # what is not of the target has stayed
    inside = np.lib.stride_tricks.as_strided(
        marks.view(np.uint8)[address(target) - address(everything):].view(target.dtype),
        target.shape, target.strides)
    inside[...] = np.iinfo(target.dtype).max
    marks = marks.astype(bool)
    np.testing.assert_array_equal(everything[~marks], before[~marks])
    return names


@pytest.mark.parametrize("size", UNSIGNED)
@pytest.mark.parametrize("seed", range(12))
def test_random_strides(size, seed):
    rng = np.random.default_rng(100 * size + seed)
    for _ in range(12):
        rank = int(rng.integers(1, 6))
        most = int(4000 ** (1 / rank))
        shape = tuple(int(n) for n in rng.integers(1, most + 1, rank))
        arrays = []
        for _ in range(2):
            order = list(rng.permutation(rank)) if rng.random() < 0.6 else None
            gaps = [int(g) * 8 for g in rng.integers(0, 2, rank)] if rng.random() < 0.5 else (
                rng.integers(0, 3, rank) if rng.random() < 0.5 else ())
            arrays.append(placed(rng, shape, UNSIGNED[size], order, int(rng.integers(0, 3)) * 4, gaps))
        source, target = arrays
        for d in range(rank):
            luck = rng.random()
            if luck < 0.1:
                source = np.flip(source, d)
            elif luck < 0.2:
                target = np.flip(target, d)
            elif luck < 0.3:
                source = source[(slice(None),) * d + (slice(0, 1),)]
            elif luck < 0.4:
                cut = (slice(None),) * d + (slice(None, None, 2),)
                source, target = source[cut] if source.shape[d] > 1 else source, target[cut]
        check(target, source)


@pytest.mark.parametrize("size", UNSIGNED)
@pytest.mark.parametrize("shape", [(70, 130), (64, 64), (3, 66, 68), (2, 128, 36), (100, 33)])
def test_transposes(size, shape):
    rng = np.random.default_rng(size)
    source = placed(rng, (*shape[:-2], shape[-1], shape[-2]), UNSIGNED[size]).swapaxes(-1, -2)
    (name,) = check(placed(rng, shape, UNSIGNED[size]), source)
    assert name.startswith("transpose")
    check(placed(rng, shape, UNSIGNED[size], gaps=[0] * (len(shape) - 1) + [5]), source)
    check(placed(rng, shape, UNSIGNED[size], offset=1), source)


@pytest.mark.parametrize("size", UNSIGNED)
@pytest.mark.parametrize("shape", [
    (2, 3, 11, 16), (1, 3, 40, 41), (3, 4, 50, 32), (2, 17, 9, 16), (1, 2, 5000)])
def test_channels_first_and_last(size, shape):
    rng = np.random.default_rng(size)
    last = [0, *range(2, len(shape)), 1]
    for start in (0, 1):
        first = placed(rng, shape, UNSIGNED[size], offset=start)
        (name,) = check(placed(rng, shape, UNSIGNED[size], last), first)
        assert name.startswith("join_planes")
        other = placed(rng, shape, UNSIGNED[size], last, start)
        (name,) = check(placed(rng, shape, UNSIGNED[size]), other)
        assert name.startswith("part_planes")


@pytest.mark.parametrize("make, name, unit", [
    (lambda a: (a((8, 6, 64)).swapaxes(0, 1), a((6, 8, 64))), "strided3", "u128"),
    (lambda a: (a((40, 65))[:, :64], a((40, 64))), "gather2", "u16"),
    (lambda a: (a((40, 66))[:, :64], a((40, 64))), "gather2", "u32"),
    (lambda a: (a((40, 68))[:, :64], a((40, 64))), "strided2", "u64"),
    (lambda a: (a((40, 64)), a((40, 65))[:, 1:]), "strided2", "u16"),
    (lambda a: (a((40, 72))[:, :65], a((40, 65))), "flow2", "u16"),
    (lambda a: (a((40, 72))[:, :66], a((40, 66))), "flow2", "u32"),
    (lambda a: (a((40, 72))[:, :68], a((40, 68))), "strided2", "u64"),
    (lambda a: (a((3, 5, 11, 9)).swapaxes(0, 2), a((11, 5, 3, 9))), "flow4", "u16"),
    (lambda a: (a((40, 130))[:, ::-2], a((40, 65))), "flow2", "u16"),
    (lambda a: (a((40, 1)), a((40, 65))), "flow2", "u16"),
    (lambda a: (a((40, 9))[:, :7], a((40, 7))), "strided2", "u16"),
    (lambda a: (a((40, 1)), a((40, 64))), "gather2", "u16"),
    (lambda a: (a((40, 64))[:, ::-1], a((40, 64))), "gather2", "u16"),
    (lambda a: (a((1, 64)), a((40, 64))), "strided2", "u128"),
    (lambda a: (a((40, 128))[:, ::2], a((40, 64))), "gather2", "u16"),
    (lambda a: (a((40, 64)), a((40, 128))[:, ::2]), "strided2", "u16"),
    (lambda a: (a((2, 2) * 5).transpose(*range(10)[::-1]), a((2, 2) * 5)), None, None),
])
def test_which_kernel(make, name, unit):
    rng = np.random.default_rng(0)
    source, target = make(lambda shape: placed(rng, shape, np.uint16))
    source = np.broadcast_to(source, target.shape)
    if name is not None:
        (launch,) = moves.plan(target.shape, source.strides, target.strides, 2, 0, address(target) & 15)
        assert (launch.name, launch.unit) == (name, unit)
    check(target, source)


def test_elements_of_sixteen_bytes():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((40, 36)).view(np.complex128) for _ in range(2))
    for source, target in ((a[:18].T, b[:18]), (a[:, ::2], b[:, :9]), (a[1:, 1:], b[:-1, :-1])):
        copied(target, source)
        np.testing.assert_array_equal(source, target)
    odd = rng.standard_normal(41)[1:].view(np.complex128).reshape(4, 5)
    copied(a[:5, :4], odd.T)
    np.testing.assert_array_equal(a[:5, :4], odd.T)


def test_long_rows_are_copied_in_whole_accesses_and_a_rest():
    rng = np.random.default_rng(0)
    for gap in (3, 0):
        source = placed(rng, (5, 1027), np.uint16, gaps=[0, gap])
        target = placed(rng, (5, 1040), np.uint16)[:, :1027]
        assert check(target, source) == ["gather2", "strided2"]


@pytest.mark.parametrize("limit", [64, 500])
def test_what_is_too_large_is_cut(limit, monkeypatch):
    monkeypatch.setattr(moves, "_LIMIT", limit)
    rng, names = np.random.default_rng(0), []
    for make in (lambda a: (a((9, 40, 30)).swapaxes(0, 1), a((40, 9, 30))),
                 lambda a: (a((70, 40)).T, a((40, 70))), lambda a: (a((3, 400)).T, a((400, 3))),
                 lambda a: (a((40, 65))[:, :64], a((40, 64)))):
        source, target = make(lambda shape: placed(rng, shape, np.uint16))
        names += check(target, source)
    assert len(names) > 8


def test_division():
    for size in (1, 2, 3, 7, 64, 641, 65537, (1 << 31) - 1):
        _, magic, shift = moves.divisor(size)
        for x in {0, 1, size - 1, size, size + 1, 3 * size, (1 << 31) - 1, 123456789}:
            assert (((x * magic) >> 32) + x) >> shift == x // size and magic < 1 << 32
