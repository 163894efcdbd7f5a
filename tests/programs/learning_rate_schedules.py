"""What learning-rate schedules and their combinations give over time, and where training ends."""

import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules


def make(kind, optimizer):
    return {
        "step": lambda: schedules.StepLR(optimizer, step_size=4, gamma=0.5),
        "multi": lambda: schedules.MultiStepLR(optimizer, milestones=[3, 9], gamma=0.1),
        "exponential": lambda: schedules.ExponentialLR(optimizer, gamma=0.9),
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-3),
        "linear": lambda: schedules.LinearLR(optimizer, start_factor=0.1, total_iters=5),
        "lambda": lambda: schedules.LambdaLR(optimizer, lambda k: min(1, (k + 1) / 4)),
        "one_cycle": lambda: schedules.OneCycleLR(optimizer, max_lr=0.3, total_steps=13),
        "warmup": lambda: schedules.SequentialLR(
            optimizer,
            [schedules.LinearLR(optimizer, 0.25, total_iters=4),
             schedules.CosineAnnealingLR(optimizer, 8)],
            milestones=[4],
        ),
    }[kind]()


def main():
    dtype = torch.get_default_dtype()
    out = []
    for kind in ("step", "multi", "exponential", "cosine", "linear", "lambda", "one_cycle",
                 "warmup"):
        w = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=dtype))
        optimizer = SGD([w], lr=0.1, momentum=0.5)
        schedule = make(kind, optimizer)
        for _ in range(12):
            optimizer.zero_grad()
            loss = (w**4).sum() / 20
            loss.backward()
            optimizer.step()
            schedule.step()
            out.append(schedule.get_last_lr()[0])
        out += [loss.item(), w.detach().numpy()]
    w = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = SGD([w], lr=1.0)
    plateau = schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for value in (3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0):
        plateau.step(value)
        out.append(optimizer.param_groups[0]["lr"])
    return out


if __name__ == "__main__":
    print(main())
