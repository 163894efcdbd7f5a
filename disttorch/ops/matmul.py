"""Matrix products. Two-dimensional operands become one GEMM, whatever the leading dims.

Shape legend: B batch, N rows of the left, K the summed dim, M columns of the right.
"""

from __future__ import annotations

import math

from ..backend.dtypes import FLOAT_NP
from ..tensor import Tensor
from .core import REGISTRY, op, write_out
from .elementwise_core import expand_error
from .samples import case


def _check(a, b, name):
    if a.dtype != b.dtype:
        raise RuntimeError(
            f"expected m1 and m2 to have the same dtype, but got: {_c_name(a)} != {_c_name(b)}"
        )


_C_NAMES = {"float32": "float", "float64": "double", "int64": "long", "float16": "c10::Half",
            "bfloat16": "c10::BFloat16", "int32": "int", "bool": "bool"}


def _c_name(a):
    return _C_NAMES.get(a.dtype.name, a.dtype.name)


@op(tensors=("input", "other"), fused=True, samples=lambda m: [
    case(m(3, 4), m(4, 5)), case(m(4), m(4)), case(m(3, 4), m(4)), case(m(4), m(4, 5)),
    case(m(2, 3, 4), m(4, 5)), case(m(2, 3, 4), m(2, 4, 5)), case(m(2, 1, 3, 4), m(3, 4, 2)),
    case(m(2, 3, 4), m(4)), case(m(0, 4), m(4, 5)), case(m(4), m(2, 4, 3)), case(m(3, 0), m(0, 2)),
])
def matmul(xp, input, other):
    """The matrix product with PyTorch's broadcasting over leading dims."""
    a, b = input, other
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(
            f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D"
        )
    _check(a, b, "matmul")
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise RuntimeError(_mismatch(a.shape, b.shape))
    if a.dtype.kind == "b":
        raise RuntimeError('"addmm_impl_cpu_" not implemented for \'Bool\'')
    if b.ndim == 2 and a.ndim > 2:  # B×N×K @ K×M is one product of (B·N)×K with K×M
        rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        return xp.matmul(rows, b).reshape(*a.shape[:-1], b.shape[1])
    try:
        return xp.matmul(a, b)
    except ValueError:
        raise RuntimeError(_mismatch(a.shape, b.shape)) from None


def _mismatch(a, b):
    if len(a) == 1 and len(b) == 1:
        return f"inconsistent tensor size, expected tensor {list(a)} and src {list(b)} to have " \
               f"the same number of elements, but got {a[0]} and {b[0]} elements respectively"
    if len(b) == 1:
        return f"size mismatch, got input ({a[-2]}), mat ({a[-2]}x{a[-1]}), vec ({b[0]})"
    rows = 1
    for s in a[:-1]:
        rows *= s
    if len(a) <= 2 or len(b) == 2:
        return (f"mat1 and mat2 shapes cannot be multiplied ({rows}x{a[-1]} and "
                f"{b[-2]}x{b[-1]})")
    if a[-1] == b[-2]:
        dim = next(i for i in range(-3, -len(a) - 1, -1) if a[i] != b[i] and 1 not in (a[i], b[i]))
        return (f"The size of tensor a ({a[dim]}) must match the size of tensor b ({b[dim]}) at "
                f"non-singleton dimension {max(len(a), len(b)) + dim}")
    return (f"Expected size for first two dimensions of batch2 tensor to be: [{a[0]}, {a[-1]}] but "
            f"got: [{b[0]}, {b[-2]}].")


def _as_rows(F, a):
    """All leading dims as one (written out: −1 is ambiguous where a dim is 0)."""
    return F.reshape(a, (math.prod(a.shape[:-1]), a.shape[-1]))


@matmul.grad("input")
def _(F, g, input_shape, other):
    a_ndim, b = len(input_shape), other
    if b.ndim == 1:
        if a_ndim == 1:
            return g * F.conj(b)
        return F.unsqueeze(g, -1) * F.conj(b)
    if a_ndim == 1:
        g = F.unsqueeze(g, -2)  # 1×M @ M×K
        return F.sum_to(F.squeeze(F.matmul(g, F.conj(F.transpose(b, -1, -2))), -2), input_shape)
    return F.sum_to(F.matmul(g, F.conj(F.transpose(b, -1, -2))), input_shape)


@matmul.grad("other")
def _(F, g, input, other_shape):
    a, b_ndim = input, len(other_shape)
    if a.ndim == 1:
        if b_ndim == 1:
            return g * F.conj(a)
        return F.sum_to(F.unsqueeze(F.conj(a), -1) * F.unsqueeze(g, -2), other_shape)
    if b_ndim == 1:
        g = F.reshape(g, (math.prod(g.shape), 1))
        a2 = _as_rows(F, a)
        return F.reshape(F.matmul(F.conj(F.transpose(a2, 0, 1)), g), (a.shape[-1],))
    if b_ndim == 2:
        a2, g2 = _as_rows(F, a), _as_rows(F, g)
        return F.matmul(F.conj(F.transpose(a2, 0, 1)), g2)
    return F.sum_to(F.matmul(F.conj(F.transpose(a, -1, -2)), g), other_shape)


@op(tensors=("input", "weight", "bias"), optional=("bias",), method=False, node_name="Addmm",
    fused=True, samples=lambda m: [
        case(m(3, 4), m(5, 4), m(5)), case(m(2, 3, 4), m(5, 4)), case(m(4), m(5, 4), m(5)),
        case(m(0, 4), m(5, 4), m(5)),
    ])
def linear(xp, input, weight, bias=None):
    """input @ weightᵀ + bias. input: …×K, weight: M×K, bias: M -> …×M."""
    _check(input, weight, "linear")
    if weight.ndim == 1:
        out = xp.matmul(input, weight)
        return out if bias is None else out + bias
    if input.shape[-1] != weight.shape[1]:
        rows = input.size // input.shape[-1] if input.shape[-1] else 0
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({rows}x{input.shape[-1]} and "
            f"{weight.shape[1]}x{weight.shape[0]})"
        )
    try:
        return xp.linear(input, weight, bias)
    except ValueError:
        rows = math.prod(input.shape[:-1])
        raise expand_error(bias.shape, (rows, weight.shape[0])) from None


@linear.grad("input")
def _(F, g, weight):
    return F.matmul(g, F.conj(weight)) if weight.ndim == 2 else F.unsqueeze(g, -1) * F.conj(weight)


@linear.grad("weight")
def _(F, g, input, weight_shape):
    a = _as_rows(F, input)
    if len(weight_shape) == 1:
        return F.matmul(F.reshape(g, (a.shape[0],)), F.conj(a))
    return F.matmul(F.transpose(_as_rows(F, g), 0, 1), F.conj(a))


@linear.grad("bias")
def _(F, g, bias_shape):
    return F.sum_to(g, bias_shape)


def _both(xp, g, input, weight):
    return xp.linear_backward(g, input, weight)


def _all_three(xp, g, input, weight, bias_shape):
    grads = xp.linear_backward(g, input, weight)
    if grads is NotImplemented:
        return grads
    return (*grads, g if g.shape == bias_shape else xp.sum_rows_to(g, bias_shape))


linear.fused_grads(("input", "weight"), _both, ("input", "weight"))
linear.fused_grads(("input", "weight", "bias"), _all_three, ("input", "weight", "bias_shape"))


@op(tensors=("input", "a", "b"), method=False, node_name="Addmm", fused=True, samples=lambda m: [
    case(m(3, 5), m(3, 4), m(4, 5)), case(m(5), m(3, 4), m(4, 5)),
    case(m(3, 1), m(3, 4), m(4, 5), 2.0, -0.5), case(m(2, 3, 5), m(2, 3, 4), m(2, 4, 5), 0.5),
    case(m(3, 5), m(2, 3, 4), m(2, 4, 5), 1, 3.0), case(m(3, 5), m(3, 0), m(0, 5)),
    case(m(3, 5), m(3, 4), m(4, 5), 0),
])
def add_matmul(xp, input, a, b, beta=1, alpha=1):
    """beta·input + alpha·(a @ b), of one type; input broadcasts to the product's shape. With beta 0 it
    is not read."""
    return xp.add_matmul(input, a, b, alpha, beta)


@add_matmul.grad("input")
def _(F, g, input_shape, beta):
    return F.sum_to(g if beta == 1 else g * beta, input_shape)


@add_matmul.grad("a")
def _(F, g, b, alpha):
    g = F.matmul(g, F.conj(F.transpose(b, -1, -2)))
    return g if alpha == 1 else g * alpha


@add_matmul.grad("b")
def _(F, g, a, alpha):
    g = F.matmul(F.conj(F.transpose(a, -1, -2)), g)
    return g if alpha == 1 else g * alpha


_MLP = ("input", "weight1", "bias1", "weight2", "bias2")


@op(tensors=_MLP, method=False, aux=True, fused=True, samples=lambda m: [
    case(m(3, 4), m(8, 4), m(8), m(5, 8), m(5)), case(m(2, 3, 4), m(6, 4), m(6), m(4, 6), m(4)),
    case(m(0, 4), m(8, 4), m(8), m(5, 8), m(5)),
])
def linear_gelu_linear(xp, input, weight1, bias1, weight2, bias2):
    """gelu(input @ weight1ᵀ + bias1) @ weight2ᵀ + bias2, gelu in its tanh form.

    Two layers as one operation, so that a GPU computes gelu and its gradient while the products are
    still in its registers. For models of our own whose code has both layers and the tanh form in one
    place; nothing calls it in the place of ``F.gelu(F.linear(x))``, whose parts a user may observe.

    Args:
        input: …×K; weight1: M×K; bias1: M; weight2: P×M; bias2: P. The result is …×P.

    Raises:
        RuntimeError: if shapes or types do not fit.
    """
    for bias, weight in ((bias1, weight1), (bias2, weight2)):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise RuntimeError(
                f"linear_gelu_linear needs weights M×K and biases M, got {list(weight.shape)} and "
                f"{list(bias.shape)}"
            )
    if input.shape[-1] != weight1.shape[1] or weight1.shape[0] != weight2.shape[1]:
        raise RuntimeError(
            f"linear_gelu_linear: {list(input.shape)}, {list(weight1.shape)} and "
            f"{list(weight2.shape)} do not follow each other; the last dims must be K, M×K and P×M"
        )
    _check(input, weight1, "linear_gelu_linear")
    _check(weight1, weight2, "linear_gelu_linear")
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    hidden, before = xp.linear_gelu(rows, weight1, bias1)
    out = xp.linear(hidden, weight2, bias2)
    return out.reshape(*input.shape[:-1], weight2.shape[0]), (hidden, before)


@linear_gelu_linear.fast_grad(*_MLP)
def _(F, g, needs, input, weight1, weight2, aux):
    xp, (hidden, before) = F.xp, aux
    rows, g = _as_rows(F, input), _as_rows(F, g)
    d = grad_bias1 = None
    if any(needs[:3]):
        d, grad_bias1 = xp.matmul_dgelu(g, weight2, before)
    return (
        xp.matmul(d, weight1).reshape(input.shape) if needs[0] else None,
        xp.matmul(d.T, rows) if needs[1] else None,
        grad_bias1,
        xp.matmul(g.T, hidden) if needs[3] else None,
        xp.sum_rows_to(g, g.shape[1:]) if needs[4] else None,
    )


@linear_gelu_linear.compose
def _(input, weight1, bias1, weight2, bias2):
    hidden = REGISTRY["gelu"].call(linear.call(input, weight1, bias1), "tanh")
    return linear.call(hidden, weight2, bias2)


def mm(input: Tensor, mat2: Tensor, *, out=None) -> Tensor:
    """The product of two matrices."""
    _need_dims("mm", ("self", input, 2), ("mat2", mat2, 2))
    return matmul.call(input, mat2, out=out)


def bmm(input: Tensor, mat2: Tensor, *, out=None) -> Tensor:
    """Products of B matrices with B matrices."""
    _need_dims("bmm", ("batch1", input, 3), ("batch2", mat2, 3))
    if input._data.shape[0] != mat2._data.shape[0]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: "
            f"[{input._data.shape[0]}, {input._data.shape[2]}] but got: "
            f"[{mat2._data.shape[0]}, {mat2._data.shape[1]}]."
        )
    return matmul.call(input, mat2, out=out)


def mv(input: Tensor, vec: Tensor, *, out=None) -> Tensor:
    """The product of a matrix and a vector."""
    _need_dims("mv", ("input", input, 2), ("vec", vec, 1))
    return matmul.call(input, vec, out=out)


def dot(input: Tensor, tensor: Tensor, *, out=None) -> Tensor:
    """The inner product of two vectors."""
    if input.ndim != 1 or tensor.ndim != 1:
        raise RuntimeError(
            f"1D tensors expected, but got {input.ndim}D and {tensor.ndim}D tensors"
        )
    return matmul.call(input, tensor, out=out)


def outer(input: Tensor, vec2: Tensor, *, out=None) -> Tensor:
    """The outer product of two vectors."""
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(f"outer: Expected 1-D argument, got {input.ndim}-D and {vec2.ndim}-D")
    result = REGISTRY["unsqueeze"].call(input, 1) * vec2
    return result if out is None else write_out(result, out, "outer")


def addmm(input, mat1, mat2, *, beta=1, alpha=1, out=None) -> Tensor:
    """beta·input + alpha·(mat1 @ mat2)."""
    _need_dims("addmm", ("mat1", mat1, 2), ("mat2", mat2, 2))
    if _in_one(input, mat1, mat2, beta, alpha):
        result = add_matmul.call(input, mat1, mat2, beta, alpha)
        return result if out is None else write_out(result, out, "addmm")
    return _added(input, matmul.call(mat1, mat2), beta, alpha, out, "addmm")


def baddbmm(input, batch1, batch2, *, beta=1, alpha=1, out=None) -> Tensor:
    """beta·input + alpha·(batch1 @ batch2)."""
    if _in_one(input, batch1, batch2, beta, alpha, 3):
        result = add_matmul.call(input, batch1, batch2, beta, alpha)
        return result if out is None else write_out(result, out, "baddbmm")
    return _added(input, bmm(batch1, batch2), beta, alpha, out, "baddbmm")


def addbmm(input, batch1, batch2, *, beta=1, alpha=1, out=None) -> Tensor:
    """beta·input + alpha·Σ over the batch of (batch1 @ batch2)."""
    total = REGISTRY["sum"].call(bmm(batch1, batch2), 0)
    return _added(input, total, beta, alpha, out, "addbmm")


def addmv(input, mat, vec, *, beta=1, alpha=1, out=None) -> Tensor:
    """beta·input + alpha·(mat @ vec)."""
    return _added(input, mv(mat, vec), beta, alpha, out, "addmv")


def addr(input, vec1, vec2, *, beta=1, alpha=1, out=None) -> Tensor:
    """beta·input + alpha·(vec1 ⊗ vec2)."""
    return _added(input, outer(vec1, vec2), beta, alpha, out, "addr")


def _in_one(input, a, b, beta, alpha, ndim=2) -> bool:
    """Whether ``add_matmul`` computes it: one floating type, shapes that fit. The rest, and whatever is
    wrong with the arguments, is the business of the steps one by one."""
    if not all(isinstance(t, Tensor) for t in (input, a, b)):
        return False
    x, y, z = input._data, a._data, b._data
    if not (x.dtype == y.dtype == z.dtype and x.dtype in FLOAT_NP and y.ndim == z.ndim == ndim):
        return False
    if y.shape[-1] != z.shape[-2] or y.shape[:-2] != z.shape[:-2]:
        return False
    shape = (*y.shape[:-1], z.shape[-1])
    if x.ndim > ndim or any(n not in (1, m) for n, m in zip(x.shape[::-1], shape[::-1])):
        return False
    numbers = (int, float, complex) if x.dtype.kind == "c" else (int, float)
    return isinstance(beta, numbers) and isinstance(alpha, numbers)


def _added(input, product, beta, alpha, out, name):
    if alpha != 1:
        product = product * alpha
    # beta 0 means that input is not even read: its NaNs must not spread
    result = product if beta == 0 else (input if beta == 1 else input * beta) + product
    return result if out is None else write_out(result, out, name)


def _need_dims(name, *given):
    for label, t, ndim in given:
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}(): argument '{label}' must be Tensor, not {type(t).__name__}")
        if t.ndim != ndim:
            kind = {1: "a vector", 2: "a matrix", 3: "a 3D tensor"}[ndim]
            raise RuntimeError(f"{name}: {label} must be {kind}, got {t.ndim}D tensor")


COMPOSITES = {
    "mm": mm, "bmm": bmm, "mv": mv, "dot": dot, "outer": outer, "ger": outer,
    "addmm": addmm, "addbmm": addbmm, "baddbmm": baddbmm, "addmv": addmv, "addr": addr,
}
INPLACE = ("addmm", "addbmm", "baddbmm", "addmv", "addr")
