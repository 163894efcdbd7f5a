"""Networks for reinforcement learning: Q values and policies.

Papers: Mnih et al. 2015 (DQN), van Hasselt et al. 2015 (double), Wang et al. 2016 (dueling),
Schulman et al. 2017 (clipped policy objective).
"""

from __future__ import annotations

import disttorch as torch
import disttorch.nn.functional as F
from disttorch import nn


def _layers(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class QNetwork(nn.Module):
    """Observations [B, observations] to the value of each action [B, actions].

    Args:
        observations, actions: their numbers.
        hidden: width of the two hidden layers.
        dueling: separate the value of the state from the advantages of the actions.
    """

    def __init__(self, observations: int, actions: int, hidden: int = 128,
                 dueling: bool = False) -> None:
        super().__init__()
        self.body = _layers([observations, hidden, hidden])
        self.advantage = nn.Linear(hidden, actions)
        self.value = nn.Linear(hidden, 1) if dueling else None

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        x = self.body(observation)
        advantage = self.advantage(x)
        if self.value is None:
            return advantage
        return self.value(x) + advantage - advantage.mean(dim=-1, keepdim=True)


class AtariQNetwork(nn.Module):
    """Frames [B, frames, 84, 84] in 0..255 to the values of the actions [B, actions]."""

    def __init__(self, actions: int, frames: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(frames, 32, 8, stride=4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, actions))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(frames / 255.0).flatten(1))


class ActorCritic(nn.Module):
    """Observations to logits of the actions [B, actions] and the value of the state [B]."""

    def __init__(self, observations: int, actions: int, hidden: int = 128) -> None:
        super().__init__()
        self.body = _layers([observations, hidden, hidden])
        self.policy = nn.Linear(hidden, actions)
        self.value = nn.Linear(hidden, 1)

    def forward(self, observation: torch.Tensor) -> tuple:
        x = self.body(observation)
        return self.policy(x), self.value(x).squeeze(-1)


def dqn_loss(online, target, batch: tuple, discount: float = 0.99, double: bool = True):
    """Huber loss of the temporal difference.

    Args:
        online, target: the network that learns and its older copy.
        batch: (observations, actions int64 [B], rewards [B], next observations, done [B], 0 or 1).
        discount: weight of the next step's value.
        double: let the online network choose the action that the target network values.
    """
    observation, action, reward, following, done = batch
    value = online(observation).gather(1, action.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        ahead = target(following)
        if double:
            chosen = online(following).argmax(dim=1, keepdim=True)
            best = ahead.gather(1, chosen).squeeze(1)
        else:
            best = ahead.max(dim=1).values
        wanted = reward + discount * best * (1 - done)
    return F.smooth_l1_loss(value, wanted)


def policy_gradient_loss(logits, action, advantage) -> torch.Tensor:
    """REINFORCE: minus the mean of log probability times advantage ([B] each)."""
    chosen = F.log_softmax(logits, dim=-1).gather(1, action.unsqueeze(1)).squeeze(1)
    return -(chosen * advantage).mean()


def clipped_policy_loss(logits, old_logits, action, advantage, clip: float = 0.2) -> torch.Tensor:
    """PPO's objective, negated: the ratio to the old policy counts only within 1 +- clip."""
    index = action.unsqueeze(1)
    new = F.log_softmax(logits, dim=-1).gather(1, index).squeeze(1)
    old = F.log_softmax(old_logits, dim=-1).gather(1, index).squeeze(1).detach()
    ratio = torch.exp(new - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
