"""Every registered op against PyTorch: values, dtypes, shapes, gradients, over dtypes and layouts."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import Maker, flatten_inputs, sampled_ops

import disttorch as dt
from disttorch.ops.core import REGISTRY
from disttorch.tensor import Tensor

torch = pytest.importorskip("torch")
F = torch.nn.functional
from conv_counterparts import CONV_COUNTERPARTS  # noqa: E402

pytestmark = pytest.mark.parity


def _nll(logp, target, weight, ignore_index, reduction, smoothing):
    if smoothing:  # cross_entropy of log-probabilities is nll with smoothing: they sum to 1
        classes = logp.shape[1]
        hard = F.nll_loss(logp, target, weight, ignore_index=ignore_index, reduction="none")
        each = -(logp if weight is None else logp * weight).sum(1)
        total = len(target) if weight is None else weight[target].sum()
        return ((1 - smoothing) * hard + each * smoothing / classes).sum() / total
    return F.nll_loss(logp, target, weight, ignore_index=ignore_index, reduction=reduction)


def _layer_norm(x, w, b, ndim, eps):
    return F.layer_norm(x, x.shape[-ndim:], w, b, eps)


def _norm2(x, dim=None, keepdim=False):
    return torch.linalg.vector_norm(x, 2, dim, keepdim)


# Where the registered name is not a PyTorch function of the same signature
COUNTERPART = {
    "plain_add": torch.add, "plain_sub": torch.sub, "to_dtype": lambda x, d: x.to(d),
    "log_sigmoid": F.logsigmoid, "gelu": F.gelu, "silu": F.silu, "leaky_relu": F.leaky_relu,
    "elu": F.elu, "softplus": F.softplus, "clone_contiguous": lambda x: x.contiguous(),
    "sum_to": lambda x, s: x.sum_to_size(s), "max_dim": torch.max, "min_dim": torch.min,
    "sort_dim": torch.sort, "topk_dim": torch.topk,
    "max_all": torch.max, "min_all": torch.min, "norm2": _norm2,
    "view": lambda x, s: x.view(s), "expand": lambda x, s: x.expand(s),
    "slice": lambda x, i: x[i], "index": lambda x, i: x[tuple(_t(v) for v in i)],
    "index_put": lambda x, i, v, acc=False: x.index_put(
        tuple(_t(k) for k in _full(x, i)), v, acc),
    "embedding_lookup": lambda w, i, pad=None, freq=False: F.embedding(
        i, w, pad, scale_grad_by_freq=freq), "softmax_over": torch.softmax,
    "log_softmax_over": torch.log_softmax, "native_layer_norm": _layer_norm, "nll_rows": _nll,
    "native_rms_norm": lambda x, w, n, eps: F.rms_norm(x, x.shape[-n:], w, eps),
    "cross_entropy_rows": lambda x, t, w, ignore, how, s: F.cross_entropy(
        x, t, w, ignore_index=ignore, reduction=how, label_smoothing=s),
    "attention_kept": lambda q, k, v, m, c, s: F.scaled_dot_product_attention(
        q, k, v, m, is_causal=c, scale=s),
    "attention_fused": lambda q, k, v, m, c, s, p, r: F.scaled_dot_product_attention(
        q, k, v, m, p, c, scale=s, enable_gqa=q.ndim > 3),
    "conjugate": torch.conj_physical, "linear": F.linear,
    "add_matmul": lambda c, a, b, beta=1, alpha=1: (torch.addmm if a.ndim == 2 else torch.baddbmm)(
        c, a, b, beta=beta, alpha=alpha),
    "linear_gelu_linear": lambda x, w1, b1, w2, b2: F.linear(
        F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2),
    "triangular_left": lambda a, b, upper, unit=False: torch.linalg.solve_triangular(
        a, b, upper=upper, unitriangular=unit),
    "vector_norm": torch.linalg.vector_norm,
    "linalg_pinv": lambda a: torch.linalg.pinv(a),
    "unfold": lambda x, d, n, s: x.unfold(d, n, s), "scatter_into": torch.scatter,
    "unfold_backward": torch.ops.aten.unfold_backward, "masked_pick": torch.masked_select,
    "scatter_reduce_into": lambda x, d, i, s, how, own: torch.scatter_reduce(
        x, d, i, s, how, include_self=own),
}
COUNTERPART |= {
    "div_trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "div_floor": lambda a, b: torch.div(a, b, rounding_mode="floor"), "frexp_parts": torch.frexp,
    "real_part": torch.real, "imag_part": torch.imag,
    "polygamma_of": lambda x, n: torch.polygamma(n, x), "product": torch.prod,
    "variance": lambda x, dim=None, c=1, keep=False: torch.var(x, dim, correction=c, keepdim=keep),
    "deviation": lambda x, dim=None, c=1, keep=False: torch.std(x, dim, correction=c, keepdim=keep),
    "cumulative_sum": torch.cumsum, "cumulative_product": torch.cumprod,
    "cummax_pair": torch.cummax, "cummin_pair": torch.cummin, "median_dim": torch.median,
    "nanmedian_dim": torch.nanmedian, "mode_dim": torch.mode, "kthvalue_dim": torch.kthvalue,
    "median_all": torch.median, "nanmedian_all": torch.nanmedian,
}
COUNTERPART |= CONV_COUNTERPARTS


def _clone_laid(x, last):
    ways = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.clone(memory_format=ways[x.ndim] if last else torch.contiguous_format)


COUNTERPART["clone_laid"] = _clone_laid
# No public counterpart: pieces of gradients, checked by gradcheck
INTERNAL = {
    "alias", "as_strided", "as_strided_backward", "attention_anew", "copy", "ctc_rows",
    "fill", "gather_backward", "gru_layer", "index_backward", "index_select_backward",
    "linalg_cofactor", "lstm_layer", "ones_like", "reversed_sum", "rnn_layer",
    "rotary", "rotary_back", "slice_backward", "view_scatter", "zeros_like", "zeros_shaped",
}

MAKES_COMPLEX = {"complex", "view_as_complex"}
FLOATS = ["float32", "float64", "float16", "bfloat16"]
LAYOUTS = ["contiguous", "transposed", "sliced"]
TOLERANCE = {"float32": (1e-5, 2e-5), "float64": (1e-9, 1e-9), "float16": (4e-3, 4e-3),
             "bfloat16": (2e-2, 3e-2)}


def _t(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _full(x, index):
    """index_put takes tensors only: slices as index ranges that broadcast."""
    if not any(isinstance(i, slice) for i in index):
        return index
    grids = [np.arange(n)[i] if isinstance(i, slice) else i for i, n in zip(index, x.shape)]
    return [g.reshape([-1 if k == j else 1 for j in range(len(grids))]) if g.ndim == 1 else g
            for k, g in enumerate(grids)]


def to_numpy(t) -> np.ndarray:
    if isinstance(t, Tensor):
        a = t.detach()._data
        return a.astype(np.float32) if a.dtype.name == "bfloat16" else a
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy(force=True)


def lay_out(array, layout):
    """The same values in other memory: transposed, or a slice of something larger."""
    if layout == "transposed" and array.ndim >= 2:
        return np.ascontiguousarray(array.swapaxes(0, -1)).swapaxes(0, -1)
    if layout == "sliced" and array.ndim:
        big = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
        view = big[..., : 2 * array.shape[-1] : 2]
        view[...] = array
        return view
    return array


def pair(ours: Tensor, layout):
    """One tensor twice, ours and PyTorch's, of equal values and layout."""
    array = lay_out(ours._data, layout)
    mine = dt.from_numpy(array)
    theirs = torch.from_numpy(array.view(np.int16) if array.dtype.name == "bfloat16" else array)
    if array.dtype.name == "bfloat16":
        theirs = theirs.view(torch.bfloat16)
    theirs = theirs.clone() if layout == "contiguous" else theirs
    if ours.requires_grad:
        mine.requires_grad_(), theirs.requires_grad_()
    return mine, theirs


def translate(value):
    """Arguments that are our objects, as PyTorch's."""
    if isinstance(value, dt.dtype):
        return getattr(torch, value.name)
    return value


def outputs(result):
    return [result] if isinstance(result, (Tensor, torch.Tensor)) else list(result)


def _by_name(name):
    """PyTorch's function of that name; ``linalg_inv`` is ``linalg.inv``."""
    if name.startswith("linalg_"):
        return getattr(torch.linalg, name.removeprefix("linalg_"))
    return getattr(torch, name, None) or getattr(torch.special, name)


def check_case(op, case, dtype, layout):
    tensors, call = flatten_inputs(case)
    pairs = [pair(t, layout) for t in tensors]
    reference = COUNTERPART.get(op.name) or _by_name(op.name)
    try:
        want = outputs(call(lambda *a, **k: reference(*map(translate, a), **k),
                            [p[1] for p in pairs]))
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented for" in str(error):
            return 0  # PyTorch has no kernel for this dtype; ours may
        with pytest.raises(type(error)):  # a layout that it refuses, we refuse
            call(op.call, [p[0] for p in pairs])
        return 1
    got = outputs(call(op.call, [p[0] for p in pairs]))
    assert len(got) == len(want)
    rtol, atol = TOLERANCE[dtype]
    for a, b in zip(got, want):
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype) == str(b.dtype), f"{a.dtype} != {b.dtype}"
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=rtol, atol=atol)
    compare_gradients(pairs, got, want, rtol, atol, op.differentiable)
    return 1


def compare_gradients(pairs, got, want, rtol, atol, differentiable):
    used = [(a, b) for a, b in zip(got, want) if b.requires_grad and differentiable]
    if not used:
        assert not any(a.requires_grad for a in got)
        return
    seeds = [np.cos(np.arange(a.numel()) + 0.5).reshape(a.shape) for a, _ in used]
    dt.autograd.backward([a for a, _ in used],
                         [dt.tensor(s).to(a.dtype) for s, (a, _) in zip(seeds, used)])
    try:
        torch.autograd.backward([b for _, b in used],
                                [torch.tensor(s).to(b.dtype) for s, (_, b) in zip(seeds, used)])
    except NotImplementedError as error:
        assert "backward\" not implemented for" in str(error)  # it lacks a kernel; ours may not
        return
    for mine, theirs in pairs:
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            assert str(mine.grad.dtype) == str(theirs.grad.dtype)
            np.testing.assert_allclose(to_numpy(mine.grad), to_numpy(theirs.grad), rtol=4 * rtol,
                                       atol=8 * atol)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [n for n in sampled_ops() if n not in INTERNAL])
def test_values_and_gradients(name, dtype):
    if name.startswith("linalg_") and dtype in ("float16", "bfloat16"):
        pytest.skip("LAPACK has no 16-bit types; test_linalg.py checks that they are refused")
    op = REGISTRY[name]
    if dtype == "float16" and name in MAKES_COMPLEX:
        pytest.skip("PyTorch makes complex32 of float16, which does not exist here")
    checked = 0
    for layout in LAYOUTS:
        maker = Maker(seed=7, dtype=getattr(dt, dtype))
        for case in op.samples(maker):
            checked += check_case(op, case, dtype, layout)
    if not checked:
        pytest.skip(f"PyTorch has no {dtype} kernel for {name}")
