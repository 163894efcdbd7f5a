"""Logistic regression with nn.Linear, SGD with momentum and weight decay, and an accuracy."""

import numpy as np
import torch
import torch.nn as nn


def main():
    rng = np.random.default_rng(1)
    dtype = torch.get_default_dtype()
    x = torch.tensor(rng.standard_normal((80, 4)), dtype=dtype)
    y = (x[:, 0] - 2 * x[:, 2] + 0.3 > 0).to(dtype).unsqueeze(1)

    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rng.standard_normal((1, 4)) * 0.1, dtype=dtype))
        model.bias.zero_()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    predicted = torch.sigmoid(model(x)) > 0.5
    accuracy = (predicted == y.bool()).float().mean()
    return [*losses, accuracy.item()]


if __name__ == "__main__":
    print(main())
