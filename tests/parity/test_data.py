"""Data loading against PyTorch: batches, collation, samplers, signatures, error texts."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import disttorch as dt
from disttorch.utils import data

torch = pytest.importorskip("torch")
tdata = torch.utils.data
pytestmark = pytest.mark.parity
BOTH = ((dt, data), (torch, tdata))


def plain(value):
    if isinstance(value, (dt.Tensor, torch.Tensor)):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(v) for v in value]
    return value


def same(make):
    ours, theirs = (plain(make(*args)) for args in BOTH)
    assert ours == theirs
    return ours


SAMPLES = [
    1, 2.5, True, "a", b"b", (1, 2.0), [1, (2, "x")], {"k": 1, "l": [1.5]}, np.ones(2),
    np.float32(3), np.int16(2), {"n": np.ones((2, 2), np.uint8)}, [], {},
]


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_collate_and_convert(sample):
    same(lambda p, d: d.default_collate([sample, sample, sample]))
    same(lambda p, d: d.default_convert(sample))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_batches(batch_size, drop_last):
    if batch_size is None and drop_last:
        drop_last = False

    def make(p, d):
        x = d.TensorDataset(p.arange(10), p.arange(20.0).reshape(10, 2))
        loader = d.DataLoader(x, batch_size, drop_last=drop_last)
        return [list(loader), len(loader)]

    assert same(make)[1][-1] > 0


@pytest.mark.parametrize("n, world", [(1, 4), (7, 3), (12, 4), (5, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_without_shuffling(n, world, drop_last):
    def make(p, d):
        return [
            list(d.DistributedSampler(range(n), world, r, shuffle=False, drop_last=drop_last))
            for r in range(world)
        ]

    same(make)


def test_split_sizes():
    for lengths in ([3, 4], [0.5, 0.5], [0.2, 0.3, 0.5], [0.33, 0.33, 0.34]):
        same(lambda p, d, n=lengths: [len(s) for s in d.random_split(range(7), n)])


ERRORS = {
    "shuffle": lambda p, d: d.DataLoader([1], sampler=[0], shuffle=True),
    "batch_sampler": lambda p, d: d.DataLoader([1], 2, batch_sampler=[[0]]),
    "drop_last": lambda p, d: d.DataLoader([1], None, drop_last=True),
    "workers": lambda p, d: d.DataLoader([1], num_workers=-1),
    "timeout": lambda p, d: d.DataLoader([1], timeout=-1),
    "persistent": lambda p, d: d.DataLoader([1], persistent_workers=True),
    "prefetch": lambda p, d: d.DataLoader([1], prefetch_factor=2),
    "prefetch_negative": lambda p, d: d.DataLoader([1], num_workers=1, prefetch_factor=-2),
    "context": lambda p, d: d.DataLoader([1], num_workers=1, multiprocessing_context="thread"),
    "context_type": lambda p, d: d.DataLoader([1], num_workers=1, multiprocessing_context=7),
    "context_alone": lambda p, d: d.DataLoader([1], multiprocessing_context="fork"),
    "fixed": lambda p, d: setattr(d.DataLoader([1]), "batch_size", 3),
    "batch_size": lambda p, d: d.BatchSampler([1], 0, False),
    "samples": lambda p, d: d.RandomSampler([]),
    "replacement": lambda p, d: d.RandomSampler([1], replacement=1),
    "weights": lambda p, d: d.WeightedRandomSampler([[1.0]], 1),
    "rank": lambda p, d: d.DistributedSampler([1], 2, 2),
    "split": lambda p, d: d.random_split([1, 2], [3]),
    "concat": lambda p, d: d.ConcatDataset([]),
    "sizes": lambda p, d: d.TensorDataset(p.ones(1), p.ones(2)),
    "stack": lambda p, d: d.StackDataset(),
    "collate": lambda p, d: d.default_collate([object()]),
    "ragged": lambda p, d: d.default_collate([[1], [1, 2]]),
    "getitem": lambda p, d: d.Dataset()[0],
    "negative": lambda p, d: d.ConcatDataset([[1]])[-2],
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_type_and_text(name):
    texts = []
    for args in BOTH:
        with pytest.raises(Exception) as caught:
            ERRORS[name](*args)
        texts.append((caught.type.__name__, str(caught.value)))
    assert texts[0] == texts[1]


def test_signatures():
    for name in set(data.__all__) - {"random_split"}:  # its default is a generator object
        ours, theirs = getattr(data, name), getattr(tdata, name)
        own = {"exact"}  # a keyword that PyTorch does not have
        assert [(p.name, p.default) for p in inspect.signature(ours).parameters.values()
                if p.name not in own] == [
            (p.name, p.default) for p in inspect.signature(theirs).parameters.values()
        ], name
