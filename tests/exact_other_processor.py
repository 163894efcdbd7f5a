"""One of two ranks believes to be on an older processor: OpenBLAS and NumPy choose other kernels.

Prints what ExactDataParallel says to that; with the argument `lenient` it goes on.
"""

from __future__ import annotations

import os
import sys
import warnings

if os.environ["RANK"] == "1":  # before NumPy is loaded
    os.environ["OPENBLAS_CORETYPE"] = "Nehalem"

import exact_models

import disttorch.distributed as dist
from disttorch.distributed.exact import ExactDataParallel, fingerprint

dist.init_process_group()
lenient = sys.argv[1:] == ["lenient"]
warnings.simplefilter("always")
try:
    model = ExactDataParallel(exact_models.build("mlp"), 2, strict=not lenient)
    print(f"rank {dist.get_rank()} goes on; probe {fingerprint()['probe']}", flush=True)
except RuntimeError as error:
    print(f"rank {dist.get_rank()}: {error}", flush=True)
dist.destroy_process_group()
