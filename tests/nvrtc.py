"""NVRTC without a GPU: CUDA C to machine code, through the library of the wheel nvidia-cuda-nvrtc."""

from __future__ import annotations

import ctypes
import functools
from importlib import metadata
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def library_path() -> Path | None:
    """Where the wheel has put NVRTC; None without it."""
    for wheel in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libnvrtc.so."):
                return Path(str(file.locate()))
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise RuntimeError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def compile_source(text: str, options: tuple[str, ...], architecture: str) -> bytes:
    """The machine code (cubin) of a source.

    Raises:
        RuntimeError: with the compiler's words, warnings among them: a kernel compiles without any.
    """
    lib, program = _library(), ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        given = [o.encode() for o in (*options, f"--gpu-architecture={architecture}")]
        status = lib.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        size = ctypes.c_size_t()
        lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetProgramLog(program, log)
        words = log.value.decode().strip()
        if status or words:
            raise RuntimeError(f"NVRTC for {architecture} ended with {status}: {words}")
        lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
