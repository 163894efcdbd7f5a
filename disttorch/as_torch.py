"""disttorch under the name ``torch``.

``install()`` puts a finder in front of Python's own: ``import torch`` and ``import torch.x.y`` give
the very modules ``disttorch`` and ``disttorch.x.y``, so a class imported by either name is one
class. Processes started later find a small package called ``torch`` on PYTHONPATH that does the
same.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path

_OURS = __package__
_SHIM = str(Path(__file__).resolve().parent / "_torch_name")


class _Loader(importlib.abc.Loader):
    """Puts an existing module into sys.modules under another name."""

    def __init__(self, module):
        self.module = module

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        # Python takes what stands in sys.modules after this, and leaves its attributes alone
        sys.modules[module.__name__] = self.module

    def get_code(self, fullname):
        """For ``python -m torch.distributed.run``, which runs the module's code anew."""
        return self.module.__spec__.loader.get_code(self.module.__spec__.name)


class Finder(importlib.abc.MetaPathFinder):
    """Finds ``torch`` and all below it in disttorch."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "safetensors.torch":  # the library's own takes tensors apart in C
            module = importlib.import_module(f"{_OURS}.serialization.safetensors")
        elif fullname == "torch" or fullname.startswith("torch."):
            module = _module(fullname, _OURS + fullname[len("torch"):])
        else:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, _Loader(module), is_package=hasattr(module, "__path__")
        )


def _module(asked: str, ours: str):
    try:
        return importlib.import_module(ours)
    except ModuleNotFoundError as error:
        if error.name is None or not (ours + ".").startswith(error.name + "."):
            raise  # the module is there, but something that it imports is not
    # not a module of its own here, but perhaps an attribute that is one
    parent, _, last = ours.rpartition(".")
    found = getattr(sys.modules.get(parent), last, None)
    if isinstance(found, type(sys)):
        return found
    raise ModuleNotFoundError(f"No module named {asked!r}: disttorch lacks it", name=asked)


def install() -> None:
    """Make ``torch`` mean disttorch, in this process and in those it starts.

    Raises:
        RuntimeError: if another ``torch`` has been imported already.
    """
    loaded = sys.modules.get("torch")
    if loaded is not None and loaded is not sys.modules.get(_OURS) and \
            Path(getattr(loaded, "__file__", None) or "").parent != Path(_SHIM) / "torch":
        raise RuntimeError("torch is already imported, and it is not disttorch")
    if not any(isinstance(f, Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    sys.modules["torch"] = importlib.import_module(_OURS)
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if _SHIM not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([_SHIM, *paths])
    if _SHIM not in sys.path:  # multiprocessing hands its children our path, whatever PYTHONPATH is
        sys.path.insert(1, _SHIM)
