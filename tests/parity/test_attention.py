"""scaled_dot_product_attention beside PyTorch's: values, shapes, dtypes, and the classes of errors."""

from __future__ import annotations

import importlib
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


@pytest.mark.parametrize("given", [
    "x", "{B.MATH}", "B.CUDNN_ATTENTION", "[B.EFFICIENT_ATTENTION]", "[]",
    "[B.FLASH_ATTENTION, B.CUDNN_ATTENTION]", "B.MATH", "[B.MATH, B.MATH]"])
def test_allowed_kernels(given):
    """On the CPU PyTorch knows FLASH_ATTENTION and MATH."""
    ends = []
    for T in (torch, dt):
        attention, x = T.nn.attention, T.ones(1, 2, 3, 4)
        try:
            with attention.sdpa_kernel(eval(given, {"B": attention.SDPBackend, "x": "x"})) as entered:
                T.nn.functional.scaled_dot_product_attention(x, x, x)
                ends.append(entered)
        except Exception as error:
            ends.append(type(error))
        assert T.backends.cuda.flash_sdp_enabled() and T.backends.cuda.math_sdp_enabled()
    assert ends[0] == ends[1]


@pytest.mark.parametrize("sizes", [(3, 4), (4, 4), (5, 2), (3,)])
@pytest.mark.parametrize("name", ["causal_upper_left", "causal_lower_right"])
@pytest.mark.filterwarnings("ignore:.*ower right")
def test_causal_biases(name, sizes):
    ends = []
    for T in (torch, dt):
        make = getattr(importlib.import_module(T.__name__ + ".nn.attention.bias"), name)
        f = T.nn.functional.scaled_dot_product_attention
        try:
            bias = make(*sizes)
        except Exception as error:
            ends.append(type(error))
            continue
        q, k = T.arange(sizes[0] * 4.0).reshape(1, -1, 4), T.arange(sizes[1] * 4.0).reshape(1, -1, 4)
        with pytest.raises(ValueError, match="CausalBias"):
            f(q, k, k, bias, is_causal=True)
        ends.append((bias.variant.name, bias._materialize().tolist(), f(q, k, k, bias).tolist()))
    assert ends[0] == ends[1] or ends[0][:2] == ends[1][:2] and torch.allclose(
        *(torch.tensor(e[2]) for e in ends), atol=1e-6)


def test_kernels_that_may_serve():
    for T in (torch, dt):
        cuda, x = T.backends.cuda, T.ones(1, 2, 3, 4)
        params = cuda.SDPAParams(x, x, x, None, 0.0, True, False)
        assert params.query is x or params.query.shape == x.shape
        assert (params.attn_mask, params.dropout, params.is_causal, params.enable_gqa) == (
            None, 0.0, True, False)
        for may in (cuda.can_use_flash_attention, cuda.can_use_efficient_attention,
                    cuda.can_use_cudnn_attention):
            assert may(params) is False and may(params, debug=False) is False
        assert cuda.fp16_bf16_reduction_math_sdp_allowed() is False
