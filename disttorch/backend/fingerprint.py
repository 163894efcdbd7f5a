"""What the bits of a computation depend on besides its program: processor, libraries, threads.

Two machines compute alike if they choose the same kernels. What decides that has names; and a probe
is computed, a few products and functions whose last bits are known to differ between processors and
builds.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np

from . import blas


def fingerprint(device: str = "cpu") -> dict[str, str]:
    """What the bits depend on, by name.

    Args:
        device: "cpu", or the GPU that computes.
    """
    libraries = blas.of_numpy()
    found = {
        "cpu": _cpu(),
        "kernels of numpy": _features(),
        "numpy": np.__version__,
        "blas": "; ".join(lib.describe() for lib in libraries) or blas.configured(),
        "blas threads": ", ".join(str(lib.threads) for lib in libraries) or "unknown",
        "probe": probe(),
    }
    if device != "cpu":
        found["device"] = _gpu(device)
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model", "CPU part")):
                return f"{platform.machine()} {line.partition(':')[2].strip()}"
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def _features() -> str:
    """The instruction sets that NumPy dispatches to here, shortened to a digest."""
    module = getattr(np, "_core", None) or np.core
    table = module._multiarray_umath.__cpu_features__
    have = sorted(name for name, there in table.items() if there)
    return f"{platform.machine()} {hashlib.sha256(' '.join(have).encode()).hexdigest()[:12]}"


def _gpu(device: str) -> str:
    import cupy

    number = int(device.partition(":")[2] or cupy.cuda.runtime.getDevice())
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    return f"{name}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, CuPy {cupy.__version__}"


def probe() -> str:
    """A digest of products, sums and functions whose last bits differ between kernels."""
    rng = np.random.Generator(np.random.Philox(key=20))
    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        for m, k, n in ((3, 5, 7), (33, 257, 65), (128, 300, 96), (1, 511, 40), (200, 1000, 10)):
            a: Any = rng.standard_normal((m, k)).astype(dtype)
            b: Any = rng.standard_normal((k, n)).astype(dtype)
            digest.update((a @ b).tobytes())
            digest.update((b.T @ a.T).tobytes())
            digest.update((a @ b[:, 0]).tobytes())
        x = rng.standard_normal(4099).astype(dtype)
        positive = np.abs(x) + np.asarray(0.1, dtype)
        for value in (np.exp(x), np.tanh(x), np.log(positive), np.sqrt(positive), np.sin(x),
                      positive ** np.asarray(0.3, dtype), x.sum(), np.dot(x, x)):  # fmt: skip
            digest.update(value.tobytes())
    return digest.hexdigest()[:16]
