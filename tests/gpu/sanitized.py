"""Every family of kernels once, at small odd sizes, through public functions: for compute-sanitizer.

    compute-sanitizer --tool memcheck python tests/gpu/sanitized.py [part of a family's name]

Shapes leave tails in every tile, vector and warp; views begin at odd addresses. What is computed is the
business of other tests. Prints the families that ran, and ends with 1 if one raised.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import disttorch as torch
import disttorch.nn.functional as F
from disttorch.backend.gpu import padding
from disttorch.ops.core import REGISTRY

rotary = REGISTRY["rotary"].call  # PyTorch has no function of that name
FLOATS = (torch.float32, torch.bfloat16)  # float16's kernels are bfloat16's with another type


def tensor(*shape, dtype=torch.float32, grad=True, shift=0):
    """Random values; with ``shift`` a view that begins so many elements behind an aligned address."""
    n = 1
    for size in shape:
        n *= size
    t = torch.randn(n + shift, device="cuda").to(dtype)[shift:].view(*shape)
    return t.requires_grad_() if grad else t


def back(out):
    out.float().square().sum().backward()


def elementwise():
    for dtype in FLOATS:
        for shift in (0, 1, 3):
            a, b = tensor(37, 11, dtype=dtype, shift=shift), tensor(11, dtype=dtype, shift=shift)
            back(F.gelu(a * 2 + b) - torch.sigmoid(a).t().contiguous().t() / (b.abs() + 1))
        with torch.no_grad():
            a.add_(b).clamp_(-1, 1)
    torch.where(tensor(5, 3, grad=False) > 0, 1.0, tensor(3, grad=False)).to(torch.int64) << 2


def reductions():
    for dtype in FLOATS:
        for shape in ((3, 1025), (1, 7), (129, 3), (2, 5, 33), (4097,)):
            a = tensor(*shape, dtype=dtype, shift=1)
            back(a.sum(-1) + a.amax(-1) + a.mean(-1))
            a.detach().sum(0), a.detach().argmax(-1), a.detach().var(), (a.detach() > 0).any()


def rows():
    for dtype in FLOATS:
        for n in (1, 31, 257, 1030, 4100):
            a = tensor(3, n, dtype=dtype, shift=1)
            back(torch.softmax(a, -1) + F.log_softmax(a, -1))
            weight, bias = tensor(n, dtype=dtype), tensor(n, dtype=dtype)
            back(F.layer_norm(a, (n,), weight, bias))
            back(F.rms_norm(a, (n,), weight))
        back(torch.softmax(tensor(5, 9, 7, dtype=dtype), 1))
        angles = tensor(7, 5, grad=False)
        for interleaved in (False, True):
            back(rotary(tensor(2, 3, 7, 10, dtype=dtype), angles.cos(), angles.sin(), -2, interleaved))


def losses():
    for dtype in FLOATS:
        for n in (3, 130, 1027):
            target = torch.randint(n, (5,), device="cuda")
            target[2] = -100
            back(F.cross_entropy(tensor(5, n, dtype=dtype), target, label_smoothing=0.1))


def random_numbers():
    for n in (1, 7, 1023):
        back(F.dropout(tensor(n, dtype=torch.bfloat16), 0.3))
        torch.randn(n, device="cuda"), torch.rand(n, device="cuda", dtype=torch.float64)
        torch.randint(9, (n,), device="cuda"), torch.randperm(n, device="cuda")


def indices():
    for n in (1, 40, 700):
        i = torch.randint(13, (n,), device="cuda")
        back(F.embedding(i, tensor(13, 19)))
        a = tensor(13, 5)
        back(a[i] + a.index_select(0, i) + a.gather(0, i[:, None].expand(n, 5)))
        b = torch.zeros(13, 5, device="cuda")
        b.index_add_(0, i, tensor(n, 5, grad=False))
        b.scatter_add_(0, i[:, None].expand(n, 5), tensor(n, 5, grad=False))
        b[i] = 1.0


_OPTIONS = {torch.optim.AdamW: {"capturable": True}, torch.optim.SGD: {"momentum": 0.9}}


def copies():
    for dtype in (*FLOATS, torch.uint8, torch.float64):
        x = torch.arange(3 * 67 * 71, device="cuda").remainder(250).to(dtype)[2:].view(-1)[: 3 * 67 * 70]
        x = x.view(3, 67, 70)
        for view in (x, x.mT, x[:, 1:, 3:], x[..., ::3], x[:, :1].expand(3, 9, 70), x.permute(2, 0, 1)):
            view.contiguous(), torch.empty_like(view, memory_format=torch.contiguous_format).copy_(view)
        x.flip(1), x.roll(5, 2), torch.cat([x, x[:, 3:]], 1), torch.stack([x, x])
        F.pad(x, (1, 2, 3, 0)), x[:, torch.tensor([5, 0, 66], device="cuda")], x.repeat(1, 2, 1)
        few = x.view(1, 3, 67, 70).contiguous(memory_format=torch.channels_last)
        few.contiguous(), torch.arange(33, device="cuda", dtype=dtype)
    y = tensor(5, 12)
    back(torch.cat(y.split(4, 1)[::-1], 1)[:, 1:7])


def optimizers():
    half = [tensor(n, dtype=torch.bfloat16).detach().requires_grad_() for n in (1, 17, 1025)]
    masters = torch.optim.MasterWeights(torch.optim.Adam(half, capturable=True))
    sum(h.float().square().sum() for h in half).backward()
    masters.step()
    for kind in (torch.optim.NAdam, torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD):
        weights = [tensor(n).detach().requires_grad_() for n in (3, 1031)]
        counted = kind(weights, capturable=True)
        sum(w.square().sum() for w in weights).backward()
        counted.step()
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad):
        weights = [tensor(n, shift=n % 2) for n in (1, 17, 1025)]
        weights = [w.detach().clone().requires_grad_() for w in weights]
        optimizer = kind(weights, lr=1e-2, **_OPTIONS.get(kind, {}))
        scaler = torch.amp.GradScaler("cuda")
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(sum(w.square().sum() for w in weights)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, 0.5)
            scaler.step(optimizer)
            scaler.update()


def products():
    for dtype in FLOATS:
        back(F.linear(tensor(7, 13, dtype=dtype), tensor(5, 13, dtype=dtype), tensor(5, dtype=dtype)))
        back(torch.bmm(tensor(2, 3, 9, dtype=dtype), tensor(2, 9, 5, dtype=dtype)))
    usual = padding.SMALLEST, padding.NARROW, padding.CALL, padding.BANDWIDTH
    padding.SMALLEST, padding.NARROW, padding.CALL, padding.BANDWIDTH = 1, 1, 0.0, float("inf")
    back(F.linear(*(tensor(n, m, dtype=torch.bfloat16) for n, m in ((33, 24), (1037, 24)))))
    padding.SMALLEST, padding.NARROW, padding.CALL, padding.BANDWIDTH = usual


def attention():
    for dtype in FLOATS:
        for length, width in ((1, 16), (33, 64), (70, 32)):
            q, k, v = (tensor(1, 2, length, width, dtype=dtype) for _ in range(3))
            back(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            mask = torch.rand(length, length, device="cuda") > 0.2
            back(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.1))


def convolution():
    for dtype in FLOATS:
        x, w = tensor(2, 4, 9, 7, dtype=dtype), tensor(6, 4, 3, 3, dtype=dtype)
        back(F.conv2d(x, w, tensor(6, dtype=dtype), stride=2, padding=1))
        back(F.conv2d(x, tensor(4, 1, 3, 3, dtype=dtype), groups=4))
        last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        back(F.conv2d(last, w, padding=1))
    back(F.conv_transpose2d(tensor(1, 3, 5, 5), tensor(3, 2, 3, 3), stride=2))


def channels():
    for dtype in FLOATS:
        x = tensor(3, 5, 7, 9, dtype=dtype)
        norm = torch.nn.BatchNorm2d(5).cuda()
        back(norm(x.float()))
        back(F.max_pool2d(x, 3, 2, 1))
        back(F.avg_pool2d(x, 2))
        back(F.adaptive_avg_pool2d(x, (2, 3)))
        back(F.interpolate(x.float(), scale_factor=2.0, mode="bilinear", align_corners=False))
        back(F.group_norm(tensor(2, 6, 5, dtype=dtype), 3))


def graphs():
    x = tensor(333, grad=False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        F.dropout(x.exp().softmax(0), 0.5)
    torch.cuda.current_stream().wait_stream(side)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        F.dropout(x.exp().softmax(0), 0.5)
    for _ in range(3):
        g.replay()
    x.cpu().pin_memory().cuda(non_blocking=True)


FAMILIES = (elementwise, copies, reductions, rows, losses, random_numbers, indices, optimizers,
            products, attention, convolution, channels, graphs)


def main(part: str = "") -> int:
    failed = 0
    torch.manual_seed(0)
    for family in FAMILIES:
        if part not in family.__name__:
            continue
        start = time.perf_counter()
        try:
            family()
            torch.cuda.synchronize()
            print(f"{family.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"{family.__name__}: raised", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
