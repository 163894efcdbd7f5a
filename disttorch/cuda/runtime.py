"""The calls of CUDA's runtime library that scripts make themselves (``torch.cuda.cudart()``)."""

from __future__ import annotations

from typing import Any

from ..backend import gpu_runtime
from .which import require

_SUCCESS = 0


class _Runtime:
    """CUDA's functions under their own names; each returns its status, 0 for success.

    Raises:
        AttributeError: for a function that CuPy's binding lacks, too.
    """

    def cudaMemGetInfo(self, device: int) -> tuple[int, int]:
        """Bytes free on a device, bytes it has."""
        return gpu_runtime.free_and_total(device)

    def cudaProfilerStart(self) -> int:
        gpu_runtime.cupy().cuda.runtime.profilerStart()
        return _SUCCESS

    def cudaProfilerStop(self) -> int:
        gpu_runtime.cupy().cuda.runtime.profilerStop()
        return _SUCCESS

    def cudaHostRegister(self, address: int, size: int, flags: int = 0) -> int:
        """Lock pages of the host's memory."""
        gpu_runtime.cupy().cuda.runtime.hostRegister(address, size, flags)
        return _SUCCESS

    def cudaHostUnregister(self, address: int) -> int:
        gpu_runtime.cupy().cuda.runtime.hostUnregister(address)
        return _SUCCESS

    def cudaGetErrorString(self, status: int) -> str:
        return "no error" if status == _SUCCESS else f"CUDA error {status}"

    cudaError = type("cudaError", (), {"success": _SUCCESS})


_runtime = _Runtime()


def cudart() -> Any:
    """CUDA's runtime library, its few functions that make sense beside tensors."""
    require()
    return _runtime


def check_error(res: int) -> None:
    """Raise for a status of CUDA's other than 0.

    Raises:
        RuntimeError: says which.
    """
    if int(res) != _SUCCESS:
        raise RuntimeError(f"CUDA error: {_runtime.cudaGetErrorString(int(res))} ({int(res)})")


__all__ = ["check_error", "cudart"]
