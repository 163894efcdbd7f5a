"""Convolution by FFT, a learned frequency filter that denoises, a spectral derivative."""

import math

import numpy as np
import torch


def convolve(signal, kernel):
    n = signal.shape[-1] + kernel.shape[-1] - 1
    return torch.fft.irfft(torch.fft.rfft(signal, n) * torch.fft.rfft(kernel, n), n)


def main():
    rng = np.random.default_rng(34)
    dtype = torch.get_default_dtype()
    t = torch.arange(64, dtype=dtype) / 64
    clean = torch.sin(2 * math.pi * 3 * t) + 0.5 * torch.cos(2 * math.pi * 7 * t)
    noisy = clean + 0.4 * torch.tensor(rng.standard_normal((8, 64)), dtype=dtype)

    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=dtype, requires_grad=True)
    full = convolve(noisy, kernel)
    direct = torch.stack([(noisy.unfold(1, 3, 1) * kernel.flip(0)).sum(-1)])[0]
    assert torch.allclose(full[:, 2:64], direct, atol=1e-4)
    out = [full.detach().numpy()]
    gate = torch.zeros(33, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([gate, kernel], lr=0.1)
    for _ in range(20):
        spectrum = torch.fft.rfft(noisy, dim=-1, norm="ortho")
        filtered = torch.fft.irfft(spectrum * torch.sigmoid(gate), n=64, norm="ortho")
        smooth = convolve(filtered, kernel / kernel.sum())[:, 1:65]
        loss = (smooth - clean).square().mean() + 1e-3 * spectrum.abs().mul(gate.sigmoid()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    wave = 2j * math.pi * torch.fft.fftfreq(64, d=1 / 64, dtype=dtype)
    slope = torch.fft.ifft(wave * torch.fft.fft(clean)).real
    image = torch.fft.fftshift(torch.fft.fft2(noisy.reshape(8, 8, 8)).abs(), dim=(-2, -1))
    return [*out, gate.detach().numpy(), slope.numpy(), image.numpy()]


if __name__ == "__main__":
    print(main())
