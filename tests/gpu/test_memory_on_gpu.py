"""GPU memory: figures, limits, running out; memory that other streams use; pinned memory and copies."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import disttorch as torch
from disttorch.backend.gpu.memory import waiting_things
from disttorch.utils import data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _settled():
    gc.collect()
    torch.cuda.synchronize()
    yield
    torch.cuda.synchronize()


def is_real() -> bool:
    return "stand-in" not in torch.cuda.get_device_name(0)


def slow_work(x):
    """On a GPU some milliseconds of reading ``x``; next to nothing elsewhere."""
    for _ in range(60 if is_real() else 2):
        y = x @ x
    return y


# ---- figures -------------------------------------------------------------------------------------


def test_figures_are_exact():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    before = torch.cuda.memory_stats()
    a = torch.zeros(MIB, dtype=torch.uint8, device="cuda")
    b = torch.zeros(3 * MIB, dtype=torch.uint8, device="cuda")
    view = b[MIB:]
    assert torch.cuda.memory_allocated() == before["allocated_bytes.all.current"] + 4 * MIB
    del b
    assert torch.cuda.memory_allocated() == before["allocated_bytes.all.current"] + 4 * MIB  # the view
    del view
    c = torch.zeros(1, device="cuda")
    now = torch.cuda.memory_stats()
    start = before["allocated_bytes.all.current"]
    assert now["allocated_bytes.all.current"] == start + MIB + 512
    assert now["allocated_bytes.all.peak"] == torch.cuda.max_memory_allocated() == start + 4 * MIB
    assert now["allocation.all.current"] == before["allocation.all.current"] + 2
    assert now["allocated_bytes.all.allocated"] - start >= 4 * MIB + 512
    assert now["allocated_bytes.all.freed"] >= 3 * MIB
    assert now["reserved_bytes.all.current"] >= now["allocated_bytes.all.current"]
    assert torch.cuda.max_memory_reserved() >= torch.cuda.memory_reserved() > 0
    nested = torch.cuda.memory_stats_as_nested_dict()
    assert nested["allocation"]["all"]["current"] == now["allocation.all.current"]
    del a, c
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated() == start


def test_peak_of_an_expression():
    x = torch.zeros(MIB // 4, device="cuda")
    (x + 1).sum()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    y = x + 1  # one result that stays, one that goes
    z = y * 2
    del z
    assert 2 * MIB <= torch.cuda.max_memory_allocated() - start < 3 * MIB
    assert torch.cuda.memory_allocated() - start == MIB
    assert y[0].item() == 1


def test_empty_cache_gives_memory_back():
    torch.cuda.empty_cache()
    t = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
    held = torch.cuda.memory_reserved()
    del t
    assert torch.cuda.memory_reserved() == held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    assert torch.cuda.max_memory_reserved() >= held


def test_summary_names_the_figures_and_the_holders():
    layer = torch.nn.Linear(300, 300).cuda()
    text = torch.cuda.memory_summary()
    assert "allocated" in text and "parameters" in text and "300×300 float32" in text
    assert "300×300" not in torch.cuda.memory_summary(abbreviated=True)
    assert layer.weight.is_cuda and torch.cuda.device_memory_used() >= 0


# ---- limits and running out ----------------------------------------------------------------------


def test_out_of_memory_says_who_holds_what():
    net = torch.nn.Sequential(torch.nn.Linear(64, 333), torch.nn.Linear(333, 7)).cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.randn(5, 64, device="cuda")).sum().backward()
    optimizer.step()
    kept = net[0](torch.randn(1000, 64, device="cuda"))
    failures = torch.cuda.memory_stats()["num_ooms"]
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as caught:
        torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
    assert isinstance(caught.value, RuntimeError)
    assert torch.cuda.OutOfMemoryError is torch.OutOfMemoryError
    text = str(caught.value)
    for words in ("32768.00 GiB", "GPU 0", "parameters", "gradients", "optimizer state",
                  "saved for backward", "333×64 float32", "checkpoint"):
        assert words in text, (words, text)
    assert torch.cuda.memory_stats()["num_ooms"] == failures + 1
    assert torch.ones(3, device="cuda").sum().item() == 3 and kept.is_cuda


def test_limit_and_the_second_try():
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    cached = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 32 * MIB) / total)
        assert 0 < torch.cuda.get_per_process_memory_fraction() < 1
        with pytest.raises(torch.cuda.OutOfMemoryError, match="set_per_process_memory_fraction allows"):
            torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
        del cached
        other = torch.empty(80 * MIB, dtype=torch.uint8, device="cuda")  # once the cached block is gone
        assert other.is_cuda
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.get_per_process_memory_fraction() == 1.0
    with pytest.raises(ValueError, match="Allowed range"):
        torch.cuda.set_per_process_memory_fraction(1.5)
    with pytest.raises(TypeError):
        torch.cuda.set_per_process_memory_fraction(1)


# ---- memory used on other streams ----------------------------------------------------------------


def test_recorded_memory_is_not_used_again_too_early():
    n = 2048 if is_real() else 16
    x = torch.ones(n, n, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        slow_work(torch.ones(n, n, device="cuda"))  # whatever is made at first use
    torch.cuda.synchronize()
    place = x.data_ptr()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = slow_work(x)
    x.record_stream(side)
    del x
    fresh = torch.full((n, n), 7.0, device="cuda")
    assert fresh.data_ptr() != place
    side.synchronize()
    assert (y == n).all().item()
    again = torch.full((n, n), 7.0, device="cuda")  # looks at what has become free
    assert not waiting_things() and again.is_cuda
    torch.ones(3).record_stream(side)  # nothing for the CPU


def test_record_stream_for_a_view_and_twice():
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    x = torch.arange(1000, device="cuda")
    view = x[10:]
    for s in (first, second):
        s.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(s):
            total = view.sum()
        view.record_stream(s)
    del x, view
    junk = [torch.zeros(1000, dtype=torch.int64, device="cuda") for _ in range(3)]
    torch.cuda.current_stream().wait_stream(second)
    assert total.item() == sum(range(10, 1000)) and len(junk) == 3


# ---- pinned memory and copies --------------------------------------------------------------------

VALUES = [
    np.arange(1000, dtype=np.float32).reshape(10, 100), np.float64(3.5), np.zeros((0, 3), np.float32),
    np.arange(7) % 2 == 0, np.arange(5, dtype=np.int8), np.array([1 + 2j, 3], np.complex64),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{v.dtype}{list(v.shape)}")
def test_copies_there_and_back_without_waiting(value):
    here = torch.tensor(value).pin_memory()
    assert here.is_pinned() or not here.numel()
    there = here.to("cuda", non_blocking=True)
    shape, dtype = here.shape, here.dtype
    del here  # the copy holds it
    other = torch.zeros(1000, device="cpu").pin_memory()
    back = (there + 0 if there.dtype != torch.bool else there).to("cpu", non_blocking=True)
    torch.cuda.current_stream().synchronize()
    assert back.shape == shape and back.dtype == dtype
    assert np.array_equal(back.numpy(), value) and other.sum().item() == 0
    assert back.is_pinned() or not back.numel()


def test_copies_of_16_bit_floats_and_of_views():
    here = torch.arange(12.0).to(torch.bfloat16).reshape(3, 4).pin_memory()
    assert torch.equal(here.cuda(non_blocking=True).cpu(), here)
    assert torch.equal(here.t().to("cuda", non_blocking=True).cpu(), here.t())
    back = here.cuda().t().to("cpu", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(back, here.t())


def test_a_copy_that_blocks_has_read_its_source():
    n = 8 * MIB if is_real() else 4096
    here = torch.ones(n).pin_memory()
    for _ in range(3):
        there = here.cuda()
        here.zero_()
        assert there.min().item() == 1
        here.fill_(1)


def test_copy_into_memory_that_is_there():
    static = torch.zeros(5, 3, device="cuda")
    place, version = static.data_ptr(), static._version
    for source in (torch.randn(5, 3), torch.randn(5, 3).pin_memory(), torch.randn(3),
                   torch.randint(9, (5, 3)), torch.randn(3, 5).t().pin_memory()):
        for non_blocking in (False, True):
            static.copy_(source, non_blocking=non_blocking)
            assert torch.equal(static.cpu(), source.float().expand(5, 3))
    assert static.data_ptr() == place and static._version == version + 10
    for target in (torch.zeros(5, 3), torch.zeros(5, 3).pin_memory(), torch.zeros(5, 3).double()):
        for non_blocking in (False, True):
            target.zero_()
            target.copy_(static, non_blocking=non_blocking)
            torch.cuda.synchronize()
            assert torch.equal(target.float(), static.cpu())
    w = torch.zeros(5, 3, requires_grad=True)
    out = torch.zeros(5, 3, device="cuda")
    out.copy_(w)
    out.sum().backward()
    assert torch.equal(w.grad, torch.ones(5, 3))


def test_copies_run_in_the_current_stream():
    side = torch.cuda.Stream()
    here = torch.arange(100.0).pin_memory()
    with torch.cuda.stream(side):
        there = here.to("cuda", non_blocking=True)
        doubled = there * 2
    torch.cuda.current_stream().wait_stream(side)
    assert (doubled + 0).sum().item() == 9900


# ---- DataLoader ----------------------------------------------------------------------------------


class Box:
    def __init__(self, items):
        self.inside, self.was_pinned = torch.stack([t for t, _ in items]), False

    def pin_memory(self):
        self.inside, self.was_pinned = self.inside.pin_memory(), True
        return self


class Pairs(data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.full((3,), float(i)), {"i": torch.tensor([i]), "name": str(i)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned(workers):
    loader = data.DataLoader(Pairs(), batch_size=4, num_workers=workers, pin_memory=True)
    for _ in range(2):
        seen = []
        for x, other in loader:
            assert x.is_pinned() and other["i"].is_pinned()
            assert other["name"] == [str(int(v)) for v in x[:, 0]]
            there = x.to("cuda", non_blocking=True)
            seen += (there * 2)[:, 0].tolist()
        assert seen == [2.0 * i for i in range(10)]
    loader = data.DataLoader(Pairs(), 5, num_workers=workers, pin_memory=True, collate_fn=Box)
    boxes = list(loader)
    assert all(b.was_pinned and b.inside.is_pinned() for b in boxes) and len(boxes) == 2


def test_pinning_follows_containers():
    from collections import namedtuple

    from disttorch.utils.data.pinning import pin_memory

    Point = namedtuple("Point", "x y")
    batch = {"a": [torch.ones(2), "text"], "p": Point(torch.zeros(1), 3), "t": (torch.ones(1), b"x")}
    got = pin_memory(batch)
    assert got["a"][0].is_pinned() and got["a"][1] == "text"
    assert isinstance(got["p"], Point) and got["p"].x.is_pinned() and got["p"].y == 3
    assert got["t"][0].is_pinned() and got["t"][1] == b"x"
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        pin_memory([torch.ones(2, device="cuda")])
    with pytest.raises(ValueError, match="pin_memory_device"):
        iter(data.DataLoader(Pairs(), pin_memory=True, pin_memory_device="cpu"))
