"""The versions: disttorch's own, and the PyTorch whose API it follows."""

from __future__ import annotations

import re

own = "0.1.0"
api = "2.13.0"


class TorchVersion(str):
    """A version as text that compares by numbers: ``"2.13.0" >= "2.9"`` holds.

    Compares with text and with tuples of numbers. What follows ``+`` says which build it is and
    takes no part.
    """

    __slots__ = ()

    @staticmethod
    def _key(value):
        if isinstance(value, (tuple, list)):
            return tuple(int(v) for v in value)
        release = re.match(r"v?(\d+(?:\.\d+)*)", str(value))
        if release is None:
            raise ValueError(f"{value!r} is no version")
        return tuple(int(v) for v in release[1].split("."))

    def _compare(self, other):
        a, b = self._key(self), self._key(other)
        n = max(len(a), len(b))
        a, b = a + (0,) * (n - len(a)), b + (0,) * (n - len(b))
        return (a > b) - (a < b)

    def __lt__(self, other):
        return self._compare(other) < 0

    def __le__(self, other):
        return self._compare(other) <= 0

    def __gt__(self, other):
        return self._compare(other) > 0

    def __ge__(self, other):
        return self._compare(other) >= 0

    def __eq__(self, other):
        if isinstance(other, str) and str.__eq__(self, other):
            return True
        return isinstance(other, (str, tuple, list)) and self._compare(other) == 0

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


__version__ = TorchVersion(f"{api}+disttorch{own}")
debug = False
hip = xpu = git_version = None
cuda: str | None


def __getattr__(name):
    if name == "cuda":  # CUDA's runtime library that is used, for example "13.0"; None without a GPU
        from .backend import cupy_backend, gpu_runtime

        if not cupy_backend.is_available():
            return None
        number = gpu_runtime.cupy().cuda.runtime.runtimeGetVersion()
        return f"{number // 1000}.{number % 1000 // 10}"
    raise AttributeError(f"module 'torch.version' has no attribute {name!r} (disttorch lacks it)")
