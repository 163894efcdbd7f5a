"""Tensors on the meta device: shapes and dtypes without memory or values."""

from __future__ import annotations

import pytest

import disttorch as torch
from disttorch import nn
from disttorch.models.gpt import GPT
from disttorch.models.resnet import resnet18

LAYERS = (
    lambda: nn.Linear(1 << 20, 1 << 20),  # 4 TiB
    lambda: nn.LayerNorm(7),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.Conv2d(3, 4, 3),
    lambda: nn.Embedding(10, 4, padding_idx=1),
    lambda: nn.LSTM(3, 4),
    lambda: nn.TransformerEncoderLayer(8, 2),
    lambda: GPT(13, 8, layers=1, heads=1, width=4),
    resnet18,
)


@pytest.mark.parametrize("make", LAYERS)
def test_modules_are_made_without_memory(make):
    with torch.device("meta"):
        module = make()
    tensors = [*module.parameters(), *module.buffers()]
    assert tensors
    for t in tensors:
        assert t.is_meta and t.device == torch.device("meta")
        assert t._data.strides == (0,) * t.ndim
    if sum(t.numel() for t in tensors) < 1 << 30:
        real = make()
        for t, r in zip(tensors, [*real.parameters(), *real.buffers()]):
            assert (t.shape, t.dtype, t.requires_grad) == (r.shape, r.dtype, r.requires_grad)
        module.to_empty(device="cpu")
        assert all(t.device.type == "cpu" for t in [*module.parameters(), *module.buffers()])


def test_elementwise_operations_and_views_have_shapes():
    x = torch.empty(3, 4, device="meta")
    y = torch.ones(4, device="meta", dtype=torch.float64)
    assert (x + y).shape == (3, 4) and (x * y).dtype is torch.float64
    assert (x > 0).dtype is torch.bool and (x + y).is_meta
    assert x.t().shape == (4, 3) and x.reshape(2, 6).shape == (2, 6) and x[1].shape == (4,)
    assert x.normal_() is x and x.fill_(3).is_meta and x.half().dtype is torch.float16
    assert repr(x) == "tensor(..., device='meta', size=(3, 4))"


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.cpu(), lambda x: x.tolist(), lambda x: x[0, 0].item(), lambda x: x.sum(),
        lambda x: x @ x, lambda x: x.numpy(force=True), lambda x: torch.empty(2, 2).copy_(x),
        lambda x: nn.Linear(2, 2, device="meta").to("cpu"),
    ],
)  # fmt: skip
def test_values_are_refused(use):
    with pytest.raises(NotImplementedError, match="meta"):
        use(torch.empty(2, 2, device="meta"))


def test_a_module_takes_the_tensors_of_a_state_dict():
    real = nn.Linear(3, 2)
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    module.load_state_dict(real.state_dict(), assign=True)
    x = torch.ones(1, 3)
    assert module(x).tolist() == real(x).tolist()
    assert torch.ones(2, device="cpu").device.type == "cpu"  # the block has ended


def test_a_block_is_of_one_thread():
    import threading

    seen = []
    with torch.device("meta"):
        other = threading.Thread(target=lambda: seen.append(torch.ones(1).device.type))
        other.start()
        other.join()
    assert seen == ["cpu"]
