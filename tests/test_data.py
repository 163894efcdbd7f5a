"""Datasets, samplers, collation and the loader in this process."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

import disttorch as torch
from disttorch.utils import data


class Stream(data.IterableDataset):
    def __init__(self, n, length=None):
        self.n, self.length = n, length

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n if self.length is None else self.length


class Squares(data.Dataset):
    def __init__(self, n):
        self.n = n

    def __getitem__(self, i):
        return i * i

    def __len__(self):
        return self.n


# ---------------------------------------------------------------- datasets
def test_tensor_and_stack_datasets():
    x, y = torch.arange(6).reshape(3, 2), torch.tensor([5.0, 6.0, 7.0])
    d = data.TensorDataset(x, y)
    assert len(d) == 3 and d[1][0].tolist() == [2, 3] and d[1][1].item() == 6
    with pytest.raises(AssertionError, match="Size mismatch"):
        data.TensorDataset(x, y[:2])
    s = data.StackDataset(a=Squares(3), b=[7, 8, 9])
    assert s[2] == {"a": 4, "b": 9} and s.__getitems__([0, 1])[1] == {"a": 1, "b": 8}
    assert data.StackDataset(Squares(2), [7, 8])[1] == (1, 8)
    with pytest.raises(ValueError, match="Size mismatch"):
        data.StackDataset(Squares(2), [1])


def test_concat_chain_subset():
    d = Squares(3) + data.Subset(Squares(10), [9, 5])
    assert isinstance(d, data.ConcatDataset) and [d[i] for i in range(5)] == [0, 1, 4, 81, 25]
    assert d[-1] == 25 and len(d) == 5
    with pytest.raises(ValueError, match="absolute value"):
        d[-6]
    with pytest.raises(IndexError):
        d[5]
    chained = Stream(2) + Stream(3)
    assert list(chained) == [0, 1, 0, 1, 2] and len(chained) == 5
    with pytest.raises(AssertionError, match="does not support IterableDataset"):
        data.ConcatDataset([Stream(1)])


def test_random_split():
    g = torch.Generator().manual_seed(1)
    a, b = data.random_split(range(10), [3, 7], generator=g)
    assert len(a) == 3 and sorted([*a, *b]) == list(range(10))
    again, _ = data.random_split(range(10), [3, 7], generator=g.manual_seed(1))
    assert list(again) == list(a)
    assert [len(p) for p in data.random_split(range(11), [0.3, 0.3, 0.4])] == [4, 3, 4]
    with pytest.raises(ValueError, match="does not equal"):
        data.random_split(range(3), [1, 1])


# ---------------------------------------------------------------- samplers
def test_random_sampler():
    torch.manual_seed(0)
    s = data.RandomSampler(range(20))
    first, second = list(s), list(s)
    assert sorted(first) == list(range(20)) and first != second
    torch.manual_seed(0)
    assert list(data.RandomSampler(range(20))) == first
    g = torch.Generator().manual_seed(3)
    longer = list(data.RandomSampler(range(4), num_samples=10, generator=g))
    assert len(longer) == 10 and sorted(longer[:4]) == sorted(longer[4:8]) == [0, 1, 2, 3]
    drawn = list(data.RandomSampler(range(3), replacement=True, num_samples=300))
    assert set(drawn) == {0, 1, 2} and len(drawn) == 300
    with pytest.raises(ValueError, match="num_samples should be a positive"):
        data.RandomSampler([])
    with pytest.raises(TypeError, match="replacement"):
        data.RandomSampler([1], replacement=1)


def test_weighted_subset_and_batch_samplers():
    torch.manual_seed(0)
    drawn = list(data.WeightedRandomSampler([0.0, 3.0, 1.0], 4000))
    assert 0 not in drawn and abs(drawn.count(1) / 4000 - 0.75) < 0.03
    assert sorted(data.WeightedRandomSampler([1, 1, 1], 3, replacement=False)) == [0, 1, 2]
    assert sorted(data.SubsetRandomSampler([3, 5, 9])) == [3, 5, 9]
    batches = data.BatchSampler(data.SequentialSampler(range(7)), 3, False)
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]] and len(batches) == 3
    batches = data.BatchSampler(range(7), 3, True)
    assert list(batches) == [[0, 1, 2], [3, 4, 5]] and len(batches) == 2
    with pytest.raises(ValueError, match="batch_size should be a positive"):
        data.BatchSampler(range(7), 0, False)


@pytest.mark.parametrize("n", [1, 7, 8, 20])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("shuffle", [False, True])
def test_distributed_sampler_covers_everything(n, world, shuffle):
    ranks = [
        data.DistributedSampler(range(n), world, r, shuffle=shuffle, seed=4) for r in range(world)
    ]
    shares = [list(s) for s in ranks]
    assert {len(s) for s in shares} == {len(ranks[0])} == {-(-n // world)}
    together = sorted(i for share in shares for i in share)
    assert set(together) == set(range(n))
    if n % world == 0:
        assert together == list(range(n))  # without overlap
    dropped = [
        list(data.DistributedSampler(range(n), world, r, shuffle, drop_last=True))
        for r in range(world)
    ]
    flat = [i for share in dropped for i in share]
    assert len(flat) == len(set(flat)) == n // world * world


def test_distributed_sampler_epochs_and_ranks():
    s = data.DistributedSampler(range(50), 2, 1)
    first = list(s)
    assert list(s) == first
    s.set_epoch(1)
    assert list(s) != first
    with pytest.raises(ValueError, match="Invalid rank 2"):
        data.DistributedSampler(range(5), 2, 2)


@pytest.mark.parametrize("n, world", [(10, 3), (2, 3), (7, 1), (8, 4)])
def test_exact_sampler_gives_each_sample_once(n, world):
    samplers = [data.DistributedSampler(range(n), world, r, exact=True) for r in range(world)]
    shares = [list(s) for s in samplers]
    assert sorted(i for share in shares for i in share) == list(range(n))
    assert [len(s) for s in samplers] == [len(share) for share in shares]
    with pytest.raises(ValueError, match="exact=True"):
        data.DistributedSampler(range(n), world, 0, drop_last=True, exact=True)


# ---------------------------------------------------------------- passes that go on
def ranks_of(world, n=41, **options):
    samplers = [data.DistributedSampler(range(n), world, r, seed=3, **options)
                for r in range(world)]
    return [data.DataLoader(Squares(n), 2, sampler=s) for s in samplers]


def run(loaders, batches):
    """The samples of some batches of each rank (all that are left if None)."""
    seen = []
    for loader in loaders:
        for k, batch in enumerate(loader, 1):
            seen += batch.tolist()
            if k == batches:
                break
    return seen


@pytest.mark.parametrize("worlds", [(1, 4), (4, 1), (3, 2), (2, 3, 4)])
def test_a_pass_goes_on_at_another_number_of_ranks(worlds):
    state, seen = None, []
    for k, world in enumerate(worlds):
        loaders = ranks_of(world, exact=True)
        for loader in loaders:
            loader.sampler.set_epoch(5)
            if state is not None:
                loader.load_state_dict(state)
            loader.sampler.set_epoch(5)  # as a training loop does; keeps the place
        last = k == len(worlds) - 1
        seen += run(loaders, None if last else 3)
        states = [loader.state_dict() for loader in loaders]
        assert all(s["sampler"] == states[0]["sampler"] for s in states)
        state = states[0]
    assert sorted(seen) == [i * i for i in range(41)]
    for loader in loaders:  # the next epoch is a whole one
        loader.sampler.set_epoch(6)
    assert sorted(run(loaders, None)) == [i * i for i in range(41)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_pass_goes_on_as_it_would_have(workers):
    def loader(generator):
        return data.DataLoader(Squares(30), 4, shuffle=True, generator=generator,
                               num_workers=workers)

    for make in (lambda: None, lambda: torch.Generator().manual_seed(7)):
        torch.manual_seed(1)
        first, given, rest = loader(make()), [], []
        for k, batch in enumerate(first):
            (given if k < 3 else rest).extend(batch.tolist())
            if k == 2:
                state = first.state_dict()
        torch.manual_seed(2)
        again = loader(make())
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert [x for b in again for x in b.tolist()] == rest
        assert sorted(given + rest) == [i * i for i in range(30)]
        assert len([x for b in again for x in b.tolist()]) == 30
        assert again.state_dict()["batches"] == 0


def test_other_orders_go_on():
    for make in (
        lambda: {"sampler": data.SubsetRandomSampler(range(12))},
        lambda: {"sampler": data.WeightedRandomSampler([1.0] * 12, 12, replacement=False)},
        lambda: {"sampler": range(11, -1, -1)},  # without a state: must give the same again
        lambda: {"batch_sampler": [[0, 1], [2], [3, 4, 5], [6, 7, 8, 9], [10, 11]]},
        dict,
    ):
        torch.manual_seed(3)
        first = data.DataLoader(Squares(12), **make())
        batches = iter(first)
        given = next(batches).tolist() + next(batches).tolist()
        second = data.DataLoader(Squares(12), **make())
        second.load_state_dict(first.state_dict())
        given += next(iter(second)).tolist()
        third = data.DataLoader(Squares(12), **make())
        third.load_state_dict(second.state_dict())
        given += [x for b in third for x in b.tolist()]
        assert sorted(given) == [i * i for i in range(12)]


def test_streams_go_on():
    first = data.DataLoader(Stream(10), 3)
    next(iter(first))
    again = data.DataLoader(Stream(10), 3)
    again.load_state_dict(first.state_dict())
    assert [b.tolist() for b in again] == [[3, 4, 5], [6, 7, 8], [9]]
    with pytest.raises(ValueError, match="num_workers=0"):
        data.DataLoader(Stream(10), 3, num_workers=1).load_state_dict(first.state_dict())


def test_states_of_something_else_are_refused():
    loaders = ranks_of(2)
    run(loaders, 1)
    state = loaders[0].state_dict()
    with pytest.raises(ValueError, match="length=41"):
        other = ranks_of(2, n=40)[0]
        other.load_state_dict(state)
        next(iter(other))
    with pytest.raises(ValueError, match="same kind of sampler"):
        data.DataLoader(Squares(41), sampler=range(41)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="no pass has begun"):
        data.RandomSampler(range(3)).state_dict()


# ---------------------------------------------------------------- collation
def test_collate_nested():
    Point = namedtuple("Point", "x y")
    batch = [
        {"t": torch.ones(2) * i, "f": 0.5 * i, "i": i, "b": i > 0, "s": str(i),
         "p": Point(i, -i), "l": [i, (i, i)], "n": np.full(2, i), "g": np.float32(i)}
        for i in range(3)
    ]
    out = data.default_collate(batch)
    assert out["t"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert out["f"].dtype is torch.float64 and out["i"].dtype is torch.int64
    assert out["b"].dtype is torch.bool and out["s"] == ["0", "1", "2"]
    assert isinstance(out["p"], Point) and out["p"].y.tolist() == [0, -1, -2]
    assert out["l"][0].tolist() == [0, 1, 2] and out["l"][1][1].tolist() == [0, 1, 2]
    assert out["n"].shape == (3, 2) and out["g"].dtype is torch.float32
    with pytest.raises(RuntimeError, match="equal size"):
        data.default_collate([[1], [1, 2]])
    with pytest.raises(TypeError, match="found <class 'object'>"):
        data.default_collate([object()])
    with pytest.raises(TypeError, match="must contain tensors"):
        data.default_collate([np.array(["a"])])


def test_convert():
    out = data.default_convert({"a": np.ones(2), "b": (np.int64(3), "x"), "c": [1.5]})
    assert isinstance(out["a"], torch.Tensor) and out["b"][1] == "x" and out["c"] == [1.5]
    assert out["b"][0].item() == 3


# ---------------------------------------------------------------- the loader
def test_batches_in_order_and_shuffled():
    loader = data.DataLoader(Squares(7), batch_size=3)
    assert [b.tolist() for b in loader] == [[0, 1, 4], [9, 16, 25], [36]] and len(loader) == 3
    assert len(data.DataLoader(Squares(7), 3, drop_last=True)) == 2
    g = torch.Generator().manual_seed(0)
    shuffled = data.DataLoader(Squares(20), 4, shuffle=True, generator=g)
    first, second = ([x for b in shuffled for x in b.tolist()] for _ in range(2))
    assert first != second and sorted(first) == sorted(second) == [i * i for i in range(20)]
    g.manual_seed(0)
    assert [x for b in shuffled for x in b.tolist()] == first


def test_samplers_collate_and_single_samples():
    loader = data.DataLoader(Squares(5), sampler=[4, 2], batch_size=2, collate_fn=tuple)
    assert list(loader) == [(16, 4)]
    loader = data.DataLoader(Squares(5), batch_sampler=[[1], [2, 3]])
    assert [b.tolist() for b in loader] == [[1], [4, 9]] and loader.batch_size is None
    loader = data.DataLoader(np.arange(3.0), batch_size=None)
    assert [x.item() for x in loader] == [0, 1, 2] and len(loader) == 3

    class Many(Squares):
        def __getitems__(self, indices):
            return [100 + i for i in indices]

    assert next(iter(data.DataLoader(Many(4), 2))).tolist() == [100, 101]


def test_streams():
    loader = data.DataLoader(Stream(5), batch_size=2)
    assert [b.tolist() for b in loader] == [[0, 1], [2, 3], [4]] and len(loader) == 3
    loader = data.DataLoader(Stream(5), batch_size=2, drop_last=True)
    assert [b.tolist() for b in loader] == [[0, 1], [2, 3]] and len(loader) == 2
    assert list(data.DataLoader(Stream(3), batch_size=None)) == [0, 1, 2]
    wrong = data.DataLoader(Stream(4, length=2), batch_size=1)
    assert len(wrong) == 2
    with pytest.warns(UserWarning, match="was reported to be 2"):
        assert len(list(wrong)) == 4
    passes = iter(data.DataLoader(Stream(1), 4))
    assert next(passes).tolist() == [0]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(passes)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"sampler": [1], "shuffle": True}, ValueError, "mutually exclusive with shuffle"),
        ({"batch_sampler": [[1]], "batch_size": 3}, ValueError, "mutually exclusive with batch"),
        ({"batch_size": None, "drop_last": True}, ValueError, "disables auto-batching"),
        ({"multiprocessing_context": "fork"}, ValueError, "num_workers > 0"),
        ({"multiprocessing_context": "x", "num_workers": 1}, ValueError, "valid start method"),
        ({"multiprocessing_context": 3, "num_workers": 1}, TypeError, "valid context"),
        ({"prefetch_factor": -1, "num_workers": 1}, ValueError, "non-negative"),
        ({"num_workers": -1}, ValueError, "non-negative"),
        ({"prefetch_factor": 2}, ValueError, "multiprocessing"),
        ({"persistent_workers": True}, ValueError, "num_workers > 0"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        data.DataLoader(Squares(3), **options)


def test_bad_stream_options_and_fixed_attributes():
    with pytest.raises(ValueError, match="unspecified shuffle"):
        data.DataLoader(Stream(3), shuffle=True)
    with pytest.raises(ValueError, match="unspecified sampler"):
        data.DataLoader(Stream(3), sampler=[1])
    loader = data.DataLoader(Squares(3))
    with pytest.raises(ValueError, match="batch_size attribute should not be set"):
        loader.batch_size = 5
    with pytest.warns(UserWarning, match="pin_memory"):
        assert len(list(data.DataLoader(Squares(3), pin_memory=True))) == 3
    assert data.get_worker_info() is None
