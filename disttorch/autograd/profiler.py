"""``torch.autograd.profiler``: the older interface of ``torch.profiler``, loaded when used."""

from __future__ import annotations


def __getattr__(name):
    from ..profiler import legacy  # above this package: it may be imported only now

    if name in legacy.__all__:
        return getattr(legacy, name)
    raise AttributeError(f"module 'torch.autograd.profiler' has no attribute {name!r}")
