"""Hyperparameter gradients: through unrolled steps, and by the implicit function theorem with
conjugate gradients on Hessian-vector products."""

import numpy as np
import torch


def conjugate_gradient(hvp, b, steps=20):
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), torch.dot(r, r)
    for _ in range(steps):
        hp = hvp(p)
        alpha = rr / torch.dot(p, hp)
        x += alpha * p
        r -= alpha * hp
        rr, before = torch.dot(r, r), rr
        if rr.sqrt().item() < 1e-5:
            break
        p = r + rr / before * p
    return x


def main():
    rng = np.random.default_rng(11)
    dtype = torch.get_default_dtype()
    train, valid = (torch.tensor(rng.standard_normal((30, 5)), dtype=dtype) for _ in range(2))
    w_true = torch.arange(1, 6, dtype=dtype) / 3
    y_train = train.mv(w_true) + torch.tensor(rng.standard_normal(30), dtype=dtype)
    y_valid = valid.mv(w_true)
    log_decay = torch.full((5,), -1.0, dtype=dtype, requires_grad=True)

    def inner_loss(w):
        return (train.mv(w) - y_train).square().mean() + (log_decay.exp() * w.square()).sum()

    def outer_loss(w):
        return (valid.mv(w) - y_valid).square().mean()

    w = torch.zeros(5, dtype=dtype, requires_grad=True)
    out = []
    for _ in range(15):  # unrolled
        (g,) = torch.autograd.grad(inner_loss(w), w, create_graph=True)
        w = w - 0.2 * g
    (unrolled,) = torch.autograd.grad(outer_loss(w), log_decay)
    out += [outer_loss(w).item(), unrolled.numpy()]

    w = w.detach().requires_grad_()
    (g,) = torch.autograd.grad(inner_loss(w), w, create_graph=True)

    def hvp(v):
        return torch.autograd.grad(g, w, v, retain_graph=True)[0]

    (outer_grad,) = torch.autograd.grad(outer_loss(w), w)
    v = conjugate_gradient(hvp, outer_grad)
    implicit = -torch.autograd.grad(g, log_decay, v)[0]
    return [*out, v.numpy(), implicit.numpy()]


if __name__ == "__main__":
    print(main())
