"""autograd.Function: an exponential that saves its output, a straight-through sign, a matmul with
a bias whose unneeded gradients are skipped, and a function with two outputs."""

import numpy as np
import torch
from torch.autograd import Function, gradcheck


class Exp(Function):
    @staticmethod
    def forward(ctx, x):
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad_output):
        (result,) = ctx.saved_tensors
        return grad_output * result


class SignSTE(Function):
    @staticmethod
    def forward(ctx, x, limit):
        ctx.save_for_backward(x)
        ctx.limit = limit
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= ctx.limit).to(grad_output.dtype), None


class Linear(Function):
    @staticmethod
    def forward(x, w, b):
        return x @ w.t() + b

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _ = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gx = g @ w if ctx.needs_input_grad[0] else None
        gw = g.t() @ x if ctx.needs_input_grad[1] else None
        gb = g.sum(0) if ctx.needs_input_grad[2] else None
        return gx, gw, gb


class Polar(Function):
    @staticmethod
    def forward(ctx, x, y):
        r, angle = torch.hypot(x, y), torch.atan2(y, x)
        ctx.save_for_backward(x, y, r)
        return r, angle

    @staticmethod
    def backward(ctx, gr, ga):
        x, y, r = ctx.saved_tensors
        return gr * x / r - ga * y / r**2, gr * y / r + ga * x / r**2


def main():
    rng = np.random.default_rng(9)
    dtype = torch.get_default_dtype()

    def t(*shape, scale=1.0):
        return torch.tensor(rng.standard_normal(shape) * scale, dtype=dtype, requires_grad=True)

    x, w, b = t(5, 3), t(4, 3), t(4)
    out = []
    for _ in range(5):
        hidden = Linear.apply(x.detach(), w, b)
        loss = (Exp.apply(0.1 * hidden) + SignSTE.apply(hidden, 1.5) * 0.3).square().mean()
        loss.backward()
        out += [loss.item(), w.grad.numpy().copy(), b.grad.numpy().copy()]
        with torch.no_grad():
            w -= 0.2 * w.grad
            b -= 0.2 * b.grad
        w.grad = b.grad = None
    u, v = t(6), t(6)
    r, angle = Polar.apply(u, v)
    (r.sum() + (angle * r.detach()).sum()).backward()
    out += [u.grad.numpy(), v.grad.numpy()]
    second = torch.autograd.grad(Exp.apply(u).sum(), u, create_graph=True)[0]
    out.append(torch.autograd.grad((second * second).sum(), u)[0].numpy())
    check = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert gradcheck(Polar.apply, check) and gradcheck(Exp.apply, check[:1])
    return out


if __name__ == "__main__":
    print(main())
