"""Tensors and other libraries' arrays: shared memory by DLPack and buffers; copies and pickles."""

from __future__ import annotations

import sys

from .autograd.modes import no_grad
from .backend import CPU, devices, dtypes, namespace_for, namespace_of
from .backend.storage import is_writeable
from .tensor import Tensor, current_node, wrap

_DLPACK_CPU, _DLPACK_CUDA = 1, 2


# ---------------------------------------------------------------- pickles and copies
def rebuild_tensor(cls, array, requires_grad, attributes, device=None):
    """What a pickled tensor is made of; ``array`` may itself be a tensor, of the plain class."""
    if device is not None:
        try:
            array = namespace_for(devices.device(device)).from_host(array)
        except RuntimeError as error:
            raise RuntimeError(
                f"this pickle holds a tensor of {device}, which is not here ({error}): pickle "
                "tensor.cpu(), or use torch.save and torch.load(..., map_location='cpu')"
            ) from None
    t = array if isinstance(array, Tensor) else wrap(array)
    if cls is not Tensor:
        t.__class__ = cls
    t._rg = requires_grad
    t.__dict__.update(attributes)
    return t


def _refuse_results(t: Tensor, what: str) -> None:
    if current_node(t) is not None:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            f"protocol at the moment, and this one is a result ({what}); use tensor.detach()."
        )


def reduce_tensor(t: Tensor):
    _refuse_results(t, "in a pickle")
    # multiprocessing knows the plain class and sends its memory, not its values
    if type(t) is not Tensor:
        return rebuild_tensor, (type(t), wrap(t._data), t._rg, user_attributes(t))
    made = type(t), namespace_of(t._data).to_host(t._data), t._rg, user_attributes(t)
    return rebuild_tensor, (*made, str(t.device)) if t.is_cuda else made


def user_attributes(t: Tensor) -> dict:
    """Attributes that users hung on a tensor (ours begin with an underscore)."""
    return {k: v for k, v in t.__dict__.items() if not k.startswith("_")}


def copy_tensor(t: Tensor) -> Tensor:
    """``copy.copy``: another tensor over the same memory."""
    _refuse_results(t, "copied")
    twin = wrap(t._data)
    if type(t) is not Tensor:
        twin.__class__ = type(t)
    twin._rg = t._rg
    twin.__dict__.update(user_attributes(t))
    return twin


def deepcopy_tensor(t: Tensor, memo: dict) -> Tensor:
    import copy

    if id(t) in memo:
        return memo[id(t)]
    _refuse_results(t, "deep-copied")
    with no_grad():
        twin = wrap(t._data.copy())
        if type(t) is not Tensor:
            twin.__class__ = type(t)
        twin._rg = t._rg
        if t._grad is not None:
            twin._grad = deepcopy_tensor(t._grad, memo)
        memo[id(t)] = twin
        twin.__dict__.update(copy.deepcopy(user_attributes(t), memo))
    return twin


# ---------------------------------------------------------------- other processes
def send_by_memory(*kinds) -> None:
    """Have Python's ``multiprocessing`` send objects of these classes by shared memory."""
    from multiprocessing import util
    from multiprocessing.reduction import ForkingPickler

    for kind in kinds:
        ForkingPickler.register(kind, _first_reduction)
    _prepare_end()
    util.register_after_fork(Tensor, _prepare_end)  # a child starts with its finalizers forgotten


def _first_reduction(obj):
    from .multiprocessing import reductions  # takes over from here

    return (reductions.reduce_tensor if isinstance(obj, Tensor) else reductions.reduce_storage)(obj)


def _prepare_end(_=None) -> None:
    from multiprocessing import util

    # after the queues have sent what is in them (-5), which may be this process's first tensor
    util.Finalize(None, _hand_over, exitpriority=-10)


def _hand_over() -> None:
    descriptors = sys.modules.get(f"{__package__}.multiprocessing.descriptors")
    if descriptors is not None:
        descriptors.hand_over()


# ---------------------------------------------------------------- shared memory
def dlpack_capsule(self, *, stream=None, max_version=None, dl_device=None, copy=None):
    """The tensor for another library's ``from_dlpack``.

    Raises:
        BufferError: if it requires grad, or lies in read-only memory.
    """
    if self.requires_grad:
        raise BufferError(
            "Can't export tensors that require gradient, use tensor.detach()"
        )
    options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
    array = self._data
    if array.dtype == dtypes.bfloat16.np and isinstance(array, CPU.ndarray):
        raise BufferError("NumPy's DLPack has no bfloat16; use .float() or .view(torch.int16)")
    if not is_writeable(array):  # an expanded tensor; NumPy exports writeable arrays only
        raise BufferError("this tensor is a view whose elements share memory; use .clone()")
    return array.__dlpack__(**{k: v for k, v in options.items() if v is not None})


def dlpack_device(self) -> tuple[int, int]:
    """(kind of device, its number), as DLPack counts them."""
    d = self.device
    return (_DLPACK_CUDA, d.index or 0) if d.type == "cuda" else (_DLPACK_CPU, 0)


def from_dlpack(ext_tensor, *, device=None, copy=None) -> Tensor:
    """A tensor over the memory of another library's array.

    Args:
        ext_tensor: an object with ``__dlpack__``, or a capsule from ``to_dlpack``.
        device: move it there. copy: True for memory of its own.
    """
    if type(ext_tensor).__name__ == "PyCapsule":
        ext_tensor = _Capsule(ext_tensor)
    kind = ext_tensor.__dlpack_device__()[0]
    if kind not in (_DLPACK_CPU, _DLPACK_CUDA):
        raise BufferError(f"from_dlpack takes arrays on the CPU or a CUDA GPU, not kind {kind}")
    if kind == _DLPACK_CUDA:
        from .backend.cupy_backend import gpu

        array = gpu().from_dlpack(ext_tensor)
    else:
        array = CPU.from_dlpack(ext_tensor)
        if not array.flags.writeable:
            # NumPy marks imports of an older protocol read-only: the flag did not exist there
            array = _writeable(array)
    dtypes.from_np(array.dtype)
    t = wrap(array)
    if copy:
        t = t.clone()
    return t if device is None else t.to(device)


def _writeable(array):
    from .backend.storage import writeable_alias

    return writeable_alias(array)


class _Capsule:
    """A bare capsule as an object with the protocol."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **options):
        return self.capsule

    def __dlpack_device__(self):
        """(kind, index), which stand behind the data's address in DLPack's ``DLTensor``."""
        import ctypes

        name, before = b"dltensor", 0
        if "versioned" in repr(self.capsule):  # a version, two pointers and flags come first there
            name, before = b"dltensor_versioned", 32
        pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi))
        fields = pointer_of(self.capsule, name) + before + ctypes.sizeof(ctypes.c_void_p)
        return tuple((ctypes.c_int32 * 2).from_address(fields))


def to_dlpack(tensor: Tensor):
    """A capsule for an old-style ``from_dlpack(capsule)``."""
    return dlpack_capsule(tensor)


def frombuffer(buffer, *, dtype, count=-1, offset=0, requires_grad=False) -> Tensor:
    """A 1-dim tensor over an object with Python's buffer protocol.

    Args:
        dtype: what its bytes mean.
        count: how many elements; −1 for all. offset: bytes to skip.
    """
    size = len(memoryview(buffer).cast("B")) if len(memoryview(buffer)) else 0
    if size == 0:
        raise ValueError("both buffer length (0) and count (-1) must not be 0")
    if not 0 <= offset < size:
        raise ValueError(
            f"offset must be non-negative and no greater than buffer length ({size}) , but got "
            f"{offset}"
        )
    if count < 0 and (size - offset) % dtype.itemsize:
        raise ValueError(
            f"buffer length ({size - offset} bytes) after offset ({offset} bytes) must be a "
            f"multiple of element size ({dtype.itemsize})"
        )
    if count == 0 or count * dtype.itemsize > size - offset:
        raise ValueError(
            f"requested buffer length ({count * dtype.itemsize} bytes) after offset ({offset} "
            f"bytes) must not be greater than actual buffer length ({size} bytes)"
        )
    t = wrap(CPU.frombuffer(buffer, dtype.np, count, offset))
    return t.requires_grad_() if requires_grad else t


def asarray(obj, *, dtype=None, device=None, copy=None, requires_grad=False) -> Tensor:
    """``obj`` as a tensor: shares memory with tensors, arrays, DLPack objects and buffers.

    Args:
        copy: True always copies; False raises where a copy is needed; None copies if it must.
    """
    from .ops import creation

    shared = _sharing(obj, dtype)
    if shared is None:
        if copy is False:
            raise ValueError(f"can't alias arbitrary sequence into a tensor: {type(obj).__name__}")
        t = creation.tensor(obj, dtype=dtype, device=device)
    else:
        t = shared.detach() if requires_grad and shared.requires_grad else shared
        moved = t if device is None else t.to(device)
        moved = moved if dtype is None else moved.to(dtype)
        if copy is False and moved._data is not t._data:
            raise ValueError("can't alias a tensor of another dtype or device: allow a copy")
        t = moved.clone() if copy and moved._data is t._data else moved
        if copy or not requires_grad:
            t = t.detach()
    return t.requires_grad_() if requires_grad else t


def _sharing(obj, dtype):
    from .ops import creation

    if isinstance(obj, Tensor):
        return obj
    if isinstance(obj, CPU.ndarray):
        return creation.from_numpy(obj)
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(obj)
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return frombuffer(obj, dtype=dtype or dtypes.uint8)
    return None


def cuda_array_interface(self) -> dict:
    """NVIDIA's array protocol, for Numba, CuPy and mpi4py.

    Raises:
        AttributeError: for a CPU tensor. RuntimeError: if it requires grad.
    """
    if not self.is_cuda:
        raise AttributeError(
            f"Can't get __cuda_array_interface__ on non-CUDA tensor type: {self.type()} If CUDA "
            "data is required use tensor.cuda() to copy tensor to device memory."
        )
    if self.requires_grad:
        raise RuntimeError(
            "Can't get __cuda_array_interface__ on Variable that requires grad. If gradients "
            "aren't required, use var.detach() to get Variable that doesn't require grad."
        )
    return self._data.__cuda_array_interface__


METHODS = {
    "__dlpack__": dlpack_capsule, "__dlpack_device__": dlpack_device, "__copy__": copy_tensor,
    "__cuda_array_interface__": property(cuda_array_interface),
}
FUNCTIONS = {"from_dlpack": from_dlpack, "frombuffer": frombuffer, "asarray": asarray,
             "to_dlpack": to_dlpack}
__all__ = ["asarray", "from_dlpack", "frombuffer", "to_dlpack"]
