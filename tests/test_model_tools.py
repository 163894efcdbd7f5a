"""Counting operations, describing models, drawing graphs."""

from __future__ import annotations

import re

import pytest

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn
from disttorch.debug import draw_graph, graph_of, to_dot
from disttorch.utils.flop_counter import FlopCounterMode
from disttorch.utils.model_summary import summary


def counted(function) -> dict:
    with FlopCounterMode(display=False) as counter:
        function()
    assert counter.get_total_flops() == sum(counter.get_flop_counts().get("Global", {}).values())
    return counter.get_flop_counts().get("Global", {})


# ---------------------------------------------------------------- operations
def test_products_forward_and_backward():
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    once = 2 * 3 * 4 * 5
    assert counted(lambda: a @ b) == {"matmul": once}
    assert counted(lambda: (a @ b).sum().backward()) == {"matmul": 3 * once}
    assert counted(lambda: (a.detach() @ b).sum().backward()) == {"matmul": 2 * once}
    assert counted(lambda: torch.einsum("ij,jk->ik", a, b)) == {"matmul": once}
    assert counted(lambda: a * 2 + a) == {}


def test_convolution_counts_what_is_asked_for():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    w = torch.randn(6, 2, 3, 3, requires_grad=True)
    once = 2 * (2 * 6 * 6 * 6) * (2 * 3 * 3)
    both = counted(lambda: F.conv2d(x, w, groups=2).sum().backward())
    assert both == {"convolution": once, "convolution_backward": 2 * once}
    weight_only = counted(lambda: F.conv2d(x.detach(), w, groups=2).sum().backward())
    assert weight_only == {"convolution": once, "convolution_backward": once}

    def second():  # a graph of the gradient is made of operations that are counted one by one
        y = F.conv2d(x, w, groups=2)
        return torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)

    assert sum(counted(second).values()) == 3 * once and "convolution_backward" not in counted(second)


def test_attention_and_recurrent_layers():
    q, k, v = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (5, 7, 7))
    found = counted(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    once = 2 * (2 * 3 * 5) * 7 * 8
    assert found == {
        "scaled_dot_product_attention": once, "scaled_dot_product_attention_backward": 2 * once,
    }
    lstm, x = nn.LSTM(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    found = counted(lambda: lstm(x)[0].sum().backward())
    once = 2 * 10 * (16 * 3 + 16 * 4)
    assert found == {"lstm_layer": once, "lstm_layer_backward": 2 * once}


def test_counts_per_module_include_their_backward(capsys):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
    with FlopCounterMode(depth=1) as counter:
        model(torch.randn(3, 4)).sum().backward()
    first, last = 2 * 3 * 4 * 8, 2 * 3 * 8 * 2
    found = counter.get_flop_counts()
    assert found["Sequential.0"] == {"addmm": first, "matmul": first}  # x needs no gradient
    assert found["Sequential.2.0"] == {"addmm": last, "matmul": 2 * last} == found["Sequential.2"]
    assert found["Sequential"] == found["Global"]
    shown = capsys.readouterr().out
    assert re.search(r"Global +672 +100\.00%", shown) and "Sequential.2.0" not in shown
    assert counter.get_table(2).count("Sequential.2.0") == 0
    assert counter.get_table(3).count("Sequential.2.0") == 1


def test_custom_formula_and_a_second_use():
    counter = FlopCounterMode(display=False, custom_mapping={"exp": lambda a, out_val: a.size})
    for n in (6, 4):
        with counter:
            torch.ones(n).exp()
        assert counter.get_total_flops() == n


# ---------------------------------------------------------------- summaries
def test_summary_of_a_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[3].weight.requires_grad_(False)
    model.train()
    means = model[1].running_mean.clone()
    found = summary(model, torch.randn(5, 4))
    assert [(row.name, row.kind, row.output, row.parameters) for row in found.layers] == [
        ("", "Sequential", [5, 2], 0), ("0", "Linear", [5, 8], 40),
        ("1", "BatchNorm1d", [5, 8], 16), ("2", "ReLU", [5, 8], 0), ("3", "Linear", [5, 2], 18),
    ]
    assert (found.total_parameters, found.trainable_parameters) == (74, 58)
    assert found.total_flops == 2 * 5 * (4 * 8 + 8 * 2) == found.layers[0].flops
    assert found.parameter_bytes == 74 * 4 and found.buffer_bytes == 8 * 4 * 2 + 8
    text = str(found)
    assert "74 (58 trainable, 16 fixed)" in text and "[5, 8]" in text
    # the model is left as it was
    assert model.training and torch.equal(model[1].running_mean, means)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_summary_with_depth_shared_weights_and_without_inputs():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 3)), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"][0].weight
    found = summary(model, depth=1)
    assert found.total_parameters == 9 + 3 + 3 and found.shared == ["b.weight"]
    text = str(found)
    assert "Shared and counted once: b.weight" in text and "Sequential" in text
    assert re.search(r"a +Sequential +-- +12", text) and text.count("Linear") == 1
    with pytest.raises(TypeError, match=r"nn\.Module, got int"):
        summary(3)


def test_summary_of_nested_results_and_an_error_inside():
    found = summary(nn.LSTM(3, 4), torch.randn(5, 2, 3))
    assert found.layers[0].output == ([5, 2, 4], ([1, 2, 4], [1, 2, 4]))
    model = nn.Linear(3, 4).train()
    with pytest.raises(RuntimeError, match="shapes"):
        summary(model, torch.randn(5, 2))
    assert model.training and not model._forward_hooks


# ---------------------------------------------------------------- graphs
def mlp_loss():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model(torch.randn(3, 4)).square().mean(), dict(model.named_parameters())


def test_graph_lists_inputs_before_uses():
    loss, names = mlp_loss()
    vertices = graph_of(loss, names)
    place = {v.key: i for i, v in enumerate(vertices)}
    assert all(place[key] < place[v.key] for v in vertices for key in v.inputs)
    leaves = {v.label.split("\n")[0] for v in vertices if v.kind == "leaf"}
    assert leaves == {"0.weight", "0.bias", "2.weight", "2.bias"}
    operations = [v.label for v in vertices if v.kind == "operation"]
    assert operations.count("AddmmBackward0") == 2 and "ReluBackward0" in operations
    assert vertices[-1].kind == "output" and vertices[-1].level == max(v.level for v in vertices)


def test_dot_has_every_vertex_and_edge_once():
    x = torch.randn(2, requires_grad=True)
    text = to_dot([x * x + x], {'we"ird': x})
    assert text.startswith("digraph autograd {") and text.rstrip().endswith("}")
    assert 'label="we\\"ird\\n[2] float32"' in text
    assert text.count(" -> ") == 4  # x to mul, x and mul to add, add to the output
    assert text.count("MulBackward0") == text.count("AddBackward0") == 1


def test_pictures(tmp_path):
    from matplotlib import image

    loss, names = mlp_loss()
    draw_graph(loss, tmp_path / "g.png", names)
    pixels = image.imread(tmp_path / "g.png")
    assert min(pixels.shape[:2]) > 200 and pixels[..., :3].min() < 0.3  # something is drawn
    draw_graph(loss, tmp_path / "g.dot", names)
    assert (tmp_path / "g.dot").read_text() == to_dot(loss, names)


def test_what_cannot_be_drawn_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="does not require grad"):
        to_dot(torch.ones(1))
    with pytest.raises(TypeError, match="got int"):
        to_dot([3])
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(5000):  # deeper than Python's recursion limit
        y = y + x
    assert to_dot(y).count("AddBackward0") == 5000
    with pytest.raises(ValueError, match=r"too many .* write a \.dot file"):
        draw_graph(y, tmp_path / "g.png")
