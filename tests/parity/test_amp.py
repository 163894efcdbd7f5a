"""Mixed precision against PyTorch on the CPU: types of results op by op, and training."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

# Called with the package and tensors a, b (4×4), v (4), c (1×1×8×8), i (indices) of a type
CALLS = {
    "matmul": lambda p, a, b, v, i: a @ b, "matvec": lambda p, a, b, v, i: p.matmul(a, v),
    "mm": lambda p, a, b, v, i: p.mm(a, b), "mv": lambda p, a, b, v, i: p.mv(a, v),
    "dot": lambda p, a, b, v, i: p.dot(v, v), "vdot": lambda p, a, b, v, i: p.vdot(v, v),
    "bmm": lambda p, a, b, v, i: p.bmm(a[None], b[None]),
    "addmm": lambda p, a, b, v, i: p.addmm(a, a, b),
    "addmv": lambda p, a, b, v, i: p.addmv(v, a, v), "addr": lambda p, a, b, v, i: p.addr(a, v, v),
    "baddbmm": lambda p, a, b, v, i: p.baddbmm(a[None], a[None], b[None]),
    "chain_matmul": lambda p, a, b, v, i: p.linalg.multi_dot([a, b, a]),
    "einsum": lambda p, a, b, v, i: p.einsum("ij,jk->ik", a, b),
    "tensordot": lambda p, a, b, v, i: p.tensordot(a, b, 1),
    "inner": lambda p, a, b, v, i: p.inner(a, b), "outer": lambda p, a, b, v, i: p.outer(v, v),
    "linear": lambda p, a, b, v, i: p.nn.functional.linear(a, b, v),
    "prelu": lambda p, a, b, v, i: p.nn.functional.prelu(a, v[:1]),
    "attention": lambda p, a, b, v, i: p.nn.functional.scaled_dot_product_attention(
        a[None, None], b[None, None], a[None, None]
    ),
    "prod": lambda p, a, b, v, i: a.prod(), "prod_dim": lambda p, a, b, v, i: p.prod(a, 1),
    "trace": lambda p, a, b, v, i: a.trace(), "quantile": lambda p, a, b, v, i: p.quantile(a, 0.5),
    "nanquantile": lambda p, a, b, v, i: p.nanquantile(a, 0.5),
    "cdist": lambda p, a, b, v, i: p.cdist(a, b), "inverse": lambda p, a, b, v, i: p.inverse(a),
    "pinverse": lambda p, a, b, v, i: p.pinverse(a), "svd": lambda p, a, b, v, i: p.svd(a)[1],
    "qr": lambda p, a, b, v, i: p.linalg.qr(a)[1], "inv": lambda p, a, b, v, i: p.linalg.inv(a),
    "solve": lambda p, a, b, v, i: p.linalg.solve(a, b),
    "cholesky": lambda p, a, b, v, i: p.linalg.cholesky(p.eye(4, dtype=a.dtype)),
    "svdvals": lambda p, a, b, v, i: p.linalg.svdvals(a),
    "eigh": lambda p, a, b, v, i: p.linalg.eigh(a)[0],
    "lstsq": lambda p, a, b, v, i: p.linalg.lstsq(a, b)[0],
    "cond": lambda p, a, b, v, i: p.linalg.cond(a),
    "polar": lambda p, a, b, v, i: p.polar(a, b), "fft": lambda p, a, b, v, i: p.fft.fft(a),
    "rfft": lambda p, a, b, v, i: p.fft.rfft(a),
    "irfft2": lambda p, a, b, v, i: p.fft.irfft2(p.fft.rfft2(a)),
    "mse": lambda p, a, b, v, i: p.nn.functional.mse_loss(a, b),
    "l1": lambda p, a, b, v, i: p.nn.functional.l1_loss(a, b),
    "huber": lambda p, a, b, v, i: p.nn.functional.huber_loss(a, b),
    "smooth": lambda p, a, b, v, i: p.nn.functional.smooth_l1_loss(a, b),
    "kl": lambda p, a, b, v, i: p.nn.functional.kl_div(a, b, reduction="sum"),
    "bce": lambda p, a, b, v, i: p.nn.functional.binary_cross_entropy(a.sigmoid(), b.sigmoid()),
    "bce_logits": lambda p, a, b, v, i: p.nn.functional.binary_cross_entropy_with_logits(a, b),
    "nll": lambda p, a, b, v, i: p.nn.functional.nll_loss(a, i),
    "cross_entropy": lambda p, a, b, v, i: p.nn.functional.cross_entropy(a, i),
    "cat": lambda p, a, b, v, i: p.cat([a, b.float()]),
    "stack": lambda p, a, b, v, i: p.stack([a, b.float()]),
    "index_copy": lambda p, a, b, v, i: p.index_copy(a, 0, i, b.float()),
    "conv1d": lambda p, a, b, v, i: p.nn.functional.conv1d(a[None], b[:, :, None]),
    "conv2d": lambda p, a, b, v, i: p.nn.functional.conv2d(a[None, None], b[None, None, :2, :2]),
    "conv_transpose": lambda p, a, b, v, i: p.nn.functional.conv_transpose2d(
        a[None, None], b[None, None, :2, :2]
    ),
    "max_pool3d": lambda p, a, b, v, i: p.nn.functional.max_pool3d(a.reshape(1, 1, 4, 2, 2), 2),
    "avg_pool3d": lambda p, a, b, v, i: p.nn.functional.avg_pool3d(a.reshape(1, 1, 4, 2, 2), 2),
    "max_pool2d": lambda p, a, b, v, i: p.nn.functional.max_pool2d(a[None], 2),
    "adaptive": lambda p, a, b, v, i: p.nn.functional.adaptive_avg_pool3d(
        a.reshape(1, 1, 4, 2, 2), 1
    ),
    "reflect": lambda p, a, b, v, i: p.nn.functional.pad(a[None], (1, 1), mode="reflect"),
    "replicate": lambda p, a, b, v, i: p.nn.functional.pad(a[None], (1, 1), mode="replicate"),
    "pad": lambda p, a, b, v, i: p.nn.functional.pad(a, (1, 1)),
    "grid": lambda p, a, b, v, i: p.nn.functional.grid_sample(
        a[None, None], b.reshape(1, 4, 2, 2), align_corners=False
    ),
    "ctc": lambda p, a, b, v, i: p.nn.functional.ctc_loss(
        a[:, None].log_softmax(-1), i[None, 1:3], [4], [2]
    ),
    "batch_norm": lambda p, a, b, v, i: p.nn.functional.batch_norm(a, None, None, training=True),
    "group_norm": lambda p, a, b, v, i: p.nn.functional.group_norm(a, 2),
    "interpolate": lambda p, a, b, v, i: p.nn.functional.interpolate(a[None], 8),
    "triplet": lambda p, a, b, v, i: p.nn.functional.triplet_margin_loss(a, b, a * 2),
    "multi_margin": lambda p, a, b, v, i: p.nn.functional.multi_margin_loss(a, i),
    "soft_margin": lambda p, a, b, v, i: p.nn.functional.soft_margin_loss(a, b),
    "poisson": lambda p, a, b, v, i: p.nn.functional.poisson_nll_loss(a, b),
    # not on the lists: the type of the operands
    "add": lambda p, a, b, v, i: a + b, "exp": lambda p, a, b, v, i: a.exp(),
    "pow": lambda p, a, b, v, i: a**2, "sum": lambda p, a, b, v, i: a.sum(),
    "softmax": lambda p, a, b, v, i: p.softmax(a, -1),
    "layer_norm": lambda p, a, b, v, i: p.nn.functional.layer_norm(a, (4,)),
    "gelu": lambda p, a, b, v, i: p.nn.functional.gelu(a),
    "logsumexp": lambda p, a, b, v, i: p.logsumexp(a, 0),
    "norm": lambda p, a, b, v, i: p.norm(a), "cumsum": lambda p, a, b, v, i: a.cumsum(0),
    "addcmul": lambda p, a, b, v, i: p.addcmul(a, b, b),
    "cosine": lambda p, a, b, v, i: p.nn.functional.cosine_similarity(a, b),
}
TYPES = ("float32", "bfloat16", "float16", "float64")


def outcome(package, call, dtype, region):
    rng = np.random.default_rng(0)
    a, b, v = (package.tensor(rng.uniform(0.2, 1, s)).to(getattr(package, dtype))
               for s in ((4, 4), (4, 4), (4,)))
    a = a + 2 * package.eye(4).to(a.dtype)
    try:
        with package.autocast("cpu", dtype=getattr(package, region)):
            out = call(package, a, b, v, package.arange(4))
    except (RuntimeError, NotImplementedError):
        return "refused", None
    return str(out.dtype), out.to(package.complex128).numpy()


@pytest.mark.parametrize("region", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CALLS)
def test_types_of_results(name, dtype, region):
    theirs, expected = outcome(torch, CALLS[name], dtype, region)
    if theirs == "refused":
        pytest.skip("PyTorch has no kernel for this type")
    ours, values = outcome(dt, CALLS[name], dtype, region)
    assert ours == theirs
    np.testing.assert_allclose(values, expected, 5e-2, 5e-2)


def train(package, region, scaled, steps=20):
    rng = np.random.default_rng(3)
    F = package.nn.functional
    model = package.nn.Sequential(
        package.nn.Linear(6, 16), package.nn.LayerNorm(16), package.nn.GELU(),
        package.nn.Linear(16, 3),
    )
    for p in model.parameters():
        p.data = package.tensor(rng.uniform(-0.4, 0.4, tuple(p.shape)).astype("float32"))
    optimizer = package.optim.AdamW(model.parameters(), lr=0.02)
    scaler = package.amp.GradScaler("cpu", 2.0**14, growth_interval=5, enabled=scaled)
    losses, scales = [], []
    x = rng.normal(size=(12, 6)).astype("float32")
    y = (np.abs(x[:, 0]) * 2).astype("int64") % 3
    for _ in range(steps):
        optimizer.zero_grad()
        with package.autocast("cpu", dtype=getattr(package, region)):
            out = model(package.tensor(x))
            loss = F.cross_entropy(out, package.tensor(y))
        assert str(out.dtype) == f"torch.{region}" and str(loss.dtype) == "torch.float32"
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        package.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, scales, scaler.state_dict()


@pytest.mark.parametrize("region, scaled", [("float16", True), ("bfloat16", False)])
def test_training(region, scaled):
    losses, scales, state = train(dt, region, scaled)
    expected, their_scales, their_state = train(torch, region, scaled)
    assert scales == their_scales and state == their_state
    # two roundings to 8 (11) bits apart at most, as sums are taken in another order
    np.testing.assert_allclose(losses, expected, 2e-3 if region == "float16" else 2e-2)
    assert losses[-1] < 0.7 * losses[0]


def test_signatures():
    for name in ("autocast", "custom_fwd", "custom_bwd", "GradScaler", "is_autocast_available"):
        ours, theirs = (inspect.signature(getattr(p.amp, name)) for p in (dt, torch))
        assert [(p.name, str(p.default), p.kind) for p in ours.parameters.values()] == [
            (p.name, str(p.default), p.kind) for p in theirs.parameters.values()
        ], name
    for name in [n for n in dir(torch.amp.GradScaler) if not n.startswith("_")]:
        assert hasattr(dt.amp.GradScaler, name), name
    missing = [n for n in dir(torch) if "autocast" in n and not hasattr(dt, n)]
    assert not [n for n in missing if "ipu" not in n and "xla" not in n]
