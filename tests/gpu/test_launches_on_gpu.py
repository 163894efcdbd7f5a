"""What a training step launches: kernels of this project and cuBLAS, none of CuPy's own (each of which
costs the CPU four launches of ours). Only the stand-in for CuPy tells who launches."""

from __future__ import annotations

import sys
import traceback

import pytest

import disttorch as torch
from disttorch import nn
from disttorch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cupy_standin" not in sys.modules, reason="counted by the stand-in for CuPy"),
]
WIDTH, HEADS, WORDS = 32, 2, 50


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, HEADS, C // HEADS).transpose(1, 2)
                   for t in self.qkv(self.first(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks, self.norm = nn.ModuleList([Block(), Block()]), nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.words.weight)


@pytest.fixture
def foreign(monkeypatch):
    """Copies of whole arrays, and launches of CuPy's own, since the list was cleared: (name, line)."""
    from cupy_standin import order

    found, real = [], order.give

    def give(name, *args, **kwargs):
        stack = traceback.extract_stack(limit=30)
        ours = any("cupy_standin/kernels.py" in f.filename for f in stack[-4:])
        zeros = any(f.name in ("zeros", "zeros_like") for f in stack)  # cudaMemset, in CuPy
        if not ours and not zeros and not name.startswith(("cublas", "memset")):
            lines = [f"{f.filename}:{f.lineno}" for f in stack if "/disttorch/" in f.filename]
            found.append((name, lines[-1] if lines else ""))
        return real(name, *args, **kwargs)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("cupy") and getattr(module, "give", None) is real:
            monkeypatch.setattr(module, "give", give)
    return found


def test_a_transformers_step(foreign):
    torch.manual_seed(0)
    model = Model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, WORDS, (2, 17)).cuda()
    x, target = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    for _ in range(2):
        foreign.clear()
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x).reshape(-1, WORDS), target)
        loss.backward()
        optimizer.step()
    assert foreign == [] and loss.item() > 0


def test_a_residual_blocks_step(foreign):
    torch.manual_seed(0)
    norm, other = nn.BatchNorm2d(8).cuda(), nn.BatchNorm2d(8).cuda()
    x = torch.randn(2, 8, 6, 6).cuda().to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):
        foreign.clear()
        y = F.relu(norm(x), inplace=True)
        y = other(y)
        y += x
        y = torch.cat([F.relu_(y), F.pad(y, (1, -1))], 1).flatten(1)
        y.backward(y.detach())
    assert foreign == [] and norm.num_batches_tracked.item() == 2
