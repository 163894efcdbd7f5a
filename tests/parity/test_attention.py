"""scaled_dot_product_attention beside PyTorch's: values, shapes, dtypes, and the classes of errors."""

from __future__ import annotations

import math

import pytest

import disttorch as dt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

# Each is evaluated with T the library, F its functions, f the attention, x(*shape) fixed numbers,
# and q, k, v of 2 × 3 heads, 5 queries and 7 keys, 8 wide.
COMPUTED = """
f(q, k, v, is_causal=True)
f(x(2, 3, 9, 8), k, v, is_causal=True)
f(q, k, v, x(5, 7))
f(q, k, v, T.zeros(5, 7, dtype=T.bool))
f(q, k, v, T.full((5, 7), -math.inf))
f(q, k, v, x(5, 1))
f(q, k, v, x(2, 1, 1, 7) > 0)
f(q.half(), k.half(), v.half(), x(5, 7))
f(q.bfloat16(), k.bfloat16(), v.bfloat16(), is_causal=True)
f(q[0, 0], k[0, 0], v[0, 0])
f(q[0], k[0], v[0], is_causal=True)
f(q, k[:1], v[:1])
f(q, k[:, :1], v[:, :1])
f(x(2, 6, 5, 8), k, v, enable_gqa=True)
f(x(2, 6, 5, 8), k, v[:, :1], enable_gqa=True)
f(x(2, 6, 5, 8), k, v, x(2, 6, 5, 7), enable_gqa=True)
f(q, k, v, dropout_p=1.0)
f(q, k, v, scale=0.0)
f(q, k, v, scale=-1.0)
f(q, k, v, scale=2)
f(q, k, v, scale=T.tensor(0.5))
f(q[:, :, :0], k, v)
f(q, k[:, :, :0], v[:, :, :0])
f(q[:0], k[:0], v[:0])
f(q[..., :0], k[..., :0], v)
""".strip().splitlines()

REFUSED = """
f(q, k, v, x(5, 7).double())
f(q, k, v, T.ones(5, 7, dtype=T.int64))
f(q, k, v, x(5, 6))
f(q, k.double(), v)
f(q.long(), k.long(), v.long())
f(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0])
f(q, x(2, 3, 7, 6), v)
f(q, x(3, 3, 7, 8), x(3, 3, 7, 8))
f(x(2, 6, 5, 8), k, v)
f(x(2, 5, 5, 8), k, v, enable_gqa=True)
f(k, x(2, 6, 7, 8), x(2, 6, 7, 8), enable_gqa=True)
f(q[0, 0], k[0, 0], v[0, 0], enable_gqa=True)
f(q, k, v, dropout_p=1.5)
f(q, k, v, dropout_p=-0.5)
f(q, k, v, dropout_p="x")
f(q, k, v, dropout_p=None)
f(q, k, v, scale="x")
f(q, k, v, scale=T.tensor(0.5).requires_grad_())
f(q, k, v, is_causal=1)
f(q, k, v, is_causal=None)
f(q, k, v, enable_gqa=1)
f(q, k, v, 3)
f(q, k, v, [1])
f(q, None, v)
f(q, [1], v)
f(q, k, v, None, 0.0, False, 0.5)
""".strip().splitlines()


def scope(T) -> dict:
    def x(*shape):
        return ((T.arange(math.prod(shape)) % 7 - 3).float() / 3).reshape(*shape)

    return {"T": T, "F": T.nn.functional, "f": T.nn.functional.scaled_dot_product_attention, "x": x,
            "math": math, "q": x(2, 3, 5, 8), "k": x(2, 3, 7, 8), "v": x(2, 3, 7, 8)}


@pytest.mark.parametrize("text", COMPUTED)
def test_computed(text):
    want, got = (eval(text, scope(T)) for T in (torch, dt))
    assert tuple(got.shape) == tuple(want.shape) and str(got.dtype) == str(want.dtype)
    limit = 1e-6 if want.dtype is torch.float32 else 1e-2
    assert (torch.tensor(got.double().numpy()) - want.double()).abs().max().item() <= limit if (
        want.numel()) else True


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(Exception) as want:
        eval(text, scope(torch))
    with pytest.raises(want.type):
        eval(text, scope(dt))


def test_gradients_where_nothing_is_to_be_seen():
    results = []
    for T in (torch, dt):
        q, k, v = (t.requires_grad_() for t in (T.ones(2, 3, 4), T.ones(2, 0, 4), T.ones(2, 0, 4)))
        T.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
        results.append([t.grad.tolist() for t in (q, k, v)])
    assert results[0] == results[1]
