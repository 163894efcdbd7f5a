"""Buffers that a forward pass changes, such as BatchNorm's running statistics.

Every virtual shard starts from the same values, as if it were alone. When all are done a buffer of
floats becomes the mean over the shards, in the tree: BatchNorm's statistics then move once a step,
towards the mean of the shards' statistics. A buffer of integers must end alike in all of them, as
its count of batches does.
"""

from __future__ import annotations

from typing import Any

from ...autograd.graph import bump_version
from ...backend import dtypes, namespace_of
from ...nn import Module
from ..process_group import ProcessGroup
from .tree_sum import TreeSum


class RunningBuffers:
    """The buffers of `module` through one loop over shards after the other."""

    def __init__(self, module: Module, group: ProcessGroup, shards: int) -> None:
        self.module, self.group, self.shards = module, group, shards
        self._changed: list[str] | None = None  # in the first shard of this loop
        self._sums: dict[Any, tuple[list[str], TreeSum]] = {}  # by dtype
        self._made_for: tuple = ()
        self._last: dict[str, Any] = {}  # integer buffers after a shard

    def begin(self) -> None:
        """Note the values that every shard starts from."""
        self._changed = None
        self._start = {}
        seen = set()
        for prefix, owner in self.module.named_modules():
            for key, tensor in owner._buffers.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    name = f"{prefix}.{key}" if prefix else key
                    self._start[name] = (owner, key, tensor, tensor._version, tensor._data.copy())

    def collect(self) -> None:
        """Take in what a shard has changed, and set it back."""
        changed = [n for n, start in self._start.items() if self._differs(*start)]
        if self._changed is None:
            self._prepare(changed)
        elif changed != self._changed:
            odd = sorted({*changed} ^ {*self._changed})
            raise RuntimeError(
                f"exact: buffers {', '.join(odd)} were changed in some virtual shards of rank "
                f"{self.group.rank()} and not in others; change them in all, or outside the loop"
            )
        for names, total in self._sums.values():
            total.push([self._value(name, total.dtype) for name in names])
        for name in changed:
            owner, key, tensor, _, before = self._start[name]
            owner._buffers[key] = tensor
            tensor._data[...] = before
            bump_version(tensor)
            self._start[name] = (owner, key, tensor, tensor._version, before)

    def finish(self) -> None:
        """Set the buffers to what the shards of all ranks make of them.

        Raises:
            RuntimeError: an integer buffer ended in different values.
        """
        for names, total in self._sums.values():
            means, _, _ = total.mean()
            for name, mean in zip(names, means):
                _, _, tensor, _, _ = self._start[name]
                if tensor.dtype.category < dtypes.FLOAT and (mean != self._last[name]).any():
                    raise RuntimeError(
                        f"exact: buffer {name!r} of {tensor.dtype} ended in different values in "
                        "different virtual shards, which have no mean; keep it out of the module, "
                        "or make it a float"
                    )
                tensor._data[...] = mean
                bump_version(tensor)
        self._start = {}

    @staticmethod
    def _differs(owner: Module, key: str, tensor: Any, version: int, before: Any) -> bool:
        return owner._buffers.get(key) is not tensor or tensor._version != version

    def _value(self, name: str, dtype: Any) -> Any:
        owner, key, tensor, _, before = self._start[name]
        value = owner._buffers[key]
        if value is None or value._data.shape != before.shape:
            raise RuntimeError(f"exact: buffer {name!r} changed its shape in a virtual shard")
        array = value._data.astype(dtype, copy=False)
        if tensor.dtype.category < dtypes.FLOAT:
            if name in self._last and (array != self._last[name]).any():
                array = array * float("nan")  # no mean will equal it, on any rank
            self._last.setdefault(name, array.copy())
        return array

    def _prepare(self, changed: list[str]) -> None:
        self._changed, self._last = changed, {}
        kinds: dict[Any, list[str]] = {}
        for name in changed:
            tensor = self._start[name][2]
            exact_integers = tensor.dtype.category < dtypes.FLOAT  # float64 holds them up to 2**53
            kinds.setdefault(None if exact_integers else tensor._data.dtype, []).append(name)
        made_for = tuple((kind, tuple(names)) for kind, names in kinds.items())
        if made_for == self._made_for:
            for _, total in self._sums.values():
                total.restart()
            return
        self._made_for, self._sums = made_for, {}
        for kind, names in kinds.items():
            like = [self._start[name][4] for name in names]
            if kind is None:
                xp = namespace_of(like[0])
                like = [xp.empty(a.shape, "float64") for a in like]
            self._sums[kind] = (names, TreeSum(like, self.group, self.shards))
