"""Accumulated micro-batches equal the full batch; clipping by norm and by value; a skipped step
when the gradient is not finite."""

import copy

import numpy as np
import torch
import torch.nn as nn


def main():
    rng = np.random.default_rng(40)
    dtype = torch.get_default_dtype()
    model = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.set_(torch.tensor(rng.standard_normal(tuple(p.shape)), dtype=dtype))
    whole = copy.deepcopy(model)
    x = torch.tensor(rng.standard_normal((24, 4)), dtype=dtype)
    y = torch.tensor(rng.standard_normal((24, 1)), dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = []
    for step in range(8):
        optimizer.zero_grad()
        for xb, yb in zip(torch.split(x, 6), torch.split(y, 6)):
            (nn.functional.l1_loss(model(xb), yb) / 4).backward()
        whole.zero_grad()
        nn.functional.l1_loss(whole(x), y).backward()
        for a, b in zip(model.parameters(), whole.parameters()):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        if step == 3:
            model[0].bias.grad[0] = float("nan")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        if torch.isfinite(norm):
            optimizer.step()
            whole.load_state_dict(model.state_dict())
        norms = torch.stack([p.grad.norm() for p in model.parameters()])
        out += [norm.item(), norms.nan_to_num(0.0).numpy()]
    flat = nn.utils.parameters_to_vector(model.parameters())
    return [*out, flat.detach().numpy(), torch.linalg.vector_norm(flat, ord=torch.inf).item()]


if __name__ == "__main__":
    print(main())
