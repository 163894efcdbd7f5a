"""PCA by SVD and by covariance, low-rank completion, gradients through singular values."""

import numpy as np
import torch


def main():
    rng = np.random.default_rng(14)
    dtype = torch.get_default_dtype()
    latent = torch.tensor(rng.standard_normal((40, 2)), dtype=dtype)
    mixing = torch.tensor(rng.standard_normal((2, 6)), dtype=dtype)
    data = latent @ mixing + 0.1 * torch.tensor(rng.standard_normal((40, 6)), dtype=dtype)
    centred = data - data.mean(dim=0, keepdim=True)
    u, s, vh = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ vh[:2].T
    rebuilt = projected @ vh[:2]
    explained = (s**2 / (s**2).sum()).cumsum(0)
    out = [s.numpy(), explained.numpy(), rebuilt.numpy(), (rebuilt - centred).norm().item()]
    values = torch.linalg.eigvalsh(torch.cov(data.T))
    out += [values.numpy(), (values.flip(-1) - s**2 / 39).abs().max().item() < 1e-4]
    out += [torch.linalg.pinv(centred).numpy(), torch.linalg.matrix_rank(rebuilt, tol=1e-3).item()]

    mask = torch.from_numpy(rng.random((40, 6)) < 0.7)
    guess = torch.where(mask, data, 0.0).requires_grad_()
    optimizer = torch.optim.SGD([guess], lr=0.5)
    for _ in range(6):  # nuclear norm pulls the unknown entries to a low rank
        optimizer.zero_grad()
        nuclear = torch.linalg.svdvals(guess).sum()
        misfit = (guess - data)[mask].square().sum()
        (0.2 * nuclear + misfit).backward()
        optimizer.step()
        out += [nuclear.item(), misfit.item()]
    return out


if __name__ == "__main__":
    print(main())
