"""Rotary position embeddings in the real and the complex form, and their relative property."""

import numpy as np
import torch


def tables(length, dim, dtype):
    frequency = 1.0 / (10000 ** (torch.arange(0, dim, 2).to(dtype) / dim))
    angle = torch.outer(torch.arange(length, dtype=dtype), frequency)
    return angle.cos(), angle.sin(), torch.polar(torch.ones_like(angle), angle)


def rotate_real(x, cos, sin):
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotate_complex(x, phase):
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phase).flatten(-2)


def main():
    rng = np.random.default_rng(25)
    dtype = torch.get_default_dtype()
    cos, sin, phase = tables(10, 8, dtype)
    q = torch.tensor(rng.standard_normal((2, 10, 8)), dtype=dtype, requires_grad=True)
    k = torch.tensor(rng.standard_normal((2, 10, 8)), dtype=dtype, requires_grad=True)
    out = []
    for rotate, args in ((rotate_real, (cos, sin)), (rotate_complex, (phase,))):
        scores = torch.einsum("bqd,bkd->bqk", rotate(q, *args), rotate(k, *args))
        gq, gk = torch.autograd.grad(scores.softmax(-1).pow(2).sum(), (q, k))
        out += [scores.detach().numpy(), gq.numpy(), gk.numpy()]
    assert torch.allclose(torch.from_numpy(out[0]), torch.from_numpy(out[3]), atol=1e-5)
    same = q[:1, :1].expand(1, 10, 8)
    relative = rotate_real(same, cos, sin) @ rotate_real(same, cos, sin).mT
    return [*out, torch.diagonal(relative, 2, -2, -1).detach().numpy(), relative.std().item()]


if __name__ == "__main__":
    print(main())
