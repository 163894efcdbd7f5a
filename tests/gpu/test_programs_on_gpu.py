"""What scripts written for PyTorch do with a GPU: recipes of its tutorials and notes, in short.

Each fails where a name, a message, an order between streams or a device is not PyTorch's.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
import types

import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]


class Block(nn.Module):
    """A transformer block: 16 channels, 2 heads."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.Dropout(0.1))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (a.view(b, t, 2, c // 2).transpose(1, 2) for a in self.qkv(self.before(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.wide(self.after(x))


class Gpt(nn.Module):
    """Tokens of 20 kinds, tied weights."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.blocks, self.last = nn.ModuleList([Block(), Block()]), nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, idx, targets=None):
        x = self.tokens(idx) + self.places(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.last(x))
        if targets is None:
            return logits[:, [-1], :], None
        return logits, F.cross_entropy(logits.view(-1, 20), targets.view(-1), ignore_index=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_language_model_is_trained_saved_and_sampled(dtype, tmp_path):
    torch.manual_seed(1)
    torch.cuda.manual_seed_all(1)
    model = Gpt().to("cuda")
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    compiled = torch.compile(model)
    data = torch.arange(400) % 20

    def batch():
        places = torch.randint(len(data) - 9, (8,))
        x, y = (torch.stack([data[i + d: i + d + 8] for i in places]) for d in (0, 1))
        return x.pin_memory().to("cuda", non_blocking=True), y.pin_memory().cuda(non_blocking=True)

    losses = []
    for _ in range(12):
        for _ in range(2):
            with torch.amp.autocast(device_type="cuda", dtype=dtype, enabled=dtype != torch.float32):
                _, loss = compiled(*batch())
            scaler.scale(loss / 2).backward()
        scaler.unscale_(optimizer)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1 and f"{loss:.3f}" == f"{losses[-1]:.3f}"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "ckpt.pt")
    places = (None, "cuda"), ("cpu", "cpu"), (lambda s, _: s, "cpu"), ({"cuda:0": "cpu"}, "cpu")
    for place, kind in places:
        loaded = torch.load(tmp_path / "ckpt.pt", map_location=place)
        assert {t.device.type for t in loaded["model"].values()} == {kind}
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        state = optimizer.state[model.head.weight]
        assert model.head.weight.is_cuda and state["exp_avg"].is_cuda
    idx = torch.zeros((1, 1), dtype=torch.long, device="cuda")
    with torch.no_grad():
        for _ in range(4):
            logits = model.eval()(idx)[0][:, -1, :] / 0.8
            least = torch.topk(logits, 5).values[:, [-1]]
            logits[logits < least] = -float("inf")
            idx = torch.cat((idx, torch.multinomial(F.softmax(logits, dim=-1), 1)), dim=1)
    assert len(idx[0].tolist()) == 5


def test_what_scripts_ask_of_a_gpu():
    found = torch.cuda.get_device_properties(0)
    assert found.total_memory == torch.cuda.mem_get_info()[1] == torch.accelerator.get_memory_info()[1]
    assert torch.cuda.get_device_capability("cuda:0") == (found.major, found.minor)
    name = f"sm_{found.major}{found.minor}"
    assert name in torch.cuda.get_arch_list() and name in torch.cuda.get_gencode_flags()
    assert tuple(map(int, torch.version.cuda.split("."))) >= (12, 0)
    assert torch.cuda.default_generators[0].initial_seed() == torch.cuda.initial_seed()
    assert torch.cuda.cudart().cudaMemGetInfo(0)[1] == found.total_memory
    torch.cuda.check_error(torch.cuda.cudart().cudaProfilerStart())
    torch.cuda.profiler.stop()
    with pytest.raises(RuntimeError, match="CUDA error"):
        torch.cuda.check_error(2)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.cuda.set_device(99)
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.cuda.get_device_properties(99)
    with pytest.raises(NotImplementedError, match="memory_summary"):
        torch.cuda.memory.memory_snapshot()
    stats = torch.cuda.memory_stats()
    assert stats["active_bytes.all.peak"] == torch.cuda.max_memory_allocated()
    assert isinstance(torch.cuda.list_gpu_processes(), str)
    with torch.accelerator.device_index(0), torch.accelerator.device_index(None):
        assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated()
    event = torch.Event("cuda")
    event.record()
    event.synchronize()
    assert event.query()


def test_seeds_states_and_the_runtime_of_old():
    c = torch.cuda
    c.manual_seed_all(5)
    states, first = c.get_rng_state_all(), torch.rand(2, device="cuda")
    c.set_rng_state_all(states)
    assert torch.equal(first, torch.rand(2, device="cuda")) and c.initial_seed() == 5
    c.seed()
    c.seed_all()
    c.manual_seed(6)
    assert c.initial_seed() == 6
    with pytest.raises(AttributeError, match="disttorch lacks it"):
        c.random.no_such_name  # noqa: B018
    memory = bytearray(8192)
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    c.check_error(c.cudart().cudaHostRegister(address, len(memory)))
    c.check_error(c.cudart().cudaHostUnregister(address))
    c.check_error(c.cudart().cudaProfilerStop())
    with c.profiler.profile():
        c.init()
    assert c.memory_stats_as_nested_dict()["active"]["all"]["current"] >= 0
    c.set_device(-1)
    assert c.current_device() == 0 and c.device_memory_used() >= 0
    with pytest.raises(ValueError, match="Expected a cuda device"):
        c.set_device("cpu")
    assert c.FloatTensor(2).is_cuda and c.amp.autocast is not None


def test_what_the_driver_counts(monkeypatch):
    """Through a stand-in for NVIDIA's library, which finds the GPU by its address on the bus."""
    process = types.SimpleNamespace(pid=7, usedGpuMemory=3 << 20)
    asked, library = [], types.ModuleType("pynvml")
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetHandleByPciBusId = lambda address: asked.append(address) or "handle"
    library.nvmlDeviceGetUtilizationRates = lambda h: types.SimpleNamespace(gpu=12, memory=34)
    library.nvmlDeviceGetTemperature = lambda h, which: 56
    library.nvmlDeviceGetPowerUsage = lambda h: 78
    library.nvmlDeviceGetClockInfo = lambda h, which: 90
    library.NVML_TEMPERATURE_GPU, library.NVML_CLOCK_SM = 0, 1
    library.nvmlDeviceGetComputeRunningProcesses = lambda h: [process]
    monkeypatch.setitem(sys.modules, "pynvml", library)
    c = torch.cuda
    found = c.utilization(), c.memory_usage(0), c.temperature("cuda"), c.power_draw(), c.clock_rate()
    assert found == (12, 34, 56, 78, 90) and b":" in asked[0]
    assert "7 uses" in c.list_gpu_processes() and "3.000 MB" in c.list_gpu_processes()
    library.nvmlDeviceGetComputeRunningProcesses = lambda h: []
    assert "no processes" in c.list_gpu_processes()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ModuleNotFoundError, match="nvidia-ml-py"):
        c.utilization()


def test_batches_are_fetched_ahead_in_another_stream():
    """NVIDIA's prefetcher: normalising constants copied before, batches in a stream of their own."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randint(0, 255, (12, 3, 4, 4)), torch.arange(12) % 5)
    stream = torch.cuda.Stream()
    mean = torch.tensor([100.0, 110.0, 120.0]).cuda().view(1, 3, 1, 1)  # nobody waits for it
    loader = iter(torch.utils.data.DataLoader(data, 4, pin_memory=True))

    def load():
        found = next(loader, None)
        if found is None:
            return None, None
        with torch.cuda.stream(stream):
            x, y = (t.cuda(non_blocking=True) for t in found)
            return x.float().sub_(mean), y

    sums, (x, y) = [], load()
    while x is not None:
        torch.cuda.current_stream().wait_stream(stream)
        x.record_stream(torch.cuda.current_stream())
        y.record_stream(torch.cuda.current_stream())
        sums.append(x.sum() + y.sum())
        x, y = load()
    want = data.tensors[0].float() - torch.tensor([100.0, 110.0, 120.0]).view(1, 3, 1, 1)
    assert sum(sums).item() == pytest.approx(want.sum().item() + data.tensors[1].sum().item(), rel=1e-5)


def test_copies_from_ordinary_memory_are_there_for_every_stream():
    """PyTorch's host waits for them; here the streams do, those in use and those to come."""
    used, host = torch.cuda.Stream(), torch.arange(5000.0)
    with torch.cuda.stream(used):
        torch.ones(3, device="cuda").add_(1)
    a = host.cuda()
    with torch.cuda.stream(used):
        b = a + 1
        c = (host * 2).cuda()
    late = torch.cuda.Stream()
    with torch.cuda.stream(late):
        d = a + c
    number = torch.tensor(3.0, device="cuda")
    with torch.cuda.stream(late):
        e = d + number
    torch.cuda.synchronize()
    assert torch.equal(b.cpu(), host + 1) and torch.equal(e.cpu(), host * 3 + 3)


def test_calls_that_wait_are_told_of():
    x = torch.ones(3, device="cuda")
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation: reading values"):
            x.sum().item()
        torch.cuda.set_sync_debug_mode(2)
        with pytest.raises(RuntimeError, match=r"synchronizing CUDA operation.*test_programs_on_gpu"):
            x.cpu()
        torch.cuda.synchronize()
        (x + 1).sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for wrong, error in (("loud", RuntimeError), (3, RuntimeError), (None, TypeError)):
        with pytest.raises(error, match="debug_mode"):
            torch.cuda.set_sync_debug_mode(wrong)


def test_checkpointed_activations_draw_the_same_numbers_again():
    from disttorch.utils.checkpoint import checkpoint

    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 8)).cuda()
    x = torch.randn(4, 8, device="cuda", requires_grad=True)

    def gradient(run):
        x.grad = None
        net.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = run()
        torch.rand(7, device="cuda")
        out.float().sum().backward()
        return torch.cat([x.grad.flatten(), net[0].weight.grad.flatten()])

    want = gradient(lambda: net(x))
    for reentrant in (True, False):
        assert torch.equal(gradient(lambda r=reentrant: checkpoint(net, x, use_reentrant=r)), want)
    state = torch.cuda.get_rng_state()
    assert state.dtype == torch.uint8 and not state.is_cuda
    a = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state, torch.device("cuda", 0))
    with torch.random.fork_rng(devices=[0]):
        torch.rand(5, device="cuda")
    assert torch.equal(a, torch.rand(3, device="cuda"))


def test_places_to_be_by_every_name():
    x = torch.arange(6.0).reshape(2, 3)
    c = x.cuda()
    assert c.to("cuda") is c and c.to(c.device, copy=True) is not c and c.to(0).is_cuda
    assert x.type("torch.cuda.HalfTensor").dtype == torch.float16
    assert x.type(torch.cuda.LongTensor).is_cuda
    assert isinstance(c, torch.cuda.FloatTensor) and c.new([1, 2]).is_cuda and c.new_zeros(2).is_cuda
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    weight = m[0].weight
    m.type(torch.cuda.DoubleTensor)
    assert m[0].weight is weight and weight.type() == "torch.cuda.DoubleTensor"
    m.type(torch.cuda.FloatTensor).to(memory_format=torch.channels_last)
    out = m(torch.randn(2, 3, 5, 5).to("cuda", non_blocking=True, memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    half = copy.deepcopy(m).half()
    assert half[0].weight.dtype == half[1].running_mean.dtype == torch.float16
    with torch.device("cuda"):
        assert torch.eye(2).is_cuda and nn.Linear(2, 2).weight.is_cuda
    torch.set_default_tensor_type("torch.cuda.FloatTensor")
    try:
        assert torch.randn(2).is_cuda and torch.get_default_device() == torch.device("cuda")
    finally:
        torch.set_default_tensor_type(torch.FloatTensor)
    assert weight.is_cuda and not weight.cpu().is_cuda and x.pin_memory().is_pinned()
    assert pickle.loads(pickle.dumps(c)).is_cuda and pickle.loads(pickle.dumps(m))[0].weight.is_cuda
    text = pickle.dumps(c).replace(b"cuda:0", b"cuda:9")
    with pytest.raises(RuntimeError, match="a tensor of cuda:9, which is not here"):
        pickle.loads(text)


def test_memory_of_other_libraries_is_shared():
    cupy = pytest.importorskip("cupy")
    t = torch.arange(6.0, device="cuda").reshape(2, 3)
    theirs = cupy.asarray(t)
    theirs += 1
    again = torch.as_tensor(theirs, device="cuda")
    assert again.data_ptr() == t.data_ptr() and not torch.as_tensor(theirs).is_cuda
    assert torch.as_tensor(theirs, device="cuda", dtype=torch.float16).dtype == torch.float16
    back = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t))
    assert back.is_cuda and back.data_ptr() == t.data_ptr() and t.sum().item() == 21


@pytest.mark.parametrize("call", [
    lambda a, b: a + b, lambda a, b: b + a, lambda a, b: a.add_(b), lambda a, b: torch.cat([a, b]),
    lambda a, b: a @ b.t(), lambda a, b: F.mse_loss(a, b), lambda a, b: torch.where(a > 0, a, b),
    lambda a, b: nn.Linear(4, 2)(a), lambda a, b: nn.BatchNorm1d(4).cuda()(b),
    lambda a, b: nn.Embedding(3, 2).cuda()(torch.zeros(2, dtype=torch.long)),
    lambda a, b: F.cross_entropy(a, torch.zeros(3, dtype=torch.long)), lambda a, b: torch.equal(a, b),
    lambda a, b: torch.allclose(a, b), lambda a, b: torch.bucketize(a, b[0]),
    lambda a, b: torch.tensor(2.0).add_(a[0, 0]), lambda a, b: nn.LSTM(4, 3).cuda()(b),
    lambda a, b: b[torch.zeros(1, dtype=torch.long, device="cuda")],
])
def test_tensors_of_two_devices_do_not_meet(call):
    with pytest.raises(RuntimeError, match=r"on the same device"):
        call(torch.ones(3, 4, device="cuda"), torch.ones(3, 4))


def test_a_number_on_the_cpu_meets_any_tensor():
    a, two = torch.ones(3, device="cuda", dtype=torch.float16), torch.tensor(2.0)
    for value in (two + a, a + two, torch.maximum(two, a) + 1, torch.where(a > 0, a + 2, two)):
        assert value.is_cuda and value.dtype == torch.float16 and value.tolist() == [3.0] * 3
    grown = torch.tensor(3.0, requires_grad=True)
    (grown * torch.arange(3.0, device="cuda")).sum().backward()
    assert grown.grad.item() == 3 and grown.grad.device.type == "cpu"
    parameter = nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError, match="located on a different device"):
        parameter.grad = torch.ones(3, device="cuda")


@pytest.mark.parametrize("call", [
    lambda x, i: x[i], lambda x, i: x[:, i], lambda x, i: x[-i], lambda x, i: x[i, i],
    lambda x, i: x.__setitem__(i, 0.0), lambda x, i: x.index_put((i,), x[:1]),
    lambda x, i: x.index_put((i, i), x[0, :1], accumulate=True), lambda x, i: x.index_select(0, i),
    lambda x, i: torch.take(x, i + 50), lambda x, i: nn.Embedding(3, 2).cuda()(i),
    lambda x, i: x.gather(0, i[None]), lambda x, i: x.index_add(0, i, x[:1]),
])
def test_places_out_of_range_are_told_of(call):
    x, i = torch.ones(3, 4, device="cuda"), torch.tensor([7], device="cuda")
    with pytest.raises((IndexError, RuntimeError), match="index -?(7|57) is out of"):
        call(x, i)
        torch.cuda.synchronize()
    torch.cuda.synchronize()
    mask = torch.tensor([True, False, True], device="cuda")
    assert x[mask].shape == (2, 4) and x[torch.tensor([-3, 2])].shape == (2, 4)


def test_one_gpu_under_the_wrappers_for_several():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    parallel = nn.DataParallel(net)
    out = parallel(torch.ones(2, 4))
    assert out.is_cuda and net[0].weight.is_cuda and parallel.device_ids[0] == 0
    assert nn.parallel.data_parallel(net, torch.ones(2, 4), range(1)).is_cuda
    dist = torch.distributed
    backend = "nccl" if dist.is_nccl_available() else "local"
    dist.init_process_group(backend, rank=0, world_size=1, device_id=torch.device("cuda:0"))
    try:
        assert dist.get_backend() == backend
        total = torch.arange(4.0, device="cuda")
        dist.all_reduce(total, op=dist.ReduceOp.AVG, async_op=True).wait()
        assert total.tolist() == [0, 1, 2, 3]
        ddp = nn.parallel.DistributedDataParallel(net, device_ids=[0], output_device=0)
        ddp(torch.ones(2, 4)).sum().backward()
        assert net[0].weight.grad.is_cuda
        fresh = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        wrapped = dist.fsdp.FullyShardedDataParallel(fresh, device_id=torch.cuda.current_device())
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1, fused=True)
        before = wrapped.module[0].weight.full_tensor().clone()
        wrapped(torch.ones(2, 4, device="cuda")).sum().backward()
        assert next(wrapped.parameters()).grad.is_cuda
        optimizer.step()
        assert not torch.equal(wrapped.module[0].weight.full_tensor(), before)
    finally:
        dist.destroy_process_group()


def test_profiler_tables_sort_by_the_gpus_columns():
    from disttorch.profiler import ProfilerActivity, profile, record_function

    net, x = nn.Linear(8, 8).cuda(), torch.ones(4, 8, device="cuda")
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds, profile_memory=True) as found, record_function("forward"):
        net(x).sum().backward()
    for column in ("cuda_time_total", "self_cuda_time_total", "self_cuda_memory_usage", "device_time"):
        assert "forward" in found.key_averages().table(sort_by=column, row_limit=-1)
    total = found.key_averages().total_average()
    assert total.device_memory_usage >= 4 * 8 * 4 and math.isfinite(total.self_device_time_total)


def test_a_batch_is_halved_until_it_fits():
    torch.cuda.empty_cache()
    size, tries = 1 << 24, 0
    torch.cuda.set_per_process_memory_fraction((32 << 20) / torch.cuda.mem_get_info()[1])
    try:
        while True:
            try:
                x = torch.empty(size, dtype=torch.float32, device="cuda")
                break
            except torch.cuda.OutOfMemoryError as error:
                text = str(error)
                assert isinstance(error, torch.OutOfMemoryError) and "CUDA out of memory. Tried" in text
                size, tries = size // 2, tries + 1
                torch.cuda.empty_cache()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tries >= 1 and x.numel() == size
