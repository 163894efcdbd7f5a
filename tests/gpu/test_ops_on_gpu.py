"""Every registered op on the GPU against the CPU: values and gradients over its sample inputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from op_cases import Maker, flatten_inputs, sampled_ops

import disttorch as torch
from disttorch.ops.core import REGISTRY
from disttorch.tensor import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or no CuPy"),
]


def leaves(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors as leaves on the CPU and on the GPU; one that comes twice stays one."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for t in tensors:
        if id(t) not in seen:
            here = t.detach()
            seen[id(t)] = tuple(x.requires_grad_(t.requires_grad) for x in (here, here.cuda()))
    return [seen[id(t)][0] for t in tensors], [seen[id(t)][1] for t in tensors]


def outputs(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def compare(a: Tensor, b: Tensor) -> None:
    """The same shape, dtype and values; ``b`` must really be on the GPU."""
    assert b.is_cuda and b.dtype is a.dtype and b.shape == a.shape
    np.testing.assert_allclose(b.detach().cpu().numpy(), a.detach().numpy(), rtol=1e-7, atol=1e-9)


def draws(name: str, case) -> bool:
    """Whether a sample draws random numbers, which differ between CPU and GPU."""
    return name == "attention_anew" and case.args[7] > 0  # its dropout


def arrays_on_gpu(value):
    """Index arrays among the plain arguments belong on the device, too."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).cuda()._data
    return type(value)(map(arrays_on_gpu, value)) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize("name", sampled_ops())
def test_gpu_agrees_with_cpu(name):
    op = REGISTRY[name]
    for case in op.samples(Maker(seed=3)):
        if draws(name, case):
            continue
        found, call = flatten_inputs(case)
        tensors, twins = leaves(found)
        want = outputs(call(op.call, tensors))
        got = outputs(call(lambda *a, **k: op.call(*map(arrays_on_gpu, a), **k), twins))
        for a, b in zip(want, got, strict=True):
            compare(a, b)
        used = [(a, b) for a, b in zip(want, got) if a.requires_grad]
        if not used:
            continue
        seeds = [torch.cos(torch.arange(a.numel(), dtype=torch.float64)).reshape(a.shape).to(a.dtype)
                 for a, _ in used]
        torch.autograd.backward([a for a, _ in used], seeds)
        torch.autograd.backward([b for _, b in used], [s.cuda() for s in seeds])
        for a, b in zip(tensors, twins):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                compare(a.grad, b.grad)


def test_training_step_on_gpu_equals_cpu():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)
    ).double()
    x, y = torch.randn(16, 8).double(), torch.randint(4, (16,))
    states = []
    for device in ("cpu", "cuda"):
        net = copy.deepcopy(model).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x.to(device)), y.to(device)).backward()
            optimizer.step()
        states.append({k: v.cpu().numpy() for k, v in net.state_dict().items()})
    for key, value in states[0].items():
        np.testing.assert_allclose(states[1][key], value, rtol=1e-7, atol=1e-9)


def test_generator_state_on_gpu_repeats():
    generator = torch.Generator("cuda").manual_seed(5)
    state = generator.get_state()
    first = torch.randn(7, generator=generator, device="cuda")
    generator.set_state(state)
    assert torch.equal(first, torch.randn(7, generator=generator, device="cuda"))
