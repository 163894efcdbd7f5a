"""Sequences of different lengths in one batch: padded, or packed without padding.

Packed rows lie step by step: first the first element of every sequence (longest first), then the
second element of those that have one, and so on; ``batch_sizes[t]`` sequences reach step t.
Shape legend: T longest length, B batch, * any trailing dims.
"""

from __future__ import annotations

from typing import NamedTuple

from ... import ops
from ...tensor import Tensor


class _Fields(NamedTuple):
    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Fields):
    """A batch of sequences without padding; made by ``pack_padded_sequence`` or
    ``pack_sequence``, taken by the recurrent layers.

    Args:
        data: the rows, [Σ lengths, *].
        batch_sizes: int64 [T] on the CPU, the number of sequences at each step.
        sorted_indices: which sequence of the batch stands at each place; None as given.
        unsorted_indices: the place of each sequence of the batch.
    """

    __slots__ = ()

    def __new__(cls, data, batch_sizes=None, sorted_indices=None, unsorted_indices=None):
        if batch_sizes is None:
            if not isinstance(data, (list, tuple)) or len(data) != 2:
                raise AssertionError("Expected data to be a list or tuple of length 2")
            data, batch_sizes = data
        elif batch_sizes.device.type != "cpu":
            raise ValueError(
                "batch_sizes should always be on CPU. Instances of PackedSequence should never be "
                "created manually. They should be instantiated by functions like pack_sequence "
                "and pack_padded_sequences in nn.utils.rnn. "
                "https://pytorch.org/docs/stable/nn.html#torch.nn.utils.rnn.pack_sequence"
            )
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args, **kwargs) -> PackedSequence:
        """Converted as ``Tensor.to`` converts; itself if there is nothing to do."""
        data = self.data.to(*args, **kwargs)
        if data is self.data:
            return self
        move = {k: v for k, v in kwargs.items() if k in ("non_blocking", "copy")}
        indices = [
            None if i is None else i.to(data.device, **move)
            for i in (self.sorted_indices, self.unsorted_indices)
        ]
        return type(self)(data, self.batch_sizes, *indices)

    def pin_memory(self) -> PackedSequence:
        """In memory from which a GPU copies quickly."""
        indices = [
            None if i is None else i.pin_memory()
            for i in (self.sorted_indices, self.unsorted_indices)
        ]
        return type(self)(self.data.pin_memory(), self.batch_sizes, *indices)

    def cuda(self, *args, **kwargs) -> PackedSequence:
        """On a GPU."""
        if not args and "device" not in kwargs:
            kwargs["device"] = "cuda"
        return self.to(*args, **kwargs)

    def cpu(self, *args, **kwargs) -> PackedSequence:
        """In main memory."""
        return self.to(*args, **{**kwargs, "device": "cpu"})

    @property
    def is_cuda(self) -> bool:
        return self.data.is_cuda

    def is_pinned(self) -> bool:
        return self.data.is_pinned()


def _conversion(name, dtype):
    def method(self) -> PackedSequence:
        from ...backend import dtypes

        return self.to(dtype=dtypes.BY_NAME[dtype])

    method.__name__, method.__doc__ = name, f"With elements of type {dtype}."
    return method


for _name, _dtype in (("double", "float64"), ("float", "float32"), ("half", "float16"),
                      ("long", "int64"), ("int", "int32"), ("short", "int16"), ("char", "int8"),
                      ("byte", "uint8")):
    setattr(PackedSequence, _name, _conversion(_name, _dtype))


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes ``permutation``, int64 [B]."""
    return None if permutation is None else permutation.argsort()


def packed_rows(batch_sizes: list[int], batch: int) -> list[int]:
    """Where each packed row stands in a padded batch, time-major and flattened: t·B + place."""
    return [t * batch + i for t, b in enumerate(batch_sizes) for i in range(b)]


def pack_padded_sequence(
    input: Tensor, lengths, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Leave out the padding of a padded batch.

    Args:
        input: [T, B, *], or [B, T, *] with ``batch_first``.
        lengths: the length of each sequence: a list, or an int64 tensor on the CPU.
        enforce_sorted: require lengths in descending order; otherwise they are sorted.

    Raises:
        RuntimeError: if a length is not positive, their number is not B, or they are not sorted.
    """
    if not isinstance(lengths, Tensor):
        lengths = ops.tensor(lengths, dtype=_int64())
    order = None
    if not enforce_sorted:
        lengths, order = ops.sort(lengths, descending=True)
        order = order.to(input.device)
        input = input.index_select(0 if batch_first else 1, order)
    sizes = lengths.tolist()
    steps, batch = (input.shape[1], input.shape[0]) if batch_first else input.shape[:2]
    _check_lengths(sizes, batch, steps)
    rows = input.transpose(0, 1) if batch_first else input
    batch_sizes = [sum(n > t for n in sizes) for t in range(sizes[0])]
    index = ops.tensor(packed_rows(batch_sizes, batch), dtype=_int64(), device=input.device)
    data = rows.reshape([steps * batch, *input.shape[2:]]).index_select(0, index)
    return PackedSequence(data, ops.tensor(batch_sizes, dtype=_int64()), order)


def _check_lengths(sizes, batch, steps):
    if len(sizes) != batch:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(sizes)} "
            f"(batch_size={batch})"
        )
    if any(a < b for a, b in zip(sizes, sizes[1:])):
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You "
            "can pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to "
            "sidestep this requirement if you do not need ONNX exportability."
        )
    if not sizes or sizes[-1] <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' "
            "that is <= 0"
        )
    if sizes[0] > steps:
        raise RuntimeError(
            f"Expected lengths of at most {steps}, the padded length, but got {sizes[0]}"
        )


def _int64():
    from ...backend import dtypes

    return dtypes.int64


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The inverse of ``pack_padded_sequence``.

    Args:
        total_length: the padded length, at least the longest sequence's, which is the default.

    Returns:
        [T, B, *] or, with ``batch_first``, [B, T, *], and the lengths, int64 [B].

    Raises:
        ValueError: if ``total_length`` is too small.
    """
    sizes = sequence.batch_sizes.tolist()
    steps = len(sizes)
    if total_length is not None:
        if total_length < steps:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in "
                f"input, but got total_length={total_length} and max sequence length being {steps}"
            )
        steps = total_length
    data, batch = sequence.data, sizes[0]
    index = ops.tensor(packed_rows(sizes, batch), dtype=_int64(), device=data.device)
    padded = data.new_full([steps * batch, *data.shape[1:]], padding_value)
    padded = padded.index_copy(0, index, data).reshape([steps, batch, *data.shape[1:]])
    lengths = ops.tensor([sum(b > i for b in sizes) for i in range(batch)], dtype=_int64())
    if batch_first:
        padded = padded.transpose(0, 1)
    if sequence.unsorted_indices is not None:
        back = sequence.unsorted_indices
        return padded.index_select(0 if batch_first else 1, back), lengths[back.cpu()]
    return padded, lengths


def pad_sequence(
    sequences, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Sequences [T_i, *] as one batch [T, B, *] or, with ``batch_first``, [B, T, *].

    Args:
        padding_side: "right" or "left".

    Raises:
        RuntimeError: if ``sequences`` are not tensors to iterate over, or the side is unknown.
    """
    if not isinstance(sequences, (list, tuple, Tensor)) and not hasattr(sequences, "__iter__"):
        raise RuntimeError(
            "pad_sequence: Expected iterable for input sequences, but got arg of type: "
            f"{type(sequences)}"
        )
    if padding_side not in ("left", "right"):
        raise RuntimeError(
            f"Expected padding_side to be one of left or right, but got {padding_side}."
        )
    sequences = sequences.unbind(0) if isinstance(sequences, Tensor) else tuple(sequences)
    if not sequences:
        raise RuntimeError("received an empty list of sequences")
    longest = max(s.shape[0] for s in sequences)
    padded = []
    for s in sequences:
        if s.shape[0] < longest:
            fill = s.new_full([longest - s.shape[0], *s.shape[1:]], padding_value)
            s = ops.cat([s, fill] if padding_side == "right" else [fill, s])
        padded.append(s)
    return ops.stack(padded, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths, batch_first: bool = False) -> list[Tensor]:
    """The first ``lengths[i]`` elements of each sequence of a padded batch."""
    if not batch_first:
        padded_sequences = padded_sequences.transpose(0, 1)
    sizes = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    return [s[:n] for s, n in zip(padded_sequences.unbind(0), sizes)]


def pack_sequence(sequences, enforce_sorted: bool = True) -> PackedSequence:
    """Pack a list of sequences [T_i, *]; arguments as of ``pack_padded_sequence``."""
    lengths = [s.shape[0] for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences of a packed batch, in their order before packing."""
    return unpad_sequence(*pad_packed_sequence(packed_sequences))


__all__ = [
    "PackedSequence", "invert_permutation", "pack_padded_sequence", "pack_sequence",
    "pad_packed_sequence", "pad_sequence", "unpack_sequence", "unpad_sequence",
]
