"""Window functions for spectral analysis, and the short-time Fourier transform."""

from __future__ import annotations

from ..backend import dtypes, namespace_for, namespace_of
from ..tensor import Tensor, wrap
from .core import REGISTRY
from .creation import _finish, _place
from .fft import _conj, _fft_c2c, _fft_c2r, _fft_r2c, _resized
from .shapes import unfold


def _window(formula):
    """A window function from ``formula(xp, x, ...)``, where x runs over [0, 1] (both included)."""

    def make(window_length, periodic, dtype, device, requires_grad, *parameters):
        dtype = dtype or dtypes.get_default_dtype()
        if dtype.category < dtypes.FLOAT:
            raise RuntimeError(
                f"{formula.__name__[1:]}_window expects floating point dtypes, got: {dtype!r}"
            )
        if window_length < 0:
            raise RuntimeError(
                f"{formula.__name__[1:]}_window requires non-negative window_length, got "
                f"window_length={window_length}"
            )
        xp = namespace_for(_place(device))
        if window_length == 1:
            return _finish(wrap(xp.ones(1, dtype.np)), requires_grad)
        # A periodic window is one sample of the next period short of a symmetric one
        n = window_length + bool(periodic)
        x = xp.arange(n, dtype="float64")[:window_length] / max(n - 1, 1)
        return _finish(wrap(formula(xp, x, *parameters).astype(dtype.np)), requires_grad)

    return make


@_window
def _hamming(xp, x, alpha=0.54, beta=0.46):
    return alpha - beta * xp.cos(2 * xp.pi * x)


@_window
def _blackman(xp, x):
    return 0.42 - 0.5 * xp.cos(2 * xp.pi * x) + 0.08 * xp.cos(4 * xp.pi * x)


@_window
def _bartlett(xp, x):
    return 1 - xp.absolute(2 * x - 1)


@_window
def _kaiser(xp, x, beta):
    return xp.i0(beta * xp.sqrt(xp.maximum(0, 1 - (2 * x - 1) ** 2))) / xp.i0(xp.asarray(beta))


def hann_window(window_length, periodic=True, *, dtype=None, layout=None, device=None,
                requires_grad=False, pin_memory=False) -> Tensor:
    """0.5 − 0.5·cos(2πx)."""
    return _hamming(window_length, periodic, dtype, device, requires_grad, 0.5, 0.5)


def hamming_window(window_length, periodic=True, alpha=0.54, beta=0.46, *, dtype=None, layout=None,
                   device=None, requires_grad=False, pin_memory=False) -> Tensor:
    """alpha − beta·cos(2πx)."""
    return _hamming(window_length, periodic, dtype, device, requires_grad, alpha, beta)


def blackman_window(window_length, periodic=True, *, dtype=None, layout=None, device=None,
                    requires_grad=False, pin_memory=False) -> Tensor:
    """0.42 − 0.5·cos(2πx) + 0.08·cos(4πx)."""
    return _blackman(window_length, periodic, dtype, device, requires_grad)


def bartlett_window(window_length, periodic=True, *, dtype=None, layout=None, device=None,
                    requires_grad=False, pin_memory=False) -> Tensor:
    """A triangle from 0 to 1 and back."""
    return _bartlett(window_length, periodic, dtype, device, requires_grad)


def kaiser_window(window_length, periodic=True, beta=12.0, *, dtype=None, layout=None, device=None,
                  requires_grad=False, pin_memory=False) -> Tensor:
    """I₀(β√(1 − (2x − 1)²)) / I₀(β)."""
    return _kaiser(window_length, periodic, dtype, device, requires_grad, beta)


# ---------------------------------------------------------------- short-time Fourier transform
def stft(input: Tensor, n_fft, hop_length=None, win_length=None, window=None, center=True,
         pad_mode="reflect", normalized=False, onesided=None, return_complex=None,
         align_to_window=None) -> Tensor:
    """Fourier transforms of overlapping frames: (batch ×) frequencies × frames, complex.

    Args:
        input: a signal of length L, or B×L.
        n_fft: length of a frame; ``hop_length`` (default n_fft // 4) samples lie between two.
        window: ``win_length`` (default n_fft) weights, centred in the frame; ones if None.
        center: pad the signal so that frame t is centred at sample t·hop_length.
        onesided: leave out the redundant half (default for real signals).
        return_complex: must be True (or the input complex); the old real form is not built.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    size = n_fft if win_length is None else win_length
    complex_in = input.dtype.is_complex or window is not None and window.dtype.is_complex
    if return_complex is None and not complex_in:
        raise RuntimeError(
            "stft requires the return_complex parameter be given for real inputs, and will further "
            "require that return_complex=True in a future PyTorch release."
        )
    if return_complex is False:
        raise NotImplementedError(
            "stft: the real form of complex results is not built; pass return_complex=True and use "
            "view_as_real"
        )
    signal = input if input.ndim == 2 else REGISTRY["unsqueeze"].call(input, 0)
    if center:
        signal = _padded(signal, n_fft // 2, pad_mode)
    length = signal._data.shape[1]
    if not 0 < n_fft <= length:
        raise RuntimeError(f"stft: expected 0 < n_fft <= {length}, but got n_fft={n_fft}")
    if hop <= 0:
        raise RuntimeError(f"stft: expected hop_length > 0, but got hop_length={hop}")
    frames = unfold.call(signal, 1, n_fft, hop)
    if window is not None or size != n_fft:
        frames = frames * _centred(input, window, size, n_fft, "stft")
    mode = 1 if normalized else 0
    if complex_in:
        out = _fft_c2c.call(_complexed(frames), (2,), mode, True)
        if onesided:
            raise RuntimeError("Cannot have onesided output if window or input is complex")
    else:
        out = _fft_r2c.call(frames, (2,), mode, onesided is None or bool(onesided))
    out = REGISTRY["transpose"].call(out, 1, 2)
    return out if input.ndim == 2 else REGISTRY["squeeze"].call(out, 0)


def _complexed(t):
    if t.dtype.is_complex:
        return t
    return REGISTRY["to_dtype"].apply((t, t.dtype.to_complex()))


def _padded(signal, amount, mode):
    xp, n = namespace_of(signal._data), signal._data.shape[1]
    if mode == "constant":
        where = (slice(None), slice(amount, amount + n))
        shape = (signal._data.shape[0], n + 2 * amount)
        return REGISTRY["slice_backward"].call(signal, shape, where)
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if mode == "reflect" and amount >= n:
        raise RuntimeError(
            "Argument #4: Padding size should be less than the corresponding input dimension, but "
            f"got: padding ({amount}, {amount}) at dimension 2 of input {list(signal._data.shape)}"
        )
    index = xp.arange(-amount, n + amount)
    if mode == "reflect":
        index = xp.absolute(index)
        index = xp.where(index >= n, 2 * (n - 1) - index, index)
    elif mode == "replicate":
        index = xp.clip(index, 0, n - 1)
    else:
        index = index % n
    return REGISTRY["index_select"].call(signal, 1, wrap(index))


def _centred(input, window, size, n_fft, name):
    """The window, zero-padded on both sides to a frame's length."""
    if window is None:
        real = input.dtype.to_real() if input.dtype.is_complex else input.dtype
        window = wrap(namespace_of(input._data).ones(size, real.np))
    if window.ndim != 1 or window.numel() != size:
        raise RuntimeError(
            f"{name}: expected a 1D window tensor of size equal to win_length={size}, but got "
            f"window with size {list(window._data.shape)}"
        )
    if not 0 < size <= n_fft:
        raise RuntimeError(f"{name}: expected 0 < win_length <= n_fft, but got win_length={size}")
    left = (n_fft - size) // 2
    if size == n_fft:
        return window
    return REGISTRY["slice_backward"].call(window, (n_fft,), (slice(left, left + size),))


def istft(input: Tensor, n_fft, hop_length=None, win_length=None, window=None, center=True,
          normalized=False, onesided=None, length=None,
          return_complex=False) -> Tensor:
    """The signal whose ``stft`` this is: frames added up, divided by the sum of squared windows.

    Args:
        input: (batch ×) frequencies × frames, complex.
        length: cut or zero-pad the signal to this many samples.

    Raises:
        RuntimeError: where the windows leave samples uncovered.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    size = n_fft if win_length is None else win_length
    if not input.dtype.is_complex:
        raise RuntimeError(
            "istft requires a complex-valued input tensor matching the output from stft with "
            "return_complex=True."
        )
    spectrum = input if input.ndim == 3 else REGISTRY["unsqueeze"].call(input, 0)
    onesided = spectrum._data.shape[1] != n_fft if onesided is None else onesided
    bins = n_fft // 2 + 1 if onesided else n_fft
    if spectrum._data.shape[1] != bins:
        raise RuntimeError(
            "istft: expected the frequency dimension (3rd to the last) of the input tensor to "
            f"match n_fft / 2 + 1 when onesided=True, but got {spectrum._data.shape[1]} for "
            f"n_fft={n_fft}"
        )
    frames = REGISTRY["transpose"].call(spectrum, 1, 2)
    mode = 1 if normalized else 2
    if onesided:
        frames = _fft_c2r.call(frames, (2,), mode, n_fft)
    else:
        frames = _fft_c2c.call(frames, (2,), mode, False)
        if not return_complex:
            frames = REGISTRY["to_dtype"].apply((frames, frames.dtype.to_real()))
    weights = _centred(frames, window, size, n_fft, "istft")
    count = frames._data.shape[1]
    total = (count - 1) * hop + n_fft
    back = REGISTRY["unfold_backward"].call
    signal = back(frames * _conj(weights), (frames._data.shape[0], total), 1, n_fft, hop)
    squares = REGISTRY["expand"].call(weights * _conj(weights), (1, count, n_fft))
    envelope = back(squares, (1, total), 1, n_fft, hop)
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else total - start
    part = (slice(None), slice(start, min(end, total)))
    signal, envelope = signal[part], envelope[part]
    if envelope.numel() and float(abs(envelope._data).min()) < 1e-11:
        raise RuntimeError(
            "window overlap add min: 1: some samples are covered by no window; use a smaller "
            "hop_length or another window"
        )
    signal = signal / envelope
    if length is not None:
        signal = _resized(signal, (length,), (1,))
    return signal if input.ndim == 3 else REGISTRY["squeeze"].call(signal, 0)


COMPOSITES = {"stft": stft, "istft": istft}
FUNCTIONS = {
    "hann_window": hann_window, "hamming_window": hamming_window,
    "blackman_window": blackman_window, "bartlett_window": bartlett_window,
    "kaiser_window": kaiser_window,
}
