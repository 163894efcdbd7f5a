"""The conformance suite's arrays and waits, for arrays in GPU memory."""

from __future__ import annotations

import collectives_conformance as conformance
import cupy
import numpy as np


class DeviceLaid(conformance.Laid):
    """Values in GPU memory of a given layout, with a frame that must stay as it is."""

    def __init__(self, flat, layout):
        super().__init__(flat, layout)
        self._host = self.array
        self._device = cupy.asarray(self._memory)
        offset = self._host.__array_interface__["data"][0] - self._memory.ctypes.data
        self.array = cupy.ndarray(
            self._host.shape, self._host.dtype, self._device.data + offset, self._host.strides)

    def check(self, expected, exact=True):
        self._memory[...] = self._device.get()
        self.array = self._host
        super().check(expected, exact)


def wait(work, asynchronous):
    """`wait` orders streams; the CPU is held by `block`, where there is one."""
    assert (work is not None) == asynchronous
    if work is not None:
        assert work.wait() is True
        getattr(work, "block", lambda: None)()
        assert work.is_completed() and work.exception() is None


def install():
    """Have the suite use these."""
    conformance.Laid = DeviceLaid
    conformance._done = wait


def same(array, expected):
    """Equal values, read back from the GPU."""
    np.testing.assert_array_equal(cupy.asnumpy(array), np.asarray(expected))
