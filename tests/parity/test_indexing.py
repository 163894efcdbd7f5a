"""Index expressions against PyTorch: what they give, what assigning to them does, and errors."""

from __future__ import annotations

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
]

# Expressions of t (either library), for x of shape 2×3×4 (or what is given)
GET = [
    "0", "-1", "1, 2", "1, -1, 3", "...", "..., 0", "0, ...", "..., 1, ::2", "None", ":, None",
    "None, 0", "..., None", "1:, 2", "0:0", "-100:1", "1:100", "1:0", "::2", ":, 1::2, -2:",
    "0, None, 1:", "(0, 1)", "(0, 1),", "[0, 1]", "[[0, 1], [1, 2]]", "[0, 1], [1, 2]", "[]",
    ":, []", "range(2)", ":, range(2)", "t.tensor(0)", "t.tensor(0), :, t.tensor([0, 1])",
    "t.tensor([1, 0])", "t.tensor([[1, 0], [0, 0]])", ":, t.tensor([2, 0])",
    "..., t.tensor([3, 0])", "t.tensor([-1, 0])", "0, :, t.tensor([0, 1])",
    "t.tensor([0, 1]), :, 0", "t.tensor([0, 1]), :, t.tensor([0, 3])",
    "t.tensor([0, 1]), t.tensor([0, 2])", "t.tensor([[0], [1]]), t.tensor([0, 2])",
    "1, ..., t.tensor([[0, 1]])", "t.tensor([0]), None",
    "None, t.tensor([0]), None, t.tensor([0])", ":, None, t.tensor([0])",
    ":, t.tensor([0, 2]), 1:3", "t.tensor([0, 1]), 1:, t.tensor([0, 3])",
    ":, :, t.tensor([[0, 1], [2, 3]])", "True", "False", "..., True", "None, True, None",
    "0, True", "t.tensor(True)", "t.tensor(False), 0", "t.tensor([True, False])", "[True, False]",
    ":, t.tensor([True, False, True])", ":, t.tensor([True, False, True]), 1:3",
    "0, t.tensor([True, False, True])", "t.tensor([[True, False, True], [False, False, True]])",
    "x > 5", "(x > 5), None", "t.tensor([[True, False, True], [False, False, True]]), 1",
    "..., x[0] > 5", "x[:, 0, 0] > 5", "t.tensor([True, False]), :, t.tensor([1])",
    "t.tensor([True, True]), t.tensor([0, 2])", "t.tensor([0, 1], dtype=t.uint8)",
    "t.tensor([1, 0], dtype=t.int32)", "t.tensor(1, dtype=t.int16)", "t.tensor(1, dtype=t.uint8)",
    "numpy.array([0, 1])", "numpy.int64(1)", "numpy.array([True, False])",
    "t.tensor([], dtype=t.long)", "t.zeros(2, 0, dtype=t.long)",
    "slice(t.tensor(0), t.tensor(1))", "0, [True, False, True]", "(t.tensor([0]), [1, 0])",
    "..., ...", "[t.tensor(0), t.tensor(1)]", ":, 1, None, t.tensor([0, 1])",
    "t.tensor([1]), 0, 0", "0, t.tensor([1, 2]), 0", "t.tensor([[True, False, True]] * 2)",
]
# Not assigned to: places that repeat; byte masks, which PyTorch refuses for some values
NOT_ASSIGNED = {"t.tensor([[1, 0], [0, 0]])", "t.tensor([0, 1], dtype=t.uint8)"}
SET = [text for text in GET if text not in NOT_ASSIGNED]
BAD = [
    "3", "-3", ":, 7", "0, 0, 0, 0", "t.tensor([0]), 0, 0, 0", "1.5", "::-1", "t.tensor([5])",
    ":, t.tensor([-4])", "t.tensor([0.5])", "t.empty(0)", "t.tensor([1, 0], dtype=t.int16)",
    "'a'", "{}", "t.tensor([0, 1]), t.tensor([0, 1, 2])", "t.tensor([True, False, True])",
    "t.ones(2, 4, dtype=t.bool)", "0, t.tensor([True, False])", "0, 0, t.tensor([9])", "..., 4",
    "x, 0",
]


def index_of(t, text, x):
    return eval(f"_Ask()[{text}]", {"_Ask": _Ask, "t": t, "x": x, "numpy": np})


class _Ask:
    def __getitem__(self, index):
        return index


def draw(seed=0):
    return np.random.default_rng(seed).permutation(np.arange(24.0)).reshape(2, 3, 4)


@pytest.mark.parametrize("text", GET)
def test_getting(text):
    found = []
    for t in (dt, torch):
        x = t.tensor(draw()).requires_grad_()
        y = x[index_of(t, text, x)]
        assert y.requires_grad
        (y * t.arange(1.0, y.numel() + 1, dtype=t.float64).reshape(y.shape)).sum().backward()
        shares = y.numel() > 0 and y.data_ptr() != 0 and bool(np.may_share_memory(
            y.detach().numpy(), x.detach().numpy()))
        found.append((y.detach().numpy(), x.grad.numpy(), shares))
    (ours, our_grad, ours_shares), (theirs, their_grad, theirs_shares) = found
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(our_grad, their_grad)
    assert ours_shares == theirs_shares, "one is a view, the other a copy"


def values(shape):
    """Values to assign: a number, a full tensor, and ones that broadcast."""
    yield None
    yield shape
    if shape:
        yield shape[1:]
        yield (1,) + tuple(shape)
        yield (1,) * len(shape)


@pytest.mark.parametrize("text", SET)
def test_assigning(text):
    shape = tuple(torch.zeros(2, 3, 4)[index_of(torch, text, torch.tensor(draw()))].shape)
    for value_shape in values(shape):
        found = []
        for t in (dt, torch):
            x, index = t.tensor(draw()).requires_grad_(), None
            y = x * 1
            index = index_of(t, text, y.detach())
            if value_shape is None:
                y[index] = 7.5
            else:
                v = t.tensor(np.arange(1.0, np.prod(value_shape) + 1).reshape(value_shape))
                v.requires_grad_()
                y[index] = v * 2
            (y * y).sum().backward()
            grads = [x.grad.numpy()]
            if value_shape is not None and v.grad is not None:
                grads.append(v.grad.numpy())
            found.append([y.detach().numpy(), *grads])
        for a, b in zip(*found):
            np.testing.assert_array_equal(a, b, err_msg=f"value of shape {value_shape}")


@pytest.mark.parametrize("text", SET)
@pytest.mark.parametrize(
    "value", ["2.7", "t.tensor(3.7)", "t.tensor([3.7])", "t.tensor(5).to(t.int32)"]
)
def test_assigning_without_a_graph_converts_or_refuses(text, value):
    found = []
    for t in (dt, torch):
        x = t.tensor(draw()).to(t.int32)
        try:
            x[index_of(t, text, x)] = eval(value, {"t": t})
            found.append(x.tolist())
        except RuntimeError as error:
            found.append(str(error)[:40])
    assert found[0] == found[1]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("assign", [False, True])
def test_bad_indices_raise_the_same_error(text, assign):
    raised = []
    for t in (dt, torch):
        x = t.tensor(draw())
        with pytest.raises((IndexError, RuntimeError, TypeError, ValueError)) as error:
            index = index_of(t, text, x)
            if assign:
                x[index] = 1.0
            else:
                x[index]
        raised.append(error)
    ours, theirs = raised
    assert ours.type is theirs.type, (str(ours.value), str(theirs.value))
    assert str(ours.value)[:30] == str(theirs.value)[:30]


@pytest.mark.parametrize(("text", "shape"), [
    ("0", (5,)), ("t.tensor([0])", (5,)), ("x > 3", (5,)), ("x > 100", (5,)), (":, 0", (2, 2)),
    ("..., 0", (3, 2)), ("t.tensor([0, 1]), 0", (3, 4)),
])
def test_values_that_do_not_fit_are_refused(text, shape):
    raised = []
    for t in (dt, torch):
        x = t.tensor(draw())
        with pytest.raises(RuntimeError) as error:
            x[index_of(t, text, x)] = t.ones(*shape, dtype=t.float64)
        raised.append(str(error.value))
    assert raised[0][:60] == raised[1][:60]


def test_values_that_are_no_numbers_are_refused():
    for value in ("a", [1, 2, 3, 4], np.ones(4)):
        for t in (dt, torch):
            with pytest.raises(TypeError, match="can't assign a"):
                t.zeros(2, 4)[0] = value


@pytest.mark.parametrize(
    "text", ["0", "...", "None", "True", "t.tensor(True)", "x > 0", "..., None", "()"]
)
def test_zero_dims(text):
    found = []
    for t in (dt, torch):
        x = t.tensor(3.0)
        try:
            found.append(x[index_of(t, text, x)].tolist())
        except Exception as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put(accumulate):
    found = []
    for t in (dt, torch):
        x, v = t.ones(3, 4).requires_grad_(), t.tensor([1.0, 2.0, 3.0]).requires_grad_()
        y = x * 1
        y.index_put_((t.tensor([0, 1, 2]), t.tensor([1, 1, 3])), v, accumulate=accumulate)
        y = t.index_put(y, (t.tensor([2, 0]),), t.tensor(2.0), accumulate=accumulate)
        (y * y).sum().backward()
        found.append([y.detach().numpy(), x.grad.numpy(), v.grad.numpy()])
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)
