"""torch.func: per-sample gradients with vmap(grad), ensembles, a Jacobian and a Hessian."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jacrev, vmap


def main():
    rng = np.random.default_rng(49)
    dtype = torch.get_default_dtype()
    params = {"w": torch.tensor(rng.standard_normal((3, 4)), dtype=dtype),
              "b": torch.tensor(rng.standard_normal(3), dtype=dtype)}
    x = torch.tensor(rng.standard_normal((6, 4)), dtype=dtype)
    y = torch.from_numpy(rng.standard_normal((6, 3))).to(dtype)

    def loss(params, x, y):
        out = torch.tanh(F.linear(x, params["w"], params["b"]))
        return ((out - y) ** 2).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    out = [each["w"].numpy(), each["b"].numpy()]
    norms = (each["w"].flatten(1).square().sum(1) + each["b"].square().sum(1)).sqrt()
    clip = (1.0 / norms).clamp(max=1.0)  # as in differentially private SGD
    out += [norms.numpy(), (each["w"] * clip[:, None, None]).mean(0).numpy()]
    total = grad(lambda p: loss(p, x, y))(params)
    out += [(each["w"].sum(0) - total["w"]).abs().max().item() < 1e-4]
    point = torch.tensor([0.3, -0.7], dtype=dtype)

    def curve(t):
        return torch.stack((t[0] ** 2 * t[1], t.sin().sum(), t.prod()))

    out += [jacrev(curve)(point).numpy(),
            hessian(lambda t: (t[0] ** 2 * t[1]).exp())(point).numpy(),
            vmap(lambda a, b: torch.dot(a, b))(x, x.flip(0)).numpy()]
    return out


if __name__ == "__main__":
    print(main())
