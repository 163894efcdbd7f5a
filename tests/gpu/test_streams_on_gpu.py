"""Streams, events and devices under PyTorch's names; backward over several streams."""

from __future__ import annotations

import threading

import pytest

import disttorch as torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]


def test_contexts_set_and_restore():
    a, b = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    default = torch.cuda.default_stream()
    assert torch.cuda.current_stream() == default and default.cuda_stream == 0
    with torch.cuda.stream(a) as entered:
        assert entered is a and torch.cuda.current_stream() == a
        with torch.cuda.stream(None):
            assert torch.cuda.current_stream() == a
        with b, torch.cuda.stream(a), b:
            assert torch.cuda.current_stream() == b
        with pytest.raises(ZeroDivisionError), torch.cuda.stream(b):
            raise ZeroDivisionError
        assert torch.cuda.current_stream() == a
    assert torch.cuda.current_stream() == default
    torch.cuda.set_stream(a)
    assert torch.cuda.current_stream(0) == torch.cuda.current_stream("cuda") == a != b
    torch.cuda.set_stream(None)
    assert torch.cuda.current_stream() == a
    torch.cuda.set_stream(default)
    assert len({a, b, torch.cuda.current_stream()}) == 3
    assert a.device == torch.device("cuda", 0) and a.device_index == 0
    assert a.priority == 0 and b.priority == -1 and a.priority_range()[0] == 0
    assert "cuda_stream=0x" in repr(a) and a.__cuda_stream__() == (0, a.cuda_stream)


def test_streams_wait_for_each_other():
    a, b = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(a):
        x = torch.full((1000,), 2.0, device="cuda")
        mark = a.record_event()
    b.wait_event(mark)
    with torch.cuda.stream(b):
        y = x * 3
    x.record_stream(b)
    torch.cuda.current_stream().wait_stream(b)
    assert (y + 0).sum().item() == 6000
    b.synchronize()
    assert b.query()


def test_events():
    event = torch.cuda.Event()
    assert event.query() and event.cuda_event == 0 and event.device is None
    event.synchronize()
    event.wait()
    event.record()
    torch.cuda.synchronize()
    assert event.query() and event.cuda_event and event.device == torch.device("cuda", 0)
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True, blocking=True)
    with pytest.raises(ValueError, match="enable_timing"):
        start.elapsed_time(event)
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    start.record()
    torch.ones(100, device="cuda").sum()
    end.record(torch.cuda.current_stream())
    end.synchronize()
    start.synchronize()
    assert start.elapsed_time(end) >= 0
    for make in (lambda: torch.cuda.Event(interprocess=True), event.ipc_handle,
                 lambda: torch.cuda.Event.from_ipc_handle(0, b"")):
        with pytest.raises(NotImplementedError, match="between processes"):
            make()


def test_external_stream():
    own = torch.cuda.Stream()
    same = torch.cuda.ExternalStream(own.cuda_stream)
    assert same == own and isinstance(same, torch.cuda.Stream)
    with torch.cuda.stream(same):
        x = torch.ones(10, device="cuda") * 4
    own.synchronize()
    assert x.sum().item() == 40
    assert torch.cuda.get_stream_from_external(own.cuda_stream, 0) == own


def test_streams_belong_to_threads():
    a, seen = torch.cuda.Stream(), []
    with torch.cuda.stream(a):
        thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.cuda.default_stream()]


def test_devices():
    count = torch.cuda.device_count()
    with torch.cuda.device(0), torch.cuda.device(-1):
        assert torch.cuda.current_device() == 0
    with torch.cuda.device_of(torch.ones(1, device="cuda")), torch.cuda.device_of(torch.ones(1)):
        assert torch.cuda.current_device() == 0
    assert not torch.cuda.can_device_access_peer(0, 0)
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.cuda.can_device_access_peer(0, count)
    found = torch.cuda.get_device_properties("cuda:0")
    assert found.warp_size == 32 and found.shared_memory_per_block >= 48 << 10
    assert found.uuid is not None and found.multi_processor_count > 0 and "name=" in repr(found)


@pytest.mark.parametrize("inner", [False, True])
def test_backward_is_ordered_behind_the_forwards_stream(inner):
    """As in PyTorch nobody has to wait between a forward in one stream and backward in another."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.Tanh(), torch.nn.Linear(65, 5)).double()
    x = torch.randn(17, 33).double()
    net(x).square().sum().backward()
    want = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.cuda()
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    x = x.cuda()
    for _ in range(2):  # the second time in memory that the first has given back
        net.zero_grad()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = net(x).square().sum()
        if inner:
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                loss.backward()
            torch.cuda.current_stream().wait_stream(other)
        else:
            loss.backward()
        del loss
        for p, grad in zip(net.parameters(), want):
            assert torch.allclose(p.grad.cpu(), grad, rtol=1e-9)
