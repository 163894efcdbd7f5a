"""REINFORCE and PPO's clipped objective on fixed episodes: discounted returns, advantages."""

import numpy as np
import torch
import torch.nn as nn


def returns(rewards, gamma):
    out, running = torch.empty_like(rewards), torch.zeros((), dtype=rewards.dtype)
    for t in range(len(rewards) - 1, -1, -1):
        running = rewards[t] + gamma * running
        out[t] = running
    return out


def main():
    rng = np.random.default_rng(31)
    dtype = torch.get_default_dtype()
    policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    value = nn.Linear(4, 1)
    for p in [*policy.parameters(), *value.parameters()]:
        p.data = torch.tensor(rng.standard_normal(tuple(p.shape)) * 0.5, dtype=dtype)
    states = torch.tensor(rng.standard_normal((30, 4)), dtype=dtype)
    actions = torch.from_numpy(rng.integers(0, 3, 30))
    rewards = (actions == states[:, :3].argmax(dim=1)).to(dtype) - 0.3
    g = returns(rewards, 0.9)
    powers = 0.9 ** torch.arange(30, dtype=dtype)
    closed = (rewards * powers).flip(0).cumsum(0).flip(0) / powers
    assert torch.allclose(g, closed, rtol=1e-3, atol=1e-4)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=0.03)
    old, out = None, []
    for _ in range(12):
        logits = policy(states)
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(1, actions.unsqueeze(1)).squeeze(1)
        old = chosen.detach() if old is None else old
        baseline = value(states).squeeze(-1)
        advantage = (g - baseline).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = torch.exp(chosen - old)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage).mean()
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        loss = -surrogate + 0.5 * (baseline - g).pow(2).mean() - 0.01 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out += [loss.item(), entropy.item(), ratio.max().item()]
    return [*out, g.numpy()]


if __name__ == "__main__":
    print(main())
