"""Grad modes: whether operations are recorded. The state is per thread, as ranks may be threads."""

from __future__ import annotations

import functools
import inspect
import threading


class _State(threading.local):
    enabled = True
    inference = False
    # Anything that an op call must stop for (autocast, saved-tensor hooks, anomaly mode, a
    # profiler, a functional transform): one flag keeps the fast path at one check.
    saved_hooks: tuple = ()
    saved_hooks_disabled: str | None = None
    # "error" or "same" inside a functional vmap with that randomness
    randomness: str | None = None
    anomaly = False
    check_nan = True
    # the default generators of this thread alone, by device, and their seed; see ops/random.py
    generators: tuple[dict, list] | None = None


state = _State()


def is_grad_enabled() -> bool:
    """Whether operations on tensors that require grad are recorded in this thread."""
    return state.enabled


def is_inference_mode_enabled() -> bool:
    """Whether this thread is inside ``inference_mode``."""
    return state.inference


class _Mode:
    """A context manager that also decorates functions and generator functions."""

    def __call__(self, func):
        if inspect.isclass(func):
            raise TypeError(f"{type(self).__name__} decorates functions, not the class {func!r}")
        if inspect.isgeneratorfunction(func):
            return self._wrap_generator(func)

        @functools.wraps(func)
        def wrapped(*args, **kwargs):
            with self._clone():
                return func(*args, **kwargs)

        return wrapped

    def _wrap_generator(self, func):
        @functools.wraps(func)
        def wrapped(*args, **kwargs):
            gen = func(*args, **kwargs)
            value, method = None, gen.send
            while True:
                try:
                    with self._clone():  # the mode holds while the body runs, not between yields
                        out = method(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    value, method = (yield out), gen.send
                except GeneratorExit:
                    gen.close()
                    raise
                except BaseException as error:
                    value, method = error, gen.throw

        return wrapped

    def _clone(self):
        return type(self)()


class no_grad(_Mode):
    """Do not record operations. Context manager and decorator."""

    def __new__(cls, func=None):
        self = object.__new__(cls)
        return self if func is None else self(func)

    def __enter__(self):
        self.previous = state.enabled
        state.enabled = False

    def __exit__(self, *exc):
        state.enabled = self.previous


class enable_grad(no_grad):
    """Record operations, also inside ``no_grad``. Context manager and decorator."""

    def __enter__(self):
        self.previous = state.enabled
        state.enabled = not state.inference


class set_grad_enabled(_Mode):
    """Switch recording on or off, at once and until the context ends.

    Args:
        mode: True to record.
    """

    def __init__(self, mode: bool):
        if not isinstance(mode, bool):
            raise TypeError(
                "set_grad_enabled(): argument 'enabled' (position 1) must be bool, not "
                f"{type(mode).__name__}"
            )
        self.mode = mode
        self.previous = state.enabled
        state.enabled = self.mode

    def __call__(self, func):
        state.enabled = self.previous  # as a decorator it must not act where it is written
        return super().__call__(func)

    def __enter__(self):
        state.enabled = self.mode

    def __exit__(self, *exc):
        state.enabled = self.previous

    def _clone(self):
        return set_grad_enabled(self.mode)


class inference_mode(_Mode):
    """Record nothing, and mark the tensors made as unusable in autograd later on.

    Args:
        mode: False makes it do nothing.
    """

    def __new__(cls, mode=True):
        self = object.__new__(cls)
        if callable(mode):
            self.mode = True
            return self(mode)
        self.mode = bool(mode)
        return self

    def __enter__(self):
        self.previous = state.enabled, state.inference
        state.enabled = state.enabled and not self.mode
        state.inference = self.mode
        return self

    def __exit__(self, *exc):
        state.enabled, state.inference = self.previous

    def _clone(self):
        return inference_mode(self.mode)
