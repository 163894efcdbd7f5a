"""Learn to balance a pole on a cart by deep Q-learning; the physics is in this file.

    python examples/dqn_cartpole.py
    python examples/dqn_cartpole.py --steps 6000 --seed 7

Several carts run side by side. The result is a picture: the lengths of the episodes while learning,
one episode before and after, and the value that the network gives to angles and speeds.

The model of the cart is that of Barto, Sutton and Anderson (1983), the algorithm double DQN.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import disttorch as torch
from disttorch.models.dqn import QNetwork, dqn_loss
from small import Run, new_figure, parser, positive, run

LONGEST = 500  # steps of an episode that never fails
LARGEST_ANGLE, LARGEST_PLACE = math.radians(12), 2.4
TEST_EPISODES = 20
DISCOUNT = 0.99


class Carts:
    """Carts on tracks, each with a pole: states [N, 4] of place, speed, angle and angular speed.

    Args:
        count: N.
        generator: of the first states.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.state = self._fresh(count)
        self.age = torch.zeros(count, dtype=torch.int64)

    def _fresh(self, count: int) -> torch.Tensor:
        return torch.rand(count, 4, generator=self.generator) * 0.1 - 0.05

    def step(self, action: torch.Tensor) -> tuple:
        """Push every cart left (0) or right (1) for 0.02 s.

        Returns:
            The new states, which have fallen, and the lengths of the episodes that have ended. Those
            carts start anew.
        """
        self.state = moved(self.state, action)
        following = self.state
        fallen = (following[:, 0].abs() > LARGEST_PLACE) | (following[:, 2].abs() > LARGEST_ANGLE)
        self.age = self.age + 1
        ended = fallen | (self.age >= LONGEST)
        lengths = self.age[ended].tolist()
        self.state = torch.where(ended.unsqueeze(1), self._fresh(len(ended)), following)
        self.age = self.age.masked_fill(ended, 0)
        return following, fallen, lengths


def moved(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """The states [N, 4] after 0.02 s of a push of 10 N to either side."""
    place, speed, angle, turning = state.unbind(dim=1)
    gravity, pole_mass, mass, half_length, dt = 9.8, 0.1, 1.1, 0.5, 0.02
    force = action * 20.0 - 10.0
    push = (force + pole_mass * half_length * turning.square() * angle.sin()) / mass
    lever = half_length * (4 / 3 - pole_mass * angle.cos().square() / mass)
    angular = (gravity * angle.sin() - angle.cos() * push) / lever
    linear = push - pole_mass * half_length * angular * angle.cos() / mass
    change = torch.stack([speed, linear, turning, angular], dim=1)
    return state + dt * change


class Memory:
    """The last transitions, from which batches are drawn."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count, self.place = capacity, 0, 0
        self.before, self.after = torch.zeros(capacity, 4), torch.zeros(capacity, 4)
        self.action = torch.zeros(capacity, dtype=torch.int64)
        self.fallen = torch.zeros(capacity)

    def add(self, before, action, after, fallen) -> None:
        """Keep one transition per cart; the oldest make room."""
        index = (torch.arange(len(before)) + self.place) % self.capacity
        self.before[index], self.after[index] = before, after
        self.action[index], self.fallen[index] = action, fallen.float()
        self.place = (self.place + len(before)) % self.capacity
        self.count = min(self.count + len(before), self.capacity)

    def draw(self, size: int) -> tuple:
        """A batch as ``dqn_loss`` takes it. A step is worth 1 - discount, so values stay below 1."""
        index = torch.randint(0, self.count, (size,))
        fallen = self.fallen[index]
        reward = (1 - DISCOUNT) * (1 - fallen)
        return self.before[index], self.action[index], reward, self.after[index], fallen


@torch.no_grad()
def play(model: QNetwork, seed: int, count: int) -> tuple:
    """Let the network act on ``count`` carts: (length of each first episode, the first's states)."""
    carts = Carts(count, torch.Generator().manual_seed(seed))
    lengths, track = torch.zeros(count, dtype=torch.int64), []
    alive = torch.ones(count, dtype=torch.bool)
    for _ in range(LONGEST):
        if not alive.any():
            break
        if alive[0]:
            track.append(carts.state[0].tolist())
        _, fallen, _ = carts.step(model(carts.state).argmax(dim=1))
        lengths += alive
        alive = alive & ~fallen
    return lengths, track


def draw(episodes: list[tuple], tests: list[tuple], before: list, after: list, model: Any) -> Any:
    """Return the figure."""
    figure = new_figure(14, 4.2)
    learning, balance, value = figure.subplots(1, 3)
    learning.plot(*zip(*episodes), ".", markersize=3, alpha=0.35, label="episodes while learning")
    learning.plot(*zip(*tests), "o-", markersize=4, label="mean of test episodes")
    learning.set(xlabel="step", ylabel="steps until the pole falls", ylim=(0, LONGEST * 1.05))
    learning.legend()
    for track, label in ((before, "before"), (after, "after")):
        seconds = [0.02 * i for i in range(len(track))]
        balance.plot(seconds, [math.degrees(s[2]) for s in track], label=f"{label} learning")
    for limit in (-12, 12):
        balance.axhline(limit, color="black", linewidth=0.8, linestyle="--")
    balance.set(xlabel="seconds", ylabel="angle of the pole (degrees)")
    balance.legend()
    angle = torch.linspace(-LARGEST_ANGLE, LARGEST_ANGLE, 61)
    turning = torch.linspace(-2, 2, 61)
    y, x = torch.meshgrid(turning, angle, indexing="ij")
    still = torch.zeros_like(x)
    with torch.no_grad():
        shown = model(torch.stack([still, still, x, y], dim=2).flatten(0, 1)).amax(dim=1)
    picture = value.imshow(shown.reshape(61, 61).tolist(), origin="lower", aspect="auto",
                           extent=(-12, 12, -2, 2), cmap="viridis")
    value.set(xlabel="angle (degrees)", ylabel="angular speed (1/s)", title="value of a state")
    figure.colorbar(picture, ax=value)
    return figure


def main() -> None:
    """Run the example."""
    options = parser(__doc__)
    options.add_argument("--steps", type=positive, default=2000, help="of all carts (default: 2000)")
    options.add_argument("--carts", type=positive, default=8, help="side by side (default: 8)")
    options.add_argument("--batch", type=positive, default=128, help="(default: 128)")
    options.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    given = options.parse_args()
    progress = Run("dqn-cartpole", given, given.steps, "steps")
    carts = Carts(given.carts, torch.Generator().manual_seed(given.seed))
    model, memory = QNetwork(4, 2, hidden=128, dueling=True), Memory(20_000)
    target = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=given.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
    before = play(model, given.seed, 1)[1]
    episodes: list[tuple] = []
    tests = [(0, play(model, given.seed + 1, TEST_EPISODES)[0].float().mean().item())]
    best, best_weights = tests[0][1], copy.deepcopy(model.state_dict())
    every, total = max(given.steps // 20, 1), 0.0
    for step in range(1, given.steps + 1):
        with torch.no_grad():
            action = model(carts.state).argmax(dim=1)
        exploring = max(0.05, 1 - step / (0.3 * given.steps))
        guess = torch.rand(given.carts) < exploring
        action = torch.where(guess, torch.randint(0, 2, (given.carts,)), action)
        state = carts.state
        following, fallen, lengths = carts.step(action)
        memory.add(state, action, following, fallen)
        episodes += [(step, length) for length in lengths]
        optimizer.zero_grad()
        loss = dqn_loss(model, target, memory.draw(given.batch), DISCOUNT)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
        with torch.no_grad():  # the target follows slowly: a moving average of the weights
            for old, new in zip(target.parameters(), model.parameters()):
                old.lerp_(new, 0.02)
        if step % every == 0 or step == given.steps:
            tests.append((step, play(model, given.seed + 1, TEST_EPISODES)[0].float().mean().item()))
            if tests[-1][1] >= best:
                best, best_weights = tests[-1][1], copy.deepcopy(model.state_dict())
            progress.log(step, step * given.carts, total / every, None, test_length=tests[-1][1])
            total = 0.0
    model.load_state_dict(best_weights)
    # other first states than those that the weights were chosen by
    lengths, after = play(model, given.seed + 2, 100)
    figure = draw(episodes, tests, before, after, model)
    mean = lengths.float().mean().item()
    progress.finish(
        model, figure,
        f"with the best weights the pole stays up for {mean:.0f} of {LONGEST} steps (mean of 100 "
        f"episodes; before learning {tests[0][1]:.0f})",
    )


if __name__ == "__main__":
    run(main)
