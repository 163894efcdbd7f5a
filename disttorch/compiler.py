"""``torch.compile`` and its neighbours.

disttorch has no compiler: functions and modules come back unchanged, so a script that asks for
compilation runs the same, uncompiled.
"""

from __future__ import annotations

import functools


def compile(model=None, *, fullgraph=False, dynamic=None, backend="inductor", mode=None,
            options=None, disable=False, **other):
    """The function or module itself, unchanged; as a decorator too. All options are accepted."""
    if model is None:
        return functools.partial(compile)
    return model


def disable(fn=None, recursive=True, *, reason=None):
    """The function itself: nothing is ever compiled."""
    return fn if fn is not None else lambda f: f


def is_compiling() -> bool:
    """False: nothing is ever compiled."""
    return False


is_dynamo_compiling = is_exporting = is_compiling


def reset() -> None:
    """Nothing to forget."""


def cudagraph_mark_step_begin() -> None:
    """Nothing to mark."""


allow_in_graph = disable
