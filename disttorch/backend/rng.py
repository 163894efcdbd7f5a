"""Random bits on the CPU: a Philox counter generator whose whole state is one small byte array.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) makes its stream
from a key and a counter, so a state is a few integers and streams with different keys never meet.
"""

from __future__ import annotations

import secrets

import numpy as np

_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_FIELDS = 4 + 2 + 4 + 3  # counter, key, buffer, (position, has_uint32, uinteger)


def _drawn_in(dtype):
    return _F64 if dtype == _F64 else _F32  # NumPy draws these two


class Generator:
    """A stream of random numbers on the CPU.

    Args:
        seed: any integer; equal seeds give equal streams on every machine.
    """

    def __init__(self, seed: int):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        self.initial_seed = int(seed)
        self._bits = np.random.Philox(key=self.initial_seed % (1 << 64))
        self.numpy = np.random.Generator(self._bits)

    def seed(self) -> int:
        """Reseed from the system's entropy; returns the new seed."""
        self.manual_seed(secrets.randbits(63))
        return self.initial_seed

    def get_state(self) -> np.ndarray:
        """The state as uint8 ``[112]``: 13 words of the stream, then the initial seed."""
        s = self._bits.state
        words = [*s["state"]["counter"], *s["state"]["key"], *s["buffer"]]
        words += [s["buffer_pos"], s["has_uint32"], s["uinteger"], self.initial_seed % (1 << 64)]
        return np.array([int(w) for w in words], dtype=np.uint64).view(np.uint8).copy()

    def set_state(self, state: np.ndarray) -> None:
        """Continue from a state that ``get_state`` returned.

        Raises:
            RuntimeError: if the array is not such a state.
        """
        if state.dtype != np.uint8 or state.size != 8 * (_FIELDS + 1):
            raise RuntimeError(
                f"RNG state must be a uint8 tensor of {8 * (_FIELDS + 1)} bytes, "
                f"got {state.dtype} of {state.size}"
            )
        words = np.ascontiguousarray(state).view(np.uint64)
        self.manual_seed(int(words[13]))
        self._bits.state = {
            "bit_generator": "Philox",
            "state": {"counter": words[:4].copy(), "key": words[4:6].copy()},
            "buffer": words[6:10].copy(),
            "buffer_pos": int(words[10]),
            "has_uint32": int(words[11]),
            "uinteger": int(words[12]),
        }

    def random(self, shape, dtype):
        """Uniform on [0, 1), of any real float type."""
        out = self.numpy.random(shape, dtype=_drawn_in(dtype))
        if dtype.itemsize == 2:  # rounding must not reach 1: keep as many bits as the type holds
            steps = 1 << (11 if dtype == np.float16 else 8)
            out = np.floor(out * steps) / steps
        return out.astype(dtype, copy=False)

    def standard_normal(self, shape, dtype):
        """Normal numbers of mean 0 and variance 1, of any real float type."""
        drawn = self.numpy.standard_normal(shape, dtype=_drawn_in(dtype))
        return drawn.astype(dtype, copy=False)

    def standard_exponential(self, shape, dtype):
        """Exponential numbers of rate 1, of any real float type."""
        drawn = self.numpy.standard_exponential(shape, dtype=_drawn_in(dtype))
        return drawn.astype(dtype, copy=False)

    def integers(self, low: int, high: int, shape):
        """int64 uniform on [low, high)."""
        return self.numpy.integers(low, high, shape)

    def poisson(self, rate):
        """int64 of the rate's shape."""
        return self.numpy.poisson(rate)

    def binomial(self, count, prob):
        """int64: successes among ``count`` trials, elementwise."""
        return self.numpy.binomial(count, prob)

    def standard_log_gamma(self, concentration):
        """float64: logarithms of samples of Gamma(concentration, 1).

        Below 1 through Gamma(a + 1)·U^(1/a) (Marsaglia & Tsang, 2000): the product underflows, its
        logarithm does not.
        """
        a = np.asarray(concentration, np.float64)
        drawn = np.log(self.numpy.standard_gamma(np.where(a < 1, a + 1, a)))
        return drawn - np.where(a < 1, self.numpy.standard_exponential(a.shape) / a, 0.0)

    def permutation(self, n: int):
        return self.numpy.permutation(n)

    def bernoulli_mask(self, keep: float, shape):
        """Boolean, True with probability ``keep``, from 16 random bits an element.

        The probability is exact to 2**-16; four elements share one 64-bit draw, which makes a
        dropout mask several times cheaper than comparing uniform floats.
        """
        n = 1
        for s in shape:
            n *= s
        bits = self._bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
        threshold = round(keep * 65536)
        if threshold >= 65536:
            return np.ones(shape, np.bool_)
        return (bits < threshold).reshape(shape)
