"""``memory_format``: where elements lie, what keeps it, and that values never depend on it."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn
from disttorch.models import resnet18

LAST = torch.channels_last


def test_strides_of_each_way_to_make_one():
    x = torch.randn(2, 3, 4, 5)
    y = x.to(memory_format=LAST)
    assert y.stride() == (60, 1, 15, 3) and torch.equal(x, y)
    assert y.is_contiguous(memory_format=LAST) and not y.is_contiguous()
    assert y.to(memory_format=LAST) is y and y.contiguous(memory_format=LAST) is y
    assert y.contiguous().stride() == y.to(memory_format=torch.contiguous_format).stride() == x.stride()
    for kept in (y.clone(), y.double(), torch.zeros_like(y), y.to(torch.float64, copy=True), y.detach()):
        assert kept.stride() == y.stride()
    assert x.clone(memory_format=LAST).stride() == y.stride()
    assert y.clone(memory_format=torch.contiguous_format).stride() == x.stride()
    assert torch.empty(2, 3, 4, 5, memory_format=LAST).stride() == y.stride()
    assert torch.ones_like(x, memory_format=LAST).stride() == y.stride()
    z = torch.randn(2, 3, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    assert z.stride() == (36, 1, 18, 6, 3)


def test_what_could_be_either_is_told_by_its_strides():
    w = torch.randn(4, 3, 1, 1)
    assert w.contiguous(memory_format=LAST) is w  # it lies so already
    assert w.to(memory_format=LAST).stride() == (3, 1, 3, 3)


def test_tensors_of_other_ranks_are_refused():
    with pytest.raises(RuntimeError, match="rank 4 tensor to use channels_last"):
        torch.randn(3, 4).to(memory_format=LAST)
    with pytest.raises(TypeError, match="memory_format"):
        torch.randn(1, 1, 1, 1).contiguous(memory_format="channels_last")


def test_gradients_pass_and_have_the_leaf_s_layout():
    x = torch.randn(2, 3, 4, 4).to(memory_format=LAST).requires_grad_()
    (x.contiguous() * torch.arange(16.0).reshape(4, 4)).sum().backward()
    assert x.grad.stride() == x.stride()
    np.testing.assert_array_equal(x.grad[1, 2].numpy(), np.arange(16.0).reshape(4, 4))


def test_a_model_trains_to_the_same_bits():
    torch.manual_seed(0)
    plain = resnet18(width=4, num_classes=3, small_images=True)
    last = copy.deepcopy(plain).to(memory_format=LAST)
    assert last.conv1.weight.stride() == (27, 1, 9, 3) and last.fc.weight.is_contiguous()
    x, target = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    for model, batch in ((plain, x), (last, x.to(memory_format=LAST))):
        step = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            step.zero_grad()
            F.cross_entropy(model(batch), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            step.step()
    for a, b in zip(plain.state_dict().values(), last.state_dict().values()):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    file = io.BytesIO()
    torch.save(last.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file))
    assert torch.equal(plain.conv1.weight, last.conv1.weight)
