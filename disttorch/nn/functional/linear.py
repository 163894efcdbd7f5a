"""Linear maps and table look-ups."""

from __future__ import annotations

from ... import ops
from ...backend.dtypes import int64
from ...tensor import Tensor


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input·weightᵀ + bias. Shapes: [..., I], [O, I], [O] -> [..., O]."""
    return ops.linear(input, weight, bias)


def bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """input1·weight[o]·input2 + bias[o]. Shapes: [..., A], [..., B], [O, A, B], [O] -> [..., O].

    Raises:
        RuntimeError: if the sizes do not fit.
    """
    lead = input1.shape[:-1]
    if input2.shape[:-1] != lead:
        raise RuntimeError(
            "bilinear(): input batch dimensions do not match: got "
            f"{list(lead)} and {list(input2.shape[:-1])}"
        )
    out_size, a, b = weight.shape
    if input1.shape[-1] != a or input2.shape[-1] != b:
        raise RuntimeError(
            f"bilinear(): inputs of last sizes {input1.shape[-1]} and {input2.shape[-1]} do not "
            f"match the weight's {a} and {b}"
        )
    left = ops.matmul(input1.reshape(-1, a), weight.permute(1, 0, 2).reshape(a, out_size * b))
    left = left.reshape(-1, out_size, b)
    out = ops.matmul(left, input2.reshape(-1, b, 1)).reshape([*lead, out_size])
    return out if bias is None else out + bias


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:
    """Rows of ``weight`` picked by ``input``. Shapes: integer [...], [V, E] -> [..., E].

    Args:
        padding_idx: the row whose gradient stays 0.
        max_norm: rows that are used and longer are first shortened, in place, to this norm.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide each row's gradient by how often ``input`` has it.
        sparse: the gradient is dense all the same, of the same values; a warning says so.

    Raises:
        AssertionError: if padding_idx is not a row.
    """
    if padding_idx is not None:
        rows = weight.shape[0]
        if not -rows <= padding_idx < rows:
            raise AssertionError("Padding_idx must be within num_embeddings")
        padding_idx %= rows
    return ops.embedding(
        input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 [..., num_classes] with a 1 at each index; -1 takes the largest index + 1.

    Raises:
        RuntimeError: for indices that are no int64, negative or too large.
    """
    if tensor.dtype is not int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    if tensor.numel() == 0:
        if num_classes <= 0:
            raise RuntimeError("Can not infer total number of classes from empty tensor.")
    elif int(tensor.min()) < 0:
        raise RuntimeError("Class values must be non-negative.")
    else:
        largest = int(tensor.max())
        if num_classes == -1:
            num_classes = largest + 1
        elif largest >= num_classes:
            raise RuntimeError("Class values must be smaller than num_classes.")
    return (tensor.unsqueeze(-1) == ops.arange(num_classes, device=tensor.device)).to(int64)
