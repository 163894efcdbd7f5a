"""Kullback-Leibler divergence: a table from pairs of types to formulas.

Most formulas are −H(p) − E_p[log q]: the cross term of each q needs one or two moments of p, which
``kl_pairs`` lists.
"""

from __future__ import annotations

import functools
import warnings

from .distribution import Distribution

_KL_REGISTRY: dict = {}


def register_kl(type_p, type_q):
    """Decorator: the function computes ``kl_divergence`` for (subclasses of) these two types.

    Raises:
        TypeError: if one is not a subclass of ``Distribution``.
    """
    for name, kind in (("type_p", type_p), ("type_q", type_q)):
        if not (isinstance(kind, type) and issubclass(kind, Distribution)):
            raise TypeError(f"Expected {name} to be a Distribution subclass but got {kind}")

    def register(function):
        _KL_REGISTRY[type_p, type_q] = function
        _dispatch.cache_clear()
        return function

    return register


@functools.cache
def _dispatch(type_p, type_q):
    """The entry closest to both types; None without any.

    p's type decides first; if q's would decide otherwise, a RuntimeWarning says so.
    """
    found = [(type_p.__mro__.index(a), type_q.__mro__.index(b), function)
             for (a, b), function in _KL_REGISTRY.items()
             if issubclass(type_p, a) and issubclass(type_q, b)]
    if not found:
        return None
    left = min(found, key=lambda entry: entry[:2])
    right = min(found, key=lambda entry: (entry[1], entry[0]))
    if left[2] is not right[2]:
        warnings.warn(f"Ambiguous kl_divergence({type_p.__name__}, {type_q.__name__}). Please "
                      "register_kl for this pair.", RuntimeWarning, stacklevel=3)
    return left[2]


def kl_divergence(p: Distribution, q: Distribution):
    """KL(p ‖ q) = E_p[log p − log q], of the batch shape.

    Raises:
        NotImplementedError: if no formula is registered for the two types.
    """
    function = _dispatch(type(p), type(q))  # type: ignore[arg-type]
    if function is None:
        raise NotImplementedError(f"No KL(p || q) is implemented for p type {type(p).__name__} "
                                  f"and q type {type(q).__name__}")
    return function(p, q)


__all__ = ["kl_divergence", "register_kl"]
