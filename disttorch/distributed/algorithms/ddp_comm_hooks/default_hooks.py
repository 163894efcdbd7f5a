"""Hooks that average gradients, in their own or in 16-bit precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....backend import dtypes
from ....futures import Future
from ....tensor import Tensor
from ...buckets import GradBucket
from ...process_group import ProcessGroup, belonging
from ...reductions import all_reduce
from .later import Later

Hook = Callable[[Any, GradBucket], Future]


def _allreduce_fut(process_group: ProcessGroup | None, tensor: Tensor) -> Future:
    """Average `tensor` over the group in place; the future of it."""
    group = belonging(process_group)
    tensor.div_(group.size())
    work: Any = all_reduce(tensor, group=group, async_op=True)
    return Later(work.get_future(), lambda future: future.value()[0])


def allreduce_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Average the bucket over the group (None: all ranks): what happens without a hook."""
    return _allreduce_fut(process_group, bucket.buffer())


def fp16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Average the bucket in float16: half the bytes of float32.

    Values beyond 65504 · n overflow to infinity, and those below 6e-8 · n vanish.
    """
    return _compressed(dtypes.float16, process_group, bucket)


def bf16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    """Average the bucket in bfloat16: half the bytes of float32 at its range, with 8 bits."""
    return _compressed(dtypes.bfloat16, process_group, bucket)


def _compressed(dtype: Any, process_group: ProcessGroup | None, bucket: GradBucket) -> Future:
    group = belonging(process_group)
    buffer = bucket.buffer()
    small = buffer.to(dtype).div_(group.size())
    work: Any = all_reduce(small, group=group, async_op=True)
    return Later(work.get_future(), lambda future: buffer.copy_(future.value()[0]))


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """A hook that gives `hook` the bucket in float16 and brings the result back to its dtype."""
    return _wrapper(hook, dtypes.float16, "fp16_compress_wrapper_hook")


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """A hook that gives `hook` the bucket in bfloat16 and brings the result back to its dtype."""
    return _wrapper(hook, dtypes.bfloat16, "bf16_compress_wrapper_hook")


def _wrapper(hook: Hook, dtype: Any, name: str) -> Hook:
    def wrapped(hook_state: Any, bucket: GradBucket) -> Future:
        buffer = bucket.buffer()
        bucket.set_buffer(buffer.to(dtype))
        future = hook(hook_state, bucket)

        def decompress(future: Future) -> Tensor:
            value = future.value()
            return buffer.copy_(value[0] if isinstance(value, list) else value)

        return future.then(decompress)

    wrapped.__name__ = wrapped.__qualname__ = name
    return wrapped


__all__ = [
    "allreduce_hook", "bf16_compress_hook", "bf16_compress_wrapper", "fp16_compress_hook",
    "fp16_compress_wrapper",
]
