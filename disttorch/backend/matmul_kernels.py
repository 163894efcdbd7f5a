"""Matrix products with something added, as plain formulas; the GPU has them in single calls.

Each function takes the namespace ``xp`` first and becomes a method of it. Shape legend: N rows, K
summed, M columns.
"""

from __future__ import annotations

import math


def add_matmul(xp, c, a, b, alpha=1, beta=1):
    """alpha·a@b + beta·c; with beta 0, c is not read. c broadcasts to the product's shape."""
    product = xp.matmul(a, b)
    if alpha != 1:
        product = product * alpha
    if beta == 0:
        return product
    return (c if beta == 1 else c * beta) + product


def linear(xp, input, weight, bias):
    """input @ weightᵀ + bias. input: …×K, weight: M×K, bias: M, or None -> …×M.

    Raises:
        ValueError: if the bias does not broadcast to N×M, with N rows in the input.
    """
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    out = xp.matmul(rows, weight.T)
    if bias is not None:
        out += bias
    return out.reshape(*input.shape[:-1], weight.shape[0])


def linear_gelu(xp, rows, weight, bias):
    """(gelu(z) in its tanh form, z) of z = rows @ weightᵀ + bias; shapes as in ``linear``."""
    z = xp.linear(rows, weight, bias)
    return xp.gelu(z, "tanh"), z


def matmul_dgelu(xp, g, weight, z):
    """(d, its sum over rows) of d = (g @ weight)·gelu'(z), gelu in its tanh form.

    The way back through the linear map that follows a gelu, and through that gelu: g: N×P, weight: P×M,
    z: N×M -> N×M, M.
    """
    d = xp.gelu_backward(xp.matmul(g, weight), z, "tanh")
    return d, xp.sum_rows_to(d, (z.shape[1],))
