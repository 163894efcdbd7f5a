"""Views, broadcasting and indexing over drawn shapes, against NumPy; and the rules of views."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import disttorch as torch

quick = settings(max_examples=60, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
solid = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


def counted(shape):
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape)


def less_one(array):
    """The array − 1 (an array also where NumPy would give a number)."""
    return np.asarray(array - 1)


def laid_out(array, data):
    """The array in some memory layout: transposed, sliced, or as it is."""
    how = data.draw(st.sampled_from(["plain", "transposed", "sliced"]))
    if how == "transposed":
        order = data.draw(st.permutations(range(array.ndim)))
        return np.array(array.transpose(order), order="C").transpose(np.argsort(order).tolist())
    if how == "sliced" and array.ndim:
        big = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1))
        big[..., 1::2][...] = array
        return big[..., 1::2]
    return array


@quick
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4, min_side=0),
       st.data())
def test_broadcasting_and_its_gradient(drawn, data):
    (sa, sb), shape = drawn.input_shapes, drawn.result_shape
    a, b = laid_out(counted(sa), data), laid_out(less_one(counted(sb)), data)
    x, y = torch.from_numpy(a).requires_grad_(), torch.from_numpy(b).requires_grad_()
    out = x * y
    assert tuple(out.shape) == shape == tuple(torch.broadcast_shapes(sa, sb))
    np.testing.assert_array_equal(out.detach().numpy(), a * b)
    out.sum().backward()
    for t, other in ((x, b), (y, a)):
        full = np.broadcast_to(other, shape)
        lead = full.ndim - t.ndim
        axes = tuple(range(lead)) + tuple(
            lead + i for i, n in enumerate(t.shape) if n == 1 and shape[lead + i] != 1)
        want = full.sum(axes, keepdims=True).reshape(t.shape)
        np.testing.assert_array_equal(t.grad.numpy(), want)


@quick
@given(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 3, 2), max_dims=3), st.data())
def test_expand(drawn, data):
    (shape,) = drawn.input_shapes
    a = laid_out(counted(shape), data)
    x = torch.from_numpy(a).requires_grad_()
    wide = x.expand(drawn.result_shape)
    np.testing.assert_array_equal(wide.detach().numpy(), np.broadcast_to(a, drawn.result_shape))
    (wide * 2).sum().backward()
    count = math.prod(drawn.result_shape) / max(a.size, 1)
    np.testing.assert_array_equal(x.grad.numpy(), np.full(shape, 2 * count))


@quick
@given(shapes, st.data())
def test_chains_of_views_share_memory_and_carry_gradients(shape, data):
    a = counted(shape)
    leaf = torch.from_numpy(a.copy()).requires_grad_()
    x, root = leaf * 1, np.asarray(a + 1)
    x += 1
    touched = np.ones(shape)  # what the view shows is multiplied by 3, and so is its gradient
    view, expected, mark = x, root, touched
    for _ in range(data.draw(st.integers(1, 4))):
        view, same = one_view(view, expected, data)
        expected, mark = same(expected), same(mark)
    np.testing.assert_array_equal(view.detach().numpy(), expected)
    assert view.numel() == 0 or np.may_share_memory(view.detach().numpy(), x.detach().numpy())
    view.mul_(3.0)
    expected *= 3
    mark *= 3
    np.testing.assert_array_equal(x.detach().numpy(), root)
    x.sum().backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), touched)


def one_view(view, a, data):
    """(a view of the tensor, the function that makes the same view of an array)."""
    kinds = ["permute", "unsqueeze", "flatten"]
    if a.ndim:
        kinds += ["slice", "transpose", "narrow", "select"]
    kind = data.draw(st.sampled_from(kinds))
    dim = data.draw(st.integers(0, a.ndim - 1)) if a.ndim else 0
    if kind == "permute":
        order = data.draw(st.permutations(range(a.ndim)))
        return view.permute(*order) if order else view, lambda b: b.transpose(order)
    if kind == "unsqueeze":
        at = data.draw(st.integers(0, a.ndim))
        return view.unsqueeze(at), lambda b: np.expand_dims(b, at)
    if kind == "flatten":
        if not a.flags.c_contiguous or not a.ndim:
            return view, lambda b: b
        return view.view(a.size), lambda b: b.reshape(a.size)
    n = a.shape[dim]
    if kind == "transpose":
        other = data.draw(st.integers(0, a.ndim - 1))
        return view.transpose(dim, other), lambda b: b.swapaxes(dim, other)
    lead = (slice(None),) * dim
    if kind == "slice":
        bounds = st.integers(-n - 1, n + 1)
        s = slice(data.draw(bounds), data.draw(bounds), data.draw(st.integers(1, 3)))
        return view[(*lead, s)], lambda b: b[(*lead, s)]
    if kind == "narrow" or n == 0:
        start = data.draw(st.integers(0, n))
        end = start + data.draw(st.integers(0, n - start))
        return view.narrow(dim, start, end - start), lambda b: b[(*lead, slice(start, end))]
    i = data.draw(st.integers(-n, n - 1))
    return view.select(dim, i), lambda b: b[(*lead, i, Ellipsis)]


@quick
@given(solid, st.data())
def test_basic_indices(shape, data):
    a = counted(shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, slice) and (i.step or 1) < 0 for i in items):
        with pytest.raises(ValueError, match="step"):
            torch.from_numpy(a)[index]
        return
    x = torch.from_numpy(a.copy())
    np.testing.assert_array_equal(x[index].numpy(), a[index])
    x[index] = -1.0
    a[index] = -1.0
    np.testing.assert_array_equal(x.numpy(), a)


@quick
@given(solid, st.data())
def test_integer_array_indices(shape, data):
    a = counted(shape)
    index = data.draw(hnp.integer_array_indices(shape))
    x = torch.from_numpy(a.copy()).requires_grad_()
    got = x[tuple(map(torch.from_numpy, index))]
    np.testing.assert_array_equal(got.detach().numpy(), a[index])
    got.sum().backward()
    counts = np.zeros(shape)
    np.add.at(counts, index, 1)
    np.testing.assert_array_equal(x.grad.numpy(), counts)


@quick
@given(shapes, st.data())
def test_masks(shape, data):
    a = counted(shape)
    mask = data.draw(hnp.arrays(bool, shape))
    x = torch.from_numpy(a.copy()).requires_grad_()
    got = x[torch.from_numpy(mask)]
    np.testing.assert_array_equal(got.detach().numpy(), a[mask])
    got.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), mask.astype(float))
    np.testing.assert_array_equal(torch.from_numpy(mask).nonzero().numpy(), np.argwhere(mask))


@quick
@given(shapes, st.data())
def test_reshape_and_view(shape, data):
    a = laid_out(counted(shape), data)
    other = data.draw(st.permutations(shape))
    x = torch.from_numpy(a)
    np.testing.assert_array_equal(x.reshape(tuple(other)).numpy(), a.reshape(other))
    if a.flags.c_contiguous:
        assert np.may_share_memory(x.view(tuple(other)).numpy(), a) or a.size == 0


@quick
@given(solid, st.data())
def test_einsum_of_drawn_equations(shape, data):
    letters = "abcd"[: len(shape)]
    sizes = dict(zip(letters, shape))
    terms = [data.draw(st.permutations(letters)).copy()[: data.draw(st.integers(0, len(letters)))]
             for _ in range(data.draw(st.integers(1, 3)))]
    used = sorted({c for t in terms for c in t})
    output = data.draw(st.permutations(used))[: data.draw(st.integers(0, len(used)))]
    equation = ",".join("".join(t) for t in terms) + "->" + "".join(output)
    arrays = [less_one(counted(tuple(sizes[c] for c in t))) for t in terms]
    got = torch.einsum(equation, *map(torch.from_numpy, arrays))
    np.testing.assert_allclose(got.numpy(), np.einsum(equation, *arrays), rtol=1e-12)


# ---------------------------------------------------------------- rules of views
def test_writing_into_an_expanded_tensor_is_refused():
    x = torch.zeros(3, 1).expand(3, 4)
    with pytest.raises(RuntimeError, match="single memory location"):
        x.add_(1)
    with pytest.raises(RuntimeError, match="single memory location"):
        x[:, 1:] = 2.0
    x[:, 0].add_(1)  # a part that repeats nothing
    assert x.tolist() == [[1.0] * 4] * 3


def test_writing_into_a_strided_window_reaches_the_base_and_its_gradient():
    leaf = torch.arange(12.0).reshape(3, 4).requires_grad_()
    x = leaf * 1
    x.as_strided((3,), (5,)).mul_(10)
    x.unfold(1, 2, 2)[1, 0].zero_()
    (x.sum()).backward()
    assert leaf.grad.tolist() == [[10, 1, 1, 1], [0, 0, 1, 1], [1, 1, 10, 1]]


def test_bytes_of_another_type_are_shared():
    x = torch.ones(2, 4)
    bits = x.view(torch.int32)
    bits[0] = 0
    assert x.tolist() == [[0.0] * 4, [1.0] * 4]
    assert tuple(x.view(torch.uint8).shape) == (2, 16)
    with pytest.raises(RuntimeError, match="divisible"):
        x.view(torch.uint8)[:, :6].view(torch.float64)


def test_changing_a_tensors_own_shape():
    x = torch.arange(6.0).reshape(2, 3)
    y = x.t()
    assert x.unsqueeze_(0) is x and tuple(x.shape) == (1, 2, 3)
    x.squeeze_().transpose_(0, 1)
    assert tuple(x.shape) == (3, 2) and x.stride() == (1, 3)
    x[0, 0] = 9.0
    assert y[0, 0].item() == 9.0
    with pytest.raises(RuntimeError, match="resize"):
        torch.ones(2, requires_grad=True).resize_(3)
    with pytest.raises(RuntimeError, match="leaf"):
        torch.ones(2, requires_grad=True).unsqueeze_(0)


def test_index_tensors_on_the_saved_path_are_checked():
    x = torch.ones(3, 3, requires_grad=True)
    y = x * 1
    picked = y[torch.tensor([0, 2])]
    y.add_(1)  # indexing keeps no values: this may change
    picked.sum().backward()
    assert x.grad.tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3]
