"""Rosenbrock's function by L-BFGS with a two-loop recursion and backtracking line search."""

import torch


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def evaluate(x):
    x = x.detach().requires_grad_()
    value = rosenbrock(x)
    value.backward()
    return value.item(), x.grad


def direction(g, pairs):
    q, alphas = g.clone(), []
    for s, y in reversed(pairs):
        alpha = s.dot(q) / y.dot(s)
        q.sub_(alpha * y)
        alphas.append(alpha)
    if pairs:
        s, y = pairs[-1]
        q.mul_(s.dot(y) / y.dot(y))
    for (s, y), alpha in zip(pairs, reversed(alphas)):
        q.add_(s, alpha=(alpha - y.dot(q) / y.dot(s)).item())
    return q.neg()


def main():
    x = torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=torch.float64)
    value, g = evaluate(x)
    pairs, values = [], [value]
    for _ in range(40):
        d = direction(g, pairs)
        step, slope = 1.0, torch.dot(g, d).item()
        while True:
            new = x + step * d
            new_value, new_g = evaluate(new)
            if new_value <= value + 1e-4 * step * slope or step < 1e-10:
                break
            step *= 0.5
        if torch.dot(new - x, new_g - g) > 1e-12:
            pairs = [*pairs, (new - x, new_g - g)][-5:]
        x, value, g = new, new_value, new_g
        values.append(value)
        if g.abs().max() < 1e-9:
            break
    return [*values[:25], x.numpy().round(4)]


if __name__ == "__main__":
    print(main())
