"""Optimizers' update rules over many tensors in one launch (``csrc/multi.cu``, ``csrc/multi_more.cu``).

The addresses and sizes of some seventy tensors fit into a kernel's arguments, so a step is one launch
for that many, nothing is uploaded, and a captured graph has what it needs. The arithmetic is that of the
formulas over whole arrays (``optim_kernels``), operation by operation: float32 and float64 parameters
get the same bits.

Tensors go one by one through those formulas where no kernel fits: arrays that are not dense or differ in
the order of their elements, and mixes of types that the kernels are not compiled for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from . import graphs
from .kernel import kernel
from .launch import Structure

CHUNK, THREADS = 1 << 16, 256  # elements of a block; see multi.cuh
_ROOM = 3832  # bytes of a table, so that all arguments together stay under 4 KiB
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_NONE = (None,) * 5
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


def tables(lists: Sequence, least: int = 0) -> Iterator[tuple[Structure, int, int, int]]:
    """Arrays for kernels that take a ``Table``.

    Args:
        lists: lists of as many arrays each; None for a list of nothing.
        least: how many chunks an empty tensor has.

    Yields:
        (a table, the chunks of its tensors: the blocks of the launch, its first tensor, their number).
    """
    most, layout, kind = _layout(len(lists))
    for start in range(0, len(lists[0]), most):
        table = np.zeros((), layout)
        sizes = np.array([a.size for a in lists[0][start : start + most]], np.int64)
        n = sizes.size
        for row, arrays in zip(table["at"], lists):
            if arrays is not None:
                row[:n] = [a.data.ptr for a in arrays[start : start + most]]
        chunks = np.maximum(-(-sizes // CHUNK), least)
        ends = chunks.cumsum()
        table["size"][:n] = sizes
        table["first"][:n] = ends - chunks
        table["count"] = n
        yield kind(table.tobytes()), int(ends[-1]), start, n


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


# ---------------------------------------------------------------- rules
def _adam(own, shared, lr, states):
    beta1, beta2, step = shared["beta1"], shared["beta2"], own["step"]
    flags = int(shared["decoupled"]), int(shared["maximize"]), int(states[2] is not None)
    head = lr, beta1, beta2, float(shared["eps"]), float(shared["wd"])
    return *head, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, *flags


def _adam_counted(own, shared, lr, states):
    rate = None if isinstance(lr, float) else lr
    flags = int(shared["decoupled"]), int(shared["maximize"]), int(states[2] is not None)
    return (0.0 if rate is not None else lr, shared["beta1"], shared["beta2"], float(shared["eps"]),
            float(shared["wd"]), rate, *flags)


def _sgd(own, shared, lr, states):
    rate = None if isinstance(lr, float) else lr
    return (0.0 if rate is not None else lr, float(shared["momentum"]), float(shared["dampening"]),
            float(shared["wd"]), rate, int(states[0] is not None), int(shared["nesterov"]),
            int(shared["maximize"]), int(own["first"]))


def _rmsprop(own, shared, lr, states):
    return (lr, float(shared["alpha"]), float(shared["eps"]), float(shared["wd"]),
            float(shared["momentum"]), int(states[1] is not None), int(states[2] is not None),
            int(shared["maximize"]))


def _adagrad(own, shared, lr, states):
    return float(own["lr"]), float(shared["eps"]), float(shared["wd"]), int(shared["maximize"])


def _adadelta(own, shared, lr, states):
    return lr, float(shared["rho"]), float(shared["eps"]), float(shared["wd"]), int(shared["maximize"])


def _adamax(own, shared, lr, states):
    beta1 = shared["beta1"]
    return (lr / (1 - beta1 ** own["step"]), beta1, shared["beta2"], float(shared["eps"]),
            float(shared["wd"]), int(shared["maximize"]))


def _nadam(own, shared, lr, states):
    beta2, mu, ahead, product = shared["beta2"], own["mu"], own["mu_next"], own["mu_product"]
    return (lr, shared["beta1"], beta2, float(shared["eps"]), float(shared["wd"]),
            1 - beta2 ** own["step"], lr * (1 - mu) / (1 - product), lr * ahead / (1 - product * ahead),
            int(shared["decoupled"]), int(shared["maximize"]))


def _radam(own, shared, lr, states):
    beta1, beta2, step, factor = shared["beta1"], shared["beta2"], own["step"], own["rectification"]
    return (lr, beta1, beta2, float(shared["eps"]), float(shared["wd"]), 1 - beta1**step,
            (1 - beta2**step) ** 0.5, 0.0 if factor is None else factor, int(factor is not None),
            int(shared["decoupled"]), int(shared["maximize"]))


# rule: (family, its arguments, whether it takes the scale of the gradients and found_inf)
_RULES = {
    "adam": ("multi", _adam, True), "adam_counted": ("multi", _adam_counted, True),
    "sgd": ("multi", _sgd, True), "rmsprop": ("multi_more", _rmsprop, False),
    "adagrad": ("multi_more", _adagrad, False), "adadelta": ("multi_more", _adadelta, False),
    "adamax": ("multi_more", _adamax, False), "nadam": ("multi_more", _nadam, False),
    "radam": ("multi_more", _radam, False),
}  # fmt: skip


def optimizer_steps(xp, rule, arrays, own, shared, scale=None, found=None):
    """One step of a rule for many tensors, in place; see ``optim_kernels.optimizer_steps``.

    Beside numbers, ``own["step"]`` of "adam" may be a 0-dim float32 array on the device, which goes up
    by one, and ``shared["lr"]`` of "adam" with such steps and of "sgd" one that is only read: so a
    captured step counts on and follows a schedule.

    Args:
        scale: 0-dim float32 array that the gradients are divided by, in place; None for 1.
        found: 0-dim float32 array: nothing changes where it is not 0.
    """
    counted = rule == "adam" and own and not isinstance(own[0]["step"], (float, int))
    if counted:
        _count(xp, [o["step"] for o in own], found)
    name = "adam_counted" if counted else rule
    family, arguments, scales = _RULES[name]
    lr = shared.get("lr")
    if lr is not None:
        lr = lr.astype(np.float32, copy=False) if isinstance(lr, xp.ndarray) else float(lr)
    groups: dict[tuple, tuple[dict, list]] = {}
    for given, options in zip(arrays, own):
        if not given[0].size:
            continue
        fitting = _together(given)
        types = None
        if fitting is not None:
            types = _types(family, tuple([None if a is None else a.dtype for a in fitting]))
        if types is None:
            _one_by_one(xp, rule, given, options, shared, scale, found)
            continue
        key = types if counted else (types, *options.values())
        group = groups.get(key)
        if group is None:
            group = groups[key] = (options, [])
        more = (options["step"],) if counted else ()
        group[1].append((*fitting, *_NONE[len(fitting):], *more))
    last = (scale, found) if scales else ()
    for key, (options, members) in groups.items():
        types = key if counted else key[0]
        columns = [None if column[0] is None else column for column in zip(*members)]
        args = (*arguments(options, shared, lr, (*members[0][2:5],)), *last)
        launch = kernel(xp.cupy, family, name, ELEMENT=types[0], STATE=types[1], GRAD=types[2])
        for table, chunks, _, _ in tables(columns):
            launch((chunks,), (THREADS,), (table, *args))


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


def _count(xp, steps, found):
    launch = kernel(xp.cupy, "multi", "count_steps", ELEMENT="float32", STATE="float32", GRAD="float32")
    for table, _, _, _ in tables([steps]):
        launch((1,), (THREADS,), (table, found))


def _one_by_one(xp, rule, given, options, shared, scale, found):
    """What no kernel fits, by the formula over whole arrays (which waits for numbers on the device)."""
    if found is not None and float(found):
        return
    if scale is not None:
        given[1][...] = (given[1] / scale).astype(given[1].dtype)
    options = {k: float(v) if isinstance(v, xp.ndarray) else v for k, v in options.items()}
    shared = {k: float(v) if isinstance(v, xp.ndarray) else v for k, v in shared.items()}
    getattr(xp, f"{rule}_step")(*given, **options, **shared)


def counts_on_host(xp) -> None:
    """To be called before a step whose number comes from the host: a graph would repeat that."""
    graphs.refuse("a step of an optimizer that counts on the CPU (Adam and AdamW have capturable=True)")
