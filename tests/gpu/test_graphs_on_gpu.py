"""CUDA graphs: replays equal eager work bit by bit, memory stays theirs, errors are one sentence."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend.gpu.graphs import GraphError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]


def warm_up(function, times=3):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(side)


def bits(tensors):
    return [t.detach().cpu().numpy().tobytes() for t in tensors]


def captured(function, **kwargs):
    """A graph of the function, and what it returned."""
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g, **kwargs):
        result = function()
    return g, result


# ---- capture and replay --------------------------------------------------------------------------


def test_replays_compute_with_what_is_there():
    x = torch.arange(37.0, device="cuda")

    def work():
        return (x * 2 + 1).sum(), torch.softmax(x.view(1, -1), 1)

    warm_up(work)
    g, (total, soft) = captured(work)
    for scale in (1.0, -2.0, 0.5):
        x.copy_(torch.arange(37.0) * scale)
        g.replay()
        want = work()
        assert bits((total, soft)) == bits(want)
    g.replay()
    torch.cuda.synchronize()
    assert not torch.cuda.is_current_stream_capturing()


def test_capture_computes_nothing():
    x = torch.ones(5, device="cuda")
    g, _ = captured(lambda: x.add_(1))
    assert x.tolist() == [1] * 5
    for _ in range(3):
        g.replay()
    assert x.tolist() == [4] * 5


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(23, 51), torch.nn.LayerNorm(51)
        self.drop, self.last = torch.nn.Dropout(0.3), torch.nn.Linear(51, 7)

    def forward(self, x):
        return self.last(self.drop(F.gelu(self.norm(self.first(x)))))


def trained(by_graph: bool, wrap=lambda net: net):
    """(bits of the parameters, losses) after 3 steps to warm up and 10 more."""
    torch.manual_seed(3)
    net = wrap(Mlp().cuda())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, capturable=True)
    g = torch.Generator().manual_seed(4)
    batches = [(torch.randn(13, 23, generator=g), torch.randint(7, (13,), generator=g))
               for _ in range(10)]
    x, y = (t.cuda() for t in batches[0])

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    warm_up(step)
    torch.cuda.synchronize()
    if by_graph:
        optimizer.zero_grad(set_to_none=True)
        graph, loss = captured(step)
    losses = []
    for a, b in batches:
        x.copy_(a)
        y.copy_(b)
        if by_graph:
            graph.replay()
        else:
            loss = step()
        losses.append(loss.item())
    return bits(net.parameters()), losses


def test_training_by_graph_equals_eager_bit_by_bit():
    eager, by_graph = trained(False), trained(True)
    assert eager[1] == by_graph[1] and len(set(eager[1])) == 10
    assert eager[0] == by_graph[0]


def test_random_numbers_go_on_from_replay_to_replay():
    ones = torch.ones(500, device="cuda")

    def draw():
        return F.dropout(ones, 0.5), torch.randn(9, device="cuda")

    torch.manual_seed(7)
    draw()
    want = [bits(draw()) for _ in range(6)]
    torch.manual_seed(7)
    draw()
    g, drawn = captured(draw)
    got = []
    for i in range(6):
        if i == 3:  # eager draws between replays take their turn
            got.append(bits(draw()))
        else:
            g.replay()
            got.append(bits(drawn))
    assert got == want and len({b[0] for b in got}) == 6
    own = torch.Generator("cuda").manual_seed(1)
    with pytest.raises(RuntimeError, match="register"):
        captured(lambda: torch.randn(3, generator=own, device="cuda"))
    registered = torch.cuda.CUDAGraph()
    registered.register_generator_state(own)
    with torch.cuda.graph(registered):
        drawn = torch.randn(3, generator=own, device="cuda")
    registered.replay()
    again = torch.Generator("cuda").manual_seed(1)
    assert bits([drawn]) == bits([torch.randn(3, generator=again, device="cuda")])


def test_streams_fork_and_join_in_a_capture():
    x, z, side = torch.ones(64, device="cuda"), torch.ones(64, device="cuda"), torch.cuda.Stream()

    def work():
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            a = x * 3
        b = z * 5
        current.wait_stream(side)
        a.record_stream(current)
        return a + b

    warm_up(work)
    g, out = captured(work)
    x.fill_(2)
    g.replay()
    assert (out == 11).all().item()

    def leave_it():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            return x * 3

    with pytest.raises(GraphError, match="wait_stream"):
        captured(leave_it)
    assert (work() == 11).all().item()


def test_pinned_copies_can_be_captured():
    here = torch.arange(20.0).pin_memory()
    static = torch.zeros(20, device="cuda")
    g, out = captured(lambda: static.copy_(here, non_blocking=True).mul(2))
    for k in range(3):
        here.fill_(k)
        torch.cuda.synchronize()
        g.replay()
        torch.cuda.synchronize()
        assert out.sum().item() == 40 * k


# ---- memory --------------------------------------------------------------------------------------


def test_nobody_else_gets_the_memory_of_a_graph():
    x = torch.ones(4096, device="cuda")
    old = torch.full((4096,), 3.0, device="cuda")
    holder = [old]
    del old

    def work():
        y = x + holder[0] if holder else x + 3
        holder.clear()  # it ends in the capture, but every replay reads it
        for _ in range(5):
            y = y * 2  # their memory is used again inside
        return y - 1

    g, out = captured(work)
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((4096,), float("nan"), device="cuda") for _ in range(12)]
    for k in range(2):
        x.fill_(k)
        g.replay()
        others += [torch.full((4096,), float("nan"), device="cuda") for _ in range(4)]
        assert (out == (k + 3) * 32 - 1).all().item()
    assert all(o.isnan().all().item() for o in others)


def test_reset_gives_the_memory_back():
    gc.collect()
    torch.cuda.synchronize()
    x = torch.zeros(1 << 20, device="cuda")
    torch.cuda.empty_cache()  # as the capture does
    before = torch.cuda.memory_reserved()
    g, out = captured(lambda: (x + 1) * 2)
    g.replay()
    assert out[-1].item() == 2
    assert torch.cuda.memory_reserved() >= before + (4 << 20)
    gone = weakref.ref(g._graph.pool)
    g.reset()
    assert out[-1].item() == 2  # what is held stays
    del out
    torch.cuda.synchronize()
    assert gone() is None
    with pytest.raises(GraphError, match="nothing to replay"):
        g.replay()
    with torch.cuda.graph(g):  # a graph that was reset can be captured anew
        out = x + 5
    g.replay()
    assert out[0].item() == 5


def test_graphs_share_a_pool():
    x, handle = torch.ones(1000, device="cuda"), torch.cuda.graph_pool_handle()
    first, a = captured(lambda: x * 2 + 1, pool=handle)
    second, b = captured(lambda: a * 10, pool=first.pool())
    assert first.pool() == second.pool() == handle
    assert first._graph.pool is second._graph.pool
    x.fill_(4)
    first.replay()
    second.replay()
    assert (b == 90).all().item()


# ---- what goes wrong -----------------------------------------------------------------------------

REFUSED = {
    "item": lambda x: (x + 1).sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "copy to the CPU": lambda x: x.cpu(),
    "copy from ordinary memory": lambda x: x + torch.ones(5).cuda(),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "a stream's synchronize": lambda x: torch.cuda.current_stream().synchronize(),
    "an event's query": lambda x: torch.cuda.current_stream().record_event().query(),
    "a capture": lambda x: captured(lambda: x + 1),
    "print": lambda x: print(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_one_sentence(name):
    x = torch.ones(5, device="cuda")
    g = torch.cuda.CUDAGraph()
    with pytest.raises(GraphError, match=r"test_graphs_on_gpu\.py:\d+") as caught, torch.cuda.graph(g):
        y = x * 2
        REFUSED[name](y)
    assert "cannot be captured" in str(caught.value)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    g, y = captured(lambda: x + 1)  # the capture stream can be used again
    g.replay()
    assert y.tolist() == [2] * 5


def test_errors_of_users_end_the_capture():
    x = torch.ones(5, device="cuda")
    g = torch.cuda.CUDAGraph()
    with pytest.raises(ZeroDivisionError), torch.cuda.graph(g):
        x.mul_(2)
        1 / 0  # noqa: B018
    assert x.tolist() == [1] * 5
    with torch.cuda.graph(g):
        x.mul_(2)
    g.replay()
    assert x.tolist() == [2] * 5


def test_calls_at_the_wrong_time():
    g = torch.cuda.CUDAGraph()
    for call in (g.replay, g.capture_end, g.pool, lambda: g.debug_dump("/dev/null")):
        with pytest.raises(GraphError):
            call()
    with pytest.raises(GraphError, match="default stream"):
        g.capture_begin()
    with pytest.raises(ValueError, match="capture_error_mode"):
        g.capture_begin(capture_error_mode="strict")
    x, side = torch.ones(3, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        g.capture_begin(capture_error_mode="thread_local")
        assert torch.cuda.is_current_stream_capturing()
        x.add_(1)
        with pytest.raises(GraphError, match="end the capture"):
            g.reset()
        g.capture_end()
        with pytest.raises(GraphError, match="captured already"):
            g.capture_begin()
    torch.cuda.current_stream().wait_stream(side)
    g.replay()
    assert x.tolist() == [2] * 3
    with pytest.raises(RuntimeError, match="generators of a GPU"):
        g.register_generator_state(torch.Generator())


def test_debug_dump(tmp_path):
    x = torch.ones(3, device="cuda")
    g, _ = captured(lambda: x + 1)
    g.enable_debug_mode()
    g.debug_dump(tmp_path / "graph.dot")
    assert "digraph" in (tmp_path / "graph.dot").read_text()


# ---- make_graphed_callables ----------------------------------------------------------------------


def gradients(net, x, calls):
    """Outputs and gradients of several forwards and backwards."""
    found = []
    for i in range(calls):
        net.zero_grad(set_to_none=True)
        a = (x * (i + 1)).requires_grad_()
        out = net(a)
        out.square().sum().backward()
        found += [out.detach().clone(), a.grad, *(p.grad.clone() for p in net.parameters())]
    return found


def test_graphed_module_equals_eager():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(9, 33), torch.nn.LayerNorm(33), torch.nn.GELU(),
                              torch.nn.Linear(33, 4)).cuda()
    x = torch.randn(6, 9, device="cuda")
    want = bits(gradients(net, x, 3))
    graphed = torch.cuda.make_graphed_callables(net, (x.clone().requires_grad_(),))
    assert graphed is net
    assert bits(gradients(graphed, x, 3)) == want
    net.zero_grad()
    for _ in range(2):  # gradients that add up are not those of the last replay
        net(x).sum().backward()
    twice = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    assert all(torch.allclose(a, 2 * p.grad) for a, p in zip(twice, net.parameters()))
    net.eval()  # captured in training mode: this runs eagerly
    assert torch.equal(net(x[:2]), torch.nn.Sequential.forward(net, x[:2]))
    net.train()
    with pytest.raises(ValueError, match="like its sample arguments"):
        net(x[:2])


def test_graphed_functions_and_several_at_once():
    w = torch.randn(5, 5, device="cuda", dtype=torch.float64, requires_grad=True)
    a = torch.randn(3, 5, device="cuda", dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, device="cuda", requires_grad=True)

    def f(pair, unused):
        x, m = pair
        return {"out": torch.tanh(x @ m), "count": (x.detach() > 0).sum()}

    second = torch.nn.Linear(5, 2).double().cuda()
    sample = a.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    with pytest.raises(RuntimeError):
        torch.cuda.make_graphed_callables(f, (sample, unused))
    g, graphed = torch.cuda.make_graphed_callables(
        (f, second), ((sample, unused), (torch.zeros(3, 5, device="cuda").double().requires_grad_(),)),
        allow_unused_input=True)
    for _ in range(3):
        with torch.no_grad():
            a.add_(0.1)
        want = torch.autograd.grad(second_eager(second, f((a, w), unused)["out"]).sum(), (a, w))
        got = g((a, w), unused)
        assert got["count"].item() == (a > 0).sum().item()
        assert bits(torch.autograd.grad(graphed(got["out"]).sum(), (a, w))) == bits(want)


def second_eager(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def test_callables_that_cannot_be_graphed():
    net, x = torch.nn.Linear(3, 3).cuda(), torch.ones(2, 3, device="cuda")
    with pytest.raises(TypeError, match="only Tensors on a GPU"):
        torch.cuda.make_graphed_callables(net, (torch.ones(2, 3),))
    with pytest.raises(RuntimeError, match="one tuple for each"):
        torch.cuda.make_graphed_callables((net,), ())
    with pytest.raises(RuntimeError, match="cache_enabled=False"), torch.autocast("cuda"):
        torch.cuda.make_graphed_callables(net, (x,))
    net.register_buffer("b", torch.ones(1, device="cuda", requires_grad=True))
    with pytest.raises(RuntimeError, match="buffer"):
        torch.cuda.make_graphed_callables(net, (x,))
    hooked = torch.nn.Linear(3, 3).cuda()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="hooks"):
        torch.cuda.make_graphed_callables(hooked, (x,))


# ---- between ranks -------------------------------------------------------------------------------


@contextlib.contextmanager
def skipped_without_nccl():
    try:
        yield
    except RuntimeError as error:
        if "finds no NCCL" not in str(error):
            raise
        pytest.skip("no NCCL here")


@pytest.fixture
def nccl_group():
    from collectives import nccl, single

    with skipped_without_nccl():
        made = nccl.connect(single())
    yield made
    gc.collect()
    torch.cuda.synchronize()  # graphs go before their communicator
    made.close()


def test_collectives_can_be_captured(nccl_group):
    group, x = nccl_group, torch.ones(100, device="cuda")
    group.all_reduce(x._data)

    def work():
        y = x * 2
        handle = group.all_reduce(y._data, async_op=True)
        z = x * 3  # beside it
        handle.wait(5.0)
        group.broadcast(z._data, 0)
        return y + z

    warm_up(work)
    for _ in range(2):
        g, out = captured(work)
        for k in range(3):
            x.fill_(k)
            g.replay()
            assert (out == 5 * k).all().item()
        del g
    assert not group._captured and not group._overseer.under_way()
    group.all_reduce(x._data)
    assert (x == 2).all().item()


def test_data_parallel_training_by_graph_equals_eager():
    import disttorch.distributed as dist

    with skipped_without_nccl():
        dist.init_process_group("nccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        wrap = torch.nn.parallel.DistributedDataParallel
        eager, by_graph = trained(False, wrap), trained(True, wrap)
        gc.collect()
        torch.cuda.synchronize()
    finally:
        dist.destroy_process_group()
    assert eager == by_graph == trained(False)
