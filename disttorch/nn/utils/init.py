"""Modules without initial values."""

from __future__ import annotations

import inspect

from ..modules.module import Module


def skip_init(module_cls, *args, **kwargs):
    """An instance of ``module_cls`` whose parameters are not initialised.

    Args:
        module_cls: a Module class whose constructor takes ``device``.
        args, kwargs: for it.

    Raises:
        RuntimeError: if it is no Module, or takes no ``device``.
    """
    if not issubclass(module_cls, Module):
        raise RuntimeError(f"Expected a Module; got {module_cls}")
    if "device" not in inspect.signature(module_cls).parameters:
        raise RuntimeError("Module must support a 'device' arg to skip initialization")
    made = module_cls(*args, **kwargs)
    return made.to_empty(device=kwargs.get("device") or "cpu")


__all__ = ["skip_init"]
