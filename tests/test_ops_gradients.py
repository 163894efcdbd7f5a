"""Every registered op: first and second derivatives against finite differences."""

from __future__ import annotations

import pytest
from op_cases import cases, differentiable_ops, flatten_inputs

from disttorch.autograd.gradcheck import gradcheck, gradgradcheck
from disttorch.ops.core import REGISTRY
from disttorch.tensor import Tensor

# Ops without sample inputs of their own, and where they are checked instead
CHECKED_ELSEWHERE = {
    "native_dropout": "test_autograd.py: random, so its own test",
    "linalg_cholesky": "test_linalg.py: needs a positive-definite input",
    "linalg_eigh": "test_linalg.py", "linalg_eig": "test_linalg.py", "linalg_svd": "test_linalg.py",
    "linalg_qr": "test_linalg.py", "lu_decompose": "test_linalg.py",
    "log_gamma_variate": "test_distributions.py: implicit, so no finite differences",
    "log_gamma_variate_slope": "test_distributions.py: its rule refuses",
    "to_device": "needs two devices: tests/gpu",
}



@pytest.mark.parametrize("name", differentiable_ops())
def test_first_derivative(name):
    op = REGISTRY[name]
    checked = 0
    for case in cases(op):
        tensors, call = flatten_inputs(case)
        if any(t.requires_grad for t in tensors):
            gradcheck(lambda *ts, call=call: call(op.call, ts), tensors)
            checked += 1
    assert checked, f"no sample of {name} has an input that requires grad"


@pytest.mark.parametrize("name", differentiable_ops())
def test_second_derivative(name):
    op = REGISTRY[name]
    for case in cases(op, seed=1):
        tensors, call = flatten_inputs(case)
        if any(t.requires_grad for t in tensors):
            if not _has_gradient(op, call, tensors):
                continue
            gradgradcheck(lambda *ts, call=call: call(op.call, ts), tensors)


def _has_gradient(op, call, tensors):
    out = call(op.call, tensors)
    outs = [out] if isinstance(out, Tensor) else list(out)
    return any(o.requires_grad for o in outs) and all(t.numel() for t in tensors)


def test_every_differentiable_op_has_samples():
    missing = {n for n, op in REGISTRY.items() if op.differentiable and not op.samples}
    assert missing == set(CHECKED_ELSEWHERE)
