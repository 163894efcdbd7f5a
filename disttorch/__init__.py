"""disttorch: PyTorch's API over NumPy and CuPy, with MPI and NCCL underneath.

    import disttorch as torch

Sub-packages that a script may not need (nn, optim, distributed, ...) load when first used.
"""

# ruff: noqa: F401  (the imports are the public names)
from __future__ import annotations

import importlib
import warnings
from math import e, inf, nan, pi

# NumPy reports overflow, division by zero and invalid values by warnings; tensors follow IEEE 754
# silently, as in PyTorch. Only warnings raised inside this package are concerned.
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"disttorch\.")

from . import autograd, interop, legacy_types, ops, settings, storage, version  # noqa: E402
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
from .tensor import (  # noqa: E402
    Size,
    Tensor,
    channels_last,
    channels_last_3d,
    contiguous_format,
    memory_format,
    preserve_format,
    strided,
)
from .version import __version__  # noqa: E402

globals().update(ops.PUBLIC)
globals().update(interop.FUNCTIONS)
globals().update({d.name: d for d in _ALL_DTYPES})
for _part in (interop, legacy_types, storage):
    for _name, _method in _part.METHODS.items():
        setattr(Tensor, _name, _method)

interop.send_by_memory(Tensor, storage.UntypedStorage, storage.TypedStorage,
                       *(getattr(storage, _name) for _name in storage.STORAGE_NAMES))

# Sub-packages and single names that load when first used
_LAZY = {
    "nn", "optim", "utils", "distributed", "cuda", "serialization", "random", "special", "linalg",
    "fft", "return_types", "func", "backends", "jit", "compiler", "accelerator", "testing", "amp",
    "distributions", "profiler", "multiprocessing", "cpu", "models", "debug", "futures",
}
_FROM = {
    "save": "serialization", "load": "serialization", "fork_rng": "random",
    "default_generator": "random", "compile": "compiler", "vmap": "func", "mps": "absent_devices",
    "xpu": "absent_devices", "mtia": "absent_devices", "autocast": "amp", "GradScaler": "amp",
    "set_printoptions": "printing", "get_printoptions": "printing",
    "set_default_tensor_type": "legacy_types", "Stream": "cuda", "Event": "accelerator",
    "OutOfMemoryError": "cuda", "ScriptModule": "jit", "is_storage": "storage",
    "UntypedStorage": "storage", "TypedStorage": "storage",
    **dict.fromkeys(storage.STORAGE_NAMES, "storage"),
    **dict.fromkeys(settings.__all__, "settings"),
    **dict.fromkeys((
        "autocast_decrement_nesting", "autocast_increment_nesting", "clear_autocast_cache",
        "get_autocast_cpu_dtype", "get_autocast_dtype", "get_autocast_gpu_dtype",
        "is_autocast_cache_enabled", "is_autocast_cpu_enabled", "is_autocast_enabled",
        "set_autocast_cache_enabled", "set_autocast_cpu_dtype", "set_autocast_cpu_enabled",
        "set_autocast_dtype", "set_autocast_enabled", "set_autocast_gpu_dtype",
    ), "amp"),
}


def __getattr__(name):
    value = None
    if name in _LAZY:
        value = _sub_package(name)
    elif name in _FROM:
        value = getattr(_sub_package(_FROM[name]), name, None)
    elif name.endswith("Tensor"):
        value = legacy_types.tensor_type(name)
    if value is None:
        raise AttributeError(f"module 'torch' has no attribute {name!r} (disttorch lacks it)")
    if name != "default_generator":
        globals()[name] = value
    return value


def _sub_package(name):
    """A sub-package, or None where there is none of that name."""
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise  # it is there, but something that it needs is not
        return None


def __dir__():
    return sorted({*globals(), *_LAZY, *_FROM})
