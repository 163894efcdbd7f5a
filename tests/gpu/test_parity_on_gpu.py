"""Every registered op on the GPU against PyTorch on the same GPU, over dtypes: values, gradients.

The cases, PyTorch's counterparts and the tolerances are those of the CPU's parity test.
"""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import Maker, flatten_inputs, sampled_ops

import disttorch as dt
from disttorch.ops.core import REGISTRY
from disttorch.tensor import Tensor

torch = pytest.importorskip("torch")
from parity import test_ops as cpu  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (dt.cuda.is_available() and torch.cuda.is_available()),
        reason="no CUDA device, no CuPy, or a PyTorch without CUDA",
    ),
]
# CUDA's libraries add in another order, and the GPU's functions round otherwise
TOLERANCE = {"float32": (2e-5, 5e-5), "float16": (5e-3, 5e-3), "bfloat16": (3e-2, 4e-2)}
# Values that only the CPU's test compares: random or implementation-defined on a GPU
UNDEFINED = {"mode_dim", "median_dim", "nanmedian_dim"}  # which of equal elements is named


def to_numpy(t) -> np.ndarray:
    if isinstance(t, Tensor):
        a = t.detach().cpu()._data
        return a.astype(np.float32) if a.dtype.name == "bfloat16" else a
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy(force=True)


def on_gpu(value):
    """Index arrays among the plain arguments, moved to the device."""
    if isinstance(value, np.ndarray):
        return dt.from_numpy(value).cuda()._data
    return type(value)(map(on_gpu, value)) if isinstance(value, (tuple, list)) else value


def theirs_on_gpu(value):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).cuda()
    return type(value)(map(theirs_on_gpu, value)) if isinstance(value, (tuple, list)) else value


def pair(t: Tensor):
    mine, theirs = cpu.pair(t, "contiguous")
    mine, theirs = mine.detach().cuda(), theirs.detach().cuda()
    return mine.requires_grad_(t.requires_grad), theirs.requires_grad_(t.requires_grad)


def check_case(op, case, dtype) -> bool:
    tensors, call = flatten_inputs(case)
    pairs = [pair(t) for t in tensors]
    reference = cpu.COUNTERPART.get(op.name) or cpu._by_name(op.name)
    try:
        want = cpu.outputs(call(lambda *a, **k: reference(*map(cpu.translate, a), **k),
                                [p[1] for p in pairs]))
    except (RuntimeError, NotImplementedError, IndexError, TypeError):
        return False  # PyTorch has no CUDA kernel for it, or wants other arguments on a GPU
    got = cpu.outputs(call(lambda *a, **k: op.call(*map(on_gpu, a), **k), [p[0] for p in pairs]))
    rtol, atol = TOLERANCE[dtype]
    for a, b in zip(got, want, strict=True):
        assert a.is_cuda and tuple(a.shape) == tuple(b.shape) and str(a.dtype) == str(b.dtype)
        if op.name not in UNDEFINED or a.dtype.is_floating_point:
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=rtol, atol=atol)
    used = [(a, b) for a, b in zip(got, want) if b.requires_grad and op.differentiable]
    if not used or op.name in UNDEFINED:
        return True
    seeds = [np.cos(np.arange(a.numel()) + 0.5).reshape(a.shape) for a, _ in used]
    dt.autograd.backward([a for a, _ in used],
                         [dt.tensor(s).to(a.dtype).cuda() for s, (a, _) in zip(seeds, used)])
    try:
        torch.autograd.backward([b for _, b in used],
                                [torch.tensor(s).to(b) for s, (_, b) in zip(seeds, used)])
    except (NotImplementedError, RuntimeError):
        return True
    for mine, theirs in pairs:
        assert (mine.grad is None) == (theirs.grad is None) or not mine.numel()
        if mine.grad is not None and mine.numel():
            np.testing.assert_allclose(to_numpy(mine.grad), to_numpy(theirs.grad), rtol=4 * rtol,
                                       atol=8 * atol)
    return True


@pytest.fixture(autouse=True)
def full_float32():
    """cuDNN's convolutions use TF32 by default: three digits instead of seven."""
    before = [p.backends.cudnn.allow_tf32 for p in (dt, torch)]
    dt.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    dt.backends.cudnn.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.filterwarnings("ignore:Attempting to run:UserWarning")
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", [n for n in sampled_ops() if n not in cpu.INTERNAL])
def test_values_and_gradients(name, dtype):
    if name.startswith("linalg_") and dtype != "float32":
        pytest.skip("cuSOLVER has no 16-bit types")
    if dtype == "float16" and (name in cpu.MAKES_COMPLEX or name.startswith("_fft")):
        pytest.skip("PyTorch makes complex32 of float16, which does not exist here")
    op = REGISTRY[name]
    checked = [check_case(op, case, dtype)
               for case in op.samples(Maker(seed=7, dtype=getattr(dt, dtype)))]
    if not any(checked):
        pytest.skip(f"PyTorch has no {dtype} CUDA kernel for {name}")
