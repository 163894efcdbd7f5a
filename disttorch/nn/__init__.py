"""Neural networks: modules, their functions, initial values and helpers."""

from . import attention, functional, init, modules, parallel, utils
from .modules import *  # noqa: F403  (the layers are listed once, in ``modules``)
from .parallel import DataParallel
from .parameter import Buffer, Parameter, UninitializedBuffer, UninitializedParameter

__all__ = [
    "Buffer", "DataParallel", "Parameter", "UninitializedBuffer", "UninitializedParameter",
    "attention", "functional", "init", "modules", "parallel", "utils",
    *modules.__all__,
]
