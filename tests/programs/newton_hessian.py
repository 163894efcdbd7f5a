"""Newton's method for logistic regression with autograd.functional's Hessian and Jacobian."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, hvp, jacobian, jvp, vjp


def main():
    rng = np.random.default_rng(12)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((50, 3)), dtype=dtype)
    y = (x.sum(dim=1) + torch.tensor(rng.standard_normal(50), dtype=dtype) > 0).to(dtype)

    def loss(w):
        return F.binary_cross_entropy_with_logits(x @ w, y) + 0.01 * w.dot(w)

    w = torch.zeros(3, dtype=dtype)
    out = []
    for _ in range(5):
        gradient = jacobian(loss, w)
        matrix = hessian(loss, w)
        w = w - torch.linalg.solve(matrix, gradient)
        out += [loss(w).item(), gradient.norm().item()]
    v = torch.tensor([1.0, -1.0, 0.5], dtype=dtype)
    out += [hvp(loss, w, v)[1].numpy(), (matrix @ v).numpy()]

    def curve(t):
        return torch.stack([t.sin().sum(), (t**3).prod(), t[0] * t[1]])

    out += [jacobian(curve, v).numpy(), jvp(curve, v, torch.ones_like(v))[1].numpy(),
            vjp(curve, v, v)[1].numpy()]
    return [*out, torch.linalg.eigvalsh(matrix).numpy()]


if __name__ == "__main__":
    print(main())
