"""Function transforms, functional derivatives, checkpointing, hooks and anomaly mode."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest

import disttorch as torch
from disttorch.autograd import functional
from disttorch.autograd.graph import saved_tensors_hooks
from disttorch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from disttorch.utils.checkpoint import CheckpointError, checkpoint, checkpoint_sequential


def vec(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def close(a, b):
    np.testing.assert_allclose(a.detach().numpy(), np.asarray(b), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- torch.func
def test_grad_nests_and_stays_out_of_the_graph():
    third = grad(grad(grad(lambda x: x**4)))
    out = third(vec(2.0)[0])
    assert out.item() == pytest.approx(48)
    assert not out.requires_grad


def test_grad_is_connected_to_what_it_closes_over():
    w = vec(1.0, 2.0, grad=True)
    g = grad(lambda x: (w * x**2).sum())(vec(3.0, 4.0))
    g.sum().backward()
    close(w.grad, [6.0, 8.0])


def test_grad_inside_no_grad_and_of_input_that_requires_grad():
    x = vec(3.0, grad=True)
    with torch.no_grad():
        g = grad(lambda v: (v**2).sum())(x)
    close(g, [6.0])
    g = grad(lambda v: (v**2).sum())(x)
    (h,) = torch.autograd.grad(g.sum(), x)
    close(h, [2.0])
    assert x.grad is None


def test_argnums_nests_and_aux():
    def loss(params, x):
        out = params["w"] * x + params["b"][0]
        return out.sum(), {"out": out}

    params = {"w": vec(2.0, 3.0), "b": (vec(1.0, 1.0),)}
    both = grad_and_value(loss, argnums=(0, 1), has_aux=True)
    (gp, gx), (value, aux) = both(params, vec(5.0, 7.0))
    close(gp["w"], [5.0, 7.0])
    close(gp["b"][0], [1.0, 1.0])
    close(gx, [2.0, 3.0])
    assert value.item() == pytest.approx(33)
    assert not aux["out"].requires_grad
    with pytest.raises(RuntimeError, match="in range"):
        grad(lambda x: x.sum(), argnums=1)(vec(1.0))
    with pytest.raises(RuntimeError, match="scalar"):
        grad(lambda x: x)(vec(1.0, 2.0))


def test_products_with_the_jacobian():
    a = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)

    def f(x):
        return a @ x.sin()

    x, t = vec(0.1, 0.2, 0.3), vec(1.0, -1.0, 2.0)
    jacobian = a.numpy() * np.cos(x.numpy())
    out, pull = vjp(f, x)
    close(out, a.numpy() @ np.sin(x.numpy()))
    close(pull(vec(1.0, 10.0))[0], np.array([1.0, 10.0]) @ jacobian)
    close(pull(vec(1.0, 0.0))[0], jacobian[0])
    close(jvp(f, (x,), (t,))[1], jacobian @ t.numpy())
    close(linearize(f, x)[1](t), jacobian @ t.numpy())
    close(jacrev(f)(x), jacobian)
    close(jacfwd(f)(x), jacobian)
    close(hessian(lambda v: (v**3).sum())(x), np.diag(6 * x.numpy()))
    close(vmap(jacrev(f))(torch.stack([x, x])), np.stack([jacobian, jacobian]))


def test_vmap_dims():
    a = torch.arange(12.0).reshape(3, 4)
    b = torch.arange(4.0)
    close(vmap(torch.dot, in_dims=(0, None))(a, b), a.numpy() @ b.numpy())
    close(vmap(torch.dot, in_dims=(1, 0))(a, torch.ones(4, 3)), a.numpy().sum(0))
    out = vmap(lambda r: (r * 2, {"s": r.sum()}), out_dims=(1, 0))(a)
    close(out[0], (a.numpy() * 2).T)
    close(out[1]["s"], a.numpy().sum(1))
    close(vmap(vmap(lambda v: v * v))(a), a.numpy() ** 2)
    x = a.clone().requires_grad_()
    vmap(lambda r: (r**2).sum())(x).sum().backward()
    close(x.grad, 2 * a.numpy())
    for bad, words in (((a, torch.ones(4)), "same size"), ((torch.tensor(1.0),), "dims")):
        with pytest.raises(ValueError, match=words):
            vmap(lambda *args: args[0])(*bad)


def test_vmap_randomness():
    a = torch.zeros(50, 3)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(lambda r: r + torch.rand(3))(a)
    same = vmap(lambda r: r + torch.rand(3), randomness="same")(a).numpy()
    assert (same == same[0]).all()
    different = vmap(lambda r: r + torch.rand(3), randomness="different")(a).numpy()
    assert not (different == different[0]).all()
    torch.rand(1)  # allowed again


class Affine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.tied = self.weight
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x, scale=1.0):
        return (x * self.weight + self.tied + self.shift) * scale


def test_functional_call():
    m = Affine()
    new = {"weight": torch.full((2,), 3.0, requires_grad=True), "shift": torch.ones(2)}
    out = functional_call(m, new, (torch.ones(2),), {"scale": 2.0})
    close(out, [14.0, 14.0])
    out.sum().backward()
    close(new["weight"].grad, [4.0, 4.0])
    assert m.weight.grad is None and (m.weight == 1).all()
    with pytest.raises(RuntimeError, match="Missing"):
        functional_call(m, new, torch.ones(2), strict=True)
    params, buffers = stack_module_state([Affine(), Affine()])
    assert params["weight"].shape == (2, 2) and buffers["shift"].shape == (2, 2)
    out = vmap(lambda p, b, x: functional_call(m, (p, b), x), in_dims=(0, 0, None))(
        params, buffers, torch.ones(2))
    close(out, np.full((2, 2), 2.0))


# ---------------------------------------------------------------- autograd.functional
def test_functional_against_numpy():
    x, y = vec(1.0, 2.0), vec(3.0)

    def f(a, b):
        return a**2 * b, a.sum() + b

    table = functional.jacobian(f, (x, y))
    close(table[0][0], np.diag(2 * x.numpy() * 3))
    close(table[0][1], (x.numpy() ** 2)[:, None])
    close(table[1][0], [[1.0, 1.0]])
    h = functional.hessian(lambda a, b: (a**2 * b).sum(), (x, y))
    close(h[0][0], np.diag([6.0, 6.0]))
    close(h[0][1], (2 * x.numpy())[:, None])
    close(functional.hvp(lambda a: (a**3).sum(), x, vec(1.0, 1.0))[1], 6 * x.numpy())
    close(functional.vhp(lambda a: (a**3).sum(), x, vec(1.0, 1.0))[1], 6 * x.numpy())
    with pytest.raises(RuntimeError, match="independent"):
        functional.jacobian(lambda a, b: a * 2, (x, y), strict=True)
    with pytest.raises(RuntimeError, match="invalid size"):
        functional.vjp(lambda a: a, x, vec(1.0, 2.0, 3.0))
    with pytest.raises(TypeError, match="must be either a Tensor or a tuple"):
        functional.vjp(lambda a: a, 3)
    w = x.clone().requires_grad_()
    functional.jacobian(lambda a: a**3, w, create_graph=True).sum().backward()
    close(w.grad, 6 * x.numpy())


# ---------------------------------------------------------------- gradcheck
def test_gradcheck_finds_wrong_gradients():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2.01

    class WrongSecond(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 3 * x.detach() ** 2

    x = vec(0.5, 1.5, grad=True)
    with pytest.raises(torch.autograd.GradcheckError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Wrong.apply, (x,))
    assert not torch.autograd.gradcheck(Wrong.apply, (x,), raise_exception=False)
    assert torch.autograd.gradcheck(WrongSecond.apply, (x,))
    with pytest.raises(torch.autograd.GradcheckError):
        torch.autograd.gradgradcheck(WrongSecond.apply, (x,))
    with pytest.raises(ValueError, match="at least one input"):
        torch.autograd.gradcheck(lambda a: a, (vec(1.0),))
    with pytest.warns(UserWarning, match="double precision"):
        torch.autograd.gradcheck(lambda a: a * 2, (torch.ones(1, requires_grad=True),), eps=0.1)


def test_gradcheck_sees_both_parts_of_complex_numbers():
    z = torch.tensor([1 + 2j, -0.5 + 1j], dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: a * a.conj() + a**2, (z,))
    assert torch.autograd.gradcheck(lambda a: (a * (2 + 1j)).abs(), (z,))

    class NoConj(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 1j

        @staticmethod
        def backward(ctx, g):
            return g * 1j

    with pytest.raises(torch.autograd.GradcheckError):
        torch.autograd.gradcheck(NoConj.apply, (z,))


# ---------------------------------------------------------------- checkpointing
def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8),
        torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 4),
    )


def losses(run):
    m = net()
    x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    torch.manual_seed(5)
    (run(m, x) ** 2).sum().backward()
    after = torch.rand(3)
    return [x.grad.numpy(), *(p.grad.numpy() for p in m.parameters()), after.numpy()]


@pytest.mark.parametrize("run", [
    lambda m, x: checkpoint(m, x, use_reentrant=False),
    lambda m, x: checkpoint(m, x, use_reentrant=True),
    lambda m, x: checkpoint_sequential(m, 3, x, use_reentrant=False),
    lambda m, x: checkpoint(lambda y: checkpoint_sequential(m, 2, y, use_reentrant=False), x,
                            use_reentrant=False),
])
def test_checkpoint_changes_no_number(run):
    for a, b in zip(losses(run), losses(lambda m, x: m(x))):
        np.testing.assert_array_equal(a, b)


def test_checkpoint_runs_again_under_the_same_autocast():
    def gradient(run):
        m, x = net(), torch.ones(3, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(m.eval(), x)
        assert y.dtype is torch.bfloat16
        y.float().sum().backward()
        return m[0].weight.grad.numpy()

    np.testing.assert_array_equal(
        gradient(lambda m, x: checkpoint(m, x, use_reentrant=False)), gradient(lambda m, x: m(x))
    )


def test_checkpoint_keeps_nothing_and_runs_twice():
    runs, alive = [], []

    def block(a):
        runs.append(1)
        b = a.exp()
        alive.append(weakref.ref(b._data))
        return (b * b).tanh()

    x = vec(0.1, 0.2, grad=True)
    y = checkpoint(block, x, use_reentrant=False)
    assert len(runs) == 1 and alive[0]() is None
    y.sum().backward(retain_graph=True)
    assert len(runs) == 2
    first = x.grad.clone()
    y.sum().backward()
    assert len(runs) == 3
    close(x.grad, 2 * first.numpy())


def test_checkpoint_second_derivatives():
    x = vec(0.3, 0.7, grad=True)
    assert torch.autograd.gradgradcheck(
        lambda a: checkpoint(lambda b: (b.exp() * b).sin(), a, use_reentrant=False), (x,)
    )


def test_checkpoint_notices_another_second_run():
    calls = []

    def block(a):
        calls.append(1)
        return a.exp() if len(calls) == 1 else a * 2

    y = checkpoint(block, vec(1.0, grad=True), use_reentrant=False)
    with pytest.raises(CheckpointError, match="number of tensors"):
        y.sum().backward()

    def reshaped(a):
        calls.append(1)
        return (a if len(calls) % 2 else a.reshape(1, -1)).exp().sum()

    calls.clear()
    y = checkpoint(reshaped, vec(1.0, 2.0, grad=True), use_reentrant=False)
    with pytest.raises(CheckpointError, match="metadata"):
        y.backward()
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(block, vec(1.0), use_reentrant=False, determinism_check="maybe")


def test_checkpoint_with_inplace_relu_and_no_tensor_argument():
    w = vec(1.0, -2.0, 3.0, grad=True)

    def block(scale):
        return torch.relu_(w * scale)

    (checkpoint(block, 2.0, use_reentrant=False) ** 2).sum().backward()
    close(w.grad, [8.0, 0.0, 24.0])


# ---------------------------------------------------------------- hooks, memory, anomaly
def test_saved_hooks_see_everything_that_is_kept():
    packed = []

    def pack(t):
        packed.append(t.shape)
        return t.numpy().copy()

    m = net()
    with saved_tensors_hooks(pack, torch.from_numpy):
        out = m(torch.ones(3, 4))
    out.sum().backward()
    assert len(packed) >= 8
    want = net()
    torch.manual_seed(0)
    assert all(p.grad is not None for p in m.parameters()) and want is not m


def test_graphs_are_freed_without_the_garbage_collector():
    class F(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            out = a * 2
            ctx.save_for_backward(a, out)
            return out

        @staticmethod
        def backward(ctx, g):
            return g * 2

    gc.disable()
    try:
        x = vec(1.0, grad=True)
        y = F.apply(x).exp()
        seen = weakref.ref(y._data), weakref.ref(y.grad_fn)
        del y
        assert seen[0]() is None and seen[1]() is None
    finally:
        gc.enable()


def test_anomaly_mode_names_the_forward_line():
    x = vec(0.0, grad=True)
    with torch.autograd.set_detect_anomaly(True):
        y = x.sqrt() * 0  # the line to find
        with pytest.raises(RuntimeError, match="the line to find"):
            y.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly(check_nan=False):
            (x.sqrt() * 0).sum().backward()

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 1

        @staticmethod
        def backward(ctx, g):
            raise ValueError("broken")

    with torch.autograd.set_detect_anomaly(True):
        y = Bad.apply(x)  # called here
        with pytest.raises(ValueError, match="broken") as caught:
            y.sum().backward()
    assert any("called here" in note for note in caught.value.__notes__)


def test_forward_mode_of_functions_is_refused_clearly():
    with pytest.raises(NotImplementedError, match="backward"):
        torch.autograd.Function.jvp(None)
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.autograd.Function.vmap(None, None)
