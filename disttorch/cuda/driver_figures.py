"""What the driver knows of a GPU: load, temperature, power, processes. Needs ``nvidia-ml-py``.

The driver counts all GPUs of the machine, whatever ``CUDA_VISIBLE_DEVICES`` says: a GPU is found there
by its address on the PCI bus.
"""

from __future__ import annotations

from typing import Any

from ..backend import gpu_runtime
from .which import device_number, require


def _handle(device) -> tuple[Any, Any]:
    """(the library, its handle of a GPU)."""
    require()
    try:
        import pynvml
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pynvml does not seem to be installed or it can't be imported: pip install nvidia-ml-py"
        ) from None
    pynvml.nvmlInit()
    address = gpu_runtime.cupy().cuda.runtime.deviceGetPCIBusId(device_number(device))
    return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(address.encode())


def utilization(device=None) -> int:
    """Percent of the last moments in which kernels ran."""
    nvml, handle = _handle(device)
    return nvml.nvmlDeviceGetUtilizationRates(handle).gpu


def memory_usage(device=None) -> int:
    """Percent of the last moments in which memory was read or written."""
    nvml, handle = _handle(device)
    return nvml.nvmlDeviceGetUtilizationRates(handle).memory


def temperature(device=None) -> int:
    """Degrees Celsius."""
    nvml, handle = _handle(device)
    return nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)


def power_draw(device=None) -> int:
    """Milliwatts."""
    nvml, handle = _handle(device)
    return nvml.nvmlDeviceGetPowerUsage(handle)


def clock_rate(device=None) -> int:
    """MHz of the multiprocessors."""
    nvml, handle = _handle(device)
    return nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)


def list_gpu_processes(device=None) -> str:
    """Who uses a GPU and how much of its memory, as text for people."""
    try:
        nvml, handle = _handle(device)
    except ModuleNotFoundError as error:
        return str(error)  # PyTorch answers so, too
    lines = [f"GPU:{device_number(device)}"]
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        used = (process.usedGpuMemory or 0) / (1 << 20)
        lines.append(f"process {process.pid:>10d} uses {used:>12.3f} MB GPU memory")
    return "\n".join(lines if len(lines) > 1 else [*lines, "no processes are running"])


__all__ = ["clock_rate", "list_gpu_processes", "memory_usage", "power_draw", "temperature",
           "utilization"]
