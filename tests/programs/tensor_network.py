"""Matrix product states: contraction by einsum and tensordot, a classifier, a truncated SVD."""

import numpy as np
import torch


def contract(cores, features):
    left = torch.ones(features.size(0), 1, dtype=features.dtype)
    for k, core in enumerate(cores):
        left = torch.einsum("nl,lpr,np->nr", left, core, features[:, k])
    return left


def norm_squared(cores):
    left = torch.ones(1, 1, dtype=cores[0].dtype)
    for core in cores:
        left = torch.einsum("ab,apc,bpd->cd", left, core, core)
    return left.trace()


def full_tensor(cores):
    out = cores[0].squeeze(0)
    for core in cores[1:]:
        out = torch.tensordot(out, core, dims=1)
    return out.squeeze(-1)


def main():
    rng = np.random.default_rng(44)
    dtype = torch.get_default_dtype()
    bonds = [1, 3, 3, 3, 2]
    cores = [torch.tensor(rng.standard_normal((a, 2, b)) * 0.6, dtype=dtype, requires_grad=True)
             for a, b in zip(bonds, bonds[1:])]
    x = torch.tensor(rng.random((30, 4)), dtype=dtype)
    features = torch.stack((torch.cos(x * torch.pi / 2), torch.sin(x * torch.pi / 2)), dim=-1)
    y = (x[:, 0] * x[:, 1] > x[:, 2] * x[:, 3]).long()
    optimizer = torch.optim.Adam(cores, lr=0.03)
    out = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(contract(cores, features), y)
        total = loss + 1e-3 * norm_squared(cores)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        out += [loss.item(), total.item()]
    with torch.no_grad():
        whole = full_tensor(cores)
        assert torch.allclose((whole**2).sum(), norm_squared(cores), rtol=1e-4)
        u, s, v = torch.linalg.svd(whole.reshape(4, -1), full_matrices=False)
        low = (u[:, :2] * s[:2]) @ v[:2]
        entropy = torch.special.entr(s**2 / (s**2).sum()).sum()
        product = torch.kron(torch.eye(2, dtype=dtype), low[:2, :2])
    a, b, c = (torch.tensor(rng.standard_normal((4, 4)), dtype=dtype) for _ in range(3))
    calls = [("ij,jk,kl->il", a, b, c), ("ii->i", a), ("ij,ij->", a, b), ("i,j->ij", a[0], b[0]),
             ("...i,...i->...", a, b), ("bij,bjk->bik", a.view(1, 4, 4), b.view(1, 4, 4))]
    many = [torch.einsum(*call).numpy() for call in calls]
    return [*out, s.numpy(), low.numpy(), entropy.item(), product.numpy(), *many,
            torch.linalg.multi_dot((a, b, c)).numpy(), torch.trace(a).item()]


if __name__ == "__main__":
    print(main())
