"""Nested state dicts as flat ones, and back.

The key of a value is the path to it, joined by dots. Dicts are always entered; lists and tuples
only where they hold tensors, dicts or such lists, so that ``betas=(0.9, 0.999)`` is one value. A
dict inside a tuple of plain values is not entered: a way to save it as one value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...tensor import Tensor
from .stateful import RankLocal


class MapKey(int):
    """An int in a path that is the key of a dict; other ints are places in a list."""


PathItem = str | int
Path = tuple[PathItem, ...]


def _is_leaf(value: Any) -> bool:
    if isinstance(value, Mapping):
        return False
    if not isinstance(value, list):
        return True
    return all(
        not isinstance(entry, Tensor)
        and (not isinstance(entry, (Mapping, list)) or _is_leaf(entry))
        for entry in value
    )


def _path_item(key: Any) -> PathItem:
    return MapKey(key) if type(key) in (int, MapKey) else str(key)


def traverse_state_dict(state_dict: Mapping, visitor: Callable[[Path, Any], None]) -> None:
    """Call ``visitor(path, value)`` for every value."""

    def walk(path: Path, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, entry in value.items():
                walk((*path, _path_item(key)), entry)
        elif _is_leaf(value):
            if isinstance(value, RankLocal):
                path = (*path, f"rank-{value.rank}")
            visitor(path, value)
        else:
            for i, entry in enumerate(value):
                walk((*path, i), entry)

    for key, value in state_dict.items():
        walk((_path_item(key),), value)


def flatten_state_dict(state_dict: Mapping) -> tuple[dict[str, Any], dict[str, Path]]:
    """(flat key -> value, flat key -> path).

    Raises:
        ValueError: two paths give the same key.
    """
    flat: dict[str, Any] = {}
    paths: dict[str, Path] = {}

    def visit(path: Path, value: Any) -> None:
        key = ".".join(map(str, path))
        if key in flat:
            raise ValueError(
                f"duplicated flatten key {key}: {paths[key]} and {path}; rename one of them"
            )
        flat[key], paths[key] = value, path

    traverse_state_dict(state_dict, visit)
    return flat, paths


def unflatten_state_dict(state_dict: Mapping, mapping: Mapping[str, Path]) -> dict:
    """The nested dict whose flat form and paths are given."""
    nested: dict = {}
    for key, value in state_dict.items():
        set_element(nested, mapping[key], value)
    return nested


def set_element(root: Any, path: Path, value: Any) -> None:
    """Put a value at the end of a path; what is missing on the way is made."""
    container = root
    for item, following in zip(path, path[1:]):
        below: list | dict = [] if type(following) is int else {}
        if type(item) is int:
            container.extend([None] * (item + 1 - len(container)))
            if container[item] is None:
                container[item] = below
            container = container[item]
        else:
            container = container.setdefault(_plain(item), below)
    last = path[-1]
    if type(last) is int:
        container.extend([None] * (last + 1 - len(container)))
    container[_plain(last)] = value


def get_element(root: Any, path: Path, default_value: Any = None) -> Any:
    """The value at the end of a path, or the default."""
    for item in path:
        try:
            root = root[_plain(item)]
        except (KeyError, IndexError, TypeError):
            return default_value
    return root


def _plain(item: PathItem) -> PathItem:
    return int(item) if isinstance(item, MapKey) else item


__all__ = [
    "MapKey", "Path", "flatten_state_dict", "get_element", "set_element", "traverse_state_dict",
    "unflatten_state_dict",
]  # fmt: skip
