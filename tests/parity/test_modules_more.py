"""Recurrent layers, attention, transformers, bags, losses, parametrized weights against PyTorch.

One table of cases. Every case: forward and all gradients, in float64 to 1e-9 and in float32 to 1e-5;
state_dict keys and shapes; the printed module; three training steps from the same weights.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytest.importorskip("torch.nn.utils.prune")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]

RNG = np.random.default_rng(5)


def array(*shape, low=-2.0, high=2.0):
    return RNG.uniform(low, high, shape)


def ints(high, *shape, low=0):
    return RNG.integers(low, high, shape)


def signs(*shape):
    return RNG.choice([-1.0, 1.0], shape)


def constant(a):
    """An input whose gradient is not asked for."""
    return ("constant", a)


CASES: dict = {}


def add(name, build, *args, **kwargs):
    """A case: ``build(package)`` makes the module, which is called with args and kwargs."""
    assert name not in CASES
    CASES[name] = (build, args, kwargs)


# ---------------------------------------------------------------- recurrent
OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 2, "batch_first": True},
    "both_ways": {"num_layers": 2, "bidirectional": True, "bias": False},
}
for kind in ("RNN", "LSTM", "GRU"):
    for label, options in OPTIONS.items():
        add(f"{kind}_{label}", lambda p, k=kind, o=options: getattr(p.nn, k)(3, 4, **o),
            array(5, 2, 3))
    add(f"{kind}_unbatched", lambda p, k=kind: getattr(p.nn, k)(3, 4), array(5, 3))
    add(f"{kind}Cell", lambda p, k=kind: getattr(p.nn, k + "Cell")(3, 4), array(2, 3))
    add(f"{kind}Cell_alone", lambda p, k=kind: getattr(p.nn, k + "Cell")(3, 4, bias=False),
        array(3))
add("RNN_relu", lambda p: p.nn.RNN(3, 4, nonlinearity="relu"), array(5, 2, 3), array(1, 2, 4))
add("RNNCell_relu", lambda p: p.nn.RNNCell(3, 4, nonlinearity="relu"), array(2, 3), array(2, 4))
add("GRU_state", lambda p: p.nn.GRU(3, 4, 2), array(5, 2, 3), array(2, 2, 4))
add("LSTM_state", lambda p: p.nn.LSTM(3, 4, 2), array(5, 2, 3), (array(2, 2, 4), array(2, 2, 4)))
add("LSTM_projection", lambda p: p.nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2),
    array(5, 2, 3))


class Packed:
    """A recurrent layer between packing and padding."""

    def __init__(self, package, kind, order, **options):
        class Model(package.nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = getattr(package.nn, kind)(3, 4, 2, bidirectional=True, **options)

            def forward(self, x):
                utils = package.nn.utils.rnn
                first = self.rnn.batch_first
                rows = utils.pack_padded_sequence(x, order, first, enforce_sorted=False)
                out, state = self.rnn(rows)
                back, lengths = utils.pad_packed_sequence(out, first, -1.5, 7)
                assert lengths.tolist() == list(order)
                return (back, *state) if isinstance(state, tuple) else (back, state)

        self.model = Model()


for kind in ("RNN", "LSTM", "GRU"):
    add(f"{kind}_packed", lambda p, k=kind: Packed(p, k, (2, 5, 1, 5)).model, array(6, 4, 3))
add("LSTM_packed_projection", lambda p: Packed(p, "LSTM", (2, 3), proj_size=2, batch_first=True).model,
    array(2, 3, 3))

# ---------------------------------------------------------------- attention and transformers
E8 = (4, 2, 8)
later = np.triu(np.ones((4, 4), bool), 1)
padding = np.array([[False] * 6, [False, False, False, True, True, False]])


def mha(*args, **options):
    return lambda p: p.nn.MultiheadAttention(*args, **options)


add("mha_self", mha(8, 2), *[array(*E8)] * 3)
add("mha_cross", mha(8, 4), array(4, 2, 8), *[array(6, 2, 8)] * 2)
add("mha_three", mha(8, 2, bias=False), array(4, 2, 8), array(6, 2, 8), array(6, 2, 8))
add("mha_widths", mha(8, 2, kdim=5, vdim=6), array(4, 2, 8), array(6, 2, 5), array(6, 2, 6),
    key_padding_mask=padding)
add("mha_bias_kv", mha(8, 2, add_bias_kv=True, add_zero_attn=True), array(4, 2, 8),
    array(6, 2, 8), array(6, 2, 8), attn_mask=array(4, 6) > 1.0, key_padding_mask=padding)
add("mha_heads_apart", mha(8, 2, batch_first=True), *[array(2, 4, 8)] * 3,
    average_attn_weights=False, attn_mask=array(4, 4, 4))
add("mha_no_weights", mha(8, 2, batch_first=True), *[array(2, 4, 8)] * 3, need_weights=False,
    attn_mask=later, is_causal=True)
add("mha_no_weights_mask", mha(8, 2), *[array(*E8)] * 3, need_weights=False,
    attn_mask=array(4, 4, 4))
add("mha_unbatched", mha(8, 2), *[array(4, 8)] * 3, key_padding_mask=padding[1, :4])
for label, options in {
    "post": {}, "pre": {"norm_first": True, "activation": "gelu", "batch_first": True},
    "nobias": {"bias": False, "layer_norm_eps": 1e-3},
}.items():
    o = {"dim_feedforward": 12, "dropout": 0.0, **options}
    first = options.get("batch_first", False)
    x, y = (array(2, 4, 8), array(2, 6, 8)) if first else (array(4, 2, 8), array(6, 2, 8))
    add(f"encoder_layer_{label}", lambda p, o=o: p.nn.TransformerEncoderLayer(8, 2, **o), y,
        src_key_padding_mask=padding)
    add(f"decoder_layer_{label}", lambda p, o=o: p.nn.TransformerDecoderLayer(8, 2, **o), x, y,
        tgt_mask=later, memory_key_padding_mask=padding)
    add(f"encoder_{label}", lambda p, o=o: p.nn.TransformerEncoder(
        p.nn.TransformerEncoderLayer(8, 2, **o), 2, p.nn.LayerNorm(8)), x, mask=later)
    add(f"decoder_{label}", lambda p, o=o: p.nn.TransformerDecoder(
        p.nn.TransformerDecoderLayer(8, 2, **o), 2), x, y, tgt_mask=later)
    add(f"transformer_{label}", lambda p, o=o: p.nn.Transformer(8, 2, 2, 1, **o), y, x,
        tgt_mask=later, src_key_padding_mask=padding)

# ---------------------------------------------------------------- tables
bag_indices, offsets = ints(7, 9), np.array([0, 3, 3, 5])
for mode in ("sum", "mean", "max"):
    add(f"bag_{mode}", lambda p, m=mode: p.nn.EmbeddingBag(7, 3, mode=m), ints(7, 4, 5))
    add(f"bag_{mode}_offsets", lambda p, m=mode: p.nn.EmbeddingBag(7, 3, mode=m, padding_idx=2),
        bag_indices, offsets)
add("bag_weights", lambda p: p.nn.EmbeddingBag(7, 3, mode="sum", include_last_offset=True),
    bag_indices, np.array([0, 4, 9]), array(9))
add("bag_weights_one_size", lambda p: p.nn.EmbeddingBag(7, 3, mode="sum"), ints(7, 4, 5),
    None, array(4, 5))
add("bag_max_norm", lambda p: p.nn.EmbeddingBag(7, 3, norm_type=1.0, max_norm=2.0), ints(7, 4, 5))
add("embedding_frequency", lambda p: p.nn.Embedding(7, 3, padding_idx=-2, scale_grad_by_freq=True),
    ints(7, 4, 5))
add("adaptive", lambda p: p.nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 9], 2.0, True), array(6, 8),
    np.array([1, 5, 12, 3, 19, 4]))
add("adaptive_one", lambda p: p.nn.AdaptiveLogSoftmaxWithLoss(16, 20, [4, 9]), array(16),
    np.array(11))


# ---------------------------------------------------------------- losses
class Logs:
    """CTC over the logarithm of the softmax: as it is always used."""

    def __init__(self, package, **options):
        class Model(package.nn.Module):
            def __init__(self):
                super().__init__()
                self.loss = package.nn.CTCLoss(**options)

            def forward(self, x, *rest):
                return self.loss(x.log_softmax(-1), *rest)

        self.model = Model()


X = (5, 4)
labels = ints(6, 4, 5, low=1)
labels[0, 1] = labels[0, 0]
for r in ("mean", "sum", "none"):
    reduction = {"reduction": r}

    def loss(name, *args, _options=reduction, **options):
        label = "_".join([name, _options["reduction"], *map(str, options)])
        add(label, lambda p, o={**_options, **options}: getattr(p.nn, name)(**o), *args)

    loss("HingeEmbeddingLoss", array(*X), constant(signs(*X)))
    loss("CosineEmbeddingLoss", array(*X), array(*X), constant(signs(5)), margin=0.1)
    loss("MarginRankingLoss", array(*X), array(*X), constant(signs(*X)), margin=0.3)
    loss("TripletMarginLoss", array(*X), array(*X), array(*X))
    loss("TripletMarginLoss", array(*X), array(*X), array(*X), swap=True, p=3.0, margin=2.0)
    loss("TripletMarginWithDistanceLoss", array(*X), array(*X), array(*X), swap=True)
    loss("MultiMarginLoss", array(*X), ints(4, 5))
    loss("MultiMarginLoss", array(*X), ints(4, 5), p=2, margin=0.5)
    loss("MultiLabelMarginLoss", array(3, 4), np.array([[3, 0, -1, 1], [-1, 0, 1, 2], [0, 1, 2, 3]]))
    loss("SoftMarginLoss", array(*X), constant(signs(*X)))
    loss("MultiLabelSoftMarginLoss", array(*X), constant((signs(*X) + 1) / 2))
    loss("PoissonNLLLoss", array(*X), constant(ints(5, *X).astype(float)), full=True)
    loss("PoissonNLLLoss", array(*X, low=0.1), constant(ints(5, *X).astype(float)), log_input=False)
    loss("GaussianNLLLoss", array(*X), array(*X), array(5, 1, low=0.1), full=True)
    loss("GaussianNLLLoss", array(*X), array(*X), array(*X, low=0.1))
    add(f"ctc_{r}", lambda p, o=reduction: Logs(p, **o).model, array(12, 4, 6), labels,
        np.array([12, 10, 7, 5]), np.array([5, 4, 3, 0]))
    add(f"ctc_impossible_{r}", lambda p, o=reduction: Logs(p, zero_infinity=True, blank=2, **o).model,
        array(9, 2, 4), np.array([0, 1, 1, 3, 0, 3, 3]), np.array([9, 2]), np.array([4, 3]))
add("MultiMarginLoss_one", lambda p: p.nn.MultiMarginLoss(weight=p.tensor([1.0, 2.0, 0.5])),
    array(3), np.array(1))
add("MultiLabelSoftMargin_weight", lambda p: p.nn.MultiLabelSoftMarginLoss(
    weight=p.tensor([1.0, 2.0, 0.5, 3.0])), array(*X), constant((signs(*X) + 1) / 2))


# ---------------------------------------------------------------- weights computed from others
def parametrized(package, name, layer=lambda n: n.Linear(4, 3), **options):
    return getattr(package.nn.utils.parametrizations, name)(layer(package.nn), **options)


add("weight_norm", lambda p: parametrized(p, "weight_norm"), array(*X))
add("weight_norm_all", lambda p: parametrized(p, "weight_norm", dim=None), array(*X))
add("weight_norm_dim", lambda p: parametrized(p, "weight_norm", dim=1), array(*X))
add("spectral_norm", lambda p: parametrized(p, "spectral_norm", n_power_iterations=2), array(*X))
for m in ("matrix_exp", "cayley", "householder"):
    add(f"orthogonal_{m}", lambda p, m=m: parametrized(p, "orthogonal", orthogonal_map=m), array(*X))


def older_weight_norm(p):
    with pytest.warns(FutureWarning, match="deprecated"):
        return p.nn.utils.weight_norm(p.nn.Linear(4, 3))


add("old_weight_norm", older_weight_norm, array(*X))
add("old_spectral_norm", lambda p: p.nn.utils.spectral_norm(p.nn.Linear(4, 3)), array(*X))
add("pruned", lambda p: p.nn.utils.prune.l1_unstructured(p.nn.Linear(4, 3), "weight", 0.0), array(*X))
add("data_parallel", lambda p: p.nn.DataParallel(p.nn.Linear(4, 3)), array(*X))


# ---------------------------------------------------------------- checks
def flat(result):
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in flat(part)]
    return [] if result is None else [result]


def tensors_of(package, values, dtype, wanted):
    """Arguments as tensors of one package; those with a gradient are appended to ``wanted``."""
    made: dict = {}

    def convert(value):
        if isinstance(value, tuple) and value and value[0] is not None and (
            isinstance(value[0], str) and value[0] == "constant"
        ):
            return package.tensor(value[1].astype(dtype))
        if isinstance(value, tuple):
            return tuple(map(convert, value))
        if not isinstance(value, np.ndarray):
            return value
        if id(value) not in made:
            floating = value.dtype.kind == "f"
            t = package.tensor(value.astype(dtype) if floating else value, requires_grad=floating)
            made[id(value)] = t
            if floating:
                wanted.append(t)
        return made[id(value)]

    if isinstance(values, dict):
        return {k: convert(v) for k, v in values.items()}
    return [convert(v) for v in values]


def pair(name, dtype):
    """The module of a case, theirs and ours, with the same state."""
    build, args, kwargs = CASES[name]
    theirs, ours = build(torch), build(dt)
    if dtype == "float64":
        theirs, ours = theirs.double(), ours.double()
    copy_state(theirs, ours)
    return theirs, ours, args, kwargs


def copy_state(theirs, ours):
    state = {k: dt.tensor(v.detach().numpy().copy()) for k, v in theirs.state_dict().items()}
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"


def run(package, module, args, kwargs, dtype):
    inputs: list = []
    given = tensors_of(package, args, dtype, inputs)
    named = tensors_of(package, kwargs, dtype, inputs)
    return flat(module(*given, **named)), inputs


def backward(package, outs):
    outs = [o for o in outs if o.requires_grad]
    total = sum((o * package.cos(package.arange(o.numel(), dtype=o.dtype)).reshape(o.shape)).sum()
                for o in outs)
    total.backward()
    return total


def close(a, b, rtol):
    assert tuple(a.shape) == tuple(b.shape)
    assert str(a.dtype) == str(b.dtype)
    a, b = a.detach().numpy(), b.detach().numpy()
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) if b.dtype.kind == "f" else 0
    np.testing.assert_allclose(a, b, rtol, rtol * max(scale, 1e-3))


TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_all_gradients(name, dtype):
    theirs, ours, args, kwargs = pair(name, dtype)
    rtol = TOLERANCE[dtype]
    want, other = run(torch, theirs, args, kwargs, dtype)
    got, mine = run(dt, ours, args, kwargs, dtype)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want):
        close(a, b, rtol)
    backward(dt, got), backward(torch, want)
    pairs = [*zip(mine, other), *zip(ours.parameters(), theirs.parameters())]
    checked = 0
    for a, b in pairs:
        if b.grad is not None:
            close(a.grad, b.grad, 4 * rtol)
            checked += 1
        else:
            assert a.grad is None
    assert checked


@pytest.mark.parametrize("name", CASES)
def test_text_and_state(name):
    build, _, _ = CASES[name]
    theirs, ours = build(torch), build(dt)
    assert repr(ours) == repr(theirs)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert [(tuple(v.shape), str(v.dtype)) for v in a.values()] == [
        (tuple(v.shape), str(v.dtype)) for v in b.values()
    ]
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


TRAINED = [n for n in CASES if "Loss" not in n and not n.startswith(("ctc", "Multi"))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TRAINED)
def test_three_training_steps(name, dtype):
    theirs, ours, args, kwargs = pair(name, dtype)
    losses = []
    for package, module in ((torch, theirs), (dt, ours)):
        optimizer = package.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            losses[-1].append(backward(package, run(package, module, args, kwargs, dtype)[0]).item())
            optimizer.step()
    rtol = TOLERANCE[dtype] * 5
    np.testing.assert_allclose(losses[1], losses[0], rtol, rtol)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        close(a, b, rtol)


def test_every_signature():
    """Names, order and defaults of arguments."""
    names = words("""MultiheadAttention Transformer TransformerEncoder TransformerDecoder
        TransformerEncoderLayer TransformerDecoderLayer EmbeddingBag AdaptiveLogSoftmaxWithLoss
        RNNBase RNNCell LSTMCell GRUCell CTCLoss DataParallel""")
    for name in names:
        compare_signature(getattr(dt.nn, name).__init__, getattr(torch.nn, name).__init__, name)
        compare_signature(getattr(dt.nn, name).forward, getattr(torch.nn, name).forward, name)
    for module in ("rnn", "parametrize", "parametrizations", "prune", "fusion", "stateless"):
        ours, theirs = (__import__(f"{p}.nn.utils.{module}", fromlist=["x"])
                        for p in ("disttorch", "torch"))
        for name in ours.__all__:
            if inspect.isfunction(getattr(ours, name)):
                compare_signature(getattr(ours, name), getattr(theirs, name), name)


def words(text):
    return text.split()


def compare_signature(ours, theirs, name):
    a, b = inspect.signature(ours), inspect.signature(theirs)
    a = [(p.name, _plain(p.default)) for p in a.parameters.values()]
    b = [(p.name, _plain(p.default)) for p in b.parameters.values()]
    assert a == b, name


def _plain(default):
    return default.__name__ if callable(default) and default is not inspect._empty else default


# ---------------------------------------------------------------- attention function
def masks():
    yield None, {}
    yield None, {"is_causal": True}
    yield array(5, 7) > -1.0, {}
    yield array(2, 1, 5, 7), {"scale": 0.3}
    blind = np.ones((5, 7), bool)
    blind[2] = False
    yield blind, {}


@pytest.mark.parametrize("limit", [1 << 20, 0])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("index", range(5))
def test_scaled_dot_product_attention(monkeypatch, index, heads, limit):
    """Weights kept and computed anew; grouped heads; masks, of which one leaves nothing to see."""
    from disttorch.ops import attention

    monkeypatch.setattr(attention, "KEPT_SCORES", limit)
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 7)
    mask, options = list(masks())[index]
    arrays = [array(2, 4, 5, 3), array(2, heads, 7, 3), array(2, heads, 7, 6)]
    results = []
    for package in (torch, dt):
        tensors = [package.tensor(a, requires_grad=True) for a in arrays]
        m = None if mask is None else package.tensor(mask)
        if m is not None and mask.dtype.kind == "f":
            m.requires_grad_()
            tensors.append(m)
        out = package.nn.functional.scaled_dot_product_attention(
            *tensors[:3], attn_mask=m, enable_gqa=heads != 4, **options
        )
        out.sin().sum().backward()
        results.append([out, *(t.grad for t in tensors)])
    for a, b in zip(*reversed(results)):
        close(a, b, 1e-9)


# ---------------------------------------------------------------- sequences and utilities
def test_sequences_of_different_lengths():
    arrays = [array(n, 2) for n in (2, 5, 3)]
    results = []
    for package in (torch, dt):
        utils = package.nn.utils.rnn
        given = [package.tensor(a) for a in arrays]
        packed = utils.pack_sequence(given, enforce_sorted=False)
        padded, lengths = utils.pad_packed_sequence(packed, batch_first=True)
        results.append([
            *(t for t in packed), padded, lengths, utils.pad_sequence(given),
            utils.pad_sequence(given, True, 9.0, "left"), *utils.unpack_sequence(packed),
            *utils.unpad_sequence(padded, lengths, True), packed.float().data,
        ])
    for a, b in zip(*reversed(results)):
        close(a, b, 1e-12)


ERRORS = {
    "ndim": lambda p: p.nn.LSTM(3, 4)(p.zeros(2)),
    "state_ndim": lambda p: p.nn.LSTM(3, 4)(p.zeros(5, 2, 3), (p.zeros(2, 4), p.zeros(2, 4))),
    "state_ndim_gru": lambda p: p.nn.GRU(3, 4)(p.zeros(5, 3), p.zeros(1, 2, 4)),
    "state_size": lambda p: p.nn.GRU(3, 4)(p.zeros(5, 2, 3), p.zeros(1, 3, 4)),
    "state_size_lstm": lambda p: p.nn.LSTM(3, 4)(
        p.zeros(5, 2, 3), (p.zeros(1, 2, 4), p.zeros(1, 2, 5))),
    "width": lambda p: p.nn.RNN(3, 4)(p.zeros(5, 2, 4)),
    "dtype": lambda p: p.nn.RNN(3, 4)(p.zeros(5, 2, 3, dtype=p.float64)),
    "hidden": lambda p: p.nn.RNN(3, 0),
    "layers": lambda p: p.nn.RNN(3, 4, 0),
    "dropout": lambda p: p.nn.RNN(3, 4, dropout=2.0),
    "projection": lambda p: p.nn.GRU(3, 4, proj_size=2),
    "wide_projection": lambda p: p.nn.LSTM(3, 4, proj_size=4),
    "nonlinearity": lambda p: p.nn.RNN(3, 4, nonlinearity="sin"),
    "cell_ndim": lambda p: p.nn.GRUCell(3, 4)(p.zeros(1, 2, 3)),
    "cell_batch": lambda p: p.nn.GRUCell(3, 4)(p.zeros(2, 3), p.zeros(3, 4)),
    "lengths": lambda p: p.nn.utils.rnn.pack_padded_sequence(p.zeros(4, 2, 1), [4]),
    "unsorted": lambda p: p.nn.utils.rnn.pack_padded_sequence(p.zeros(4, 2, 1), [2, 4]),
    "zero_length": lambda p: p.nn.utils.rnn.pack_padded_sequence(p.zeros(4, 2, 1), [4, 0]),
    "total_length": lambda p: p.nn.utils.rnn.pad_packed_sequence(
        p.nn.utils.rnn.pack_sequence([p.zeros(3, 1)]), total_length=2),
    "heads": lambda p: p.nn.MultiheadAttention(8, 3),
    "no_heads": lambda p: p.nn.MultiheadAttention(8, 0),
    "mha_ndim": lambda p: p.nn.MultiheadAttention(8, 2)(*[p.zeros(1, 4, 2, 8)] * 3),
    "mha_mask": lambda p: p.nn.MultiheadAttention(8, 2)(
        *[p.zeros(4, 2, 8)] * 3, attn_mask=p.zeros(3, 4)),
    "mha_int_mask": lambda p: p.nn.MultiheadAttention(8, 2)(
        *[p.zeros(4, 2, 8)] * 3, attn_mask=p.zeros(4, 4, dtype=p.int64)),
    "mha_causal": lambda p: p.nn.MultiheadAttention(8, 2)(*[p.zeros(4, 2, 8)] * 3, is_causal=True),
    "activation": lambda p: p.nn.TransformerEncoderLayer(8, 2, activation="x"),
    "d_model": lambda p: p.nn.Transformer(8, 2)(p.zeros(4, 2, 8), p.zeros(4, 2, 6)),
    "batch": lambda p: p.nn.Transformer(8, 2)(p.zeros(4, 2, 8), p.zeros(4, 3, 8)),
    "bag_mode": lambda p: p.nn.EmbeddingBag(3, 2, mode="min")(p.tensor([[1]])),
    "bag_offsets": lambda p: p.nn.EmbeddingBag(3, 2)(p.tensor([1])),
    "bag_weights": lambda p: p.nn.EmbeddingBag(3, 2)(p.tensor([[1]]), None, p.ones(1, 2)),
    "cutoffs": lambda p: p.nn.AdaptiveLogSoftmaxWithLoss(4, 9, [5, 3]),
    "adaptive_target": lambda p: p.nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3])(
        p.zeros(2, 4), p.tensor([1, 9])),
    "margin_p": lambda p: p.nn.MultiMarginLoss(p=3),
    "margin_target": lambda p: p.nn.MultiMarginLoss()(p.zeros(2, 3), p.tensor([0, 3])),
    "multilabel_shape": lambda p: p.nn.MultiLabelMarginLoss()(p.zeros(2, 3), p.tensor([[0, 1]])),
    "triplet_margin": lambda p: p.nn.TripletMarginLoss(margin=0.0),
    "triplet_ndim": lambda p: p.nn.TripletMarginLoss()(p.zeros(2, 3), p.zeros(2, 3), p.zeros(2)),
    "negative_variance": lambda p: p.nn.GaussianNLLLoss()(p.zeros(2), p.zeros(2), -p.ones(2)),
    "variance_shape": lambda p: p.nn.GaussianNLLLoss()(p.zeros(2, 3), p.zeros(2, 3), p.ones(2, 2)),
    "ctc_lengths": lambda p: p.nn.CTCLoss()(p.zeros(5, 2, 4), p.tensor([1, 2, 3]), (6, 5), (2, 1)),
    "ctc_targets": lambda p: p.nn.CTCLoss()(p.zeros(5, 2, 4), p.tensor([1, 2, 3]), (5, 5), (2, 2)),
    "ctc_blank": lambda p: p.nn.CTCLoss(blank=4)(
        p.zeros(5, 2, 4), p.tensor([1, 2, 3]), (5, 5), (2, 1)),
    "parametrize_name": lambda p: p.nn.utils.parametrize.register_parametrization(
        p.nn.Linear(2, 2), "foo", p.nn.Identity()),
    "not_pruned": lambda p: p.nn.utils.prune.remove(p.nn.Linear(2, 2), "weight"),
    "prune_amount": lambda p: p.nn.utils.prune.l1_unstructured(p.nn.Linear(2, 2), "weight", 1.5),
    "prune_many": lambda p: p.nn.utils.prune.l1_unstructured(p.nn.Linear(2, 2), "weight", 5),
    "fuse_training": lambda p: p.nn.utils.fuse_conv_bn_eval(p.nn.Linear(2, 2), p.nn.Linear(2, 2)),
    "skip_init": lambda p: p.nn.utils.skip_init(p.nn.ReLU),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_type_and_text(name):
    texts = []
    for package in (dt, torch):
        with pytest.raises(Exception) as caught:
            ERRORS[name](package)
        texts.append((caught.type.__name__, str(caught.value)))
    assert texts[0] == texts[1]


def test_pruning_in_turns():
    results = []
    weights = [array(4, 6), array(3, 6)]
    for package in (torch, dt):
        prune = package.nn.utils.prune
        layers = [package.nn.Linear(6, w.shape[0]) for w in weights]
        for layer, w in zip(layers, weights):
            layer.weight.data = package.tensor(w)
        prune.l1_unstructured(layers[0], "weight", 5)
        prune.ln_structured(layers[0], "weight", 0.5, 2, 0)
        first = layers[0].weight.detach().clone()
        prune.global_unstructured(
            [(layer, "weight") for layer in layers], prune.L1Unstructured, amount=7
        )
        keys = [list(layer.state_dict()) for layer in layers]
        assert prune.is_pruned(layers[0])
        masks_ = [layer.weight_mask.clone() for layer in layers]
        prune.remove(layers[0], "weight")
        assert not prune.is_pruned(layers[0])
        results.append((keys, [first, layers[0].weight, layers[1].weight, *masks_]))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[1][1], results[0][1]):
        close(a, b, 1e-12)
    assert (results[1][1][-1] == 0).sum().item() > 0


def test_fused_batch_norms():
    results = []
    w, x = array(5, 4), array(3, 4)
    stats = [array(5, low=0.5) for _ in range(4)]
    for package in (torch, dt):
        linear, bn = package.nn.Linear(4, 5).double(), package.nn.BatchNorm1d(5).double()
        linear.weight.data = package.tensor(w)
        linear.bias.data = package.tensor(stats[0])
        bn.weight.data, bn.bias.data = package.tensor(stats[1]), package.tensor(stats[2])
        bn.running_mean.copy_(package.tensor(stats[3]))
        bn.running_var.copy_(package.tensor(stats[1]))
        linear.eval(), bn.eval()
        fused = package.nn.utils.fuse_linear_bn_eval(linear, bn)
        given = package.tensor(x)
        close(fused(given), bn(linear(given)), 1e-9)
        conv = package.nn.Conv1d(4, 5, 2).double().eval()
        both = package.nn.utils.fuse_conv_bn_eval(conv, bn)
        picture = package.tensor(np.arange(24.0).reshape(1, 4, 6))
        close(both(picture), bn(conv(picture)), 1e-9)
        results.append([fused.weight, fused.bias])
    for a, b in zip(*reversed(results)):
        close(a, b, 1e-9)
