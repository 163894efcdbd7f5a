"""How tensors, parameters and storages are pickled for another process: by their shared memory.

``multiprocessing`` pickles with its ``ForkingPickler``, which asks here. Ordinary pickles, copies and
``torch.save`` are not concerned.
"""

from __future__ import annotations

import warnings
from multiprocessing.reduction import ForkingPickler

from .. import storage
from ..backend import dtypes
from ..nn.parameter import Buffer, Parameter, is_lazy
from ..storage import TypedStorage, UntypedStorage
from ..tensor import Tensor, wrap
from . import descriptors, memory

_CUDA = (
    "a CUDA tensor cannot be sent to another process of this machine: send tensor.cpu() and move it "
    "to the GPU there, or use torch.distributed between processes that each have a GPU"
)


def reduce_block(block: memory.Block):
    """A block that other processes map; one pickle carries it once for all tensors over it."""
    return _attach, (descriptors.send(block.fd), block.nbytes)


def _attach(descriptor, nbytes: int) -> memory.Block:
    return memory.attach(descriptor.receive(), nbytes)


def reduce_tensor(tensor: Tensor):
    """A tensor, whose memory is moved to a shared block first.

    Raises:
        RuntimeError: for a result of a graph.
        NotImplementedError: for a tensor on a GPU.
    """
    if is_lazy(tensor):
        return tensor.__reduce_ex__(2)
    if tensor.requires_grad and not tensor.is_leaf:
        raise RuntimeError(
            "Cowardly refusing to serialize non-leaf tensor which requires_grad, since autograd does "
            "not support crossing process boundaries.  If you just want to transfer the data, call "
            "detach() on the tensor before serializing (e.g., putting it on the queue)."
        )
    if tensor.is_cuda:
        raise NotImplementedError(_CUDA)
    if tensor._hooks:
        warnings.warn("hooks on a tensor stay in this process: they are not sent with it",
                      stacklevel=2)
    memory.share(tensor)
    array = tensor._data
    block, offset = memory.place_of(array)
    kind = type(tensor)
    extra = tensor.persistent if isinstance(tensor, Buffer) else tensor.requires_grad
    place = (block, tensor.dtype.name, offset, tuple(array.shape), tuple(array.strides))
    return rebuild_tensor, (kind, place, extra)


def rebuild_tensor(kind: type, place: tuple, extra: bool):
    """The tensor over shared memory that ``reduce_tensor`` described.

    Args:
        kind: Tensor, Parameter or Buffer.
        place: block, dtype's name, offset (bytes), shape, strides (bytes).
        extra: whether it requires grad; of a Buffer, whether it is persistent.
    """
    block, dtype_name, offset, shape, strides = place
    dtype: dtypes.dtype = getattr(dtypes, dtype_name)
    tensor = wrap(block.window(dtype.np, offset, shape, strides))
    if kind is Buffer:
        return Buffer(tensor, persistent=extra)
    if kind is Parameter:
        return Parameter(tensor, requires_grad=extra)
    return tensor.requires_grad_(extra)


def reduce_storage(holder):
    """A storage, whose memory is moved to a shared block first.

    Raises:
        NotImplementedError: for one on a GPU.
    """
    if holder.is_cuda:
        raise NotImplementedError(_CUDA)
    memory.share(holder)
    block, offset = memory.place_of(holder._flat)
    of = dtypes.from_np(holder._flat.dtype).name
    dtype = None if isinstance(holder, UntypedStorage) else holder.dtype.name
    return rebuild_storage, (type(holder), block, of, offset, holder._flat.size, dtype)


def rebuild_storage(kind: type, block: memory.Block, of: str, offset: int, size: int, dtype):
    """The storage over shared memory that ``reduce_storage`` described."""
    of_np = getattr(dtypes, of).np
    flat = block.window(of_np, offset, (size,), (of_np.itemsize,))
    return kind(_flat=flat) if dtype is None else kind(dtype=getattr(dtypes, dtype), _flat=flat)


def init_reductions() -> None:
    """Have multiprocessing's pickler send tensors, parameters and storages by shared memory."""
    for kind in (Tensor, Parameter, Buffer):
        ForkingPickler.register(kind, reduce_tensor)
    named = [getattr(storage, name) for name in storage.STORAGE_NAMES]
    for kind in (UntypedStorage, TypedStorage, *named):
        ForkingPickler.register(kind, reduce_storage)
    ForkingPickler.register(memory.Block, reduce_block)


__all__ = ["init_reductions", "rebuild_storage", "rebuild_tensor", "reduce_storage", "reduce_tensor"]
