"""Optimizers' update rules over many tensors in one launch (``csrc/multi.cu``, ``csrc/multi_more.cu``).

The addresses and sizes of some seventy tensors fit into a kernel's arguments, so a step is one launch
for that many, nothing is uploaded, and a captured graph has what it needs. The arithmetic is that of the
formulas over whole arrays (``optim_kernels``), operation by operation: float32 and float64 parameters
get the same bits.

What a step has put together is kept as a ``Plan``: from step to step only the gradients are new arrays.

Arrays that are not dense, or differ in the order of their elements, go through contiguous copies.
Tensors of a mix of types that the kernels are not compiled for go one by one through the formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import graphs
from .kernel import kernel
from .launch import Structure
from .rules import RULES

CHUNK, THREADS = 1 << 15, 256  # elements of a block; see multi.cuh
_ROOM = 3832  # bytes of a table, so that all arguments together stay under 4 KiB
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_LISTS = 5  # a parameter, its gradient and up to three states
_NONE = (None,) * _LISTS
# Types of parameter, state and gradient that multi.cu is compiled for
_TYPES = {(t, t, t) for t in _FLOATS} | {
    ("float32", "float32", "float16"), ("float32", "float32", "bfloat16"),
    ("float16", "float32", "float16"), ("bfloat16", "float32", "bfloat16"),
}  # fmt: skip


# ---------------------------------------------------------------- tables
@functools.cache
def _layout(lists: int) -> tuple[int, np.dtype, type[Structure]]:
    """(tensors of a table, its layout, its class) for tables of so many lists of arrays."""
    most = _ROOM // (8 * lists + 12) // 2 * 2
    layout = np.dtype([("at", np.uint64, (lists, most)), ("size", np.int64, most),
                       ("first", np.int32, most), ("count", np.int64)])
    return most, layout, type(f"Table{lists}", (Structure,), {"SIZE": layout.itemsize})


class Table:
    """A table of the addresses of tensors ``start`` and following, ``chunks`` blocks in all."""

    def __init__(self, lists: Sequence, start: int, least: int):
        most, layout, self._kind = _layout(len(lists))
        self._table = np.zeros((), layout)
        sizes = np.array([a.size for a in lists[0][start : start + most]], np.int64)
        self.start, self.n = start, sizes.size
        self._rows = self._table["at"]
        for i, arrays in enumerate(lists):
            if arrays is not None:
                self.put(i, arrays)
        chunks = np.maximum(-(-sizes // CHUNK), least)
        ends = chunks.cumsum()
        self.chunks = int(ends[-1])
        self._table["size"][: self.n] = sizes
        self._table["first"][: self.n] = ends - chunks
        self._table["count"] = self.n

    def put(self, i: int, arrays: Sequence) -> None:
        """Put other arrays of the same sizes into list ``i``."""
        start, n = self.start, self.n
        self._rows[i, :n] = [a.data.ptr for a in arrays[start : start + n]]

    def argument(self) -> Structure:
        """What a kernel takes."""
        return self._kind(self._table.tobytes())


def _tables(lists: Sequence, least: int = 0) -> list[Table]:
    most = _layout(len(lists))[0]
    return [Table(lists, start, least) for start in range(0, len(lists[0]), most)]


def tables(lists: Sequence, least: int = 0) -> Iterator[tuple[Structure, int, int, int]]:
    """Arrays for kernels that take a ``Table``.

    Args:
        lists: lists of as many arrays each; None for a list of nothing.
        least: how many chunks an empty tensor has.

    Yields:
        (a table, the chunks of its tensors: the blocks of the launch, its first tensor, their number).
    """
    for table in _tables(lists, least):
        yield table.argument(), table.chunks, table.start, table.n


def is_dense(array) -> bool:
    """Whether its elements fill a stretch of memory, in any order of the dims."""
    if array.flags.c_contiguous:
        return True
    size = array.itemsize
    for stride, n in sorted((s, n) for s, n in zip(array.strides, array.shape) if n > 1):
        if stride != size:
            return False
        size *= n
    return True


def _together(arrays: tuple) -> tuple | None:
    """The arrays as they lie in memory, complex ones as pairs; None if elements do not correspond."""
    first, contiguous = arrays[0], True
    for a in arrays:  # a loop: for every tensor of a step, a generator would cost as much again
        if a is not None and not a.flags.c_contiguous:
            contiguous = False
            break
    if contiguous:
        if first.dtype.kind != "c":
            return arrays
        return tuple([None if a is None else a.reshape(-1).view(a.real.dtype) for a in arrays])
    if first.dtype.kind != "c" and is_dense(first) and all(
        a is None or (a.strides == first.strides and a.dtype == first.dtype) for a in arrays
    ):
        return arrays
    return None


# ---------------------------------------------------------------- steps
class _Part:
    """The tensors of one set of types: their numbers, their arrays by list, and tables of them.

    Args:
        types: (parameter, state, gradient), names of dtypes; and which states there are.
        members: (number, arrays, counts) of each tensor.
    """

    def __init__(self, types: tuple, members: list):
        self.types = types[:3]
        self.wide = np.dtype(np.float64 if types[0] == "float64" else np.float32)
        self.numbers = [number for number, _, _ in members]
        columns = zip(*[(*given, *_NONE[len(given) :]) for _, given, _ in members])
        self.columns = [None if column[0] is None else list(column) for column in columns]
        self.tables = _tables(self.columns)
        counts = [list(column) for column in zip(*[counts for _, _, counts in members])]
        self.counts = _tables(counts) if counts else []

    def give_gradients(self, grads: list) -> None:
        """Take gradients, from those of all tensors, in place of the ones before."""
        self.columns[1] = mine = [grads[i] for i in self.numbers]
        for table in self.tables:
            table.put(1, mine)

    def forget_gradients(self) -> None:
        """Let the gradients' memory go, whose addresses a plan has no more use for after a step."""
        self.columns[1] = None

    def by_options(self, own: list) -> list[tuple[dict, list[Table]]]:
        """The options of the tensors, and tables of those that share them."""
        mine = [own[i] for i in self.numbers]
        if mine.count(mine[0]) == len(mine):
            return [(mine[0], self.tables)]
        groups: dict[tuple, list[int]] = {}
        for k, options in enumerate(mine):
            groups.setdefault(tuple(options.values()), []).append(k)
        return [(mine[ks[0]], _tables([c and [c[k] for k in ks] for c in self.columns]))
                for ks in groups.values()]


class Plan:
    """What a step of a rule over many tensors has put together: tables of their addresses.

    Args:
        arrays: for each tensor its parameter, gradient and states, which lie alike in memory.
        counts: for each tensor its counts on the device; see ``optimizer_steps``.
    """

    def __init__(self, xp, rule: str, arrays: list, counts: Sequence[tuple]):
        self._xp, self._name, self._rule = xp, rule, RULES[rule]
        self.unfit: list[int] = []  # tensors of types that there is no kernel for
        members: dict[tuple, list] = {}
        for i, given in enumerate(arrays):
            types = _types(self._rule.family, tuple([None if a is None else a.dtype for a in given]))
            if types is None:
                self.unfit.append(i)
            else:
                members.setdefault(types, []).append((i, given, counts[i] if counts else ()))
        self._parts = [_Part(types, some) for types, some in members.items()]
        # Of gradients to come: the dtype, and the strides where the parameter is not contiguous
        self._wanted = [(g[1].dtype, None if g[0].flags.c_contiguous else g[0].strides) for g in arrays]

    def fits(self, grads: list) -> bool:
        """Whether gradients have the types and the layout of those before."""
        for g, (dtype, strides) in zip(grads, self._wanted):
            if g.dtype != dtype or not (g.strides == strides if strides else g.flags.c_contiguous):
                return False
        return True

    def give_gradients(self, grads: list) -> None:
        """Take gradients that fit in place of those before."""
        for part in self._parts:
            part.give_gradients(grads)

    def run(self, own: list, shared: dict, scale=None, found=None) -> None:
        """Launch; arguments as of ``optimizer_steps``."""
        rule = self._rule
        lr: Any = shared.get("lr", 0.0)
        rate = None
        if not isinstance(lr, (float, int)):
            lr, rate = 0.0, lr.astype(np.float32, copy=False)
        for part in self._parts:
            if not part.counts:
                for options, tables_ in part.by_options(own):
                    values = rule.factors(options, shared, float(lr))
                    self._launch(part, tables_, values, rate, options, shared, scale, found)
            elif rule.pointer == "factors":
                factors = self._count(part, shared, float(lr), rate, found)
                self._launch(part, part.tables, rule.unknown, factors, {}, shared, scale, found)
            else:
                for table in part.counts:
                    self._counts("count_only", np.float32)((1,), (THREADS,), (table.argument(), found))
                values = rule.factors({}, shared, float(lr))
                self._launch(part, part.tables, values, rate, {}, shared, scale, found)
            part.forget_gradients()

    def _counts(self, name: str, wide):
        return kernel(self._xp.cupy, "counts", name, FACTOR=np.dtype(wide))

    def _count(self, part: _Part, shared, lr: float, rate, found):
        """Count a step on the device: the factors of the tensors, an array."""
        each = len(self._rule.unknown)
        factors = self._xp.empty(len(part.numbers) * each, part.wide)
        for table in part.counts:
            self._counts(self._rule.counting, part.wide)((1,), (THREADS,), (
                table.argument(), factors[table.start * each :], lr, rate, *self._rule.numbers(shared),
                found))
        return factors

    def _launch(self, part: _Part, tables_, values, pointer, options, shared, scale, found) -> None:
        rule, types = self._rule, part.types
        wide = part.wide.type
        values, constants = ([wide(v) if isinstance(v, float) else v for v in some]
                             for some in (values, rule.constants(shared, options)))
        each = len(values) if rule.pointer == "factors" else 0
        launch = kernel(self._xp.cupy, rule.family, self._name, ELEMENT=types[0], STATE=types[1],
                        GRAD=types[2])
        for table in tables_:
            if not table.chunks:
                continue
            mine = pointer if pointer is None or not table.start else pointer[table.start * each :]
            launch((table.chunks,), (THREADS,), (
                table.argument(), *values, *((mine,) if rule.pointer else ()), *constants, scale, found))


def optimizer_steps(xp, rule, arrays, own, shared, counts=(), scale=None, found=None):
    """One step of a rule for many tensors, in place; see ``optim_kernels.optimizer_steps``.

    Args:
        counts: for each tensor its 0-dim float32 arrays on the device that go up by the step (which
            is the first), and so make graphs' replays count on; empty where ``own`` has the numbers
            of the step. Then ``shared["lr"]`` may be an array, too, which is only read.
        scale: 0-dim float32 array that the gradients are divided by, in place; None for 1.
        found: 0-dim float32 array: nothing changes where it is not 0.

    Returns:
        a ``Plan`` by which the next step is faster, or None if some tensor needs more than launches.

    Raises:
        TypeError: for counts on the device of tensors of a mix of types without a kernel.
    """
    fitting, back = [], []
    for given in arrays:
        together = _together(given)
        if together is None:
            copies = tuple([None if a is None else a.copy(order="C") for a in given])
            back.append((given, copies))
            together = _together(copies)
        fitting.append(together)
    plan = Plan(xp, rule, fitting, counts)
    if plan.unfit and counts:
        kinds = [a.dtype.name for a in arrays[plan.unfit[0]] if a is not None]
        raise TypeError(
            f"an optimizer cannot count steps on the GPU for tensors of types {', '.join(kinds)}: leave "
            "capturable and fused False, or keep parameter, gradient and state in one type")
    plan.run(own, shared, scale, found)
    for i in plan.unfit:
        _one_by_one(xp, rule, arrays[i], own[i], shared, scale, found)
    for given, copies in back:
        for a, b in zip(given, copies):
            if a is not None:
                xp.assign(a, b)
    plain = not back and not plan.unfit and all(given[0].dtype.kind != "c" for given in arrays)
    return plan if plain else None


@functools.cache
def _types(family, kinds):
    """(types of parameter, state and gradient, which states there are) if there are kernels for them.

    Args:
        kinds: the dtypes of parameter, gradient and states; None for a state that is not there.
    """
    states = {k.name for k in kinds[2:] if k is not None} or {kinds[0].name}
    if len(states) > 1:
        return None
    types = kinds[0].name, states.pop(), kinds[1].name
    fits = types in _TYPES if family == "multi" else types[0] == types[1] == types[2] in _FLOATS
    return (*types, tuple([k is not None for k in kinds])) if fits else None


def _one_by_one(xp, rule, given, options, shared, scale, found):
    """What no kernel fits, by the formula over whole arrays (which waits for numbers on the device)."""
    if found is not None and float(found):
        return
    if scale is not None:
        given[1][...] = (given[1] / scale).astype(given[1].dtype)
    shared = {k: float(v) if isinstance(v, xp.ndarray) else v for k, v in shared.items()}
    getattr(xp, f"{rule}_step")(*given, **options, **shared)


def counts_on_host(xp) -> None:
    """To be called before a step whose number comes from the host: a graph would repeat that."""
    graphs.refuse("a step of an optimizer that counts on the CPU (most have capturable=True)")
