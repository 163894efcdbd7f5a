"""The one device, its facts, and CUDA's runtime functions under CuPy's names."""

from __future__ import annotations

import ctypes
import threading

from . import memory, order, streams

_local = threading.local()
PROPERTIES = {
    "name": b"NVIDIA stand-in", "totalGlobalMem": memory.TOTAL, "major": 9, "minor": 0,
    "multiProcessorCount": 132, "warpSize": 32, "maxThreadsPerBlock": 1024, "l2CacheSize": 50 << 20,
    "sharedMemPerBlock": 48 << 10, "sharedMemPerBlockOptin": 227 << 10, "regsPerBlock": 65536,
    "sharedMemPerMultiprocessor": 228 << 10, "maxThreadsPerMultiProcessor": 2048, "clockRate": 1980000,
    "memoryClockRate": 2619000, "memoryBusWidth": 5120, "uuid": b"stand-in-device0", "pciBusID": 1,
    "pciDeviceID": 0, "pciDomainID": 0, "integrated": 0, "isMultiGpuBoard": 0, "computeMode": 0,
    "maxGridSize": (2147483647, 65535, 65535), "maxThreadsDim": (1024, 1024, 64), "ECCEnabled": 1,
    "concurrentKernels": 1, "asyncEngineCount": 3, "unifiedAddressing": 1, "managedMemory": 1,
}  # fmt: skip


class CUDARuntimeError(RuntimeError):
    """As CuPy's: a status other than 0."""

    def __init__(self, status: int, text: str = ""):
        super().__init__(text or f"CUDA error {status}")
        self.status = status


class Device:
    """The device number 0."""

    def __init__(self, device=None):
        self.id = getDevice() if device is None else int(device)
        self._before: list[int] = []

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        self._before.append(getDevice())
        setDevice(self.id)
        return self

    def __exit__(self, *_):
        setDevice(self._before.pop())

    def use(self):
        setDevice(self.id)

    def synchronize(self) -> None:
        order.wait_for_all()

    compute_capability = "90"
    pci_bus_id = "0000:01:00.0"
    mem_info = property(lambda self: memGetInfo())
    attributes = property(lambda self: {
        "MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 227 << 10,
        "ComputeCapabilityMajor": 9, "ComputeCapabilityMinor": 0})


Device.__module__ = "cupy.cuda.device"


# ---- cupy.cuda.runtime -----------------------------------------------------------------------------


def getDevice() -> int:
    return getattr(_local, "device", 0)


def setDevice(device: int) -> None:
    if device != 0:
        raise CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
    _local.device = device


def getDeviceCount() -> int:
    return 1


def getDeviceProperties(device: int) -> dict:
    return dict(PROPERTIES)


def deviceGetAttribute(attribute: int, device: int) -> int:
    return {75: 9, 76: 0, 16: 132, 97: 227 << 10, 8: 48 << 10, 10: 32, 1: 1024}[attribute]


def deviceGetPCIBusId(device: int) -> str:
    return Device.pci_bus_id


def deviceCanAccessPeer(device: int, peer: int) -> int:
    return 0


def memGetInfo() -> tuple[int, int]:
    return memory.TOTAL - memory._taken[0], memory.TOTAL


def runtimeGetVersion() -> int:
    return 13000


def driverGetVersion() -> int:
    return 13000


def deviceSynchronize() -> None:
    order.wait_for_all()


def _state(stream: int):
    try:
        return order.streams[stream]
    except KeyError:
        raise CUDARuntimeError(400, f"cudaErrorInvalidResourceHandle: stream {stream:#x}") from None


def streamSynchronize(stream: int) -> None:
    order.wait_for(_state(stream))


def streamIsCapturing(stream: int) -> bool:
    return _state(stream).capture is not None


def streamQuery(stream: int) -> int:
    state = _state(stream)
    return 0 if streams._ask(state, state.clock, state.done) else 600


memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4
streamDefault, streamNonBlocking, streamLegacy, streamPerThread = 0, 1, 1, 2
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = 0, 1, 2
streamCaptureStatusNone, streamCaptureStatusActive, streamCaptureStatusInvalidated = 0, 1, 2
hostAllocDefault, hostAllocPortable, hostAllocMapped, hostAllocWriteCombined = 0, 1, 2, 4
cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor = 75, 76
cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin = 16, 97
is_hip = False
CUDART_VERSION = 13000


class _ByNumber:
    """A stream by its number, as the functions of ``memory`` want it."""

    def __init__(self, number: int):
        self._order = _state(number)


def memcpyAsync(to: int, source: int, size: int, kind: int, stream: int) -> None:
    given = _ByNumber(stream)
    if kind == memcpyDefault:
        kind = (order.memory_at(source) is not None) * 2 + (order.memory_at(to) is not None)
    if kind == memcpyHostToDevice:
        memory.upload(to, source, size, given)
    elif kind == memcpyDeviceToHost:
        spans = [memory.span(source, size)] if size else []
        order.give("memcpy to the host", spans, [], lambda: ctypes.memmove(to, source, size),
                   stream=given._order)
    elif kind == memcpyDeviceToDevice:
        memory.copy(to, source, size, given)
    else:
        ctypes.memmove(to, source, size)


def memcpy(to: int, source: int, size: int, kind: int) -> None:
    memcpyAsync(to, source, size, kind, 0)
    order.wait_for(order.DEFAULT)


def memsetAsync(to: int, value: int, size: int, stream: int) -> None:
    spans = [memory.span(to, size)] if size else []
    order.give("memset", [], spans, lambda: ctypes.memset(to, value, size), stream=_state(stream))


def memset(to: int, value: int, size: int) -> None:
    memsetAsync(to, value, size, 0)


def hostRegister(address: int, size: int, flags: int = 0) -> None:
    _registered[address] = size


def hostUnregister(address: int) -> None:
    if _registered.pop(address, None) is None:
        raise CUDARuntimeError(713, "cudaErrorHostMemoryNotRegistered")


_registered: dict[int, int] = {}


def profilerStart() -> None: ...


def profilerStop() -> None: ...
