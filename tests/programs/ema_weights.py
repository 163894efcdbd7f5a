"""A mean teacher: exponential averages of weights and buffers, consistency loss, state dicts."""

import copy

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return self.head(F.relu6(self.body(x)))


@torch.no_grad()
def update(teacher, student, decay):
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.lerp_(s, 1 - decay)
    for (_, t), (_, s) in zip(teacher.named_buffers(), student.named_buffers()):
        t.copy_(s)


def main():
    rng = np.random.default_rng(41)
    dtype = torch.get_default_dtype()
    student = Student()
    for p in student.parameters():
        p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) * 0.5))
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02, amsgrad=True)
    x = torch.tensor(rng.standard_normal((20, 5)), dtype=dtype)
    y = x[:, :3].argmax(1)
    out = []
    for _ in range(12):
        noisy = x + 0.1 * torch.tensor(rng.standard_normal((20, 5)), dtype=dtype)
        logits = student(noisy)
        agree = F.kl_div(logits.log_softmax(1), teacher(x).softmax(1), reduction="batchmean")
        loss = F.cross_entropy(logits, y) + agree
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update(teacher, student, 0.9)
        out += [loss.item(), agree.item()]
    saved = {k: v.clone() for k, v in teacher.state_dict().items()}
    student.load_state_dict(saved)
    same = all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))
    return [*out, same, teacher.seen.item(), *[v.numpy() for v in saved.values()]]


if __name__ == "__main__":
    print(main())
