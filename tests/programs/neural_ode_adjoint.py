"""A neural ODE: the adjoint equations solved backwards inside an autograd.Function, against
backpropagation through the solver."""

import numpy as np
import torch


def velocity(y, w1, w2):
    return torch.tanh(y @ w1) @ w2


def euler(y, params, steps, h):
    for _ in range(steps):
        y = y + h * velocity(y, *params)
    return y


class Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, steps, h, *params):
        path = [y]
        for _ in range(steps):
            path.append(path[-1] + h * velocity(path[-1], *params))
        ctx.save_for_backward(*path[:-1], *params)
        ctx.steps, ctx.h = steps, h
        return path[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, a):
        path, params = ctx.saved_tensors[: ctx.steps], ctx.saved_tensors[ctx.steps :]
        grads = [torch.zeros_like(p) for p in params]
        for y in reversed(path):
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                inside = [p.detach().requires_grad_() for p in params]
                v = velocity(y, *inside)
                dy, *dp = torch.autograd.grad(v, [y, *inside], a)
            a = a + ctx.h * dy
            for g, d in zip(grads, dp):
                g += ctx.h * d
        return a, None, None, *grads


def main():
    rng = np.random.default_rng(32)
    dtype = torch.get_default_dtype()
    w1 = torch.tensor(rng.standard_normal((2, 10)) * 0.5, dtype=dtype, requires_grad=True)
    w2 = torch.tensor(rng.standard_normal((10, 2)) * 0.5, dtype=dtype, requires_grad=True)
    start = torch.tensor(rng.standard_normal((12, 2)), dtype=dtype)
    target = start @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=dtype)
    out = []
    for _ in range(12):
        loss = (Adjoint.apply(start, 10, 0.1, w1, w2) - target).pow(2).mean()
        loss.backward()
        through = (euler(start, (w1, w2), 10, 0.1) - target).pow(2).mean()
        direct = torch.autograd.grad(through, (w1, w2))
        assert torch.allclose(w1.grad, direct[0], rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for p in (w1, w2):
                p.add_(p.grad, alpha=-0.5)
                p.grad.zero_()
        out.append(loss.item())
    return [*out, w1.detach().numpy()]


if __name__ == "__main__":
    print(main())
