"""Expectation maximisation for a Gaussian mixture with full covariances."""

import math

import numpy as np
import torch


def log_density(x, means, covs):
    factor = torch.linalg.cholesky(covs)
    offset = (x[:, None, :] - means[None]).permute(1, 2, 0)
    scaled = torch.linalg.solve_triangular(factor, offset, upper=False)
    logdet = torch.log(torch.diagonal(factor, dim1=-2, dim2=-1)).sum(-1)
    d = x.shape[-1]
    return (-0.5 * (scaled**2).sum(1) - logdet[:, None] - 0.5 * d * math.log(2 * math.pi)).T


def main():
    rng = np.random.default_rng(18)
    dtype = torch.get_default_dtype()
    parts = [rng.standard_normal((n, 2)) @ m + c for n, m, c in
             [(40, np.diag([1, 0.3]), [0, 0]), (30, np.array([[0.5, 0.4], [0, 0.5]]), [3, 1]),
              (30, np.eye(2) * 0.4, [-2, 2])]]
    x = torch.as_tensor(np.concatenate(parts), dtype=dtype)
    means = torch.tensor([[0.5, 0.5], [2.0, 0.0], [-1.0, 1.0]], dtype=dtype)
    covs = torch.eye(2, dtype=dtype).expand(3, 2, 2).clone()
    weights = torch.full((3,), 1 / 3, dtype=dtype)
    out = []
    for _ in range(15):
        joint = log_density(x, means, covs) + weights.log()
        evidence = torch.logsumexp(joint, dim=1, keepdim=True)
        share = torch.exp(joint - evidence)
        total = share.sum(0)
        weights = total / len(x)
        means = share.T @ x / total[:, None]
        offset = x[None] - means[:, None]
        covs = torch.einsum("nk,kni,knj->kij", share, offset, offset) / total[:, None, None]
        covs.diagonal(dim1=1, dim2=2).add_(1e-4)
        out.append(evidence.mean().item())
    return [*out, weights.numpy(), means.numpy(), covs.numpy()]


if __name__ == "__main__":
    print(main())
