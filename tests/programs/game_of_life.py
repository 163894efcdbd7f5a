"""Integer and boolean tensors: the game of life, an elementary automaton in bits, a sieve."""

import numpy as np
import torch


def life(board):
    padded = torch.nn.functional.pad(board, (1, 1, 1, 1))
    around = sum(padded[i : i + board.shape[0], j : j + board.shape[1]]
                 for i in range(3) for j in range(3)) - board
    return ((around == 3) | (board.bool() & (around == 2))).to(board.dtype)


def automaton(row, rule, steps):
    table = (torch.tensor(rule) >> torch.arange(8)) & 1
    rows = [row]
    for _ in range(steps):
        code = 4 * rows[-1].roll(1) + 2 * rows[-1] + rows[-1].roll(-1)
        rows.append(table[code])
    return torch.stack(rows)


def primes(n):
    candidate = torch.ones(n, dtype=torch.bool)
    candidate[:2] = False
    for k in range(2, int(n**0.5) + 1):
        if candidate[k]:
            candidate[k * k :: k] = False
    return candidate.nonzero().squeeze(1)


def main():
    board = torch.from_numpy(np.random.default_rng(51).integers(0, 2, (12, 12)))
    alive = []
    for _ in range(10):
        board = life(board)
        alive.append(board.sum().item())
    row = torch.zeros(21, dtype=torch.int64)
    row[10] = 1
    p = primes(60)
    values, inverse, counts = torch.unique(p % 6, return_inverse=True, return_counts=True)
    gcds = torch.gcd(torch.arange(1, 13), torch.tensor(12))
    bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    gray = torch.arange(16) ^ (torch.arange(16) >> 1)
    return [*alive, board.numpy(), automaton(row, 110, 9).numpy(), p.numpy(), values.numpy(),
            inverse.numpy(), counts.numpy(), gcds.numpy(), bits.sum(1).tolist(), gray.numpy(),
            torch.cumprod(torch.arange(1, 8), 0).numpy(),
            torch.tensor(-7) // 2, -7 % torch.tensor(3)]


if __name__ == "__main__":
    print(main())
