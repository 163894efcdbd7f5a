"""Random numbers made on the GPU: a generator with Philox's counter, and dropout.

A generator's whole state is a seed and an offset (how many counters were used), both kept by the host.
A call reserves counters with ``philox_state`` and hands its kernel what that returns. Element i of a
call has a counter of its own, or shares one with its neighbours, so numbers depend on neither the grid
nor the card: every GPU has the same stream for a seed, another one than the CPU's.

**CUDA graphs.** A captured kernel would draw the same numbers in every replay. So while a graph is
captured, ``philox_state`` returns the address of two words on the device and an offset that counts from
the start of the graph, and before each replay those words are set::

    capture = generator.begin_capture()       # before the capture begins, on the graph's device
    ...                                       # the captured calls draw
    generator.end_capture()                   # after it; keep `capture` as long as the graph
    generator.before_replay(capture)          # in the stream of the replay, right before each launch

A replay draws what the same calls would have drawn eagerly at that moment, and moves the generator on as
they would have. ``get_state`` and ``set_state`` work during a capture (activation checkpointing uses
them): offsets then count from the start of the graph.

Poisson, binomial and gamma numbers come by rejection; they are drawn by the host from a stream that
belongs to the seed and the offset, and copied over, so they cannot be captured.
"""

from __future__ import annotations

import secrets

import numpy as np

from .. import rng
from .kernel import blocks, kernel

_THREADS, _MOST_BLOCKS = 256, 4096
_WORD = 1 << 64
_STATE_BYTES = 16  # the seed and the offset, as PyTorch's state on CUDA has them
_open_captures: list = []  # of all generators: draws of others are checked only while there are any


class PhiloxCapture:
    """What a captured graph needs of a generator; see this module's text.

    Attributes:
        state: two uint64 on the device: seed and offset, which the graph's kernels read.
        used: how many counters one replay takes.
    """

    def __init__(self, state):
        self.state, self.used, self.position = state, 0, 0


class GpuGenerator:
    """A stream of random numbers made on a GPU.

    Args:
        seed: any integer; equal seeds give equal streams.
        namespace: of the device.
    """

    def __init__(self, seed: int, namespace):
        self.namespace = namespace
        self._capture: PhiloxCapture | None = None
        self.manual_seed(seed)

    # ---------------------------------------------------------------- state
    def manual_seed(self, seed: int) -> None:
        """Start the stream of ``seed``.

        Raises:
            RuntimeError: during a capture.
        """
        if self._capture is not None:
            raise RuntimeError(
                "a generator cannot be seeded while a CUDA graph is captured, as replays take the seed "
                "of their time: call manual_seed before the capture or between replays"
            )
        self.initial_seed = int(seed)
        self._seed, self._offset = self.initial_seed % _WORD, 0

    def seed(self) -> int:
        """Start a stream from the system's entropy; returns its seed."""
        self.manual_seed(secrets.randbits(63))
        return self.initial_seed

    def get_state(self) -> np.ndarray:
        """The state as uint8 ``[16]``: seed and offset. During a capture the offset is the graph's."""
        capture = self._capture
        offset = self._offset if capture is None else capture.position
        return np.array([self._seed, offset], dtype=np.uint64).view(np.uint8).copy()

    def set_state(self, state: np.ndarray) -> None:
        """Continue from a state that ``get_state`` returned.

        Raises:
            RuntimeError: if the array is not such a state, or is of another seed during a capture.
        """
        if state.dtype != np.uint8 or state.size != _STATE_BYTES:
            raise RuntimeError(
                f"the RNG state of a GPU must be a uint8 tensor of {_STATE_BYTES} bytes (seed and "
                f"offset), got {state.dtype} of {state.size}: use one that came from a GPU's generator"
            )
        seed, offset = map(int, np.ascontiguousarray(state).view(np.uint64))
        if self._capture is None:
            self.manual_seed(seed)
            self._offset = offset
        elif seed == self._seed:
            self._capture.position = offset
        else:
            raise RuntimeError(
                f"during the capture of a CUDA graph the RNG state can be set back only to one of this "
                f"capture; this one has seed {seed}, the generator {self._seed}"
            )

    def philox_state(self, counters: int) -> tuple:
        """Reserve ``counters`` counters (128 bits each) of the stream for one launch.

        Returns:
            ``(seed, offset, state)`` as kernels take them (``u64, u64, const u64*``; see
            ``csrc/philox.cuh``): outside of a capture ``state`` is None; inside, it is an array on the
            device with the seed and the offset of the replay, to which ``offset`` is added.

        Raises:
            RuntimeError: if a graph is being captured that this generator was not told of.
        """
        capture = self._capture
        if capture is None:
            if _open_captures:
                self._check_not_captured()
            offset = self._offset
            self._offset = (offset + counters) % _WORD
            return np.uint64(self._seed), np.uint64(offset), None
        offset = capture.position
        capture.position += counters
        capture.used = max(capture.used, capture.position)
        return np.uint64(0), np.uint64(offset), capture.state

    def _check_not_captured(self) -> None:
        if self.namespace.cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                "random numbers of a generator that the CUDA graph under capture does not know would be "
                "the same in every replay: register the generator with the graph before the capture"
            )

    # ---------------------------------------------------------------- graphs
    def begin_capture(self) -> PhiloxCapture:
        """From now on draws are a graph's: call it before the capture begins.

        Raises:
            RuntimeError: if a capture is open already.
        """
        if self._capture is not None:
            raise RuntimeError("this generator is part of a CUDA graph that is being captured already")
        with self.namespace.device:
            # not zeros: each replay writes it first, in a stream that need not follow this one
            self._capture = PhiloxCapture(self.namespace.empty(2, np.uint64))
        _open_captures.append(self)
        return self._capture

    def end_capture(self) -> None:
        """Draws are eager again; nothing if no capture is open."""
        if self._capture is not None:
            self._capture = None
            _open_captures.remove(self)

    def before_replay(self, capture: PhiloxCapture) -> None:
        """Put a launch into the current stream that sets the graph's state; moves the stream on."""
        offset = self._offset
        self._offset = (offset + capture.used) % _WORD
        self._kernel("set_stream")((1,), (1,), (capture.state, np.uint64(self._seed), np.uint64(offset)))

    # ---------------------------------------------------------------- drawing
    def _kernel(self, name, element="float32"):
        return kernel(self.namespace.cupy, "random", name, ELEMENT=element)

    def _draw(self, name, shape, dtype, each, *args, element="float32"):
        """A new array, filled by the kernel ``name``, which gets ``each`` elements from a counter."""
        with self.namespace.device:
            out = self.namespace.empty(shape, dtype)
            n = out.size
            if n:
                counters = -(-n // each)
                self._kernel(name, element)(
                    (blocks(counters, _THREADS, _MOST_BLOCKS),), (_THREADS,),
                    (out, n, *args, *self.philox_state(counters)))
        return out

    def _floats(self, name, shape, dtype):
        dtype = np.dtype(dtype)
        return self._draw(name, shape, dtype, 2 if dtype.itemsize == 8 else 4, element=dtype.name)

    def random(self, shape, dtype):
        """Uniform on [0, 1), of any real float type."""
        return self._floats("random_uniform", shape, dtype)

    def standard_normal(self, shape, dtype):
        """Normal numbers of mean 0 and variance 1, of any real float type."""
        return self._floats("random_normal", shape, dtype)

    def standard_exponential(self, shape, dtype):
        """Exponential numbers of rate 1, greater than 0, of any real float type."""
        return self._floats("random_exponential", shape, dtype)

    def integers(self, low: int, high: int, shape):
        """int64 uniform on [low, high)."""
        low, high = int(low), int(high)
        return self._draw("random_integers", shape, np.int64, 2, low, np.uint64(high - low))

    def bernoulli_mask(self, keep: float, shape):
        """Boolean, True with probability ``keep`` (to 2**-16, from 16 random bits an element)."""
        return self._draw("random_mask", shape, np.bool_, 8, round(keep * 65536))

    def permutation(self, n: int):
        """0..n−1 in random order: that of random keys, sorted by CuPy (so it cannot be captured)."""
        return self.namespace.argsort(self.integers(0, 1 << 62, (n,)), kind="stable")

    # ---------------------------------------------------------------- drawn by the host
    def _by_host(self) -> rng.Generator:
        """A stream of the CPU's that belongs to the seed and the offset."""
        if self._capture is not None:
            raise RuntimeError(
                "Poisson, binomial and gamma numbers are drawn by the host and cannot be captured in a "
                "CUDA graph: draw them before it"
            )
        _, offset, _ = self.philox_state(1)
        mixed = np.random.SeedSequence([self._seed, int(offset)]).generate_state(1, np.uint64)
        return rng.Generator(int(mixed[0]))

    def poisson(self, rate):
        """int64 of the rate's shape."""
        ns = self.namespace
        return ns.from_host(self._by_host().poisson(ns.to_host(rate)))

    def binomial(self, count, prob):
        """int64: successes among ``count`` trials, elementwise."""
        ns = self.namespace
        return ns.from_host(self._by_host().binomial(ns.to_host(count), ns.to_host(prob)))

    def standard_log_gamma(self, concentration):
        """float64: logarithms of samples of Gamma(concentration, 1)."""
        ns = self.namespace
        return ns.from_host(self._by_host().standard_log_gamma(ns.to_host(concentration)))


# ---------------------------------------------------------------- dropout
def dropout(xp, x, p, generator):
    """Zero elements with probability ``p`` < 1, scale the others by 1/(1 − p).

    Args:
        x: of any shape; real floats in one kernel, complex numbers by the plain formula.

    Returns:
        (what is left, of x's dtype; the boolean mask of what was kept).
    """
    if x.dtype.kind == "c":
        keep = generator.bernoulli_mask(1 - p, x.shape)
        return xp.where(keep, x * (1 / (1 - p)), 0).astype(x.dtype, copy=False), keep
    out, keep, n = xp.empty(x.shape, x.dtype), xp.empty(x.shape, np.bool_), x.size
    x = xp.ascontiguousarray(x)  # which has at least one dim
    if n:
        counters = -(-n // 8)
        kernel(xp.cupy, "random", "dropout_forward", ELEMENT=x.dtype)(
            (blocks(counters, _THREADS, _MOST_BLOCKS),), (_THREADS,),
            (x, out, keep, n, round((1 - p) * 65536), 1 / (1 - p), *generator.philox_state(counters)))
    return out, keep


def dropout_backward(xp, g, keep, scale):
    """``g`` times ``scale`` where kept, else 0; the mask as ``dropout`` gave it."""
    if g.dtype.kind == "c":
        return xp.where(keep, g * scale, 0).astype(g.dtype, copy=False)
    out, n = xp.empty(g.shape, g.dtype), g.size
    g, keep = xp.ascontiguousarray(g), xp.ascontiguousarray(keep)
    if n:
        kernel(xp.cupy, "random", "dropout_backward", ELEMENT=g.dtype)(
            (blocks(-(-n // 8), _THREADS, _MOST_BLOCKS),), (_THREADS,),
            (g, keep, out, n, float(scale)))
    return out
