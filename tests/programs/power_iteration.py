"""Leading eigenpairs by power iteration and deflation; spectral norm as a regulariser."""

import numpy as np
import torch


def leading(matrix, steps=200):
    v = torch.ones(matrix.shape[0], dtype=matrix.dtype) / matrix.shape[0] ** 0.5
    for _ in range(steps):
        v = matrix @ v
        v = v / torch.linalg.norm(v)
    return torch.dot(v, torch.mv(matrix, v)), v


def main():
    rng = np.random.default_rng(13)
    dtype = torch.get_default_dtype()
    basis = torch.linalg.qr(torch.tensor(rng.standard_normal((6, 6)), dtype=dtype))[0]
    matrix = basis @ torch.diag(torch.tensor([5, 3, 2, 1, 0.5, 0.1], dtype=dtype)) @ basis.mT
    out, rest = [], matrix.clone()
    for _ in range(3):
        value, vector = leading(rest)
        rest -= value * torch.outer(vector, vector)
        out += [value.item(), (vector * vector.sum().sign()).numpy()]
    values, vectors = torch.linalg.eigh(matrix)
    out += [values.flip(0)[:3].numpy(), (vectors.abs().max(dim=0).values).numpy()]

    w = torch.tensor(rng.standard_normal((4, 6)), dtype=dtype, requires_grad=True)
    for _ in range(8):
        u = torch.tensor([1.0, 0.5, -0.3, 0.2], dtype=dtype)
        with torch.no_grad():
            for _ in range(30):
                v = torch.nn.functional.normalize(w.t() @ u, dim=0)
                u = torch.nn.functional.normalize(w @ v, dim=0)
        sigma = u @ w @ v
        loss = (sigma - 1).relu() ** 2
        loss.backward()
        w.data.sub_(w.grad.data, alpha=0.2)
        w.grad.data.zero_()
        out += [sigma.item(), torch.linalg.matrix_norm(w.detach(), ord=2).item()]
    return out


if __name__ == "__main__":
    print(main())
