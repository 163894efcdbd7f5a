"""Launches of the attention kernels of ``csrc/attention*.cu``, prepared once for each layout of arrays.

Shape legend: B batch, H heads of queries, L queries, S keys, E width of queries and keys, V of values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernel import kernel

WIDEST = 128
_WARPS, _THREADS = 4, 128
_NO_DROPOUT = np.uint64(0), np.uint64(0), None


class _Tiles(NamedTuple):
    """Rows of tiles for one padded width, and lanes of a row of sums, as the sources define them."""

    width: int
    queries: int
    keys: int
    own_keys: int
    seen: int
    own_queries: int
    step: int
    lanes: int

    def shared(self, name: str) -> int:
        """Bytes of dynamic shared memory of a kernel."""
        row = 2 * (self.width + 8)
        return {
            "attention_forward": (self.queries + 4 * self.keys) * row,
            "attention_keys": (2 * self.own_keys + 4 * self.seen) * row + 16 * self.seen,
            "attention_queries": (2 * self.own_queries + 4 * self.step) * row,
        }.get(name, 0)


_TILES = {
    t.width: t
    for t in (_Tiles(32, 128, 64, 128, 64, 128, 64, 4), _Tiles(64, 128, 64, 128, 64, 128, 64, 8),
              _Tiles(96, 128, 48, 64, 64, 64, 64, 16), _Tiles(128, 128, 32, 64, 48, 64, 48, 16))
}
_ready: dict = {}


def _kernel(xp, name: str, dtype: str, width: int, extras: int):
    """(kernel, its bytes of shared memory); ``extras`` as ``which`` gives it."""
    key = (xp.index, name, dtype, width, extras)
    found = _ready.get(key)
    if found is None:
        family = "attention" if name == "attention_forward" else "attention_backward"
        made = kernel(xp.cupy, family, name, ELEMENT=dtype, WIDTH=width, EXTRAS=extras)
        size = _TILES[width].shared(name)
        if size > 48 << 10:
            made.allow_shared(size)
        found = _ready[key] = made, size
    return found


def _padded_width(*widths: int) -> int:
    return next(w for w in _TILES if w >= max(widths))


def strides(a) -> tuple[int, int, int]:
    """Elements from batch to batch, head to head, row to row of a B×H×R×C array."""
    size = a.dtype.itemsize
    b, h, r, _ = a.strides
    return b // size, h // size, r // size


def maker(xp, like, rows: int, width: int):
    """(``f()``, which makes an empty B×H×rows×width array; its ``strides``).

    Its dims follow each other in memory as those of ``like`` do: of a view of a projection, B×L×H×E or
    L×B×H×E in memory, so that what comes next need not copy.
    """
    (B, H), dtype, empty = like.shape[:2], like.dtype, xp.empty
    sizes, steps = (B, H, rows), like.strides
    order = sorted(range(3), key=lambda i: -steps[i])  # from the largest step to the smallest
    shape = (*[sizes[i] for i in order], width)
    places, step = [0, 0, 0], width
    for i in reversed(order):
        places[i], step = step, step * sizes[i]
    if order == [0, 1, 2]:
        return lambda: empty(shape, dtype), tuple(places)
    axes = (*[order.index(i) for i in range(3)], 3)
    return lambda: empty(shape, dtype).transpose(axes), tuple(places)


def which(mask, dropout_p: float) -> int:
    """What a call has beside its tensors: 1 for a mask, 2 for dropout."""
    return (mask is not None) + 2 * (dropout_p > 0)


def extras_of(mask, dropout_p: float, random: tuple | None) -> tuple:
    """Mask and dropout as arguments of the kernels; none where there is neither."""
    if mask is None and not dropout_p:
        return ()
    places = (0, 0, 0, 0) if mask is None else _mask_strides(mask)
    added = int(mask is not None and mask.dtype.kind != "b")
    return (mask, added, *places, float(dropout_p), *(random or _NO_DROPOUT))


def _mask_strides(mask) -> tuple[int, int, int, int]:
    """Elements from batch to batch, head to head, row to row, key to key: 0 where a mask is broadcast.
    A leading dim beyond B×H×L×S must have been merged by the caller."""
    steps = [0] * (4 - mask.ndim) + [s // mask.dtype.itemsize for s in mask.strides]
    sizes = [1] * (4 - mask.ndim) + list(mask.shape)
    return tuple(0 if n == 1 else s for n, s in zip(sizes, steps))  # type: ignore[return-value]


def forward(xp, q, k, v, causal: bool, scale: float, extras: int):
    """The forward for arrays that lie in memory as these: ``f(q, k, v, extras)`` gives out and logs.

    Args:
        q, k, v: B×heads×rows×width, rows and addresses multiples of 16 bytes, the last dim contiguous.
        extras: see ``which``; those of a call are what ``extras_of`` gives.
    """
    (B, H, L, E), (heads, S, V) = q.shape, v.shape[1:]
    width = _padded_width(E, V)
    run, shared = _kernel(xp, "attention_forward", q.dtype.name, width, extras)
    grid, block, empty = (B * H * -(-L // _TILES[width].queries),), (_THREADS,), xp.empty
    (make, lie), rows, wide = maker(xp, q, L, V), (B, H, L), np.dtype(np.float32)
    fixed = (L, S, E, V, H, H // heads, *strides(q), *strides(k), *strides(v), *lie, float(scale),
             int(causal))

    def launch(q, k, v, extras):
        out, logs = make(), empty(rows, wide)
        run(grid, block, (q, k, v, out, logs, *fixed, *extras), shared)
        return out, logs

    return launch


def backward(xp, g, q, k, v, out, causal: bool, scale: float, extras: int):
    """The backward for arrays that lie so: ``f(g, q, k, v, out, logs, extras)`` gives dq, dk and dv.

    Args:
        g, out: B×H×L×V, as in ``forward``; logs: B×H×L float32, contiguous.
    """
    (B, H, L, E), (heads, S, V), dtype = q.shape, v.shape[1:], q.dtype.name
    width = _padded_width(E, V)
    tiles, block, empty, wide = _TILES[width], (_THREADS,), xp.empty, np.dtype(np.float32)
    sums, _ = _kernel(xp, "attention_delta", dtype, width, extras)
    keys, keys_shared = _kernel(xp, "attention_keys", dtype, width, extras)
    queries, queries_shared = _kernel(xp, "attention_queries", dtype, width, extras)
    makes, lies = zip(*[maker(xp, a, *a.shape[2:]) for a in (q, k, v)])
    rows, last = (B, H, L), (float(scale), int(causal))
    common = (L, S, E, V, H, H // heads, *strides(q), *strides(k), *strides(v), *strides(g))
    of_sums = (B * H * L, L, H, V, *strides(g), *strides(out))
    of_keys, of_queries = (*common, *lies[1], *lies[2], *last), (*common, *lies[0], *last)
    sums_grid = (-(-B * H * L * tiles.lanes // _THREADS),)
    keys_grid = (B * heads * -(-S // tiles.own_keys),)
    queries_grid = (B * H * -(-L // tiles.own_queries),)

    def launch(g, q, k, v, out, logs, extras):
        delta = empty(rows, wide)
        dq, dk, dv = [make() for make in makes]
        sums(sums_grid, block, (g, out, delta, *of_sums))
        keys(keys_grid, block, (q, k, v, g, logs, delta, dk, dv, *of_keys, *extras), keys_shared)
        queries(queries_grid, block, (q, k, v, g, logs, delta, dq, *of_queries, *extras), queries_shared)
        return dq, dk, dv

    return launch
