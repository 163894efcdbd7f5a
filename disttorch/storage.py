"""The memory behind tensors as objects: ``t.untyped_storage()`` (bytes), ``t.storage()``.

A storage looks at the memory that NumPy or CuPy owns: tensors that are views of one another have
storages of the same ``data_ptr()``.
"""

from __future__ import annotations

from .backend import dtypes, namespace_of, storage
from .tensor import Tensor, wrap


class UntypedStorage:
    """Bytes in memory.

    Args:
        size: how many; or data to copy: bytes or a sequence of small integers.
    """

    def __init__(self, size=0, *, device=None, _flat=None):
        from . import ops

        if _flat is not None:
            self._flat = _flat
        elif isinstance(size, int):
            self._flat = ops.creation.empty(size, dtype=dtypes.uint8, device=device)._data
        else:
            data = list(size)
            self._flat = ops.creation.tensor(data, dtype=dtypes.uint8, device=device)._data

    @property
    def device(self):
        return wrap(self._flat).device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def data_ptr(self) -> int:
        """The address of the first byte."""
        return wrap(self._flat).data_ptr()

    def nbytes(self) -> int:
        """Its size in bytes."""
        return self._flat.nbytes

    def size(self) -> int:
        """Its size in bytes."""
        return self._flat.nbytes

    def element_size(self) -> int:
        return 1

    def _bytes(self):
        return self._flat.view(dtypes.uint8.np)

    def __len__(self):
        return self._flat.nbytes

    def __getitem__(self, index):
        got = self._bytes()[index]
        return UntypedStorage(_flat=got) if isinstance(index, slice) else int(got)

    def __setitem__(self, index, value):
        self._bytes()[index] = value._bytes() if isinstance(value, UntypedStorage) else value

    def __iter__(self):
        return iter(self.tolist())

    def tolist(self) -> list[int]:
        """The bytes as numbers."""
        return wrap(self._bytes()).tolist()

    def fill_(self, value: int) -> UntypedStorage:
        """Set every byte."""
        self._bytes()[...] = value
        return self

    def copy_(self, source: UntypedStorage, non_blocking=None) -> UntypedStorage:
        """Take over the bytes of another storage of the same size."""
        if len(source) != len(self):
            raise RuntimeError(f"size mismatch: {len(self)} bytes from {len(source)}")
        wrap(self._bytes()).copy_(wrap(source._bytes()))
        return self

    def clone(self) -> UntypedStorage:
        """A copy with memory of its own."""
        return UntypedStorage(_flat=self._bytes().copy())

    def cpu(self) -> UntypedStorage:
        """Itself, or a copy in host memory."""
        return UntypedStorage(_flat=wrap(self._bytes()).cpu()._data)

    def is_shared(self) -> bool:
        """Whether it lies in memory that other processes can see."""
        return is_shared(self)

    def share_memory_(self):
        """Move it to shared memory, with all tensors over it; returns itself."""
        return share_memory_(self)

    def resize_(self, size: int):
        raise NotImplementedError(
            "storages cannot be resized: NumPy and CuPy own the memory; make a new tensor"
        )

    def __eq__(self, other):
        return isinstance(other, UntypedStorage) and self.data_ptr() == other.data_ptr() \
            and len(self) == len(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self):
        lines = "".join(f" {v}\n" for v in self.tolist())
        return f"{lines}[torch.storage.UntypedStorage(device={self.device}) of size {len(self)}]"


class TypedStorage:
    """Elements of one dtype in memory.

    Args:
        wrap_storage: the bytes. dtype: what they mean.
    """

    def __init__(self, *args, wrap_storage=None, dtype=None, device=None, _flat=None):
        self.dtype = dtype or getattr(type(self), "dtype", None) or dtypes.get_default_dtype()
        if _flat is not None:
            self._flat = _flat
        elif wrap_storage is not None:
            self._flat = wrap_storage._bytes().view(self.dtype.np)
        else:
            self._flat = Tensor(*args)._data.astype(self.dtype.np) if args else Tensor(0)._data

    def untyped(self) -> UntypedStorage:
        """The same memory as bytes."""
        return UntypedStorage(_flat=self._flat)

    _untyped_storage = property(untyped)

    @property
    def device(self):
        return wrap(self._flat).device

    is_cuda = property(lambda self: self.device.type == "cuda")

    def data_ptr(self) -> int:
        """The address of the first element."""
        return wrap(self._flat).data_ptr()

    def nbytes(self) -> int:
        """Its size in bytes."""
        return self._flat.nbytes

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._flat.itemsize

    def size(self) -> int:
        """How many elements."""
        return self._flat.size

    def __len__(self):
        return self._flat.size

    def __getitem__(self, index):
        if isinstance(index, slice):
            raise RuntimeError("slices are only supported in UntypedStorage.__getitem__")
        return self._flat[index].item()

    def __setitem__(self, index, value):
        self._flat[index] = value

    def __iter__(self):
        return iter(self.tolist())

    def tolist(self) -> list:
        """The elements as Python numbers."""
        return wrap(self._flat).tolist()

    def fill_(self, value):
        """Set every element."""
        self._flat[...] = value
        return self

    def is_shared(self) -> bool:
        """Whether it lies in memory that other processes can see."""
        return is_shared(self)

    def share_memory_(self):
        """Move it to shared memory, with all tensors over it; returns itself."""
        return share_memory_(self)

    def __repr__(self):
        lines = "".join(f" {v}\n" for v in self.tolist())
        return (
            f"{lines}[torch.storage.TypedStorage(dtype={self.dtype}, device={self.device}) of size "
            f"{len(self)}]"
        )


STORAGE_NAMES = {
    "FloatStorage": dtypes.float32, "DoubleStorage": dtypes.float64, "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16, "LongStorage": dtypes.int64, "IntStorage": dtypes.int32,
    "ShortStorage": dtypes.int16, "CharStorage": dtypes.int8, "ByteStorage": dtypes.uint8,
    "BoolStorage": dtypes.bool, "ComplexFloatStorage": dtypes.complex64,
    "ComplexDoubleStorage": dtypes.complex128,
}
for _name, _dtype in STORAGE_NAMES.items():
    globals()[_name] = type(_name, (TypedStorage,), {"dtype": _dtype, "__module__": __name__})


def is_storage(obj) -> bool:
    """Whether ``obj`` is a storage."""
    return isinstance(obj, (UntypedStorage, TypedStorage))


def untyped_storage(self) -> UntypedStorage:
    """The memory of which this tensor is a view, as bytes."""
    flat, _, _ = storage.storage_of(namespace_of(self._data), self._data)
    return UntypedStorage(_flat=flat)


def typed_storage(self) -> TypedStorage:
    """The memory of which this tensor is a view, as elements."""
    flat, _, _ = storage.storage_of(namespace_of(self._data), self._data)
    return TypedStorage(dtype=self.dtype, _flat=flat)


def is_set_to(self, tensor: Tensor) -> bool:
    """Whether both are the same window onto the same memory."""
    return (
        self.data_ptr() == tensor.data_ptr() and self.shape == tensor.shape
        and self.stride() == tensor.stride() and self.dtype is tensor.dtype
    )


def is_shared(self) -> bool:
    """Whether it lies in memory that other processes can see; a GPU's always does."""
    from .multiprocessing import memory

    return memory.is_shared(self)


def share_memory_(self):
    """Move it to memory that processes share, with all views of it; returns itself.

    It stays one memory in this process and in those that it is sent to or that are forked. Nothing
    happens if it is there already or on a GPU.

    Raises:
        OSError: if no more shared memory can be made.
    """
    from .multiprocessing import memory

    memory.share(self)
    return self


def pin_memory(self, device=None) -> Tensor:
    """A copy in page-locked host memory, from which a GPU reads faster; itself if it is there.

    Raises:
        RuntimeError: without a GPU, or for a tensor that is not on the CPU.
    """
    from .backend import gpu_runtime
    from .cuda.which import require

    require()
    if self.is_cuda:
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
    return self if is_pinned(self) else wrap(gpu_runtime.pinned_copy(self._data))


def is_pinned(self, device=None) -> bool:
    """Whether it lies in page-locked host memory."""
    from .backend import gpu_runtime

    return self.is_cpu and gpu_runtime.is_pinned(self._data)


def record_stream(self, stream) -> None:
    """Note that a stream uses this tensor: once it is gone, its memory is used for something else only
    after the stream has done what it was given by then.

    Needed for a tensor that was made in one stream and is used in another, unless the first waits for
    the second before the tensor is dropped. Nothing happens to a tensor on the CPU.
    """
    if self.is_cuda:
        from .backend.gpu import memory

        memory.record_stream(self._data, stream.raw)


def get_device(self) -> int:
    """The number of its GPU; −1 for a CPU tensor."""
    return self.device.index or 0 if self.is_cuda else -1


METHODS = {
    "pin_memory": pin_memory, "is_pinned": is_pinned, "get_device": get_device,
    "record_stream": record_stream,
    "untyped_storage": untyped_storage, "storage": typed_storage, "is_set_to": is_set_to,
    "is_shared": is_shared, "share_memory_": share_memory_,
}
