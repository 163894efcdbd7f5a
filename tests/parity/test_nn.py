"""Modules, functions and initial values against PyTorch, from the same weights and inputs."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest

import disttorch as dt
from disttorch import nn

torch = pytest.importorskip("torch")
tnn = torch.nn
pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)


def array(*shape, low=-2.0, high=2.0, dtype="float64"):
    return RNG.uniform(low, high, shape).astype(dtype)


def ints(high, *shape):
    return RNG.integers(0, high, shape)


def logs(*shape):
    a = np.exp(array(*shape))
    return np.log(a / a.sum(1, keepdims=True))


X = (3, 4, 6)
POSITIVE = {"low": 0.0, "high": 1.0}

# constructor of the module (given an nn package), arrays it is called with
MODULES = {
    "linear": (lambda n: n.Linear(6, 5), [array(*X)]),
    "linear_nobias": (lambda n: n.Linear(6, 5, bias=False), [array(6)]),
    "bilinear": (lambda n: n.Bilinear(6, 3, 2), [array(4, 6), array(4, 3)]),
    "embedding": (lambda n: n.Embedding(7, 3, padding_idx=2), [ints(7, 4, 5)]),
    "embedding_max_norm": (lambda n: n.Embedding(7, 3, max_norm=0.5), [ints(7, 4, 5)]),
    "layer_norm": (lambda n: n.LayerNorm((4, 6)), [array(*X)]),
    "layer_norm_nobias": (lambda n: n.LayerNorm(6, bias=False, eps=1e-3), [array(*X)]),
    "layer_norm_plain": (lambda n: n.LayerNorm(6, elementwise_affine=False), [array(*X)]),
    "rms_norm": (lambda n: n.RMSNorm(6), [array(*X)]),
    "rms_norm_plain": (lambda n: n.RMSNorm((4, 6), 1e-2, False), [array(*X)]),
    "identity": (lambda n: n.Identity(3, a=4), [array(*X)]),
    "flatten": (lambda n: n.Flatten(), [array(*X)]),
    "unflatten": (lambda n: n.Unflatten(2, (2, -1)), [array(*X)]),
    "sequential": (
        lambda n: n.Sequential(n.Linear(6, 8), n.GELU(), n.LayerNorm(8), n.Linear(8, 2)),
        [array(*X)],
    ),
    "relu": (lambda n: n.ReLU(), [array(*X)]),
    "relu6": (lambda n: n.ReLU6(), [array(*X) * 4]),
    "elu": (lambda n: n.ELU(0.7), [array(*X)]),
    "selu": (lambda n: n.SELU(), [array(*X)]),
    "celu": (lambda n: n.CELU(1.5), [array(*X)]),
    "leaky_relu": (lambda n: n.LeakyReLU(0.2), [array(*X)]),
    "prelu": (lambda n: n.PReLU(), [array(*X)]),
    "prelu_channels": (lambda n: n.PReLU(4, init=0.1), [array(*X)]),
    "rrelu": (lambda n: n.RReLU().eval(), [array(*X)]),
    "glu": (lambda n: n.GLU(1), [array(*X)]),
    "gelu": (lambda n: n.GELU(), [array(*X)]),
    "gelu_tanh": (lambda n: n.GELU(approximate="tanh"), [array(*X)]),
    "logsigmoid": (lambda n: n.LogSigmoid(), [array(*X) * 20]),
    "hardshrink": (lambda n: n.Hardshrink(), [array(*X)]),
    "softshrink": (lambda n: n.Softshrink(0.3), [array(*X)]),
    "tanhshrink": (lambda n: n.Tanhshrink(), [array(*X)]),
    "softsign": (lambda n: n.Softsign(), [array(*X)]),
    "softplus": (lambda n: n.Softplus(2.0, 3.0), [array(*X)]),
    "softmin": (lambda n: n.Softmin(1), [array(*X)]),
    "softmax": (lambda n: n.Softmax(-1), [array(*X)]),
    "softmax2d": (lambda n: n.Softmax2d(), [array(*X)]),
    "log_softmax": (lambda n: n.LogSoftmax(0), [array(*X)]),
    "tanh": (lambda n: n.Tanh(), [array(*X)]),
    "sigmoid": (lambda n: n.Sigmoid(), [array(*X)]),
    "hardsigmoid": (lambda n: n.Hardsigmoid(), [array(*X) * 3]),
    "hardswish": (lambda n: n.Hardswish(), [array(*X) * 3]),
    "silu": (lambda n: n.SiLU(), [array(*X)]),
    "mish": (lambda n: n.Mish(), [array(*X)]),
    "hardtanh": (lambda n: n.Hardtanh(-0.5, 1.5), [array(*X)]),
    "threshold": (lambda n: n.Threshold(0.1, -3.0), [array(*X)]),
    "dropout_eval": (lambda n: n.Dropout(0.4).eval(), [array(*X)]),
    "dropout_all": (lambda n: n.Dropout(1.0), [array(*X)]),
    "alpha_dropout_eval": (lambda n: n.AlphaDropout(0.4).eval(), [array(*X)]),
}
for reduction in ("mean", "sum", "none"):
    r = {"reduction": reduction}
    MODULES |= {
        f"cross_entropy_{reduction}": (
            lambda n, r=r: n.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1, **r),
            [array(5, 4), ints(4, 5)],
        ),
        f"cross_entropy_probabilities_{reduction}": (
            lambda n, r=r: n.CrossEntropyLoss(label_smoothing=0.1, **r),
            [array(5, 4), np.exp(logs(5, 4))],
        ),
        f"cross_entropy_pixels_{reduction}": (
            lambda n, r=r: n.CrossEntropyLoss(**r), [array(2, 4, 3, 2), ints(4, 2, 3, 2)],
        ),
        f"nll_{reduction}": (
            lambda n, r=r: n.NLLLoss(ignore_index=2, **r), [logs(5, 4), ints(4, 5)],
        ),
        f"mse_{reduction}": (lambda n, r=r: n.MSELoss(**r), [array(*X), array(*X)]),
        f"l1_{reduction}": (lambda n, r=r: n.L1Loss(**r), [array(*X), array(*X)]),
        f"smooth_l1_{reduction}": (
            lambda n, r=r: n.SmoothL1Loss(beta=0.7, **r), [array(*X), array(*X)],
        ),
        f"huber_{reduction}": (
            lambda n, r=r: n.HuberLoss(delta=0.6, **r), [array(*X), array(*X)],
        ),
        f"bce_{reduction}": (
            lambda n, r=r: n.BCELoss(**r),
            [np.array([0.0, 1.0, 0.3, 0.9, 1.0]), np.array([0.0, 1.0, 0.2, 1.0, 0.0])],
        ),
        f"bce_logits_{reduction}": (
            lambda n, r=r: n.BCEWithLogitsLoss(**r), [array(*X) * 30, array(*X, **POSITIVE)],
        ),
        f"kl_log_{reduction}": (
            lambda n, r=r: n.KLDivLoss(log_target=True, **r), [logs(5, 4), logs(5, 4)],
        ),
    }
MODULES["kl_batchmean"] = (
    lambda n: n.KLDivLoss(reduction="batchmean"),
    [logs(5, 4), np.array([0.0, 0.5, 0.5, 0.0])[None].repeat(5, 0)],
)


def both(name):
    build, arrays = MODULES[name]
    theirs = build(tnn).double()
    ours = build(nn).double()
    state = {k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()}
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"
    return ours, theirs, arrays


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # log(0) in bce is -inf
@pytest.mark.parametrize("name", MODULES)
def test_module_forward_and_gradients(name):
    ours, theirs, arrays = both(name)
    # class indices and the targets of KLDivLoss have no gradient of interest
    wants = [a.dtype == np.float64 and not (i and name.startswith("kl"))
             for i, a in enumerate(arrays)]
    mine = [dt.tensor(a.copy(), requires_grad=w) for a, w in zip(arrays, wants)]
    other = [torch.tensor(a.copy(), requires_grad=w) for a, w in zip(arrays, wants)]
    y, z = ours(*mine), theirs(*other)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), 1e-9, 1e-12)
    assert tuple(y.shape) == tuple(z.shape) and str(y.dtype) == str(z.dtype)
    if not z.requires_grad:
        return
    g = array(*z.shape)
    y.backward(dt.tensor(g))
    z.backward(torch.tensor(g))
    pairs = [*zip(mine, other), *zip(ours.parameters(), theirs.parameters())]
    checked = 0
    for a, b in pairs:
        if b.grad is not None:
            # the 1/6 in PyTorch's backward of hardsigmoid is a float32
            rtol = 1e-7 if name == "hardsigmoid" else 1e-8
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol, 1e-11)
            checked += 1
    assert checked


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
@pytest.mark.parametrize("name", MODULES)
def test_module_repr_and_state_dict(name):
    build, _ = MODULES[name]
    ours, theirs = build(nn), build(tnn)
    assert repr(ours) == repr(theirs)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert [(tuple(v.shape), str(v.dtype)) for v in a.values()] == [
        (tuple(v.shape), str(v.dtype)) for v in b.values()
    ]
    assert a._metadata == b._metadata


def test_weights_of_losses():
    w, x = array(4, low=0.1), array(5, 4)
    t = ints(4, 5)
    for loss in ("cross_entropy", "nll_loss"):
        for reduction in ("mean", "sum", "none"):
            ours = getattr(nn.functional, loss)(dt.tensor(x), dt.tensor(t), dt.tensor(w),
                                                reduction=reduction)
            theirs = getattr(tnn.functional, loss)(
                torch.tensor(x), torch.tensor(t), torch.tensor(w), reduction=reduction
            )
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10)
    y = array(5, 4, low=0.0, high=1.0)
    kwargs = {"weight": w, "pos_weight": w[::-1].copy()}
    ours = nn.functional.binary_cross_entropy_with_logits(
        dt.tensor(x), dt.tensor(y), **{k: dt.tensor(v) for k, v in kwargs.items()}
    )
    theirs = tnn.functional.binary_cross_entropy_with_logits(
        torch.tensor(x), torch.tensor(y), **{k: torch.tensor(v) for k, v in kwargs.items()}
    )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10)
    for loss in ("mse_loss", "l1_loss", "huber_loss"):
        ours = getattr(nn.functional, loss)(dt.tensor(x), dt.tensor(y), weight=dt.tensor(w))
        theirs = getattr(tnn.functional, loss)(
            torch.tensor(x), torch.tensor(y), weight=torch.tensor(np.broadcast_to(w, x.shape))
        )
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10)


@pytest.mark.parametrize("name", ["relu", "hardtanh", "elu", "silu", "mish", "threshold", "selu"])
def test_inplace_activation(name):
    x = array(*X)
    args = {"threshold": (0.1, 0.2)}.get(name, ())
    results = []
    for package, module in ((dt, nn), (torch, tnn)):
        leaf = package.tensor(x, requires_grad=True)
        y = leaf * 2
        z = getattr(module.functional, name)(y, *args, inplace=True)
        z.sum().backward()
        results.append((y.detach().numpy(), z.detach().numpy(), leaf.grad.numpy()))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, 1e-9, 1e-12)
    np.testing.assert_array_equal(results[0][0], results[0][1])


def test_functions_of_vectors():
    x, y = array(4, 5), array(4, 5)
    for name, args in (("normalize", (2.0, 1)), ("normalize", (3.0, 0)), ("normalize", (1.0, -1))):
        ours = getattr(nn.functional, name)(dt.tensor(x), *args)
        theirs = getattr(tnn.functional, name)(torch.tensor(x), *args)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-9)
    ours = nn.functional.cosine_similarity(dt.tensor(x), dt.tensor(y), 1)
    theirs = tnn.functional.cosine_similarity(torch.tensor(x), torch.tensor(y), 1)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-9)
    i = ints(6, 3, 2)
    ours, theirs = nn.functional.one_hot(dt.tensor(i), 7), tnn.functional.one_hot(
        torch.tensor(i), 7
    )
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


BUILDERS = {
    "nested": lambda n: n.Sequential(n.Linear(2, 2), n.ModuleList([n.ReLU(), n.ReLU(), n.Tanh()])),
    "module_list": lambda n: n.ModuleList([n.Linear(2, 2), n.Linear(2, 2), n.Linear(3, 2)]),
    "module_dict": lambda n: n.ModuleDict({"a": n.Linear(2, 2), "b": n.Sequential()}),
    "empty": lambda n: n.Sequential(),
    "empty_list": lambda n: n.ModuleList(),
    "inplace": lambda n: n.Sequential(n.ReLU(inplace=True), n.ELU(2.0, True), n.ReLU6(True)),
    "embedding": lambda n: n.Embedding(3, 4, padding_idx=-1, max_norm=2.0, sparse=True),
    "dropouts": lambda n: n.Sequential(n.Dropout(0.1), n.Dropout1d(), n.AlphaDropout(0.2, True)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_container_repr(name):
    assert repr(BUILDERS[name](nn)) == repr(BUILDERS[name](tnn))


def test_parameter_containers_repr_and_keys():
    def build(p, n):
        return (
            n.ParameterList([p.zeros(2, 3), n.Parameter(p.ones(1, dtype=p.float64)), 5]),
            n.ParameterDict({"a": p.zeros(2), "b": p.zeros(1, dtype=p.float64), "c": "x"}),
        )

    for ours, theirs in zip(build(dt, nn), build(torch, tnn)):
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


def _set(obj, name, value):
    setattr(obj, name, value)


ERRORS = {
    "insert": lambda p, n: n.Sequential(n.Linear(1, 1)).insert(4, n.Identity()),
    "index": lambda p, n: n.ModuleList([n.Linear(1, 1)])[3],
    "dict_items": lambda p, n: n.ModuleDict([1]),
    "dict_type": lambda p, n: n.ModuleDict(3),
    "parameter_key": lambda p, n: n.ParameterDict({1: p.zeros(1)}),
    "no_module": lambda p, n: n.Sequential(3),
    "to_int": lambda p, n: n.Linear(2, 2).to(p.int32),
    "get_parameter": lambda p, n: n.Linear(2, 2).get_parameter("foo"),
    "get_buffer": lambda p, n: n.Linear(2, 2).get_buffer("weight"),
    "get_submodule": lambda p, n: n.Linear(2, 2).get_submodule("a.b"),
    "submodule_is_parameter": lambda p, n: n.Linear(2, 2).get_submodule("weight"),
    "set_submodule": lambda p, n: n.Linear(2, 2).set_submodule("a", 3),
    "tensor_as_parameter": lambda p, n: _set(n.Linear(2, 2), "weight", p.zeros(2)),
    "int_as_parameter": lambda p, n: _set(n.Linear(2, 2), "weight", 3),
    "int_as_module": lambda p, n: _set(n.Sequential(n.Identity()), "0", 3),
    "register_tensor": lambda p, n: n.Linear(2, 2).register_parameter("a", p.zeros(2)),
    "register_taken": lambda p, n: n.Linear(2, 2).register_buffer("weight", p.zeros(2)),
    "register_dot": lambda p, n: n.Linear(2, 2).register_parameter("a.b", None),
    "register_empty": lambda p, n: n.Linear(2, 2).register_parameter("", None),
    "register_name": lambda p, n: n.Linear(2, 2).register_buffer(3, None),
    "buffer_type": lambda p, n: n.Module().register_buffer("a", 3),
    "module_dot": lambda p, n: n.Module().add_module("a.b", n.Identity()),
    "module_empty": lambda p, n: n.Module().add_module("", n.Identity()),
    "non_leaf": lambda p, n: n.Module().register_parameter(
        "w", n.Parameter(p.ones(2)) * 2
    ),
    "load_mismatch": lambda p, n: n.Linear(2, 2).load_state_dict(
        {"weight": p.zeros(3, 2), "foo": p.zeros(1)}
    ),
    "load_nested": lambda p, n: n.Sequential(n.Linear(2, 2), n.PReLU()).load_state_dict(
        {"0.weight": p.zeros(2, 2), "1.weight": p.zeros(3), "2.x": p.zeros(1), "0": p.zeros(1)}
    ),
    "load_int": lambda p, n: n.Linear(2, 2).load_state_dict({"weight": 4, "bias": p.zeros(2)}),
    "load_type": lambda p, n: n.Linear(2, 2).load_state_dict(3),
    "forward": lambda p, n: n.Module()(3),
    "init_args": lambda p, n: n.Module(3),
    "init_kwargs": lambda p, n: n.Module(a=3),
    "attribute": lambda p, n: n.Linear(2, 2).foo,
    "train": lambda p, n: n.Linear(2, 2).train(3),
    "dropout": lambda p, n: n.Dropout(2),
    "padding": lambda p, n: n.Embedding(3, 4, padding_idx=5),
    "reduction": lambda p, n: n.MSELoss(reduction="x")(p.zeros(1), p.zeros(1)),
    "bce_size": lambda p, n: n.BCELoss()(p.zeros(1), p.zeros(2)),
    "bce_range": lambda p, n: n.BCELoss()(p.zeros(1) + 2, p.zeros(1)),
    "gain": lambda p, n: n.init.calculate_gain("x"),
    "fan": lambda p, n: n.init.xavier_normal_(p.zeros(3)),
    "mode": lambda p, n: n.init.kaiming_normal_(p.zeros(3, 3), mode="x"),
    "one_hot": lambda p, n: n.functional.one_hot(p.tensor([3]), 2),
    "clip": lambda p, n: n.utils.vector_to_parameters(3, []),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_type_and_text(name):
    texts = []
    for package, module in ((dt, nn), (torch, tnn)):
        with pytest.raises(Exception) as caught:
            ERRORS[name](package, module)
        texts.append((caught.type.__name__, str(caught.value)))
    assert texts[0] == texts[1]


def plain(default):
    """A function as a default by its name: theirs is another object than ours."""
    return default.__name__ if inspect.isfunction(default) else default


def test_signatures_of_modules_and_functions():
    """Names, order and defaults of what users pass."""
    different = []
    for name in nn.modules.__all__:
        ours = inspect.signature(getattr(nn, name).__init__)
        theirs = inspect.signature(getattr(tnn, name).__init__)
        if [(p.name, plain(p.default), p.kind) for p in ours.parameters.values()] != [
            (p.name, plain(p.default), p.kind) for p in theirs.parameters.values()
        ]:
            different.append(f"{name}{ours} is {theirs}")
    # torch's take and refuse any arguments there
    known = ("LogSigmoid", "Sigmoid", "Softmax2d", "Softsign", "Tanh", "Tanhshrink")
    assert [d for d in different if not d.startswith(known)] == []
    for name in nn.functional.__all__:
        try:
            theirs = inspect.signature(getattr(tnn.functional, name))
        except ValueError:
            continue
        if "args" in theirs.parameters:
            continue
        ours = inspect.signature(getattr(nn.functional, name))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ], name


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, 0.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.7, 1e6])
def test_clip_grad_norm(norm_type, max_norm):
    grads = [array(3, 4), array(5), array()]
    results = []
    for package, module in ((dt, nn), (torch, tnn)):
        params = [module.Parameter(package.zeros(g.shape, dtype=package.float64)) for g in grads]
        for p, g in zip(params, grads):
            p.grad = package.tensor(g.copy())
        total = module.utils.clip_grad_norm_(params, max_norm, norm_type)
        results.append([total.numpy(), *(p.grad.numpy() for p in params)])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, 1e-10)


def test_gains_and_deterministic_initial_values():
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "selu"):
        assert nn.init.calculate_gain(name) == tnn.init.calculate_gain(name)
    assert nn.init.calculate_gain("leaky_relu", 0.3) == tnn.init.calculate_gain("leaky_relu", 0.3)
    for shape, groups in (((4, 3, 5), 2), ((3, 5, 3, 4), 1)):
        ours = nn.init.dirac_(dt.empty(*shape), groups)
        theirs = tnn.init.dirac_(torch.empty(*shape), groups)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_array_equal(nn.init.eye_(dt.empty(3, 4)).numpy(), np.eye(3, 4))


def test_hooks_are_called_as_in_pytorch():
    def run(package, module):
        calls = []

        def note(*what):
            calls.append(tuple(
                tuple(None if x is None else tuple(x.shape) for x in w) if isinstance(w, tuple)
                else tuple(w.shape) if hasattr(w, "shape") else str(w) for w in what[1:]
            ))

        class Two(module.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = module.Linear(3, 2), module.Linear(3, 2)

            def forward(self, x, y, scale=1):
                return self.a(x) * scale, self.b(y)

        m = Two()
        m.register_forward_pre_hook(lambda mod, args: note(mod, "pre", args))
        m.register_forward_pre_hook(
            lambda mod, args, kw: note(mod, "pre2", args, kw), with_kwargs=True, prepend=True
        )
        m.register_forward_hook(lambda mod, args, out: note(mod, "post", args, out))
        m.register_forward_hook(
            lambda mod, args, kw, out: (out[0] * 2, out[1]), with_kwargs=True
        )
        m.register_full_backward_pre_hook(lambda mod, g: note(mod, "bpre", g))
        m.register_full_backward_hook(lambda mod, gi, go: note(mod, "bw", gi, go))
        m.register_full_backward_hook(lambda mod, gi, go: tuple(
            None if g is None else g * 3 for g in gi))
        m.a.register_full_backward_hook(lambda mod, gi, go: note(mod, "a", gi, go))
        m.load_state_dict({k: package.ones(v.shape) for k, v in m.state_dict().items()})
        x = package.ones(4, 3, requires_grad=True)
        y = package.ones(5, 3)
        out = m(x, y, scale=2)
        (out[0].sum() + out[1].sum()).backward()
        return calls, x.grad.numpy(), m.a.weight.grad.numpy()

    ours, theirs = run(dt, nn), run(torch, tnn)
    assert ours[0] == theirs[0] and len(ours[0]) >= 6
    np.testing.assert_allclose(ours[1], theirs[1])
    np.testing.assert_allclose(ours[2], theirs[2])


def test_trunc_normal_has_the_distribution_of_pytorchs():
    dt.manual_seed(0)
    ours = nn.init.trunc_normal_(dt.empty(40000), 0.3, 1.5, -1.0, 2.5).numpy()
    theirs = tnn.init.trunc_normal_(torch.empty(40000), 0.3, 1.5, -1.0, 2.5).numpy()
    q = np.linspace(0, 1, 21)
    np.testing.assert_allclose(np.quantile(ours, q), np.quantile(theirs, q), atol=0.06)


def test_deepcopy_shares_nothing_and_keeps_ties():
    def build(n):
        m = n.Sequential(n.Linear(3, 3), n.Linear(3, 3))
        m[1].weight = m[0].weight
        return m

    ours, theirs = copy.deepcopy(build(nn)), copy.deepcopy(build(tnn))
    assert ours[1].weight is ours[0].weight and theirs[1].weight is theirs[0].weight
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_parameters(remove_duplicate=False)] == [
        n for n, _ in theirs.named_parameters(remove_duplicate=False)
    ]
