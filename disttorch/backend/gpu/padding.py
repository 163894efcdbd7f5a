"""Matrices of 16-bit floats padded to multiples of 16 bytes before cuBLAS multiplies them
(``PRECISION.padded = False`` turns it off).

The tensor cores are fed in stretches of 16 bytes. cuBLAS's kernels for rows of other lengths (GPT-2's
vocabulary: 50,257) reached 92 TFLOP/s on an H200, those for rows of whole stretches about 590. So a
product that is large enough is computed of zero-padded copies, and what belongs to the padding is left
out of the result. The zeros change no sum.

cuBLAS's conditions ("Tensor Core Usage" in its documentation) are on the pointers, the leading
dimensions, and the extent along which each matrix is contiguous.

Shape legend: N rows, K summed, M columns, of which a copy has N′, K′ and M′.
"""

from __future__ import annotations

from .kernel import kernel

ALIGN = 8  # elements of 2 bytes
SMALLEST = 1 << 30  # N·K·M: smaller products are not looked at
NARROW = 64  # what the smallest of the three must be
SLOW, FAST = 92e12, 550e12  # FLOP/s without and with, on an H200
BANDWIDTH, CALL = 3e12, 8e-6  # of a copy: bytes a second, read and written, and seconds to begin with

_BLOCK, _STEPS = 256, 2  # of csrc/pitched.cu


def up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def _is_run(a) -> bool:
    """Whether a's rows are contiguous; else its columns are."""
    return a.strides[-1] == a.itemsize


def _lies_well(a) -> bool:
    step = a.strides[-2] if _is_run(a) else a.strides[-1]
    return step % 16 == 0 and a.data.ptr % 16 == 0 and (a.ndim == 2 or a.strides[0] % 16 == 0)


def extents(a, b) -> tuple[int, int, int]:
    """(N′, K′, M′): the extents along which an operand or the result is contiguous, rounded up."""
    (n, k), m = a.shape[-2:], b.shape[-1]
    along = _is_run(a)
    return (n if along else up(n)), (up(k) if along or not _is_run(b) else k), up(m)


def operands(xp, a, b):
    """(a, b) padded for a fast product, None where they are well as they are or copies cost too much.

    Args:
        a, b: N×K and K×M, or L×N×K and L×K×M, of one 16-bit float type, rows or columns contiguous;
            L·N·K·M at least SMALLEST.

    Returns:
        (L×)N′×K′ and (L×)K′×M′; the products' first N rows and M columns are a@b.
    """
    (n, k), m, count = a.shape[-2:], b.shape[-1], 1 if a.ndim == 2 else a.shape[0]
    if min(n, k, m) < NARROW:  # bound by memory, not by the tensor cores
        return None
    n_, k_, m_ = extents(a, b)
    new_a, new_b = (n_, k_) != (n, k) or not _lies_well(a), (k_, m_) != (k, m) or not _lies_well(b)
    if not (new_a or new_b):
        return None
    cut = m_ != m or (a.ndim == 3 and n_ != n)  # a single matrix's last rows are left out by a view
    moved = 4 * count * (new_a * n_ * k_ + new_b * k_ * m_ + cut * n * m)
    cost = moved / BANDWIDTH + CALL * (new_a + new_b + cut)
    if 2 * count * n * k * m * (1 / SLOW - 1 / FAST) < cost:
        return None
    return (padded(xp, a, (n_, k_)) if new_a else a), (padded(xp, b, (k_, m_)) if new_b else b)


def as_batch(a):
    """…×N×K with more than one leading dim as L×N×K, a view; None where its matrices do not lie one
    after another, by rows or by columns."""
    if a.ndim <= 3:
        return a
    if a.flags.c_contiguous:
        return a.reshape(-1, *a.shape[-2:])
    turned = a.swapaxes(-1, -2)
    if turned.flags.c_contiguous:
        return turned.reshape(-1, *turned.shape[-2:]).swapaxes(-1, -2)
    return None


def padded(xp, a, shape):
    """A copy of each matrix in the corner of one of this shape, zero elsewhere; in a's memory order."""
    if not _is_run(a):
        return padded(xp, a.swapaxes(-1, -2), shape[::-1]).swapaxes(-1, -2)
    out = xp.cupy.empty((*a.shape[:-2], *shape), a.dtype)
    copy_rows(xp, a, out)
    return out


def cropped(xp, wide, n: int, m: int):
    """The first n rows and m columns, contiguous: a copy, but where all there is or whole rows are asked
    for."""
    if wide.shape[-2:] == (n, m):
        return wide
    if wide.ndim == 2 and wide.shape[1] == m:
        return xp.cupy.ndarray((n, m), wide.dtype, memptr=wide.data)  # no view: a storage of its size
    out = xp.cupy.empty((*wide.shape[:-2], n, m), wide.dtype)
    copy_rows(xp, wide[..., :n, :m], out)
    return out


def copy_rows(xp, source, target) -> None:
    """Each source matrix into the target's corner, zeros beside and below it; elements of 2 or 4 bytes,
    rows contiguous, the target no smaller, its matrices one after another (csrc/pitched.cu)."""
    rows, whole = target.shape[-2:]
    count, step = (1, 0) if target.ndim == 2 else (target.shape[0], source.strides[0])
    if not count or not rows or not whole:
        return
    size = target.itemsize
    tiles = max(1, -(-(whole * size // 16) // (_BLOCK * _STEPS)))
    made = kernel(xp.cupy, "pitched", "copy_rows", UNIT="u16" if size == 2 else "u32")
    made((count * rows * tiles,), (_BLOCK,), (
        source, target, *source.shape[-2:], source.strides[-2] // size, step // size, rows, whole,
        target.strides[-2] // size, tiles))
