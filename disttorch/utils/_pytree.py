"""Nested containers: their leaves as a flat list, and back.

Containers are tuples, named tuples, lists, dicts (also ordered and default ones); all else is a
leaf.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple


class TreeSpec(NamedTuple):
    """The shape of a nest: a container's kind, what rebuilds it, and its children.

    ``kind`` is None for a leaf.
    """

    kind: Any
    context: Any
    children: tuple

    @property
    def num_leaves(self) -> int:
        return 1 if self.kind is None else sum(c.num_leaves for c in self.children)


LEAF = TreeSpec(None, None, ())


def _is_namedtuple(value) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _open(value):
    """(kind, context, children) of a container, or None for a leaf."""
    if isinstance(value, (dict, OrderedDict, defaultdict)):
        keys = list(value)
        factory = value.default_factory if isinstance(value, defaultdict) else None
        return type(value), (keys, factory), [value[k] for k in keys]
    if _is_namedtuple(value) or type(value) in (tuple, list):
        return type(value), None, list(value)
    return None


def _close(spec: TreeSpec, children: list):
    if issubclass(spec.kind, dict):
        keys, factory = spec.context
        items = zip(keys, children)
        return spec.kind(factory, items) if factory is not None else spec.kind(items)
    if issubclass(spec.kind, tuple) and hasattr(spec.kind, "_fields"):
        return spec.kind(*children)
    return spec.kind(children)


def tree_flatten(tree, is_leaf=None):
    """(leaves from left to right, the spec that puts them together again)."""
    opened = None if is_leaf is not None and is_leaf(tree) else _open(tree)
    if opened is None:
        return [tree], LEAF
    kind, context, children = opened
    leaves, specs = [], []
    for child in children:
        found, spec = tree_flatten(child, is_leaf)
        leaves += found
        specs.append(spec)
    return leaves, TreeSpec(kind, context, tuple(specs))


def tree_unflatten(leaves, treespec: TreeSpec):
    """The nest of ``treespec`` with these leaves.

    Raises:
        ValueError: if their number differs.
    """
    leaves = list(leaves)
    if len(leaves) != treespec.num_leaves:
        raise ValueError(
            f"the nest has {treespec.num_leaves} leaves, but {len(leaves)} were given"
        )
    return _rebuild(iter(leaves), treespec)


def _rebuild(leaves, spec):
    if spec.kind is None:
        return next(leaves)
    return _close(spec, [_rebuild(leaves, child) for child in spec.children])


def tree_leaves(tree, is_leaf=None) -> list:
    """The leaves from left to right."""
    return tree_flatten(tree, is_leaf)[0]


def tree_map(func, tree, *rests, is_leaf=None):
    """``func`` of every leaf (and of those at the same place in ``rests``), in the same nest."""
    leaves, spec = tree_flatten(tree, is_leaf)
    columns = [leaves, *(tree_leaves(r, is_leaf) for r in rests)]
    return tree_unflatten([func(*row) for row in zip(*columns, strict=True)], spec)


def tree_map_only(kind, func, tree):
    """``func`` of the leaves that are instances of ``kind``; others stay."""
    return tree_map(lambda x: func(x) if isinstance(x, kind) else x, tree)


def broadcast_prefix(prefix, tree) -> list:
    """One value per leaf of ``tree``: a leaf of ``prefix`` stands for all that is below it.

    Raises:
        ValueError: if ``prefix`` is not shaped like the top of ``tree``.
    """
    opened = _open(prefix)
    if opened is None:
        return [prefix] * len(tree_leaves(tree))
    below = _open(tree)
    if below is None or len(below[2]) != len(opened[2]) or opened[1] != below[1]:
        raise ValueError(f"{prefix!r} is not shaped like the top of a {type(tree).__name__}")
    return [x for p, t in zip(opened[2], below[2]) for x in broadcast_prefix(p, t)]
