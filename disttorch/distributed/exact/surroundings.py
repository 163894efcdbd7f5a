"""What the bits of a computation depend on besides its program: processor, libraries, threads.

Two machines compute alike if they choose the same kernels. The fingerprint names what decides that,
and holds the digest of a probe: a few products and functions that are known to differ between
processors and builds. Ranks compare theirs at the start; a checkpoint carries it along.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..process_group import ProcessGroup
from . import blas

# What may differ while the probe is equal: other names of the same kernels.
_ADVISORY = ("cpu",)


def fix_threads(count: int) -> None:
    """Have every BLAS in this process use `count` threads from now on, and warn if one does not."""
    libraries = blas.loaded()
    for library in libraries:
        if not library.set_threads(count):
            warnings.warn(
                f"exact: {library.path} cannot be told to use {count} thread(s); set "
                f"OMP_NUM_THREADS={count} before Python starts, or its bits may differ between runs",
                stacklevel=3,
            )
        if library.kind == "mkl" and "MKL_CBWR" not in os.environ:
            warnings.warn(
                "exact: MKL chooses kernels by the alignment of arrays; set MKL_CBWR=COMPATIBLE or "
                "AVX2,STRICT before Python starts, or its bits may differ between runs",
                stacklevel=3,
            )
    if not libraries:
        warnings.warn(
            f"exact: the threads of NumPy's BLAS ({blas.configured()}) cannot be fixed, since its "
            "library was not found in this process; its bits may differ between runs",
            stacklevel=3,
        )


def fingerprint(device: str = "cpu") -> dict[str, str]:
    """What the bits depend on, by name.

    Args:
        device: "cpu", or the GPU that computes.
    """
    libraries = blas.loaded()
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


def differences(mine: dict[str, str], other: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two fingerprints differ: {name: (mine, other)}."""
    names = sorted({*mine, *other})
    return {n: (mine.get(n), other.get(n)) for n in names if mine.get(n) != other.get(n)}


def decisive(found: dict[str, tuple[Any, Any]]) -> bool:
    """Whether differences mean that bits may differ, and not only names."""
    return any(name not in _ADVISORY for name in found)


def in_words(found: dict[str, tuple[Any, Any]], here: str, there: str) -> str:
    """Differences as one clause: `here` and `there` say whose they are."""
    return "; ".join(f"{n}: {a} {here}, {b} {there}" for n, (a, b) in found.items())


def compare_ranks(mine: dict[str, str], group: ProcessGroup, strict: bool) -> None:
    """Compare fingerprints over the ranks of a group; a collective call.

    Raises:
        RuntimeError: with `strict`, on every rank, if bits may differ between two of them.
    """
    all_of_them = group.ranks.all_gather_object(mine)
    for rank, other in enumerate(all_of_them):
        found = differences(all_of_them[0], other)
        if not found:
            continue
        first, second = group.members[0], group.members[rank]
        told = in_words(found, f"on rank {first}", f"on rank {second}")
        if decisive(found) and strict:
            raise RuntimeError(
                f"exact: ranks {first} and {second} would not compute the same bits: {told}; use "
                "equal processors, libraries and threads, or pass strict=False to go on without the "
                "promise"
            )
        if group.rank() == 0:
            warnings.warn(f"exact: ranks {first} and {second} differ: {told}", stacklevel=3)
        return
