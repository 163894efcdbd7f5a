"""Quantisation-aware training: rounding with a straight-through gradient, learned step sizes,
int8 storage and integer matmul at the end."""

import numpy as np
import torch


def round_ste(x):
    return (x.round() - x).detach() + x


def fake_quantise(x, scale, bits=4):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return round_ste((x / scale).clamp(low, high)) * scale


def main():
    rng = np.random.default_rng(47)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((40, 6)), dtype=dtype)
    y = torch.tanh(x @ torch.tensor(rng.standard_normal((6, 2)), dtype=dtype))
    w = torch.tensor(rng.standard_normal((6, 2)) * 0.5, dtype=dtype, requires_grad=True)
    log_scale = torch.full((2,), -2.0, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([w, log_scale], lr=0.02)
    out = []
    for _ in range(20):
        out_q = torch.tanh(x @ fake_quantise(w, log_scale.exp()))
        loss = torch.nn.functional.mse_loss(out_q, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out += [loss.item(), log_scale.grad.abs().sum().item()]
    scale = log_scale.detach().exp()
    stored = torch.clamp(torch.round(w.detach() / scale), -8, 7).to(torch.int8)
    x_scale = x.abs().amax(dim=1, keepdim=True) / 127
    x_int = (x / x_scale).round().to(torch.int8)
    product = x_int.to(torch.int32) @ stored.to(torch.int32)
    approx = product.to(dtype) * x_scale * scale
    packed = (stored[0::2] & 0xF) | ((stored[1::2] & 0xF) << 4)
    unpacked = torch.stack((packed << 4 >> 4, packed >> 4), dim=1).view(6, 2)
    return [*out, stored.numpy(), product.numpy(), (approx - x @ w.detach()).abs().max().item(),
            packed.numpy(), torch.equal(unpacked, stored), stored.float().unique().numel(),
            torch.iinfo(torch.int8).max]


if __name__ == "__main__":
    print(main())
