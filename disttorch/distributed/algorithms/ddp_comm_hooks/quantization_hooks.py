"""Send gradients in 8 bits: all ranks gather each other's codes and average what they stand for.

A code q stands for scale·(q - zero), with scale and zero chosen so that the 256 codes span the
values (and 0 has one of its own). A rank sends its n bytes to each of the others, where an
all-reduce of float32 takes 8·n bytes in all: it pays off below 8 ranks. What rounding loses is lost.
"""

from __future__ import annotations

from .... import ops
from ....backend import dtypes
from ....futures import Future
from ....tensor import Tensor
from ...buckets import GradBucket
from ...process_group import ProcessGroup, belonging
from .later import AllWorks, Later

_CODES = 255


def quantization_pertensor_hook(
    process_group: ProcessGroup | None, bucket: GradBucket
) -> Future:
    """Average the bucket in 8 bits, with one scale for all of it."""
    return _quantized(process_group, bucket, bucket.buffer().numel())


def quantization_perchannel_hook(
    process_group: ProcessGroup | None, bucket: GradBucket, bucket_size: int = 512
) -> Future:
    """Average the bucket in 8 bits, with a scale for every `bucket_size` elements.

    Finer than one scale for all where few gradients are large.
    """
    return _quantized(process_group, bucket, bucket_size)


def _quantized(process_group: ProcessGroup | None, bucket: GradBucket, width: int) -> Future:
    group = belonging(process_group)
    buffer = bucket.buffer()
    n, size = group.size(), buffer.numel()
    rows = -(-size // width)
    padded = ops.zeros(rows * width, dtype=dtypes.float32, device=buffer.device)
    padded[:size] = buffer.to(dtypes.float32)
    values = padded.reshape(rows, width)
    scale, zero = _spans(values)
    codes = ops.round(values / scale) + zero
    codes = ops.clamp(codes, 0, _CODES).to(dtypes.uint8)
    spans = ops.cat([scale, zero], 1)
    sent = [spans, codes]
    everyone = [ops.empty((n, *t.shape), dtype=t.dtype, device=t.device) for t in sent]
    works = [
        group.ranks.all_gather(out._data, t._data, async_op=True)
        for out, t in zip(everyone, sent)
    ]

    def average(_: Future) -> Tensor:
        total = ops.zeros(rows, width, dtype=dtypes.float32, device=buffer.device)
        for rank in range(n):
            scale, zero = everyone[0][rank, :, :1], everyone[0][rank, :, 1:]
            total += scale * (everyone[1][rank].to(dtypes.float32) - zero)
        return buffer.copy_(total.reshape(-1)[:size] / n)

    return Later(AllWorks(works, group.timeout), average)


def _spans(values: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, code of zero) of each row, as columns of float32."""
    low = ops.clamp(values.amin(1, keepdim=True), max=0)
    high = ops.clamp(values.amax(1, keepdim=True), min=0)
    scale = ops.clamp((high - low) / _CODES, min=dtypes.finfo(dtypes.float32).eps)
    return scale, ops.clamp(-ops.round(low / scale), 0, _CODES)


__all__ = ["quantization_perchannel_hook", "quantization_pertensor_hook"]
