"""The BLAS libraries in this process: what they are, and how many threads they use.

Their bits depend on the number of threads, since that decides how a product is cut. It can be set
while the process runs, by functions of the library, under names that differ by how it was built.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_KINDS = {"openblas": "openblas", "mkl_rt": "mkl", "blis": "blis"}
_SETTERS = {
    "openblas": "openblas_set_num_threads", "mkl": "MKL_Set_Num_Threads",
    "blis": "bli_thread_set_num_threads",
}
_GETTERS = {
    "openblas": "openblas_get_num_threads", "mkl": "MKL_Get_Max_Threads",
    "blis": "bli_thread_get_num_threads",
}

_DESCRIPTIONS = {
    "openblas": ("openblas_get_config", "openblas_get_corename"), "mkl": (),
    "blis": ("bli_info_get_version_str",),
}  # fmt: skip
_asking = threading.Lock()  # OpenBLAS puts its answer together in one place for all threads


@dataclass
class Library:
    """A BLAS that is loaded: its kind ("openblas", "mkl", "blis") and path."""

    kind: str
    path: str

    def __post_init__(self) -> None:
        self.handle = ctypes.CDLL(self.path)

    def function(self, name: str):
        """The library's function, whatever the build has added to its name; None without one."""
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_", "_64_", "_64"):
                try:
                    return getattr(self.handle, prefix + name + suffix)
                except AttributeError:
                    continue
        return None

    @property
    def threads(self) -> int | None:
        """How many threads it uses; None where it cannot be asked."""
        ask = self.function(_GETTERS[self.kind])
        return None if ask is None else int(ask())

    def set_threads(self, count: int) -> bool:
        """Whether it could be told to use `count` threads."""
        change = self.function(_SETTERS[self.kind])
        if change is None:
            return False
        change(ctypes.c_int(count))
        return self.threads in (count, None)

    def describe(self) -> str:
        """Version and kernels, as the library itself says."""
        words = [self.kind]
        with _asking:
            for name in _DESCRIPTIONS[self.kind]:
                if (ask := self.function(name)) is not None:
                    ask.restype = ctypes.c_char_p
                    words.append((ask() or b"").decode(errors="replace").strip())
        return " ".join(words)


class _Place(ctypes.Structure):
    """What dladdr(3) tells about an address."""

    _fields_ = [
        ("path", ctypes.c_char_p), ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p), ("address", ctypes.c_void_p),
    ]  # fmt: skip


def of_numpy() -> list[Library]:
    """The one library that NumPy multiplies matrices with; all that are loaded where it is not known.

    SciPy has a copy of its own: whether that is loaded makes no difference to NumPy's bits.
    """
    found = loaded()
    core = getattr(np, "_core", None) or np.core
    try:
        numpys = ctypes.CDLL(core._multiarray_umath.__file__)
        where = ctypes.CDLL(None).dladdr
    except (OSError, AttributeError):
        return found
    for name in ("scipy_cblas_sgemm64_", "cblas_sgemm64_", "cblas_sgemm"):
        try:
            function = getattr(numpys, name)
        except AttributeError:
            continue
        place = _Place()
        if where(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(place)):
            path = os.path.realpath((place.path or b"").decode())
            return [lib for lib in found if os.path.realpath(lib.path) == path] or found
    return found


def loaded() -> list[Library]:
    """The BLAS libraries in this process (Linux; elsewhere none are found)."""
    try:
        text = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    found = []
    for path in sorted(set(re.findall(r"(/\S*\.so\S*)$", text, re.MULTILINE))):
        name = Path(path).name
        kind = next((kind for part, kind in _KINDS.items() if part in name), None)
        if kind is not None:
            found.append(Library(kind, path))
    return found


def configured() -> str:
    """The BLAS that NumPy was built with, by name and version."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index]
    return f"{built.get('name')} {built.get('version')}"
