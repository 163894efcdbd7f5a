"""How exact matrix products on a GPU must be: the switches behind ``torch.backends.cuda.matmul``.

Plain attributes, read at every product; PyTorch's names for them, and the messages for wrong values, are
in ``disttorch/settings.py`` and ``disttorch/backends/``. The CPU always computes in full precision.
"""

from __future__ import annotations


class Precision:
    """The switches.

    Attributes:
        tf32: float32 (and complex64) products may round their factors to TF32's 10 mantissa bits.
        cudnn_tf32: convolutions may (PyTorch's default differs: they do).
        float16_sums, bfloat16_sums: where a product is split along the summed dim, the few partial sums
            may be added up in 16 bits; inside a part, sums are always float32.
    """

    def __init__(self):
        self.tf32 = False
        self.cudnn_tf32 = True
        self.float16_sums = True
        self.bfloat16_sums = True


PRECISION = Precision()
