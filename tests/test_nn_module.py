"""Module: registration, state, hooks, copies; containers; initial values; helpers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest

import disttorch as torch
from disttorch import nn


class Net(nn.Module):
    """Two layers, a shared one, a buffer of each kind."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Sequential(nn.Tanh(), nn.Linear(4, 2, bias=False))
        self.again = self.a
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x, scale=1.0):
        return self.b(self.a(x)) * scale


def close(a, b, tolerance=1e-6):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- registration
def test_names_order_and_shared_modules():
    m = Net()
    assert [n for n, _ in m.named_parameters()] == ["a.weight", "a.bias", "b.1.weight"]
    assert [n for n, _ in m.named_parameters(remove_duplicate=False)][-2:] == [
        "again.weight", "again.bias",
    ]
    assert [n for n, _ in m.named_parameters("p", recurse=False)] == []
    assert [n for n, _ in m.named_buffers("p")] == ["p.count", "p.scratch"]
    assert [n for n, _ in m.named_modules()] == ["", "a", "b", "b.0", "b.1"]
    assert [n for n, _ in m.named_children()] == ["a", "b"]
    assert sum(p.numel() for p in m.parameters()) == 12 + 4 + 8


def test_assignment_moves_between_kinds():
    m = nn.Module()
    m.x = 5
    m.x = nn.Parameter(torch.ones(2))
    assert "x" in m._parameters and "x" not in m.__dict__
    m.x = None
    assert m.x is None and "x" in m._parameters
    del m.x
    m.x = nn.Linear(1, 1)
    assert list(m._modules) == ["x"] and "x" in dir(m)
    m.y = nn.Buffer(torch.ones(2), persistent=False)
    assert "y" in m._buffers and list(m.state_dict()) == ["x.weight", "x.bias"]
    m.y = torch.zeros(2)
    assert m._buffers["y"].tolist() == [0, 0] and "y" not in m.state_dict()
    with pytest.raises(AttributeError, match="before Module.__init__"):
        type("Bad", (nn.Module,), {"__init__": lambda self: setattr(self, "a", nn.Linear(1, 1))})()


def test_dotted_paths():
    m = Net()
    assert m.get_submodule("b.1") is m.b[1] and m.get_submodule("") is m
    assert m.get_parameter("b.1.weight") is m.b[1].weight
    assert m.get_buffer("count") is m.count
    m.set_submodule("b.1", nn.Linear(4, 7))
    assert m(torch.ones(1, 3)).shape == (1, 7)
    with pytest.raises(AttributeError, match="has no attribute `zz`"):
        m.set_submodule("zz.1", nn.Identity())


def test_parameter_requires_a_floating_type():
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(torch.arange(3))
    p = nn.Parameter(torch.arange(3), requires_grad=False)
    assert not p.requires_grad and isinstance(p, torch.Tensor)
    assert repr(nn.Parameter(torch.ones(1))).startswith("Parameter containing:\ntensor([1.]")


# ---------------------------------------------------------------- changing all
def test_cast_keeps_identity_and_integer_buffers():
    m = Net()
    m.register_buffer("ids", torch.arange(3))
    before = list(m.parameters())
    m(torch.ones(2, 3)).sum().backward()
    m.double()
    assert all(p is q for p, q in zip(before, m.parameters()))
    assert {p.dtype for p in m.parameters()} == {torch.float64}
    assert m.a.weight.grad.dtype is torch.float64 and m.ids.dtype is torch.int64
    assert m.count.dtype is torch.float64
    m.to(torch.float32).to("cpu", torch.float64)
    assert m.a.bias.dtype is torch.float64
    m.bfloat16()
    assert m(torch.ones(2, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16
    m.type(torch.float16)
    assert m.ids.dtype is torch.float16


def test_train_eval_requires_grad_zero_grad_and_apply():
    m = Net()
    m.eval()
    assert not any(x.training for x in m.modules())
    m.train()
    assert all(x.training for x in m.modules())
    m(torch.ones(1, 3)).sum().backward()
    m.zero_grad(set_to_none=False)
    assert m.a.weight.grad.abs().sum().item() == 0
    m.zero_grad()
    assert m.a.weight.grad is None
    m.requires_grad_(False)
    assert not m(torch.ones(1, 3)).requires_grad
    seen = []
    assert m.apply(lambda x: seen.append(type(x).__name__)) is m
    assert seen == ["Linear", "Tanh", "Linear", "Sequential", "Net"]


# ---------------------------------------------------------------- state
def test_state_dict_round_trip_and_sharing():
    m, n = Net(), Net()
    state = m.state_dict()
    assert list(state) == [
        "count", "a.weight", "a.bias", "b.1.weight", "again.weight", "again.bias",
    ]
    assert not state["a.weight"].requires_grad
    state["count"][0] = 7.0
    assert m.count.item() == 7  # shares memory
    assert str(n.load_state_dict(state)) == "<All keys matched successfully>"
    state["a.weight"][0, 0] = 99.0
    assert n.a.weight[0, 0].item() != 99  # values were copied
    x = torch.ones(2, 3)
    n.load_state_dict(m.state_dict())
    assert close(m(x), n(x))
    assert m.state_dict(prefix="m.", keep_vars=True)["m.a.weight"] is m.a.weight


def test_load_not_strict_and_assign():
    m = nn.Linear(2, 2)
    keys = m.load_state_dict({"weight": torch.ones(2, 2), "x": torch.ones(1)}, strict=False)
    assert keys.missing_keys == ["bias"] and keys.unexpected_keys == ["x"]
    assert m.weight.sum().item() == 4
    value = torch.ones(2, 2, dtype=torch.float64)
    m.requires_grad_(False)
    m.load_state_dict({"weight": value, "bias": torch.zeros(2)}, assign=True)
    assert m.weight.dtype is torch.float64 and not m.weight.requires_grad
    assert isinstance(m.weight, nn.Parameter)
    value[0, 0] = 5.0
    assert m.weight[0, 0].item() == 5
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .*\[3\]\) from"):
        m.load_state_dict({"weight": torch.ones(3)}, strict=False)


def test_extra_state_and_versions():
    class Counted(nn.Module):
        _version = 3

        def __init__(self):
            super().__init__()
            self.n, self.seen = 0, None

        def get_extra_state(self):
            return {"n": self.n}

        def set_extra_state(self, state):
            self.n = state["n"]

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            self.seen = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    m = nn.Sequential(Counted())
    m[0].n = 5
    state = m.state_dict()
    assert state["0._extra_state"] == {"n": 5} and state._metadata["0"] == {"version": 3}
    other = nn.Sequential(Counted())
    other.load_state_dict(state)
    assert other[0].n == 5 and other[0].seen == 3
    with pytest.raises(RuntimeError, match=r'Missing key.*"0._extra_state"'):
        other.load_state_dict({})


def test_state_dict_hooks():
    m = nn.Sequential(nn.Linear(1, 1))
    calls = []
    m.register_state_dict_pre_hook(lambda mod, prefix, keep: calls.append("pre"))
    m[0].register_state_dict_post_hook(
        lambda mod, state, prefix, meta: state.__setitem__(prefix + "extra", torch.ones(1))
    )
    m[0].register_load_state_dict_pre_hook(
        lambda mod, state, prefix, *rest: (calls.append(type(mod).__name__),
                                           state.pop(prefix + "extra"))
    )
    m.register_load_state_dict_post_hook(lambda mod, keys: keys.missing_keys.clear())
    state = m.state_dict()
    assert "0.extra" in state
    del state["0.bias"]
    m.load_state_dict(state)  # the post hook forgave the missing one
    assert calls == ["pre", "Linear"]


# ---------------------------------------------------------------- hooks
def test_forward_hooks_change_input_and_output():
    m = nn.Linear(2, 1, bias=False)
    nn.init.ones_(m.weight)
    x = torch.ones(1, 2)
    first = m.register_forward_pre_hook(lambda mod, args: (args[0] * 3,))
    second = m.register_forward_hook(lambda mod, args, out: out + args[0].sum())
    assert m(x).item() == 6 + 6
    first.remove()
    assert m(x).item() == 2 + 2
    with second:
        pass
    assert m(x).item() == 2
    order = []
    m.register_forward_hook(lambda *a: order.append(1))
    m.register_forward_hook(lambda *a: order.append(2), prepend=True)
    m(x)
    assert order == [2, 1]


def test_always_called_hook_and_global_hooks():
    m = Net()
    seen = []
    m.register_forward_hook(lambda mod, args, out: seen.append(out), always_call=True)
    m.register_forward_hook(lambda mod, args, out: seen.append("never"))
    with pytest.raises(RuntimeError):
        m(torch.ones(1, 5))
    assert seen == [None]
    from disttorch.nn.modules import hooks

    names = []
    with hooks.register_module_forward_hook(lambda mod, a, o: names.append(type(mod).__name__)):
        Net()(torch.ones(1, 3))
    assert names == ["Linear", "Tanh", "Linear", "Sequential", "Net"]
    Net()(torch.ones(1, 3))
    assert len(names) == 5
    with hooks.register_module_parameter_registration_hook(
        lambda mod, name, p: nn.Parameter(p * 0 + 2)
    ):
        layer = nn.Linear(1, 1, bias=False)
    assert layer._parameters["weight"] is layer.weight


def test_backward_hooks_see_and_replace_gradients():
    m = nn.Linear(2, 3)
    grads = []
    m.register_full_backward_pre_hook(lambda mod, go: (go[0] * 2,))
    m.register_full_backward_hook(lambda mod, gi, go: grads.append((gi[0].clone(), go[0].clone())))
    m.register_full_backward_hook(lambda mod, gi, go: (gi[0] * 0 + 7,))
    x = torch.ones(4, 2, requires_grad=True)
    m(x).sum().backward()
    assert grads[0][1].tolist() == [[2.0] * 3] * 4
    assert close(grads[0][0], 2 * m.weight.sum(0).detach().expand(4, 2))
    assert x.grad.tolist() == [[7.0, 7.0]] * 4
    assert close(m.bias.grad, torch.full((3,), 8.0))


# ---------------------------------------------------------------- copies and text
def test_deepcopy_and_pickle():
    m = Net()
    m(torch.ones(1, 3)).sum().backward()
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert twin.again is twin.a and twin.a is not m.a
        assert close(twin(torch.ones(2, 3)), m(torch.ones(2, 3)))
        twin.a.weight.data.zero_()
        assert m.a.weight.abs().sum().item() > 0
        assert isinstance(twin.a.weight, nn.Parameter) and twin.a.weight.requires_grad


def test_repr():
    assert repr(Net()) == (
        "Net(\n  (a): Linear(in_features=3, out_features=4, bias=True)\n  (b): Sequential(\n"
        "    (0): Tanh()\n    (1): Linear(in_features=4, out_features=2, bias=False)\n  )\n"
        "  (again): Linear(in_features=3, out_features=4, bias=True)\n)"
    )


# ---------------------------------------------------------------- containers
def test_sequential_is_a_list():
    s = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3))
    assert isinstance(s[1:], nn.Sequential) and len(s[1:]) == 2
    assert list(s[1:]._modules) == ["1", "2"]
    s.insert(1, nn.Tanh())
    s.append(nn.Identity())
    assert [type(m).__name__ for m in s] == ["Linear", "Tanh", "ReLU", "Linear", "Identity"]
    del s[2]
    assert isinstance(s.pop(-1), nn.Identity) and len(s + s) == 6 and len(s * 2) == 6
    s[0] = nn.Linear(1, 2, bias=False)
    assert s[0].bias is None and list(s._modules) == ["0", "1", "2"]
    s += nn.Sequential(nn.ReLU())
    assert len(s) == 4 and s(torch.ones(5, 1)).shape == (5, 3)


def test_lists_and_dicts():
    modules = nn.ModuleList([nn.Linear(1, 1)])
    modules += [nn.ReLU(), nn.Tanh()]
    modules.insert(0, nn.Identity())
    assert [type(m).__name__ for m in modules[::2]] == ["Identity", "ReLU"]
    del modules[1:3]
    assert len(modules) == 2 and isinstance(modules.pop(0), nn.Identity)
    d = nn.ModuleDict([("a", nn.ReLU())])
    d.update({"b": nn.Tanh()})
    assert list(d) == ["a", "b"] and "a" in d and isinstance(d.pop("a"), nn.ReLU)
    ps = nn.ParameterList([torch.ones(1), nn.Parameter(torch.ones(2))])
    ps.append(torch.zeros(3))
    assert [tuple(p.shape) for p in ps.parameters()] == [(1,), (2,), (3,)]
    assert isinstance(ps[0], nn.Parameter) and len(ps[1:]) == 2
    pd = nn.ParameterDict({"x": torch.ones(1)}) | nn.ParameterDict({"y": torch.ones(2)})
    assert list(pd) == ["x", "y"] and pd.pop("x").shape == (1,) and list(pd.state_dict()) == ["y"]


# ---------------------------------------------------------------- random layers
def test_dropout_family():
    torch.manual_seed(0)
    x = torch.ones(2000)
    y = nn.Dropout(0.25)(x)
    zeros = (y == 0).sum().item()
    assert 400 < zeros < 600
    assert close(y[y != 0], torch.full((2000 - zeros,), 1 / 0.75))
    assert nn.Dropout(0.25).eval()(x) is x
    z = nn.Dropout2d(0.5)(torch.ones(8, 16, 3, 3)).sum((2, 3))
    assert set(z.reshape(-1).tolist()) == {0.0, 18.0}  # whole channels
    z = nn.Dropout1d(0.5)(torch.ones(16, 5)).sum(1)
    assert set(z.tolist()) == {0.0, 10.0}
    a = nn.AlphaDropout(0.3)(torch.randn(20000))
    assert abs(a.mean().item()) < 0.05 and abs(a.std().item() - 1) < 0.05
    leaf = torch.ones(100, requires_grad=True)
    out = nn.functional.dropout(leaf, 0.5)
    out.sum().backward()
    assert leaf.grad.tolist() == out.tolist()


def test_rrelu_and_gumbel_softmax():
    torch.manual_seed(1)
    y = nn.RReLU(0.1, 0.3)(-torch.ones(1000))
    assert y.min().item() >= -0.3 and y.max().item() <= -0.1 and y.std().item() > 0.02
    logits = torch.tensor([1.0, 2.0, 0.0]).expand(4000, 3).clone().requires_grad_()
    hard = nn.functional.gumbel_softmax(logits, hard=True)
    assert close(hard.sum(1), torch.ones(4000), 1e-5)
    share = hard.mean(0)
    assert close(share, torch.softmax(torch.tensor([1.0, 2.0, 0.0]), 0), 0.05)
    hard[:, 0].sum().backward()
    assert logits.grad.abs().sum().item() > 0


# ---------------------------------------------------------------- initial values
@pytest.mark.parametrize(
    "name, std",
    [
        ("xavier_uniform_", math.sqrt(2 / 500)), ("xavier_normal_", math.sqrt(2 / 500)),
        ("kaiming_uniform_", math.sqrt(2 / 200)), ("kaiming_normal_", math.sqrt(2 / 200)),
        ("normal_", 1.0), ("uniform_", math.sqrt(1 / 12)), ("trunc_normal_", 0.8796),
        ("orthogonal_", 1 / math.sqrt(300)),
    ],
)
def test_initial_standard_deviation(name, std):
    torch.manual_seed(3)
    w = getattr(nn.init, name)(torch.empty(300, 200))
    assert abs(w.std().item() / std - 1) < 0.02, w.std()


def test_other_initial_values():
    torch.manual_seed(3)
    for shape in ((6, 4), (4, 6), (4, 3, 2)):
        w = nn.init.orthogonal_(torch.empty(*shape), gain=2.0).reshape(shape[0], -1)
        w = w if w.shape[0] <= w.shape[1] else w.t()
        assert close(w @ w.t(), 4 * torch.eye(w.shape[0]), 1e-5)
    w = nn.init.sparse_(torch.empty(10, 5), 0.35)
    assert (w == 0).sum(0).tolist() == [4] * 5
    p = nn.Parameter(torch.empty(3, 4))
    g = torch.Generator().manual_seed(1)
    first = nn.init.normal_(p, generator=g).tolist()
    assert p.is_leaf and p.requires_grad
    assert nn.init.normal_(p, generator=g.manual_seed(1)).tolist() == first
    with pytest.warns(FutureWarning, match="xavier_normal"):
        nn.init.xavier_normal(p)
    with pytest.warns(UserWarning, match="no-op"):
        nn.init.kaiming_normal_(torch.empty(0, 3))


# ---------------------------------------------------------------- functions and helpers
def test_double_backward_through_losses_and_activations():
    from disttorch.autograd import grad

    x = torch.tensor([-1.7, -0.3, 0.4, 1.9], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.1, 0.9, 0.4, 0.6], dtype=torch.float64)
    F = nn.functional
    functions = [
        F.mish, F.softsign, F.hardswish, F.selu, F.tanhshrink, lambda v: F.smooth_l1_loss(v, t),
        lambda v: F.huber_loss(v, t, delta=0.5), lambda v: F.mse_loss(v, t),
        lambda v: F.binary_cross_entropy_with_logits(v, t),
        lambda v: F.binary_cross_entropy(F.sigmoid(v), t),
    ]
    for f in functions:
        def slope(v, f=f):
            (g,) = grad(f(v).sum(), v, create_graph=True)
            return g

        (second,) = grad(slope(x).sum(), x)
        step = 1e-6
        numeric = (slope(x + step) - slope(x - step)) / (2 * step)
        assert torch.allclose(second, numeric.detach(), rtol=1e-4, atol=1e-6)


def test_broadcast_targets_and_legacy_reductions_warn():
    x = torch.ones(3, 1)
    with pytest.warns(UserWarning, match="different to the input size"):
        nn.functional.mse_loss(x, torch.ones(3))
    with pytest.warns(UserWarning, match="reduction='sum'"):
        loss = nn.MSELoss(size_average=False)
    assert loss.reduction == "sum"


def test_clipping():
    ps = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(1))]
    ps[0].grad, ps[1].grad = torch.full((3,), 2.0), torch.full((4,), -1.0)
    total = nn.utils.clip_grad_norm_(iter(ps), 2.0)
    assert total.item() == 4.0
    assert close(ps[0].grad, torch.full((3,), 1.0), 1e-5) and ps[2].grad is None
    nn.utils.clip_grad_value_(ps, 0.25)
    assert ps[1].grad.tolist() == [-0.25] * 4
    assert nn.utils.get_total_norm([], 2).item() == 0
    ps[0].grad[0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)


def test_parameters_as_a_vector():
    m = nn.Linear(2, 3)
    v = nn.utils.parameters_to_vector(m.parameters())
    assert v.shape == (9,) and close(v[:6], m.weight.reshape(-1))
    nn.utils.vector_to_parameters(torch.arange(9.0), m.parameters())
    assert m.weight.tolist() == [[0, 1], [2, 3], [4, 5]] and m.bias.tolist() == [6, 7, 8]


def test_embedding_rows():
    e = nn.Embedding(5, 3, padding_idx=0)
    assert e.weight[0].tolist() == [0, 0, 0]
    e(torch.tensor([[0, 2], [2, 4]])).sum().backward()
    assert e.weight.grad.sum(1).tolist() == [0, 0, 6, 0, 3]
    frozen = nn.Embedding.from_pretrained(torch.ones(2, 3))
    assert not frozen.weight.requires_grad
    with pytest.raises(IndexError):
        e(torch.tensor([5]))


def test_no_warning_in_an_ordinary_step():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 5))
        loss = nn.CrossEntropyLoss()(m(torch.tensor([1, 2, 3])), torch.tensor([2, 3, 4]))
        loss.backward()
    assert all(p.grad is not None for p in m.parameters())
