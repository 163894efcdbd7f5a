"""Fitting Lotka-Volterra's parameters through a Runge-Kutta solver."""

import torch


def field(state, theta):
    prey, predator = state.unbind(-1)
    a, b, c, d = theta
    return torch.stack([prey * (a - b * predator), predator * (d * prey - c)], dim=-1)


def solve(start, theta, steps, h):
    states = [start]
    for _ in range(steps):
        y = states[-1]
        k1 = field(y, theta)
        k2 = field(y + h / 2 * k1, theta)
        k3 = field(y + h / 2 * k2, theta)
        k4 = field(y + h * k3, theta)
        states.append(y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return torch.stack(states)


def main():
    dtype = torch.get_default_dtype()
    start = torch.tensor([[1.0, 1.0], [1.5, 0.5]], dtype=dtype)
    truth = solve(start, torch.tensor([1.1, 0.4, 0.4, 0.1], dtype=dtype), 20, 0.1)
    log_theta = torch.log(torch.tensor([0.8, 0.5, 0.5, 0.2], dtype=dtype)).requires_grad_()
    optimizer = torch.optim.Adam([log_theta], lr=0.05)
    out = []
    for _ in range(15):
        optimizer.zero_grad()
        path = solve(start, log_theta.exp(), 20, 0.1)
        loss = torch.nn.functional.mse_loss(path, truth)
        loss.backward()
        optimizer.step()
        out += [loss.item(), log_theta.grad.norm().item()]
    return [*out, log_theta.exp().tolist(), path[-1].detach().numpy()]


if __name__ == "__main__":
    print(main())
