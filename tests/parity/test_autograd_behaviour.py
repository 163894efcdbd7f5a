"""Small programs run on disttorch and on PyTorch: equal results, gradients, errors and messages.

A program takes the module ``torch`` and returns anything printable; an exception counts as a
result, compared by type and, where the program names key words, by those words in both messages.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

PROGRAMS: dict = {}
KEYWORDS: dict = {}


def program(function=None, *, says=None):
    """Register a program; ``says``: words that both messages hold."""

    def register(f):
        assert f.__name__ not in PROGRAMS
        PROGRAMS[f.__name__] = f
        KEYWORDS[f.__name__] = says
        return f

    return register(function) if function else register


def plain(value):
    """A result without its library: nested lists of numbers and strings."""
    if isinstance(value, (dt.Tensor, torch.Tensor)):
        return (np.asarray(value.detach().numpy()).astype("complex128"), tuple(value.shape),
                str(value.dtype), value.requires_grad)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def run(function, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return plain(function(module)), None
        except Exception as error:
            return None, error


def same(a, b, at="result"):
    if isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=at)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{at}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b), at
    else:
        assert a == b, at


def vec(t, *values, grad=True, dtype=None):
    return t.tensor(list(map(float, values)), requires_grad=grad, dtype=dtype)


def mat(t, rows=3, cols=4, grad=True):
    m = (t.arange(float(rows * cols)).reshape(rows, cols) - 4) / 5
    return m.requires_grad_(grad)


# ---------------------------------------------------------------- leaves, requires_grad, in-place
@program(says="leaf Variable that requires grad")
def leaf_inplace(t):
    vec(t, 1, 2).add_(1)


@program(says="view of a leaf Variable that requires grad")
def leaf_view_inplace(t):
    x = vec(t, 1, 2)
    x[0] = 5.0


@program
def leaf_inplace_under_no_grad(t):
    x = vec(t, 1, 2)
    with t.no_grad():
        x.mul_(3)
        x[0] = 9.0
    (x * x).sum().backward()
    return x, x.grad, x._version


@program(says="you can only change requires_grad flags of leaf")
def change_flag_of_result(t):
    (vec(t, 1) * 2).requires_grad_(False)


@program
def flag_of_result_true_is_fine(t):
    y = (vec(t, 1) * 2).requires_grad_(True)
    return y.requires_grad, y.is_leaf


@program(says="floating point")
def integer_requires_grad(t):
    t.ones(2, dtype=t.int64).requires_grad_()


@program(says="floating point")
def integer_requires_grad_at_birth(t):
    t.tensor([1, 2], requires_grad=True)


@program
def requires_grad_rules(t):
    x, c = vec(t, 1, 2), t.ones(2)
    return [(v.requires_grad, v.is_leaf, v.grad_fn is None) for v in (
        x, c, x * 2, c * 2, x.detach(), x.clone(), x > 0, x.long(), x[0], c[0], x.data,
        x + c, t.ones_like(x), x.argmax(), x.round(), x.sign(), x.new_ones(2))]


@program
def requires_grad_of_modes(t):
    x = vec(t, 1, 2)
    out = []
    with t.no_grad():
        out.append((x * 2).requires_grad)
        with t.enable_grad():
            out.append((x * 2).requires_grad)
        out.append(t.is_grad_enabled())
        out.append(t.ones(1, requires_grad=True).requires_grad)
    with t.set_grad_enabled(False):
        out.append((x * 2).requires_grad)
    t.set_grad_enabled(False)
    out.append((x * 2).requires_grad)
    t.set_grad_enabled(True)
    out.append(t.is_grad_enabled())
    with t.inference_mode():
        y = x * 2
        out += [y.requires_grad, y.is_inference()]
        out += [t.is_inference_mode_enabled(), t.is_grad_enabled()]
    out += [y.is_inference(), x.is_inference()]
    return out


@program
def decorators(t):
    x = vec(t, 1)

    @t.no_grad()
    def f():
        return (x * 2).requires_grad

    @t.no_grad
    def g():
        return (x * 2).requires_grad

    @t.enable_grad()
    def h():
        return (x * 2).requires_grad

    @t.inference_mode()
    def i():
        return (x * 2).is_inference()

    @t.set_grad_enabled(False)
    def j():
        return (x * 2).requires_grad

    @t.no_grad()
    def gen():
        yield (x * 2).requires_grad
        yield t.is_grad_enabled()

    seen = []
    for v in gen():
        seen += [v, t.is_grad_enabled()]
    with t.no_grad():
        seen.append(h())
    return f(), g(), i(), j(), seen, t.is_grad_enabled()


@program(says="Inplace update to inference tensor outside InferenceMode")
def inference_tensor_inplace(t):
    with t.inference_mode():
        y = t.ones(2)
    y.add_(1)


@program(says="Inference tensors cannot be saved for backward")
def inference_tensor_saved(t):
    with t.inference_mode():
        y = t.ones(2)
    vec(t, 1, 2) * y


@program
def inference_tensor_plain_use(t):
    with t.inference_mode():
        y = t.ones(2)
    z = y * 2
    return z, z.is_inference()


# ---------------------------------------------------------------- backward's rules
@program(says="grad can be implicitly created only for scalar outputs")
def non_scalar(t):
    (vec(t, 1, 2) * 2).backward()


@program
def one_element_is_scalar(t):
    x = vec(t, 1, 2)
    (x.sum().reshape(1, 1) * 2).backward()
    return x.grad


@program(says="does not require grad and does not have a grad_fn")
def nothing_requires_grad(t):
    t.ones(1).backward()


@program(says="Trying to backward through the graph a second time")
def second_backward(t):
    y = (vec(t, 1, 2) ** 2).sum()
    y.backward()
    y.backward()


@program
def second_backward_without_saved(t):
    x = vec(t, 1, 2)
    y = (x + 1).sum()
    y.backward()
    y.backward()
    return x.grad


@program
def retain(t):
    x = vec(t, 1, 2)
    y = (x ** 2).sum()
    y.backward(retain_graph=True)
    y.backward()
    return x.grad


@program(says="Mismatch in shape")
def wrong_gradient_shape(t):
    (vec(t, 1, 2) * 2).backward(t.ones(3))


@program
def gradient_argument(t):
    x = vec(t, 1, 2)
    (x * x).backward(t.tensor([1.0, 10.0]))
    return x.grad


@program
def accumulates(t):
    x = vec(t, 1, 2)
    for _ in range(3):
        (x * 2).sum().backward()
    g = x.grad
    (x * 2).sum().backward()
    return x.grad, g is x.grad


@program
def backward_inputs(t):
    x, w = vec(t, 1, 2), vec(t, 3, 4)
    ((x * w).sum()).backward(inputs=[w])
    return x.grad is None, w.grad


@program
def backward_inputs_non_leaf(t):
    x = vec(t, 1, 2)
    y = x * 3
    (y * y).sum().backward(inputs=[y, x])
    return y.grad, x.grad


@program(says="cannot be empty")
def backward_no_inputs(t):
    vec(t, 1).sum().backward(inputs=[])


@program
def several_outputs(t):
    x = vec(t, 1, 2)
    t.autograd.backward([x.sum(), (x * x).sum()])
    return x.grad


@program
def grad_returns(t):
    x, w = vec(t, 1, 2), vec(t, 3, 4)
    gs = t.autograd.grad((x * w).sum(), (x, w))
    return gs, x.grad is None, type(gs).__name__


@program(says="appears to not have been used in the graph")
def grad_unused(t):
    t.autograd.grad(vec(t, 1).sum(), vec(t, 2))


@program
def grad_allow_unused(t):
    x, w = vec(t, 1), vec(t, 2)
    return t.autograd.grad(x.sum(), (x, w), allow_unused=True)


@program
def grad_materialize(t):
    x, w = vec(t, 1), vec(t, 2, 3)
    return t.autograd.grad(x.sum(), (x, w), materialize_grads=True)


@program(says="does not require grad")
def grad_of_constant(t):
    t.autograd.grad(vec(t, 1).sum(), t.ones(1))


@program
def grad_of_intermediate(t):
    x = vec(t, 1, 2)
    y = x * 3
    z = (y ** 2).sum()
    return t.autograd.grad(z, (y, x))


@program
def grad_batched(t):
    x = vec(t, 1, 2)
    y = x ** 2
    return t.autograd.grad(y, x, t.eye(2), is_grads_batched=True)


@program
def repeated_input(t):
    x = vec(t, 1, 2)
    return t.autograd.grad((x * x).sum(), (x, x))


@program
def output_is_input(t):
    x = vec(t, 1, 2)
    return t.autograd.grad(x, x, t.ones(2))


@program
def leaf_backward(t):
    x = vec(t, 3)
    x.backward()
    return x.grad


@program
def shared_subgraph(t):
    x = vec(t, 1, 2)
    y = x.exp()
    z = (y * y + y.sum() * y).sum()
    z.backward()
    return x.grad


@program
def partial_gradient_leaf_seen_late(t):
    x = vec(t, 2, 3)
    y = x
    for _ in range(6):
        y = y * x
    y.sum().backward()
    return x.grad


@program
def set_grad_to_none(t):
    x = vec(t, 1)
    x.sum().backward()
    x.grad = None
    x.sum().backward()
    return x.grad


@program(says="attempting to assign a gradient of size '[3]' to a tensor of size '[1]'")
def wrong_grad_size(t):
    vec(t, 1).grad = t.ones(3)


@program(says="attempting to assign a gradient with dtype")
def wrong_grad_dtype(t):
    vec(t, 1).grad = t.ones(1, dtype=t.float64)


@program
def grad_of_nonleaf_is_none(t):
    y = vec(t, 1) * 2
    y.sum().backward()
    return y.grad


# ---------------------------------------------------------------- higher derivatives
@program
def double_backward(t):
    x = vec(t, 1, 2)
    (g,) = t.autograd.grad((x ** 3).sum(), x, create_graph=True)
    (h,) = t.autograd.grad(g.sum(), x, create_graph=True)
    (k,) = t.autograd.grad(h.sum(), x)
    return g, h, k


@program
def gradient_penalty(t):
    w, x = mat(t), vec(t, 1, -1, 2, 0.5)
    out = (w @ x).tanh().sum()
    (g,) = t.autograd.grad(out, x, create_graph=True)
    ((g.norm() - 1) ** 2).backward()
    return w.grad, x.grad


@program
def create_graph_backward(t):
    x = vec(t, 1, 2)
    (x ** 3).sum().backward(create_graph=True)
    g = x.grad
    (h,) = t.autograd.grad(g.sum(), x)
    return g, h


@program
def maml(t):
    w = vec(t, 0.5, -0.5)
    (g,) = t.autograd.grad((w ** 2).sum() + w.prod(), w, create_graph=True)
    fast = w - 0.1 * g
    (fast ** 3).sum().backward()
    return w.grad


@program
def second_derivative_of_view_chain(t):
    x = mat(t)
    y = x.t()[1:].reshape(-1).view(3, 3).diagonal()
    (g,) = t.autograd.grad((y ** 3).sum(), x, create_graph=True)
    (g ** 2).sum().backward()
    return x.grad


# ---------------------------------------------------------------- versions
@program(says="has been modified by an inplace operation")
def saved_input_changed(t):
    x = vec(t, 1, 2)
    y = x * 2
    z = y * y
    y.add_(1)
    z.sum().backward()


@program(says="has been modified by an inplace operation")
def saved_output_changed(t):
    y = vec(t, 1, 2).exp()
    y.mul_(2)
    z = y.sum()
    y.add_(1)
    x = vec(t, 1, 2)
    e = x.exp()
    s = e.sum()
    e.add_(1)
    z.backward()
    e.sum().backward()
    return s


@program(says="has been modified by an inplace operation")
def saved_changed_through_view(t):
    x = vec(t, 1, 2)
    y = x * 2
    z = y ** 2
    y[0].mul_(3)
    z.sum().backward()


@program(says="has been modified by an inplace operation")
def saved_changed_through_base(t):
    x = mat(t)
    y = x * 2
    v = y[0]
    z = v ** 2
    y.zero_()
    z.sum().backward()


@program(says="has been modified by an inplace operation")
def saved_changed_through_setitem(t):
    x = vec(t, 1, 2)
    y = x * 2
    z = y.sin()
    y[1] = 0
    z.sum().backward()


@program(says="has been modified by an inplace operation")
def saved_changed_under_no_grad(t):
    x, w = vec(t, 1, 2), vec(t, 3, 4)
    z = x * w
    with t.no_grad():
        w.add_(1)
    z.sum().backward()


@program
def change_through_data_is_unseen(t):
    x, w = vec(t, 1, 2), vec(t, 3, 4)
    z = x * w
    w.data.add_(1)
    z.sum().backward()
    return x.grad


@program
def unsaved_changed_is_fine(t):
    x = vec(t, 1, 2)
    y = x * 2
    z = y + 1
    y.add_(1)
    z.sum().backward()
    return x.grad, y


@program
def version_numbers(t):
    x = t.ones(3)
    v = x[1:]
    out = [x._version]
    x.add_(1)
    out += [x._version, v._version]
    v.zero_()
    out += [x._version, v._version]
    x[0] = 1
    out += [x._version, x.detach()._version, x.clone()._version]
    return out


# ---------------------------------------------------------------- in-place and views
@program
def inplace_chain(t):
    x = vec(t, 1, 2)
    y = x.clone()
    y.mul_(x).add_(3).sub_(x * 2).div_(2)
    y.sum().backward()
    return y, x.grad


@program
def inplace_with_self(t):
    x = vec(t, 1, 2)
    y = x.clone()
    y.add_(y)
    y.sum().backward()
    return x.grad


@program(says="has been modified by an inplace operation")
def inplace_output_overwritten(t):
    y = vec(t, 0.5, 2) * 1
    y.exp_().tanh_().sigmoid_()
    y.sum().backward()


@program
def inplace_unary(t):
    x = vec(t, 0.5, 2)
    y = x * 1
    y.neg_().abs_().add_(1).mul_(3).tanh_()
    y.sum().backward()
    return y, x.grad


@program
def inplace_on_base_after_view(t):
    x = mat(t)
    y = x * 1
    v = y[1]
    y.mul_(2)
    (v * v).sum().backward()
    return v, x.grad, v.grad_fn is not None


@program
def inplace_on_view(t):
    x = mat(t)
    y = x * 1
    y[1].mul_(x[0])
    (y * y).sum().backward()
    return y, x.grad


@program
def inplace_on_view_of_view(t):
    x = mat(t)
    y = x * 1
    y.t()[1:][:, 1:].mul_(3)
    y[0][1:].add_(x[1][:3])
    (y ** 2).sum().backward()
    return y, x.grad


@program
def inplace_on_sibling_view(t):
    x = mat(t)
    y = x * 1
    a, b = y[0], y[:, 0]
    a.mul_(b.sum())
    (b * b).sum().backward()
    return a, b, x.grad


@program
def view_reads_after_two_writes(t):
    x = mat(t)
    y = x * 1
    v = y.view(-1)
    y[0].zero_()
    v[4:8].mul_(2)
    (v ** 2).sum().backward()
    return v, x.grad


@program
def base_has_no_grad_but_view_gets_it(t):
    base = t.zeros(3, 4)
    w = vec(t, 1, 2, 3, 4)
    base[1] = w * 2
    base[2].copy_(w)
    base[0].add_(w)
    base.sum().backward()
    return base.requires_grad, base.detach(), w.grad


@program
def buffer_filled_in_a_loop(t):
    w = vec(t, 1, 2, 3)
    out = t.zeros(3, 3)
    for i in range(3):
        out[i] = w * (i + 1)
    (out ** 2).sum().backward()
    return w.grad


@program
def setitem_forms(t):
    x, w = mat(t), vec(t, 7, 8)
    y = x * 1
    y[0, 1] = 5
    y[1, :2] = w
    y[:, 3] = w[0]
    y[t.tensor([0, 2]), t.tensor([0, 1])] = w * 2
    y[y > 1.2] = 0
    y[..., 2:3] = w[1]
    (y ** 2).sum().backward()
    return y, x.grad, w.grad


@program
def setitem_mask_tensor(t):
    x, w = mat(t), vec(t, *range(12))
    y = x * 1
    m = x.detach() > 0
    y[m] = w[: int(m.sum())]
    (y ** 2).sum().backward()
    return x.grad, w.grad


@program
def copy_broadcast(t):
    x, w = mat(t), vec(t, 1, 2, 3, 4)
    y = x * 1
    y.copy_(w)
    (y ** 2).sum().backward()
    return x.grad, w.grad


@program
def copy_casts(t):
    w = t.tensor([1.0, 2.0], dtype=t.float64, requires_grad=True)
    y = t.zeros(2)
    y.copy_(w)
    (y ** 2).sum().backward()
    return y, w.grad


@program
def zero_and_fill(t):
    x = mat(t)
    y = x * 1
    y[0].zero_()
    y[1].fill_(3)
    (y ** 2).sum().backward()
    return x.grad


@program
def masked_and_index(t):
    x, w = mat(t), vec(t, 1, 2, 3, 4)
    y = x * 1
    y.masked_fill_(x.detach() > 0, 2.0)
    y.index_add_(0, t.tensor([0, 0]), t.stack([w, w * 2]))
    (y ** 2).sum().backward()
    return y, x.grad, w.grad


@program(says="is a view and is being modified")
def unbind_inplace(t):
    y = mat(t) * 1
    y.unbind(0)[0].add_(1)


@program(says="is a view and is being modified")
def split_inplace(t):
    y = mat(t) * 1
    y.split(1)[0].add_(1)


@program(says="is a view and is being modified")
def chunk_inplace(t):
    y = mat(t) * 1
    y.chunk(3)[0].add_(1)


@program
def split_of_constant_inplace(t):
    y = mat(t, grad=False)
    y.split(1)[0].add_(1)
    y.unbind(1)[2].zero_()
    return y


@program(says="A view was created in no_grad mode")
def no_grad_view_inplace(t):
    y = mat(t) * 1
    with t.no_grad():
        v = y[0]
    v.add_(1)


@program
def no_grad_view_of_constant(t):
    w = vec(t, 1, 2, 3, 4)
    b = t.zeros(3, 4)
    v = b[1]
    with t.no_grad():
        u = b[0]
        u.add_(1)
    v.add_(w)
    b.sum().backward()
    return b, w.grad


@program(says="more than one element of the written-to tensor refers to a single memory")
def expanded_inplace(t):
    t.ones(1).expand(3).add_(1)


@program
def detach_shares(t):
    x = vec(t, 1, 2)
    d = x.detach()
    d[0] = 7
    return x, d.requires_grad, x._version, d._version


@program(says="Can't detach views")
def detach_view_inplace(t):
    (mat(t) * 1)[0].detach_()


@program
def detach_inplace(t):
    y = vec(t, 1, 2) * 2
    y.detach_()
    return y.requires_grad, y.is_leaf


@program(says="doesn't match the broadcast shape")
def inplace_broadcast(t):
    t.ones(2).add_(t.ones(3, 2))


@program(says="can't be cast to the desired output type")
def inplace_cast(t):
    t.ones(2, dtype=t.int64).add_(1.5)


@program(says="don't support automatic differentiation")
def out_with_grad(t):
    t.add(vec(t, 1), 1, out=t.empty(1))


@program
def narrow_select_diagonal_inplace(t):
    x = mat(t, 4, 4)
    y = x * 1
    y.diagonal().mul_(2)
    y.narrow(0, 1, 2).add_(1)
    y.select(1, 3).zero_()
    y.unsqueeze(0).squeeze(0).mul_(x)
    (y ** 2).sum().backward()
    return y, x.grad


@program
def reshape_view_inplace(t):
    x = mat(t)
    y = x * 1
    y.view(2, 6)[0].mul_(2)
    y.reshape(-1)[-3:].add_(x[0, :3])
    y.flatten()[5] = 0
    (y ** 2).sum().backward()
    return y, x.grad


@program
def permuted_inplace(t):
    x = t.arange(24.0).reshape(2, 3, 4).requires_grad_()
    y = x * 1
    y.permute(2, 0, 1)[1:3].mul_(3)
    y.transpose(0, 2)[0, 1].copy_(t.ones(2))
    (y ** 2).sum().backward()
    return x.grad


@program
def relu_inplace_in_net(t):
    w, x = mat(t), vec(t, 1, -2, 3, 0.5)
    h = w @ x
    t.relu_(h)
    (h ** 2).sum().backward()
    return w.grad, x.grad


@program
def grad_changed_in_place(t):
    x = vec(t, 1, 2)
    (x ** 2).sum().backward()
    x.grad.mul_(0.5)
    x.grad.zero_()
    (x ** 2).sum().backward()
    return x.grad


@program
def clone_of_view_is_independent(t):
    x = mat(t)
    y = x * 1
    c = y[0].clone()
    y[0].zero_()
    (c.sum() + y.sum()).backward()
    return x.grad


@program
def inplace_then_double_backward(t):
    x = vec(t, 1, 2)
    y = x * 1
    y.mul_(x).add_(x ** 2)
    y[0].mul_(x[1])
    (g,) = t.autograd.grad((y ** 2).sum(), x, create_graph=True)
    g.sum().backward()
    return g, x.grad


@program
def swap_rows(t):
    x = mat(t)
    y = x * 1
    y[[0, 1]] = y[[1, 0]]
    (y * t.arange(12.0).reshape(3, 4)).sum().backward()
    return y, x.grad


@program
def augmented_setitem(t):
    x = mat(t)
    y = x * 1
    y[0] += x[1]
    y[1:, 1] *= 2
    y[:, t.tensor([0, 3])] -= 1
    (y ** 2).sum().backward()
    return y, x.grad


# ---------------------------------------------------------------- hooks
@program
def hook_changes_gradient(t):
    x = vec(t, 1, 2)
    y = x * 2
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    y.sum().backward()
    return x.grad


@program
def hook_order(t):
    x, order = vec(t, 1, 2), []
    y = x * 2
    y.register_hook(lambda g: order.append("y1"))
    x.register_hook(lambda g: order.append("x1"))
    x.register_hook(lambda g: order.append("x2"))
    x.register_post_accumulate_grad_hook(lambda p: order.append(f"acc {p.grad.tolist()}"))
    y.register_hook(lambda g: order.append("y2"))
    y.sum().backward()
    return order


@program
def hook_removed(t):
    x = vec(t, 1)
    h = x.register_hook(lambda g: g * 5)
    h.remove()
    x.sum().backward()
    return x.grad


@program
def hook_sees_whole_gradient(t):
    x, seen = vec(t, 1, 2), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y.sum() + (y * y).sum()).backward()
    return seen


@program(says="doesn't require gradient")
def hook_on_constant(t):
    t.ones(1).register_hook(lambda g: g)


@program
def hook_with_autograd_grad(t):
    x = vec(t, 1)
    x.register_hook(lambda g: g * 3)
    return t.autograd.grad((x * 2).sum(), x)


@program
def hook_on_intermediate_with_create_graph(t):
    x = vec(t, 2)
    y = x ** 2
    y.register_hook(lambda g: g * x)
    (g,) = t.autograd.grad((y ** 2).sum(), x, create_graph=True)
    (h,) = t.autograd.grad(g, x)
    return g, h


@program
def retain_grad(t):
    x = vec(t, 1, 2)
    y = x * 2
    y.retain_grad()
    y.retain_grad()
    (y ** 2).sum().backward()
    return y.grad, y.retains_grad, x.retains_grad


@program
def retain_grad_after_hook(t):
    y = vec(t, 1, 2) * 2
    y.register_hook(lambda g: g * 10)
    y.retain_grad()
    y.sum().backward()
    return y.grad


@program(says="can't retain_grad on Tensor that has requires_grad=False")
def retain_grad_of_constant(t):
    t.ones(1).retain_grad()


@program
def retain_grad_then_inplace(t):
    x = vec(t, 1, 2)
    y = x * 2
    y.retain_grad()
    y.mul_(3)
    y.sum().backward()
    return y.grad, x.grad


@program(says="post accumulate grad hooks cannot be registered on non-leaf")
def post_hook_on_result(t):
    (vec(t, 1) * 1).register_post_accumulate_grad_hook(print)


@program
def optimizer_in_backward(t):
    x = vec(t, 1, 2)

    def step(p):
        with t.no_grad():
            p.sub_(p.grad)
        p.grad = None

    x.register_post_accumulate_grad_hook(step)
    (x ** 2).sum().backward()
    return x, x.grad


@program
def node_hooks(t):
    x, seen = vec(t, 1, 2), []
    y = x * 3
    y.grad_fn.register_prehook(lambda gs: seen.append(("pre", gs[0].tolist())))
    y.grad_fn.register_hook(lambda gi, go: seen.append(("post", gi[0].tolist(), go[0].tolist())))
    y.sum().backward()
    return seen


@program
def node_names(t):
    x, w = vec(t, 1, 2), mat(t, 2, 2)
    # others (mv and mm, t and transpose, select and slice) are one operation here
    values = [x * 2, x + 1, x - x, x / 2, x.exp(), x.sum(), x.mean(), w.transpose(0, 1), x[1:],
              x.sigmoid(), x.tanh(), x.relu(), x ** 2, x.view(2, 1), x.log(), x.sqrt(), -x,
              x.abs(), x.unsqueeze(0), x.clone(), w.permute(1, 0), x.expand(3, 2),
              t.cat([x, x]), t.stack([x, x]), x.prod(), x.std(), x.softmax(0),
              x.cumsum(0)]
    return [(v.grad_fn.name(), type(v.grad_fn).__name__) for v in values]


@program
def next_functions(t):
    x, c = vec(t, 1, 2), t.ones(2)
    y = x * c
    n = y.grad_fn.next_functions
    z = (y + x).grad_fn.next_functions
    return [(f is None or type(f).__name__, i) for f, i in (*n, *z)], n[0][0].variable is x


@program
def accumulate_grad_node(t):
    x, seen = vec(t, 1, 2), []
    acc = x.expand_as(x).grad_fn.next_functions[0][0]
    acc.register_hook(lambda *a: seen.append(x.grad.tolist()))
    (x * 2).sum().backward()
    return seen, type(acc).__name__


@program
def node_metadata(t):
    y = vec(t, 1) * 2
    y.grad_fn.metadata["k"] = 3
    return y.grad_fn.metadata


@program
def multi_grad_hook(t):
    x, w, seen = vec(t, 1, 2), vec(t, 3, 4), []
    h = t.autograd.graph.register_multi_grad_hook(
        (x, w), lambda gs: seen.append([None if g is None else g.tolist() for g in gs]))
    y = x * w
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    (x * 2).sum().backward()
    h.remove()
    (x * w).sum().backward()
    return seen


@program
def multi_grad_hook_any(t):
    x, w, seen = vec(t, 1, 2), vec(t, 3, 4), []
    t.autograd.graph.register_multi_grad_hook((x, w), lambda g: seen.append(1), mode="any")
    (x * w).sum().backward()
    (x * w).sum().backward()
    return seen


# ---------------------------------------------------------------- saved tensors' hooks, anomaly
@program
def saved_hooks_values(t):
    x, seen = vec(t, 1, 2), []

    def pack(v):
        seen.append(v.tolist())
        return v * 2

    with t.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        y = x.exp()
        z = y * x
    z.sum().backward()
    return seen, x.grad


@program
def saved_hooks_double_backward(t):
    x = vec(t, 1, 2)
    with t.autograd.graph.saved_tensors_hooks(lambda v: v.numpy().copy(), t.from_numpy):
        y = (x * 2).exp() * x
        (g,) = t.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = t.autograd.grad(g.sum(), x)
    return g, h


@program
def save_on_cpu(t):
    x = vec(t, 1, 2)
    with t.autograd.graph.save_on_cpu():
        y = (x * x).sin()
    y.sum().backward()
    return x.grad


@program(says="no hooks here")
def hooks_disabled(t):
    with (t.autograd.graph.disable_saved_tensors_hooks("no hooks here"),
          t.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v)):
        pass


@program(says="pack hook is modifying its input in place")
def pack_hook_changes(t):
    with t.autograd.graph.saved_tensors_hooks(lambda v: v.add_(1), lambda v: v):
        vec(t, 1, 2).exp()


@program(says="expected to be a Tensor")
def unpack_hook_returns_nonsense(t):
    with t.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: 3):
        y = vec(t, 1, 2).exp()
    y.sum().backward()


@program(says="returned nan values in its 0th output")
def anomaly_nan(t):
    x = vec(t, 0, 1)
    with t.autograd.set_detect_anomaly(True):
        (x.sqrt() * 0).sum().backward()


@program
def anomaly_state(t):
    out = [t.is_anomaly_enabled()]
    with t.autograd.detect_anomaly(check_nan=False):
        out += [t.is_anomaly_enabled(), t.is_anomaly_check_nan_enabled()]
    t.autograd.set_detect_anomaly(True)
    out.append(t.is_anomaly_enabled())
    t.autograd.set_detect_anomaly(False)
    return [*out, t.is_anomaly_enabled()]


# ---------------------------------------------------------------- Function
def scale_function(t, **extra):
    class Scale(t.autograd.Function):
        @staticmethod
        def forward(ctx, x, k):
            ctx.k = k
            ctx.save_for_backward(x)
            return x * k

        @staticmethod
        def backward(ctx, g):
            return g * ctx.k, None

    return Scale


@program
def function_basic(t):
    x = vec(t, 1, 2)
    y = scale_function(t).apply(x, 3)
    y.sum().backward()
    return y, x.grad, y.grad_fn.name(), type(y.grad_fn).__name__, y.grad_fn.k


@program
def function_setup_context(t):
    class Square(t.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs, output)

        @staticmethod
        def backward(ctx, g):
            x, out = ctx.saved_tensors
            return g * 2 * x + 0 * out

    x = vec(t, 1, 2)
    (g,) = t.autograd.grad(Square.apply(x).sum(), x, create_graph=True)
    (h,) = t.autograd.grad((g ** 2).sum(), x)
    return g, h


@program(says="incorrect number of gradients")
def function_wrong_count(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a * b

        @staticmethod
        def backward(ctx, g):
            return g

    F.apply(vec(t, 1), vec(t, 2)).sum().backward()


@program(says="returned an invalid gradient at index 0")
def function_wrong_shape(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return t.ones(5)

    F.apply(vec(t, 1, 2)).sum().backward()


@program
def function_non_differentiable(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            v, i = x.sort()
            ctx.mark_non_differentiable(i)
            ctx.save_for_backward(i)
            return v, i

        @staticmethod
        def backward(ctx, g, gi):
            (i,) = ctx.saved_tensors
            return t.zeros(len(i)).scatter(0, i, g)

    x = vec(t, 3, 1, 2)
    v, i = F.apply(x)
    (v * t.arange(3.0)).sum().backward()
    return v, i, x.grad


@program
def function_dirty(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            x.add_(5)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 7

    x = vec(t, 1, 2)
    y = x * 1
    z = F.apply(y)
    z.sum().backward()
    return z is y, y, x.grad


@program(says="leaf Variable that requires grad")
def function_dirty_leaf(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.add_(5)

        @staticmethod
        def backward(ctx, g):
            return g

    F.apply(vec(t, 1, 2))


@program
def function_materialize(t):
    seen = []

    def make(flag):
        class F(t.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.set_materialize_grads(flag)
                return x * 1, x * 2

            @staticmethod
            def backward(ctx, a, b):
                seen.append((a is None, None if b is None else b.tolist()))
                return None if b is None else b

        return F

    for flag in (True, False):
        x = vec(t, 1, 2)
        make(flag).apply(x)[1].sum().backward()
        seen.append(x.grad.tolist())
        a, _ = make(flag).apply(x)
        a.sum().backward()
        seen.append(x.grad.tolist())
    return seen


@program
def function_needs_input_grad(t):
    seen = []

    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a, b, c):
            seen.append(ctx.needs_input_grad)
            return a * b

        @staticmethod
        def backward(ctx, g):
            seen.append(ctx.needs_input_grad)
            return g, g, None

    F.apply(vec(t, 1), t.ones(1), 5).sum().backward()
    return seen


@program
def function_returns_input(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = vec(t, 1)
    y = F.apply(x)
    y.sum().backward()
    return x.grad, y is x, y.grad_fn is not None


@program
def function_other_outputs(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2, "text", 3, None

        @staticmethod
        def backward(ctx, g, *rest):
            return g * 2

    x = vec(t, 1)
    y = F.apply(x)
    y[0].sum().backward()
    return y[1:], x.grad


@program(says="differentiate twice")
def function_once_with_graph(t):
    function_once(t, vec(t, 3))


@program(says="does not require grad and does not have a grad_fn")
def function_once(t, seed=None):
    from importlib import import_module

    once = import_module(t.__name__ + ".autograd.function").once_differentiable

    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return a ** 2

        @staticmethod
        @once
        def backward(ctx, g):
            return g * 2 * ctx.saved_tensors[0]

    x = vec(t, 1)
    (g,) = t.autograd.grad(F.apply(x), x, seed, create_graph=True)
    g.sum().backward()


@program(says="Trying to backward through the graph a second time")
def function_freed(t):
    y = scale_function(t).apply(vec(t, 1), 2)

    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0] * g

    y = F.apply(vec(t, 1)).sum()
    y.backward()
    y.backward()


@program(says="has been modified by an inplace operation")
def function_saved_changed(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0] * g

    a = vec(t, 1) * 1
    y = F.apply(a).sum()
    a.add_(1)
    y.backward()


@program(says="save_for_backward can only save variables")
def function_saves_number(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a, 3)
            return a

    F.apply(vec(t, 1))


@program
def function_under_no_grad(t):
    x = vec(t, 1)
    with t.no_grad():
        y = scale_function(t).apply(x, 2)
    z = scale_function(t).apply(t.ones(1), 2)
    return y.requires_grad, z.requires_grad, y.grad_fn, z


@program(says="forward function")
def function_without_forward(t):
    class F(t.autograd.Function):
        pass

    F.apply(vec(t, 1))


@program(says="backward")
def function_without_backward(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

    F.apply(vec(t, 1)).sum().backward()


@program(says="boom")
def function_raises_in_backward(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            raise ValueError("boom")

    F.apply(vec(t, 1)).sum().backward()


@program
def function_saves_none_and_intermediate(t):
    class F(t.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            mid = a.exp()
            ctx.save_for_backward(mid, None)
            return mid.sum()

        @staticmethod
        def backward(ctx, g):
            mid, nothing = ctx.saved_tensors
            assert nothing is None
            return g * mid

    x = vec(t, 1, 2)
    F.apply(x).backward()
    return x.grad


# ---------------------------------------------------------------- the rest
@program
def pickle_and_copy(t):
    import copy
    import pickle

    x = vec(t, 1, 2)
    x.note = "kept"
    (x ** 2).sum().backward()
    d, p, c = copy.deepcopy(x), pickle.loads(pickle.dumps(x)), copy.copy(x)
    return [(v, v.is_leaf, None if v.grad is None else v.grad, getattr(v, "note", None))
            for v in (d, p, c)]


@program(says="created explicitly by the user")
def deepcopy_of_result(t):
    import copy

    copy.deepcopy(vec(t, 1) * 2)


@program(says="Can't call numpy() on Tensor that requires grad")
def numpy_of_requires_grad(t):
    vec(t, 1).numpy()


@program
def data_setter(t):
    x = vec(t, 1, 2)
    x.data = t.tensor([5.0, 6.0, 7.0])
    (x * x).sum().backward()
    return x, x.grad


@program
def variable(t):
    x = t.autograd.Variable(t.ones(2), requires_grad=True)
    (x * 2).sum().backward()
    return x.grad, isinstance(x, t.Tensor), isinstance(x, t.autograd.Variable)


@program
def deep_graph(t):
    x = vec(t, 1)
    y = x
    for _ in range(3000):
        y = y + 1
    y.sum().backward()
    return x.grad


@program
def complex_gradients(t):
    z = t.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    (z * z.conj()).real.sum().backward()
    return z.grad


@program
def mixed_dtype_gradients(t):
    x, y = vec(t, 1, 2), vec(t, 3, 4, dtype=t.float64)
    (x * y).sum().backward()
    return x.grad, y.grad


@program
def checkpointing(t):
    from importlib import import_module

    checkpoint = import_module(t.__name__ + ".utils.checkpoint").checkpoint
    x, w = vec(t, 1, 2), vec(t, 3, 4)

    def block(a, scale=1.0):
        return (a * w).sin() * scale, a.exp()

    a, b = checkpoint(block, x, use_reentrant=False, scale=2.0)
    c = checkpoint(lambda q: checkpoint(lambda r: (r * w).tanh(), q, use_reentrant=False) * q, a,
                   use_reentrant=False)
    (c.sum() + b.sum()).backward()
    return a, b, c, x.grad, w.grad


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name):
    got, our_error = run(PROGRAMS[name], dt)
    want, their_error = run(PROGRAMS[name], torch)
    if their_error is None:
        if our_error is not None:
            raise our_error
        same(got, want)
        assert KEYWORDS[name] is None, "PyTorch raised nothing"
        return
    assert our_error is not None, f"PyTorch raises {their_error!r}"
    assert isinstance(our_error, type(their_error)), f"{our_error!r} is not {their_error!r}"
    words = KEYWORDS[name]
    assert words, f"name key words of: {their_error}"
    assert words in str(their_error), f"PyTorch says: {their_error}"
    assert words in str(our_error), f"{our_error} does not say: {words}"
