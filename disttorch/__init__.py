"""disttorch: PyTorch's API over NumPy and CuPy, with MPI and NCCL underneath.

    import disttorch as torch

Sub-packages that a script may not need (nn, optim, distributed, ...) load when first used.
"""

from __future__ import annotations

import importlib
import warnings
from math import e, inf, nan, pi

# NumPy reports overflow, division by zero and invalid values by warnings; tensors follow IEEE 754
# silently, as in PyTorch. Only warnings raised inside this package are concerned.
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"disttorch\.")

from . import autograd, ops  # noqa: E402
from .autograd import (  # noqa: E402
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from .autograd.anomaly import (  # noqa: E402
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    set_anomaly_enabled,
)
from .backend.devices import device, get_default_device, set_default_device  # noqa: E402
from .backend.dtypes import *  # noqa: E402,F403
from .backend.dtypes import (  # noqa: E402
    ALL as _ALL_DTYPES,
)
from .backend.dtypes import (  # noqa: E402
    dtype,
    finfo,
    get_default_dtype,
    iinfo,
    promote_types,
    set_default_dtype,
)
from .ops.random import Generator  # noqa: E402
from .tensor import Size, Tensor, strided  # noqa: E402

__version__ = "0.1.0"

globals().update(ops.PUBLIC)
globals().update({d.name: d for d in _ALL_DTYPES})

_LAZY = {
    "nn": ".nn", "optim": ".optim", "utils": ".utils", "distributed": ".distributed",
    "cuda": ".cuda", "serialization": ".serialization", "random": ".random",
    "special": ".special", "linalg": ".linalg", "fft": ".fft", "return_types": ".return_types",
}  # fmt: skip
_FROM = {"save": ".serialization", "load": ".serialization"}


def __getattr__(name):
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name], __name__)
        globals()[name] = module
        return module
    if name in _FROM:
        value = getattr(importlib.import_module(_FROM[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'torch' has no attribute {name!r} (disttorch lacks it)")
