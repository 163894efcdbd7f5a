"""Tensors on a GPU beyond single ops: moves, indexing, in-place, streams, memory, exchange."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]
DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
          "float64", "complex64", "complex128"]


def host(t) -> np.ndarray:
    t = t.detach().cpu()
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy()


@pytest.mark.parametrize("name", DTYPES)
def test_there_and_back(name):
    dtype = getattr(torch, name)
    here = torch.tensor([[0, 1, 2], [3, 0, 5]]).to(dtype)
    there = here.cuda()
    assert there.is_cuda and there.device == torch.device("cuda", 0) and there.dtype is dtype
    assert there.cpu().device == torch.device("cpu")
    assert torch.equal(there.cpu(), here)
    assert torch.equal(there.t().cpu(), here.t())
    assert there[1, 2].item() == here[1, 2].item()
    assert there.tolist() == here.tolist()
    assert "device='cuda:0'" in repr(there)


def test_gradient_crosses_devices():
    x = torch.randn(3, requires_grad=True)
    (x.cuda() * 2).sum().backward()
    assert not x.grad.is_cuda and torch.equal(x.grad, torch.full((3,), 2.0))


def test_factories_and_default_device():
    for t in (torch.zeros(2, 3, device="cuda"), torch.arange(5, device="cuda"),
              torch.eye(3, device="cuda"), torch.full((2,), 7.0, device="cuda"),
              torch.tensor([1, 2], device="cuda"), torch.linspace(0, 1, 5, device="cuda"),
              torch.randn(3, device="cuda"), torch.randperm(5, device="cuda"),
              torch.randint(3, (4,), device="cuda"), torch.empty(2, device="cuda")):
        assert t.is_cuda
    with torch.device("cuda"):
        assert torch.ones(2).is_cuda and torch.nn.Linear(2, 2).weight.is_cuda
    assert not torch.ones(2).is_cuda


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2) + torch.ones(2, device="cuda")
    assert (torch.ones(2, device="cuda") + torch.tensor(1.0)).tolist() == [2, 2]


def test_indexing():
    x = np.arange(24.0).reshape(2, 3, 4)
    t = torch.tensor(x, device="cuda")
    i = torch.tensor([1, 0, 1])
    for index, want in (
        ((1,), x[1]), ((slice(None), 1), x[:, 1]), ((Ellipsis, -1), x[..., -1]),
        ((None, 0), x[None, 0]), ((slice(None), slice(0, 3, 2)), x[:, 0:3:2]),
        ((i,), x[i.numpy()]), ((i.cuda(),), x[i.numpy()]),
        ((slice(None), i.cuda(), i.cuda()), x[:, i.numpy(), i.numpy()]),
    ):
        assert np.array_equal(host(t[index]), want)
    assert np.array_equal(host(t[t > 11]), x[x > 11])
    t[0, 1] = 5
    t[t > 20] = -1
    t[1, :, 0] = torch.tensor([7.0, 8, 9], dtype=torch.float64, device="cuda")
    t[:, i.cuda(), 3] = 4.0
    x[0, 1] = 5
    x[x > 20] = -1
    x[1, :, 0] = 7, 8, 9
    x[:, i.numpy(), 3] = 4
    assert np.array_equal(host(t), x)
    assert torch.nonzero(torch.tensor([0, 3, 0, 1], device="cuda")).tolist() == [[1], [3]]


def test_in_place_and_views():
    t = torch.zeros(3, 4, device="cuda")
    t.add_(1).mul_(3).sub_(torch.ones(4, device="cuda"))
    t[1].fill_(9)
    t.view(-1)[0] = 5
    t.t()[3].zero_()
    want = np.full((3, 4), 2.0)
    want[1], want[0, 0], want[:, 3] = 9, 5, 0
    assert np.array_equal(host(t), want)
    with pytest.raises(RuntimeError, match="single memory location"):
        torch.ones(1, device="cuda").expand(3).add_(1)
    assert torch.as_strided(t, (2, 2), (4, 1)).tolist() == [[5, 2], [9, 9]]
    a = torch.empty(4, device="cuda")
    torch.add(torch.ones(4, device="cuda"), 1, out=a)
    assert a.tolist() == [2] * 4


def test_storage_and_pointers():
    t = torch.arange(6, device="cuda")
    assert t[2:].data_ptr() == t.data_ptr() + 16
    assert t[2:].untyped_storage().data_ptr() == t.untyped_storage().data_ptr()
    assert t.get_device() == 0


def test_save_and_load_anywhere():
    state = {"a": torch.randn(3, device="cuda"), "b": torch.arange(4)}
    file = io.BytesIO()
    torch.save(state, file)
    for where, kind in (("cpu", "cpu"), ("cuda", "cuda"), (None, "cuda")):
        file.seek(0)
        back = torch.load(file, map_location=where)
        assert back["a"].device.type == kind
        assert torch.equal(back["a"].cpu(), state["a"].cpu())


# ---- streams, events, memory ---------------------------------------------------------------------


def test_streams_and_events():
    stream = torch.cuda.Stream()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    x = torch.randn(512, 512, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() == stream
        start.record()
        y = x @ x
        end.record()
    torch.cuda.current_stream().wait_stream(stream)
    total = (y - x @ x).abs().sum().item()
    assert total == 0 and end.query() and stream.query()
    assert start.elapsed_time(end) > 0
    torch.cuda.synchronize()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_stream_is_a_property_of_the_thread():
    stream, seen = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.cuda.default_stream()]


def test_memory_figures():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    t = torch.zeros(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() - before >= 4 << 20
    del t
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before >= 4 << 20
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    assert torch.cuda.memory_reserved() >= 0 and "allocated" in torch.cuda.memory_summary()


def test_device_facts():
    assert torch.cuda.device_count() >= 1 and torch.cuda.current_device() == 0
    assert "NVIDIA" in torch.cuda.get_device_name(0)
    assert torch.cuda.get_device_capability(0) >= (7, 0)
    properties = torch.cuda.get_device_properties(0)
    assert properties.total_memory > 1 << 30
    assert torch.cuda.nccl.version() >= (2, 10, 0)
    torch.cuda.set_device(0)


def test_out_of_memory_is_pytorchs_error():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(1 << 45, dtype=torch.uint8, device="cuda")


# ---- exchange with others ------------------------------------------------------------------------


def test_pinned_memory():
    t = torch.arange(5.0)
    p = t.pin_memory()
    assert p.is_pinned() and not t.is_pinned() and torch.equal(p.cuda().cpu(), t)


def test_cupy_and_pytorch_see_the_same_memory():
    import cupy

    t = torch.arange(6.0, device="cuda").reshape(2, 3)
    a = cupy.asarray(t)
    a[0, 0] = 42
    assert t[0, 0].item() == 42
    b = torch.from_dlpack(cupy.arange(4))
    assert b.is_cuda and b.tolist() == [0, 1, 2, 3]
    real = pytest.importorskip("torch")
    theirs = real.from_dlpack(t)
    theirs[1, 2] = -1
    real.cuda.synchronize()
    assert t[1, 2].item() == -1
    back = torch.from_dlpack(real.ones(3, device="cuda"))
    assert back.is_cuda and back.sum().item() == 3
    half = torch.ones(4, dtype=torch.bfloat16, device="cuda")
    assert real.from_dlpack(half).dtype == real.bfloat16


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformer_layer_agrees_with_cpu(dtype):
    torch.manual_seed(1)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = torch.randn(3, 7, 32)
    want = layer(x)
    want.sum().backward()
    twin = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    twin.load_state_dict(layer.state_dict())
    twin = twin.to("cuda", getattr(torch, dtype))
    got = twin(x.cuda().to(getattr(torch, dtype)))
    got.float().sum().backward()
    near = 1e-4 if dtype == "float32" else 6e-2
    np.testing.assert_allclose(host(got.float()), host(want), rtol=near, atol=near)
    for a, b in zip(twin.parameters(), layer.parameters()):
        assert a.grad.is_cuda and a.grad.dtype is a.dtype
        if dtype == "float32":
            np.testing.assert_allclose(host(a.grad), host(b.grad), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=1e-2), lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5),
    lambda p: torch.optim.Adagrad(p, lr=1e-2), lambda p: torch.optim.Adadelta(p),
    lambda p: torch.optim.Adamax(p), lambda p: torch.optim.NAdam(p), lambda p: torch.optim.RAdam(p),
    lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
], ids=["sgd", "adamw", "adam", "rmsprop", "adagrad", "adadelta", "adamax", "nadam", "radam", "lbfgs"])
def test_optimizers_agree_with_cpu(make):
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        net = net.double().to(device)
        x = torch.linspace(-1, 1, 20).double().reshape(5, 4).to(device)
        optimizer = make(net.parameters())

        def closure(net=net, x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), x[:, :2])
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
        ends.append([host(p) for p in net.parameters()])
    for a, b in zip(*ends):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_convolution_and_pooling_network():
    torch.manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 4, 3, groups=4), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 5)).double()
    x, y = torch.randn(6, 3, 8, 8).double(), torch.randint(5, (6,))
    grads = []
    for device in ("cpu", "cuda"):
        net.to(device).zero_grad()
        F.cross_entropy(net(x.to(device)), y.to(device)).backward()
        grads.append([host(p.grad) for p in net.parameters()])
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_autocast_and_grad_scaler():
    net = torch.nn.Linear(8, 1).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda")
    x = torch.randn(16, 8, device="cuda")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            out = net(x)
            assert out.dtype is torch.float16
            loss = ((out.float() - 1) ** 2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and scaler.get_scale() > 0


def test_dropout_masks_and_random_state():
    torch.manual_seed(5)
    a = F.dropout(torch.ones(1000, device="cuda"), 0.5)
    torch.manual_seed(5)
    b = F.dropout(torch.ones(1000, device="cuda"), 0.5)
    assert torch.equal(a, b) and 300 < (a == 0).sum().item() < 700


def test_clip_grad_norm_and_data_parallel():
    net = torch.nn.Linear(4, 4).cuda()
    torch.nn.DataParallel(net)(torch.randn(6, 4, device="cuda")).sum().backward()
    total = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    assert total.is_cuda
    clipped = sum((p.grad ** 2).sum().item() for p in net.parameters()) ** 0.5
    assert abs(clipped - 0.1) < 1e-4


def test_checkpoint_and_second_derivative():
    x = torch.randn(5, device="cuda", dtype=torch.float64, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda t: (t.tanh() ** 3).sum(), x, use_reentrant=False)
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    here = x.detach().cpu().requires_grad_()
    (a,) = torch.autograd.grad((here.tanh() ** 3).sum(), here, create_graph=True)
    (b,) = torch.autograd.grad(a.sum(), here)
    np.testing.assert_allclose(host(h), host(b), rtol=1e-9)


def test_storage_offsets():
    x = torch.arange(12, device="cuda").reshape(3, 4)
    views = (x, x[1], x[1:, 2:], x.t()[2], x[2][1], x[:0])
    assert [t.storage_offset() for t in views] == [0, 4, 6, 2, 9, 0]
    assert torch.ones(4, device="cuda").view(torch.int32)[2:].storage_offset() == 2
