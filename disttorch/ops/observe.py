"""Watching the engine at work: every kernel of an operation and every node of a backward pass.

A profiler or a counter attaches an observer. While one is attached, the ``forward`` of every registered
operation and the ``backward`` of every kind of node are replaced by watched ones, and the short paths of
elementwise operations are closed; afterwards everything is as it was, so that nothing is paid for when
nobody watches. Observers see the calls of all threads.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from time import perf_counter_ns

from ..autograd import autocast
from ..autograd.graph import Node
from .core import REGISTRY, _camel


class Observer:
    """What may be attached; a subclass overrides what it wants to know.

    ``begin_*`` returns any value, which the matching ``end_*`` gets back. ``begin`` and ``end`` times
    are ``time.perf_counter_ns()``. An end is called for a call that raised, too, with ``out`` None.
    """

    def begin_op(self, op, args):
        """Operation ``op`` is about to run on raw arrays and plain values ``args``."""

    def end_op(self, op, args, out, token, begin: int, end: int) -> None:
        """It ran. ``out`` is an array, or a tuple that may hold others."""

    def begin_node(self, node, grad):
        """Backward of ``node`` is about to run on the gradient(s) ``grad`` of its output."""

    def end_node(self, node, grad, token, begin: int, end: int) -> None:
        """It ran."""


_lock = threading.Lock()
_observers: tuple[Observer, ...] = ()
_replaced: list[tuple] = []  # (object, attribute, what was there)


def attach(observer: Observer) -> None:
    """Let ``observer`` see every operation and node from now on, until ``detach``."""
    global _observers
    with _lock:
        if not _observers:
            _install()
        _observers = (*_observers, observer)


def detach(observer: Observer) -> None:
    """End what ``attach`` began."""
    global _observers
    with _lock:
        _observers = tuple(o for o in _observers if o is not observer)
        if not _observers:
            _remove()


@functools.cache
def label(op) -> str:
    """The name of an operation as users know it, which is in its node's: ``AddmmBackward0``."""
    if op.node_name == _camel(op.name) + "Backward0":
        return op.name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op.node_name.removesuffix("Backward0")).lower()


def _install() -> None:
    for op in REGISTRY.values():
        _replace(op, "forward", _watched_forward(op, op.forward))
        _replace(op, "casts", True)  # it takes the path that runs its forward
    for kind in _node_kinds(Node):
        _replace(kind, "backward", _watched_backward(kind.__dict__["backward"]))
    autocast.hold(True)


def _remove() -> None:
    autocast.hold(False)
    while _replaced:
        owner, name, before = _replaced.pop()
        setattr(owner, name, before)


def _replace(owner, name, value) -> None:
    _replaced.append((owner, name, owner.__dict__[name]))
    setattr(owner, name, value)


def _node_kinds(kind: type) -> Iterator[type]:
    """The classes of nodes that have a backward of their own."""
    if "backward" in kind.__dict__:
        yield kind
    below: type
    for below in kind.__subclasses__():
        yield from _node_kinds(below)


def _watched_forward(op, forward):
    @functools.wraps(forward)
    def watched(xp, *args):
        observers, out = _observers, None
        tokens = [o.begin_op(op, args) for o in observers]
        begin = perf_counter_ns()
        try:
            out = forward(xp, *args)
            return out
        finally:
            end = perf_counter_ns()
            result = out[0] if op.aux and out is not None else out
            for observer, token in zip(observers, tokens):
                observer.end_op(op, args, result, token, begin, end)

    return watched


def _watched_backward(backward):
    @functools.wraps(backward)
    def watched(node, g, F):
        observers = _observers
        tokens = [o.begin_node(node, g) for o in observers]
        begin = perf_counter_ns()
        try:
            return backward(node, g, F)
        finally:
            end = perf_counter_ns()
            for observer, token in zip(observers, tokens):
                observer.end_node(node, g, token, begin, end)

    return watched


__all__ = ["Observer", "attach", "detach", "label"]
