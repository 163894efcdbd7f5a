"""``torch.utils.cpp_extension``: extensions in C++ and CUDA, which disttorch cannot build.

They are compiled against PyTorch's own headers and libraries. The names are here, so that a script that
falls back on Python where building fails gets as far as that.
"""

from __future__ import annotations

import os
import shutil
from typing import Any, NoReturn

_SENTENCE = (
    "{}: extensions in C++ and CUDA are built against PyTorch's headers, which disttorch lacks; write "
    "the kernel with cupy.RawKernel over torch.as_tensor(..., device='cuda'), or take the Python "
    "implementation that the extension stands for"
)

_nvcc = shutil.which("nvcc")
CUDA_HOME: str | None = (
    os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    or (os.path.dirname(os.path.dirname(_nvcc)) if _nvcc else None)
)


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(_SENTENCE.format(name))


def load(name: str, sources: Any = None, **options: Any) -> NoReturn:
    """Cannot be built.

    Raises:
        NotImplementedError: always, with what to do instead.
    """
    _refuse(f"cpp_extension.load({name!r})")


def load_inline(name: str, cpp_sources: Any = None, cuda_sources: Any = None,
                **options: Any) -> NoReturn:
    """Cannot be built.

    Raises:
        NotImplementedError: always, with what to do instead.
    """
    _refuse(f"cpp_extension.load_inline({name!r})")


def CppExtension(name: str, sources: Any = None, **options: Any) -> NoReturn:
    """Cannot be built.

    Raises:
        NotImplementedError: always, with what to do instead.
    """
    _refuse(f"cpp_extension.CppExtension({name!r})")


def CUDAExtension(name: str, sources: Any = None, **options: Any) -> NoReturn:
    """Cannot be built.

    Raises:
        NotImplementedError: always, with what to do instead.
    """
    _refuse(f"cpp_extension.CUDAExtension({name!r})")


class BuildExtension:
    """A command of setuptools that cannot build anything here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse("cpp_extension.BuildExtension")

    @classmethod
    def with_options(cls, **options: Any) -> type[BuildExtension]:
        """Itself: it is refused when setuptools makes one."""
        return cls


def is_ninja_available() -> bool:
    """Whether the build tool ``ninja`` is on the path."""
    return shutil.which("ninja") is not None


__all__ = ["CUDA_HOME", "BuildExtension", "CUDAExtension", "CppExtension", "is_ninja_available", "load",
           "load_inline"]
