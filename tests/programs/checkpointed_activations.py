"""Recomputed activations: the same gradients with fewer saved tensors."""

import numpy as np
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


def main():
    rng = np.random.default_rng(43)
    dtype = torch.get_default_dtype()
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Mish()) for _ in range(4)])
    for p in blocks.parameters():
        p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) * 0.5))
    x = torch.tensor(rng.standard_normal((5, 6)), dtype=dtype, requires_grad=True)
    calls = []
    blocks[0].register_forward_hook(lambda module, args, result: calls.append(result.shape[0]))

    def plain(x):
        return blocks(x)

    def each(x):
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def chunks(x):
        return checkpoint_sequential(blocks, 2, x, use_reentrant=False)

    out = []
    for run in (plain, each, chunks):
        blocks.zero_grad()
        x.grad = None
        saved = []

        def pack(t, saved=saved):
            saved.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = run(x).square().sum()
        loss.backward()
        out += [loss.item(), x.grad.numpy().copy(), blocks[0][0].weight.grad.numpy().copy()]
    return [*out, len(calls)]


if __name__ == "__main__":
    print(main())
