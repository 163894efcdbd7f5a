"""Update rules of the less frequent optimizers; see ``optim_kernels`` for what they share."""

from __future__ import annotations

from .optim_kernels import _blocks, _descent


def adamax_step(
    xp, param, grad, exp_avg, exp_inf, *, step, lr, beta1, beta2, eps, wd=0.0, maximize=False
):
    """Adamax (Kingma & Ba, ICLR 2015, section 7.1); ``step`` counts from 1."""
    rate = lr / (1 - beta1**step)
    for p, m, u, g in _blocks(xp, [param, exp_avg, exp_inf], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        m += (g - m) * (1 - beta1)
        u *= beta2
        xp.maximum(u, xp.abs(g) + eps, out=u)
        p -= m / u * rate


def _moments(g, m, v, beta1, beta2):
    """Running means of the gradient and of its square, in place."""
    m += (g - m) * (1 - beta1)
    v *= beta2
    v += g * g * (1 - beta2)


def nadam_step(
    xp, param, grad, exp_avg, exp_avg_sq, *, step, lr, beta1, beta2, mu, mu_next, mu_product, eps,
    wd=0.0, decoupled=False, maximize=False,
):
    """Adam with Nesterov momentum; ``mu_product`` is the product of all mu so far."""
    correction = 1 - beta2**step
    now, ahead = lr * (1 - mu) / (1 - mu_product), lr * mu_next / (1 - mu_product * mu_next)
    for p, m, v, g in _blocks(xp, [param, exp_avg, exp_avg_sq], [grad]):
        if decoupled and wd:
            p *= 1 - lr * wd
        g = _descent(xp, g, p, 0.0 if decoupled else wd, maximize)
        _moments(g, m, v, beta1, beta2)
        root = xp.sqrt(v / correction)
        root += eps
        p -= g / root * now
        p -= m / root * ahead


def radam_step(
    xp, param, grad, exp_avg, exp_avg_sq, *, step, lr, beta1, beta2, rectification, eps, wd=0.0,
    decoupled=False, maximize=False,
):
    """Rectified Adam; without a ``rectification`` (None) it steps by the mean gradient."""
    correction1, root_correction2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    for p, m, v, g in _blocks(xp, [param, exp_avg, exp_avg_sq], [grad]):
        if decoupled and wd:
            p *= 1 - lr * wd
        g = _descent(xp, g, p, 0.0 if decoupled else wd, maximize)
        _moments(g, m, v, beta1, beta2)
        update = m / correction1
        update *= lr
        if rectification is not None:
            root = xp.sqrt(v)
            root += eps
            update *= root_correction2 / root
            update *= rectification
        p -= update


def adadelta_step(
    xp, param, grad, square_avg, acc_delta, *, lr, rho, eps, wd=0.0, maximize=False
):
    """Adadelta (Zeiler, 2012)."""
    for p, s, d, g in _blocks(xp, [param, square_avg, acc_delta], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        s *= rho
        s += g * g * (1 - rho)
        delta = xp.sqrt(d + eps)
        delta /= xp.sqrt(s + eps)
        delta *= g
        d *= rho
        d += delta * delta * (1 - rho)
        p -= delta * lr


def rprop_step(xp, param, grad, prev, step_size, *, etas, limits, maximize=False):
    """Rprop without weight backtracking: where the sign changes, the gradient counts as 0."""
    minus, plus = etas
    for p, before, size, g in _blocks(xp, [param, prev, step_size], [grad]):
        g = _descent(xp, g, p, 0.0, maximize)
        sign = xp.sign(g * before)
        size *= xp.where(sign > 0, plus, xp.where(sign < 0, minus, 1)).astype(size.dtype)
        xp.clip(size, limits[0], limits[1], out=size)
        g = xp.where(sign < 0, g.dtype.type(0), g)
        p -= xp.sign(g) * size
        before[...] = g


def asgd_step(xp, param, grad, average, *, eta, mu, lambd, wd=0.0, maximize=False):
    """SGD with rate ``eta``, and the running average of the parameters with weight ``mu``."""
    for p, a, g in _blocks(xp, [param, average], [grad]):
        g = _descent(xp, g, p, wd, maximize)
        p *= 1 - lambd * eta
        p -= g * eta
        if mu == 1:
            a[...] = p
        else:
            a += (p - a) * mu
