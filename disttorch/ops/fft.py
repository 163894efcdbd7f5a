"""Fourier transforms. Three operations carry all of them: complex to complex, real to complex
(the redundant half left out) and back; NumPy computes, in the precision of the input.

``normalization`` counts as in PyTorch: 0 no factor, 1 by 1/√n, 2 by 1/n.
"""

from __future__ import annotations

import math

from ..backend import dtypes
from ..tensor import Tensor, wrap
from .core import REGISTRY, op, type_name, wrap_dim, write_out
from .samples import case


def _scale(mode, shape, dims):
    n = math.prod(shape[d] for d in dims)
    return 1.0 if mode == 0 or not n else n**-0.5 if mode == 1 else 1.0 / n


def _transform(xp, function, input, mode, shape, dims):
    """NumPy's unnormalised transform, times the factor asked for."""
    out = function(input)
    factor = _scale(mode, shape, dims)
    return out if factor == 1.0 else out * out.real.dtype.type(factor)


@op(method=False, moves=True, out=False, samples=lambda m: [
    case(m.complex(3, 4), (1,), 0, True), case(m.complex(3, 4), (0, 1), 1, False),
    case(m.complex(5), (0,), 2, True)])
def _fft_c2c(xp, input, dim, normalization, forward):
    inverse = "forward"  # NumPy's name for "no factor on the way back"
    if forward:
        return _transform(xp, lambda a: xp.fft.fftn(a, axes=dim), input, normalization,
                          input.shape, dim)
    return _transform(xp, lambda a: xp.fft.ifftn(a, axes=dim, norm=inverse), input, normalization,
                      input.shape, dim)


@_fft_c2c.grad("input")
def _(F, g, dim, normalization, forward):
    return F._fft_c2c(g, dim, normalization, not forward)


@op(method=False, moves=True, out=False, samples=lambda m: [
    case(m(3, 4), (1,), 0, True), case(m(3, 5), (0, 1), 1, True), case(m(4), (0,), 2, False),
])
def _fft_r2c(xp, input, dim, normalization, onesided):
    if input.dtype.itemsize == 2:
        raise RuntimeError(f"Unsupported dtype {type_name(dtypes.FROM_NP[input.dtype])}")
    if onesided:
        return _transform(xp, lambda a: xp.fft.rfftn(a, axes=dim), input, normalization,
                          input.shape, dim)
    return _transform(xp, lambda a: xp.fft.fftn(a, axes=dim), input, normalization, input.shape,
                      dim)


@_fft_r2c.grad("input")
def _(F, g, input_shape, dim, normalization, onesided):
    if tuple(g.shape) != input_shape:  # the half that was left out gets no gradient
        g = F.slice_backward(g, input_shape, tuple(slice(0, n) for n in g.shape))
    return F._fft_c2c(g, dim, normalization, False)


@op(method=False, moves=True, out=False, samples=lambda m: [
    case(m.complex(3, 3), (1,), 0, 4), case(m.complex(3, 3), (1,), 2, 5),
    case(m.complex(3, 3), (0, 1), 1, 5)])
def _fft_c2r(xp, input, dim, normalization, last_dim_size):
    shape = list(input.shape)
    shape[dim[-1]] = last_dim_size
    sizes = [shape[d] for d in dim]
    return _transform(xp, lambda a: xp.fft.irfftn(a, sizes, dim, norm="forward"), input,
                      normalization, shape, dim)


@_fft_c2r.grad("input")
def _(F, g, input_shape, dim, normalization, last_dim_size):
    out = F._fft_r2c(g, dim, normalization, True)
    # Every bin but the first (and the middle one of an even length) stands for two
    last = dim[-1]
    twice = last_dim_size - input_shape[last]
    if twice <= 0:
        return out
    at = (slice(None),) * (last % len(input_shape)) + (slice(1, 1 + twice),)
    return out + F.slice_backward(F.slice(out, at), tuple(out.shape), at)


# ---------------------------------------------------------------- arguments
_MODES = {None: 0, "backward": 0, "ortho": 1, "forward": 2}


def _mode(norm, forward):
    if norm not in _MODES:
        raise RuntimeError(f'Invalid normalization mode: "{norm}"')
    mode = _MODES[norm]
    return mode if forward or mode == 1 else 2 - mode


def _floating(input, complex_too=True):
    """Integers become the default float type; 16-bit floats are refused."""
    d = input.dtype
    if d.category < dtypes.FLOAT:
        return REGISTRY["to_dtype"].apply((input, dtypes.get_default_dtype()))
    if d.itemsize == 2:
        raise RuntimeError(f"Unsupported dtype {type_name(d)}")
    return input


def _to_complex(input):
    input = _floating(input)
    if input.dtype.category < dtypes.COMPLEX:
        input = REGISTRY["to_dtype"].apply((input, input.dtype.to_complex()))
    return input


def _real(name, input):
    if input.dtype.category == dtypes.COMPLEX:
        raise RuntimeError(f"{name} expects a real input tensor, but got {type_name(input.dtype)}")
    return _floating(input)


def _conj(t):
    return REGISTRY["conjugate"].call(t) if t.dtype.category == dtypes.COMPLEX else t


def _one_dim(input, n, dim):
    if input.ndim == 0:
        raise IndexError(f"Dimension specified as {dim} but tensor has no dimensions")
    dim = wrap_dim(dim, input.ndim)
    n = input._data.shape[dim] if n is None else n
    if n < 1:
        raise RuntimeError(f"Invalid number of data points ({n}) specified")
    return n, dim


def _several_dims(input, s, dim):
    """(sizes, dims) from what the n-dimensional forms accept."""
    if dim is None:
        if s is not None and len(s) > input.ndim:
            raise RuntimeError(
                f"Got shape with {len(s)} values but input tensor only has {input.ndim} dimensions."
            )
        dims = tuple(range(input.ndim)) if s is None else tuple(range(-len(s), 0))
    else:
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        if s is not None and len(s) != len(dims):
            raise RuntimeError("When given, dim and shape arguments must have the same length")
    dims = tuple(wrap_dim(d, input.ndim) for d in dims)
    if len(set(dims)) != len(dims):
        raise RuntimeError("FFT dims must be unique")
    have = [input._data.shape[d] for d in dims]
    s = have if s is None else [h if n == -1 else n for n, h in zip(s, have)]
    for n in s:
        if n < 1:
            raise RuntimeError(f"Invalid number of data points ({n}) specified")
    return s, dims


def _resized(input, sizes, dims):
    """Cut, or padded with zeros, to ``sizes`` along ``dims``."""
    shape = list(input._data.shape)
    keep = [slice(None)] * len(shape)
    for n, d in zip(sizes, dims):
        keep[d] = slice(0, min(n, shape[d]))
        shape[d] = n
    if any(k.stop is not None and k.stop < n for k, n in zip(keep, input._data.shape)):
        input = REGISTRY["slice"].call(input, tuple(keep))
    if tuple(shape) != input._data.shape:
        where = tuple(slice(0, n) for n in input._data.shape)
        input = REGISTRY["slice_backward"].call(input, tuple(shape), where)
    return input


def _done(result, out, name):
    return result if out is None else write_out(result, out, name)


# ---------------------------------------------------------------- one dim
def fft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Discrete Fourier transform along ``dim``, of ``n`` points (cut or zero-padded).

    Args:
        norm: where the factor 1/n goes: "backward" (default, on the inverse), "forward", "ortho".
    """
    return _done(_complex_1d(input, n, dim, norm, True), out, "fft_fft")


def ifft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Inverse of ``fft``."""
    return _done(_complex_1d(input, n, dim, norm, False), out, "fft_ifft")


def _complex_1d(input, n, dim, norm, forward):
    n, dim = _one_dim(input, n, dim)
    input = _resized(_to_complex(input), (n,), (dim,))
    return _fft_c2c.call(input, (dim,), _mode(norm, forward), forward)


def rfft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Fourier transform of real values: the n//2 + 1 frequencies that are not redundant."""
    input = _real("rfft", input)
    n, dim = _one_dim(input, n, dim)
    result = _fft_r2c.call(_resized(input, (n,), (dim,)), (dim,), _mode(norm, True), True)
    return _done(result, out, "fft_rfft")


def irfft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Inverse of ``rfft``: ``n`` real values (2·(bins − 1) unless given)."""
    return _done(_to_real(input, n, dim, norm, False), out, "fft_irfft")


def hfft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Fourier transform of a Hermitian signal given by its half: real values."""
    return _done(_to_real(_conj(input), n, dim, norm, True), out, "fft_hfft")


def _to_real(input, n, dim, norm, forward):
    if input.ndim == 0:
        _one_dim(input, n, dim)
    dim = wrap_dim(dim, input.ndim)
    n = 2 * (input._data.shape[dim] - 1) if n is None else n
    n, dim = _one_dim(input, n, dim)
    input = _resized(_to_complex(input), (n // 2 + 1,), (dim,))
    return _fft_c2r.call(input, (dim,), _mode(norm, forward), n)


def ihfft(input: Tensor, n=None, dim=-1, norm=None, *, out=None) -> Tensor:
    """Inverse of ``hfft``: half of a Hermitian signal."""
    input = _real("ihfft", input)
    n, dim = _one_dim(input, n, dim)
    result = _fft_r2c.call(_resized(input, (n,), (dim,)), (dim,), _mode(norm, False), True)
    return _done(_conj(result), out, "fft_ihfft")


# ---------------------------------------------------------------- several dims
def fftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Fourier transform over ``dim`` (all dims if None), of sizes ``s``."""
    return _done(_complex_nd(input, s, dim, norm, True), out, "fft_fftn")


def ifftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Inverse of ``fftn``."""
    return _done(_complex_nd(input, s, dim, norm, False), out, "fft_ifftn")


def _complex_nd(input, s, dim, norm, forward):
    s, dims = _several_dims(input, s, dim)
    input = _resized(_to_complex(input), s, dims)
    return _fft_c2c.call(input, dims, _mode(norm, forward), forward)


def rfftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Fourier transform of real values over ``dim``, the last of which keeps half."""
    input = _real("rfftn", input)
    s, dims = _several_dims(input, s, dim)
    if not dims:
        raise RuntimeError("rfftn must transform at least one axis")
    result = _fft_r2c.call(_resized(input, s, dims), dims, _mode(norm, True), True)
    return _done(result, out, "fft_rfftn")


def irfftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Inverse of ``rfftn``."""
    input, s, dims, last = _half_spectrum("irfftn", input, s, dim)
    result = _fft_c2r.call(_resized(input, s, dims), dims, _mode(norm, False), last)
    return _done(result, out, "fft_irfftn")


def _half_spectrum(name, input, s, dim):
    """(complex input, sizes, dims, length of the last dim in real space)."""
    given = s
    s, dims = _several_dims(input, s, dim)
    if not dims:
        raise RuntimeError(f"{name} must transform at least one axis")
    s = list(s)
    last = s[-1] if given is not None and given[-1] != -1 else 2 * (s[-1] - 1)
    if last < 1:
        raise RuntimeError(f"Invalid number of data points ({last}) specified")
    s[-1] = last // 2 + 1
    return _to_complex(input), s, dims, last


def hfftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Fourier transform of a signal Hermitian in its last dim, given by half: real values."""
    input, s, dims, last = _half_spectrum("hfftn", input, s, dim)
    input, mode = _resized(input, s, dims), _mode(norm, True)
    if len(dims) > 1:
        input = _fft_c2c.call(input, dims[:-1], mode, True)
    return _done(_fft_c2r.call(_conj(input), dims[-1:], mode, last), out, "fft_hfftn")


def ihfftn(input: Tensor, s=None, dim=None, norm=None, *, out=None) -> Tensor:
    """Inverse of ``hfftn``."""
    input = _real("ihfftn", input)
    s, dims = _several_dims(input, s, dim)
    if not dims:
        raise RuntimeError("ihfftn must transform at least one axis")
    mode = _mode(norm, False)
    result = _conj(_fft_r2c.call(_resized(input, s, dims), dims[-1:], mode, True))
    if len(dims) > 1:
        result = _fft_c2c.call(result, dims[:-1], mode, False)
    return _done(result, out, "fft_ihfftn")


def _two_dims(name, function):
    def transform(input: Tensor, s=None, dim=(-2, -1), norm=None, *, out=None) -> Tensor:
        return function(input, s, dim, norm, out=out)

    transform.__name__ = transform.__qualname__ = name
    transform.__doc__ = f"``{name[:-1]}n`` over two dims."
    return transform


fft2, ifft2 = _two_dims("fft2", fftn), _two_dims("ifft2", ifftn)
rfft2, irfft2 = _two_dims("rfft2", rfftn), _two_dims("irfft2", irfftn)
hfft2, ihfft2 = _two_dims("hfft2", hfftn), _two_dims("ihfft2", ihfftn)


# ---------------------------------------------------------------- frequencies and shifts
def fftfreq(
    n, d=1.0, *, out=None, dtype=None, layout=None, device=None, requires_grad=False
) -> Tensor:
    """The frequencies of the n bins of ``fft`` for samples ``d`` apart."""
    return _frequencies("fftfreq", n, d, out, dtype, device, requires_grad)


def rfftfreq(
    n, d=1.0, *, out=None, dtype=None, layout=None, device=None, requires_grad=False
) -> Tensor:
    """The frequencies of the n//2 + 1 bins of ``rfft`` for samples ``d`` apart."""
    return _frequencies("rfftfreq", n, d, out, dtype, device, requires_grad)


def _frequencies(name, n, d, out, dtype, device, requires_grad):
    from .creation import _finish, _place, namespace_for

    dtype = (dtype or dtypes.get_default_dtype()).np
    xp = namespace_for(_place(device))
    bins = xp.arange(n // 2 + 1) if name == "rfftfreq" else xp.concatenate(
        (xp.arange((n + 1) // 2), xp.arange(-(n // 2), 0)))
    result = wrap(bins.astype(dtype) * dtype.type(1.0 / (n * d)))
    return _done(_finish(result, requires_grad), out, f"fft_{name}")


def fftshift(input: Tensor, dim=None) -> Tensor:
    """Frequency 0 moved to the middle of each dim."""
    return _shifted(input, dim, lambda n: n // 2)


def ifftshift(input: Tensor, dim=None) -> Tensor:
    """Inverse of ``fftshift``."""
    return _shifted(input, dim, lambda n: (n + 1) // 2)


def _shifted(input, dim, by):
    from .shapes import roll

    if dim is None:
        dim = range(input.ndim)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(wrap_dim(d, input.ndim) for d in dims)
    if not dims:
        return input
    return roll(input, tuple(by(input._data.shape[d]) for d in dims), dims)


FFT = {
    f.__name__: f
    for f in (fft, ifft, rfft, irfft, hfft, ihfft, fft2, ifft2, rfft2, irfft2, hfft2, ihfft2, fftn,
              ifftn, rfftn, irfftn, hfftn, ihfftn, fftfreq, rfftfreq, fftshift, ifftshift)
}
