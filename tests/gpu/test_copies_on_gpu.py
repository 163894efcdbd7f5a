"""The GPU's copies: views into each other, joined, picked, framed; bit by bit against the CPU's."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as torch
from disttorch.backend.cupy_backend import gpu
from disttorch.backend.gpu import joins
from disttorch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]

DTYPES = [torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.float16, torch.float32,
          torch.int64, torch.float64, torch.complex64, torch.complex128]
FLOATS = [torch.float32, torch.bfloat16, torch.float64]


def values(*shape, dtype=torch.float32, seed=0):
    """Any bits of the dtype, NaNs and negative zeros among them, as a CPU tensor."""
    rng = np.random.default_rng(seed)
    if dtype is torch.bool:
        return torch.from_numpy(rng.integers(0, 2, shape).astype(bool))
    count = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    flat = rng.integers(0, 256, count, np.uint8).view(torch.empty((), dtype=dtype)._data.dtype)
    made = torch.zeros(shape, dtype=dtype)
    made._data.reshape(-1)[...] = flat
    return made


def bits(t):
    """The bytes of a tensor's elements in row-major order."""
    return t.detach().cpu().contiguous()._data.tobytes()


def same(got, want):
    assert got.is_cuda and got.dtype is want.dtype and got.shape == want.shape
    assert bits(got) == bits(want)


VIEWS = {
    "whole": lambda x: x, "transposed": lambda x: x.transpose(0, 1), "columns": lambda x: x[:, 1:],
    "every second": lambda x: x[:, ::2], "heads": lambda x: x.reshape(12, 2, 3, 11).permute(0, 2, 1, 3),
    "one row repeated": lambda x: x[:1].expand(9, 66), "halves": lambda x: x[:, 34:],
    "one column repeated": lambda x: x[:, :1].expand(12, 40),
    "three last": lambda x: x.reshape(1, 264, 3).transpose(1, 2),
    "three first": lambda x: x.reshape(3, 264).t(), "number": lambda x: x[3, 4],
    "empty": lambda x: x[:0],
    "nested": lambda x: x.reshape(2, 3, 2, 11, 6).permute(4, 1, 3, 0, 2),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_copies_of_views(view, dtype):
    x = values(12, 66, dtype=dtype)
    got, want = VIEWS[view](x.cuda()), VIEWS[view](x)
    same(got.contiguous(), want)
    same(got.clone(), want)
    assert got.contiguous().is_contiguous() and got.clone()._data.data.ptr != got._data.data.ptr
    same(got.reshape(-1), want.reshape(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writing_into_views(dtype):
    def write(x, y):
        x[:, ::2] = y[:, :33]
        x[1:3] = y[:1]
        x.t()[40:50].copy_(y.t()[40:50])
        x[5, 3:9] = y[0, 0]
        x[8:][...] = y[:4].clone().reshape(66, 4).t()
        return x

    x, y = values(12, 66, dtype=dtype), values(12, 66, dtype=dtype, seed=1)
    same(write(x.cuda(), y.cuda()), write(x.clone(), y))


def test_a_copy_keeps_the_order_of_axes():
    x = values(2, 3, 4, 5).cuda().permute(0, 3, 1, 2)
    assert x.clone().stride() == x.stride() and x.contiguous().stride() == (60, 12, 4, 1)
    same(x.clone(), values(2, 3, 4, 5).permute(0, 3, 1, 2))
    with pytest.raises(RuntimeError):
        x.copy_(values(7, 7).cuda())


def test_overlapping_copies_read_first():
    for change in (lambda a: a[1:].copy_(a[:-1]), lambda a: a[:, 1:].copy_(a[:, :-1]),
                   lambda a: a.copy_(a.t().clone()), lambda a: a.copy_(a)):
        got, want = values(9, 9).cuda(), values(9, 9)
        change(got), change(want)
        same(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(3, 5), (8, 16, 24), (1,) * 70, (4, 0, 12), (2,)],
                         ids=lambda n: str(len(n)))
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cat(lengths, dim, dtype):
    parts = [values(*[n if d == dim % 3 else 4 for d in range(3)], dtype=dtype, seed=n + i)
             for i, n in enumerate(lengths)]
    same(torch.cat([p.cuda() for p in parts], dim), torch.cat(parts, dim))
    views = [p.transpose(0, 2) for p in parts]
    same(torch.cat([v.cuda().transpose(0, 2).contiguous().transpose(0, 2) for v in views], 2 - dim % 3),
         torch.cat(views, 2 - dim % 3))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_stack(dim, dtype):
    parts = [values(3, 8, dtype=dtype, seed=i) for i in range(5)]
    same(torch.stack([p.cuda() for p in parts], dim), torch.stack(parts, dim))
    same(torch.stack([p.cuda().t() for p in parts], dim), torch.stack([p.t() for p in parts], dim))


def test_joins_of_many_bytes_are_cut(monkeypatch):
    parts = [values(9, n, dtype=torch.int16, seed=n) for n in (16, 24, 8)]
    monkeypatch.setattr(joins, "_LIMIT", joins._PER_BLOCK + 7)
    monkeypatch.setattr(joins, "_joins", {})
    same(torch.cat([p.cuda() for p in parts], 1), torch.cat(parts, 1))
    (plan,) = joins._joins.values()
    assert sum(len(table[3]) for table in plan.tables) > 9


def test_joining_other_things():
    a, b = values(3, 4), torch.arange(8).reshape(2, 4)
    same(torch.cat([a.cuda(), b.cuda()]), torch.cat([a, b]))
    same(torch.cat([torch.empty(0).cuda(), a.cuda()]), a)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        torch.cat([a.cuda(), a.t().cuda()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 16), (6, 5), (6, 3, 4), (6,)], ids=str)
def test_rows_by_number(shape, dtype):
    x, index = values(*shape, dtype=dtype), torch.tensor([5, 0, 3, 3, 1])
    for dim in range(len(shape)):
        some = index % shape[dim]
        for i in (some, some.int(), some[::2], some[:0]):
            same(torch.index_select(x.cuda(), dim, i.cuda()), torch.index_select(x, dim, i))
    same(x.cuda()[index.cuda() - 6], x[index - 6])
    if len(shape) == 2:
        same(F.embedding(index.reshape(5, 1).cuda(), x.cuda()), F.embedding(index.reshape(5, 1), x))
        same(torch.index_select(x.cuda().t(), 1, index.cuda()), torch.index_select(x.t(), 1, index))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pad", [
    (1, 2), (0, 8), (8, 0, 1, 2), (3, -2, -1, 1, 2, 0), (0, 0, 2, 1), (-1, -1)], ids=str)
def test_padding(pad, dtype):
    for shape in ((4, 5, 16), (2, 3, 7)):
        x = values(*shape, dtype=dtype)
        for value in (0, 1):
            same(F.pad(x.cuda(), pad, value=value), F.pad(x, pad, value=value))
        same(F.pad(x.cuda().transpose(0, 2), pad), F.pad(x.transpose(0, 2), pad))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_rolled_and_reversed(dtype):
    x = values(4, 6, dtype=dtype)
    for call in (lambda a: a.repeat(2, 3), lambda a: a.repeat(2, 1, 2), lambda a: torch.roll(a, 1, 0),
                 lambda a: torch.roll(a, (2, -7), (0, 1)), lambda a: torch.roll(a, 5),
                 lambda a: a.flip(0, 1), lambda a: a.flip(1), lambda a: a.repeat_interleave(3, 1),
                 lambda a: torch.rot90(a),
                 lambda a: torch.roll(a, 0, 0), lambda a: torch.tile(a, (2, 2))):
        same(call(x.cuda()), call(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, *FLOATS], ids=str)
def test_ramps(dtype):
    for bounds in ((0,), (10,), (3, 20, 4), (300, 2, -7), (0.5, 3, 0.3), (-0.1, 1.9, 0.1)):
        if min(bounds) >= 0 or dtype is not torch.uint8:
            same(torch.arange(*bounds, dtype=dtype, device="cuda"), torch.arange(*bounds, dtype=dtype))


INDICES = {
    "row": (2,), "rows": (slice(1, 4),), "columns": (slice(None), slice(8, 16)), "last": (..., -1),
    "steps": (slice(None, None, 2),), "box": (slice(1, 3), slice(2, 9), None, 1),
    "new": (None, slice(0, 2)), "none": (slice(3, 3),), "all": (...,), "number": (1, 2, 3),
    "odd": (..., slice(1, None, 3)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("index", INDICES)
def test_gradients_of_slices(index, dtype):
    found = []
    for device in ("cuda", "cpu"):
        x = torch.zeros(5, 16, 4, dtype=dtype, device=device, requires_grad=True)
        out = x[INDICES[index]]
        seed = torch.arange(out.numel()).reshape(out.shape).to(dtype).to(device)
        out.backward(seed)
        found.append(x.grad)
    same(*found)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_of_joins_and_splits(dtype):
    def run(device):
        x = values(4, 12, dtype=torch.uint8).to(dtype).to(device).requires_grad_()
        q, k, v = x.split(4, 1)
        heads = torch.cat([t.reshape(4, 2, 2).transpose(0, 1) for t in (q * 2, v)], -1)
        y = torch.stack([heads, F.pad(heads, (1, -1))]).roll(1, -1).flip(0)
        total = y.reshape(-1).float().sum() + k.float().mul(3).sum() + x.unbind(0)[1].float().sum()
        total.backward()
        return x.grad

    same(run("cuda"), run("cpu"))


@pytest.mark.parametrize("seed", range(6))
def test_random_views(seed):
    """Chains of views, then copies both ways."""
    rng = np.random.default_rng(seed)

    def look(x, rng):
        for _ in range(4):
            d, e = rng.integers(0, x.ndim, 2)
            kind = rng.integers(0, 4)
            if kind == 0:
                x = x.transpose(int(d), int(e))
            elif kind == 1 and x.shape[d] > 3:
                x = x.narrow(int(d), int(rng.integers(0, 3)), x.shape[d] - 3)
            elif kind == 2 and x.shape[d] % 2 == 0:
                x = x.unflatten(int(d), (2, -1))
            elif kind == 3 and x.shape[d] > 2:
                x = x[(slice(None),) * int(d) + (slice(int(rng.integers(0, 2)), None, 2),)]
        return x

    for _ in range(10):
        dtype = DTYPES[rng.integers(0, len(DTYPES))]
        shape = tuple(int(n) for n in rng.integers(1, 12, rng.integers(1, 5)))
        start = rng.bit_generator.state
        x, y = values(*shape, dtype=dtype, seed=seed), values(*shape, dtype=dtype, seed=seed + 1)
        results = []
        for device in ("cuda", "cpu"):
            rng.bit_generator.state = start
            a, b = x.to(device).clone(), y.to(device).clone()
            part = look(a, rng)
            rng.bit_generator.state = start
            part.copy_(look(b, rng))
            results += [a, part.contiguous(), part.clone()]
        for got, want in zip(results[:3], results[3:]):
            same(got, want)


def test_no_copy_of_cupys_own():
    """Copying calls of the namespace go by the kernels here."""
    xp = gpu()
    for name in ("ascontiguousarray", "asfortranarray", "concatenate", "stack", "take", "repeat", "tile",
                 "roll", "full", "ones"):
        assert getattr(xp, name) is not getattr(xp.cupy, name)
    a = values(4, 6).cuda()._data
    assert xp.ascontiguousarray(a) is a and xp.ascontiguousarray(a[0, 0]).shape == (1,)
    assert xp.ascontiguousarray(a, "float64").dtype == "float64"
    assert xp.asfortranarray(a).flags.f_contiguous and xp.asfortranarray(a.T).base is not None
    with pytest.raises(ValueError, match="broadcast"):
        xp.assign(a, a[:3])


def test_reshapes_copy_only_where_they_must():
    x = values(4, 6, 5).cuda()
    for call, view in ((lambda: x.transpose(0, 1).reshape(6, 2, 2, 5), True),
                       (lambda: x[:, :3].reshape(4, 15), True),
                       (lambda: x.transpose(0, 1).reshape(24, 5), False),
                       (lambda: x[:, :, 1:].reshape(-1), False),
                       (lambda: x[:, :, 1:].reshape(24, 2, 2), True),
                       (lambda: x[:1].expand(3, 6, 5).reshape(3, 30), True)):
        assert (call()._base is not None) is view
    y = torch.empty(3, 0, 4).cuda().transpose(0, 2)
    assert y.reshape(0, 5).shape == (0, 5)


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.bfloat16, torch.int32, torch.bool, torch.complex64], ids=str)
def test_fills(dtype):
    def run(device):
        made = []
        for shape in ((5, 7), (0,), ()):
            for value in (0, 1, True, *([2.5, float("nan")] if dtype.is_floating_point else [])):
                x = torch.ones(shape, dtype=dtype, device=device)
                made += [x.fill_(value).clone(), torch.full(shape, value, dtype=dtype, device=device)]
                if shape:
                    x[..., ::2] = 1
                    made.append(x)
        return made

    for got, want in zip(run("cuda"), run("cpu")):
        same(got, want)


IN_PLACE = {
    "relu": lambda x, y: x.relu_(), "add": lambda x, y: x.add_(y), "sub": lambda x, y: x.sub_(y),
    "mul": lambda x, y: x.mul_(y), "div": lambda x, y: x.div_(2), "tanh": lambda x, y: x.tanh_(),
    "sigmoid": lambda x, y: x.sigmoid_(), "clamp": lambda x, y: x.clamp_(-0.5, 0.5),
    "row": lambda x, y: x.add_(y[0]), "view": lambda x, y: x[:, 1:3].mul_(y[:, 1:3]),
    "itself": lambda x, y: x.mul_(x), "plus": lambda x, y: x.__iadd__(1.5),
    "functional": lambda x, y: F.leaky_relu(x, 0.1, inplace=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", IN_PLACE)
def test_tracked_changes_in_place(name, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    start = [torch.from_numpy(rng.standard_normal((4, 6))).to(dtype) for _ in range(2)]
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        x, y = (t.to(device).to(kind).requires_grad_() for t in start)
        z, w = x * 1, y * 1
        at = z.data_ptr()
        with monkeypatch.context() as patch:
            if device == "cuda" and name in ("relu", "add", "sub", "div", "tanh", "row", "plus"):
                for call in ("flat", "move"):
                    patch.setattr(gpu().copier, call, None)  # nothing is copied
            IN_PLACE[name](z, w)
        assert z.data_ptr() == at and z._version == 1
        (z * z).sum().backward()
        found.append((z, x.grad, torch.zeros(()) if y.grad is None else y.grad))
    for got, want in zip(*found):
        close = (1e-5, 1e-5) if dtype is torch.float32 else (0.1, 0.05)
        np.testing.assert_allclose(
            got.detach().double().cpu().numpy(), want.detach().numpy(), *close)


def test_changes_in_place_say_what_is_wrong():
    x = values(3, 4).cuda()
    with pytest.raises(RuntimeError):
        x.add_(x.repeat(2, 1, 1))
    with pytest.raises(RuntimeError, match="leaf"):
        torch.ones(3).cuda().requires_grad_().add_(1)
    y = torch.ones(3, device="cuda", requires_grad=True)
    z = y.exp()
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_counts_change_in_place():
    n = torch.zeros((), dtype=torch.int64).cuda()
    at = n.data_ptr()
    for _ in range(3):
        n.add_(1)
    assert n.item() == 3 and n.data_ptr() == at and n._version == 3
    n.sub_(5).mul_(4)
    assert n.item() == -8
    small = torch.tensor([100], dtype=torch.int8)
    same(small.cuda().add_(100), small.add_(100))


@pytest.mark.parametrize("dtype", [
    torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128], ids=str)
def test_copies_of_several_tiles(dtype):
    for shape in ((200, 136), (130, 201), (2, 130, 72)):
        x = values(*shape, dtype=dtype)
        same(x.cuda().transpose(-1, -2).contiguous(), x.transpose(-1, -2))
        same(x.cuda()[..., 1:].transpose(-1, -2).contiguous(), x[..., 1:].transpose(-1, -2))
        same(x.cuda()[..., 3:].contiguous(), x[..., 3:])
        same(x.cuda()[..., ::2].contiguous(), x[..., ::2])
    for shape in ((2, 3, 40, 48), (1, 24, 20, 20), (2, 64, 9, 8), (1, 5, 37, 11)):
        x = values(*shape, dtype=dtype)
        last = x.cuda().contiguous(memory_format=torch.channels_last)
        assert last.is_contiguous(memory_format=torch.channels_last)
        same(last, x)
        same(last.contiguous(), x)


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (2, 8, 2, 3, 5)], ids=str)
def test_joins_and_frames_keep_channels_last(shape):
    format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    parts = [values(*shape, seed=i) for i in range(3)]
    laid = [p.cuda().contiguous(memory_format=format) for p in parts]
    for dim in range(-1, len(shape)):
        got = torch.cat(laid, dim)
        assert got.is_contiguous(memory_format=format)
        same(got, torch.cat(parts, dim))
    mixed = [laid[0], parts[1].cuda(), laid[2]]
    same(torch.cat(mixed, 1), torch.cat(parts, 1))
    for pad in ((1, 2, 0, 3), (1, -1), (0, 0, 0, 0, 2, 1)):
        got = F.pad(laid[0], pad, value=1)
        assert got.is_contiguous(memory_format=format) or min(pad) < 0
        same(got, F.pad(parts[0], pad, value=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 7), (9,)], ids=str)
def test_elements_by_number(shape, dtype):
    x = values(*shape, dtype=dtype)
    for dim in range(len(shape)):
        for many in (1, 2, 11):
            numbers = [many if d == dim else n for d, n in enumerate(shape)]
            index = torch.from_numpy(np.random.default_rng(many).integers(0, shape[dim], numbers))
            for i in (index, index[:1]):
                same(torch.gather(x.cuda(), dim, i.cuda()), torch.gather(x, dim, i))
            same(torch.take_along_dim(x.cuda(), index.cuda(), dim), torch.take_along_dim(x, index, dim))
            if len(shape) == 2:
                same(torch.gather(x.t().cuda(), 1 - dim, index.t().cuda()),
                     torch.gather(x.t(), 1 - dim, index.t()))


def test_gradients_of_picked_elements_and_rows():
    def run(device):
        x = torch.zeros(5, 6, device=device, requires_grad=True)
        index = torch.tensor([[0, 2], [5, 5], [1, 0], [3, 3], [4, 0]], device=device)
        rows = torch.tensor([-1, 0, 2, -3, 4], device=device)
        (x.gather(1, index).cumsum(1) * 2).sum().backward()
        (x[rows] * torch.arange(5, device=device).unsqueeze(1)).sum().backward()
        x.max(1).values.sum().backward()
        return x.grad

    same(run("cuda"), run("cpu"))


def test_pairs_at_odd_places():
    """Complex numbers over memory of real ones may begin between two of their own places."""
    index = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    for dtype in (torch.float32, torch.float64):
        x = values(21, dtype=dtype)
        got, want = (torch.view_as_complex(t[1:].reshape(5, 2, 2)) for t in (x.cuda(), x))
        calls = [
            lambda a: a.t().contiguous(), lambda a: torch.cat([a, a], 1), lambda a: a[:, :1].clone(),
            lambda a: F.pad(a, (1, 2)), lambda a: a.index_select(0, index.to(a.device)[:, 1]),
            lambda a: a.gather(1, index.to(a.device)), lambda a: a.roll(1, 0)]
        for call in calls:
            same(call(got), call(want))
