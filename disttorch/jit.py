"""``torch.jit``: decorators that leave functions as they are, and clear errors for files.

TorchScript is a language of PyTorch's own with a compiler in C++; disttorch runs the Python.
"""

from __future__ import annotations

_NO_FILES = "disttorch has no TorchScript; save a state dict with torch.save, and load it with {}"


def script(obj, optimize=None, _frames_up=0, _rcb=None, example_inputs=None):
    """The function, class or module itself."""
    return obj


def trace(func, example_inputs=None, *args, **options):
    """The function or module itself."""
    return func


def _unchanged(fn=None, **options):
    """The function itself."""
    return fn if fn is not None else lambda f: f


ignore = export = unused = script_if_tracing = interface = _unchanged
trace_module = trace


def freeze(mod, *args, **options):
    """The module itself."""
    return mod


optimize_for_inference = freeze


def is_scripting() -> bool:
    """False: nothing is ever scripted."""
    return False


is_tracing = is_scripting


def save(m, f, _extra_files=None):
    """Raises NotImplementedError: there is no TorchScript."""
    raise NotImplementedError(_NO_FILES.format("torch.load"))


def load(f, map_location=None, _extra_files=None, _restore_shapes=False):
    """Raises NotImplementedError: there is no TorchScript."""
    raise NotImplementedError(_NO_FILES.format("torch.load"))


def annotate(the_type, the_value):
    """The value."""
    return the_value


class ScriptFunction:
    """No function is one; for ``isinstance``."""


class ScriptModule:
    """No module is one; for ``isinstance``."""


RecursiveScriptModule = ScriptModule
Final = object
