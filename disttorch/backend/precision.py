"""How exact float32 products on a GPU must be, and how 16-bit ones add up their parts.

Read at every product by ``backend/gpu/gemm.py``; PyTorch's names for the switches are in
``disttorch/settings.py`` and ``disttorch/backends/cuda.py``. The CPU always computes in full precision.
"""

from __future__ import annotations


class Precision:
    """The switches.

    Attributes:
        tf32: float32 and complex64 products may round their factors to TF32's 10 mantissa bits.
        matmul: what ``set_float32_matmul_precision`` was last told: "highest", "high" or "medium"; the
            last two allow TF32.
        matmul_fp32: the same in the words of ``fp32_precision``: "none" until set, then "ieee", "tf32".
        float16_sums, bfloat16_sums: whether a product that is split along the summed dim may add up the
            sums of its parts in 16 bits; inside a part, sums are always float32.
        padded: large 16-bit products of extents that are no multiples of 8 are computed of padded copies
            (``backend/gpu/padding.py``).
        float16_split, bfloat16_split: whether it may be split at all where those may not.
    """

    def __init__(self):
        self.tf32, self.matmul, self.matmul_fp32 = False, "highest", "none"
        self.float16_sums = self.bfloat16_sums = True
        self.float16_split = self.bfloat16_split = self.padded = True

    def set_matmul(self, precision: str) -> None:
        """All that "highest", "high" or "medium" says."""
        self.matmul, self.tf32 = precision, precision != "highest"
        self.matmul_fp32 = "tf32" if self.tf32 else "ieee"


PRECISION = Precision()
