"""The autograd graph as a drawing: DOT text for Graphviz, or a picture by matplotlib.

    print(to_dot(loss, dict(model.named_parameters())))
    draw_graph(loss, "graph.png", dict(model.named_parameters()))

Gradients flow along the arrows against their direction: arrows point from inputs to results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..autograd.graph import Node, current_node
from ..tensor import Tensor

COLORS = {"leaf": "#cfe8fc", "operation": "#eeeeee", "output": "#d6f5d6"}
LARGEST_PICTURE = 400  # vertices that matplotlib can show in one picture


@dataclass
class Vertex:
    """A tensor or an operation of the graph.

    Attributes:
        key: unique in the graph; kind: ``"leaf"``, ``"operation"`` or ``"output"``.
        label: lines of text; inputs: keys of the vertices it is computed from.
        level: the longest way to it from a leaf.
    """

    key: int
    kind: str
    label: str
    inputs: list[int]
    level: int = 0


def graph_of(outputs, names: dict | None = None) -> list[Vertex]:
    """The recorded graph behind tensors, inputs before what uses them.

    Args:
        outputs: a tensor that requires grad, or several.
        names: names of leaves, as ``dict(model.named_parameters())``.

    Raises:
        RuntimeError: if a tensor has no graph.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for t in outputs:
        if not isinstance(t, Tensor):
            raise TypeError(f"a graph is drawn from tensors, got {type(t).__name__}")
        if not t.requires_grad:
            raise RuntimeError(
                "the tensor does not require grad, so no graph leads to it; compute it outside of "
                "no_grad from tensors that require grad"
            )
    known = {id(t): name for name, t in (names or {}).items()}
    found: dict[int, Vertex] = {}
    tops = [current_node(t) or t for t in outputs]
    for target in _in_order(tops):
        found[id(target)] = _vertex(target, known)
    for i, (t, target) in enumerate(zip(outputs, tops)):
        name = known.get(id(t), "output" if len(outputs) == 1 else f"output {i}")
        found[-1 - i] = Vertex(-1 - i, "output", f"{name}\n{list(t.shape)}", [id(target)])
    for vertex in found.values():
        vertex.level = 1 + max((found[key].level for key in vertex.inputs), default=-1)
    return list(found.values())


def _in_order(tops) -> list:
    """Nodes and leaves that lead to ``tops``, inputs first. (Deep graphs: no recursion.)"""
    seen, order = set(), []
    stack = [(target, False) for target in reversed(tops)]
    while stack:
        target, ready = stack.pop()
        if ready:
            order.append(target)
        elif id(target) not in seen:
            seen.add(id(target))
            stack.append((target, True))
            if isinstance(target, Node):
                stack += [(source, False) for source, _ in target.edges]
    return order


def _vertex(target, known) -> Vertex:
    if isinstance(target, Tensor):
        name = known.get(id(target), "leaf")
        dtype = str(target.dtype).removeprefix("torch.")
        return Vertex(id(target), "leaf", f"{name}\n{list(target.shape)} {dtype}", [])
    inputs = list(dict.fromkeys(id(source) for source, _ in target.edges))
    return Vertex(id(target), "operation", target.name(), inputs)


def to_dot(outputs, names: dict | None = None) -> str:
    """The graph in Graphviz's DOT language; arguments as of ``graph_of``."""
    vertices = graph_of(outputs, names)
    number = {vertex.key: i for i, vertex in enumerate(vertices)}
    lines = ["digraph autograd {", "  rankdir=TB;", '  node [style=filled, fontname="sans-serif"];']
    for vertex in vertices:
        label = vertex.label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        shape = "box" if vertex.kind == "operation" else "ellipse"
        lines.append(
            f'  n{number[vertex.key]} [label="{label}", shape={shape}, '
            f'fillcolor="{COLORS[vertex.kind]}"];'
        )
    for vertex in vertices:
        lines += [f"  n{number[key]} -> n{number[vertex.key]};" for key in vertex.inputs]
    return "\n".join([*lines, "}"]) + "\n"


def draw_graph(outputs, path, names: dict | None = None) -> None:
    """Write the graph to a file: ``.dot`` as text, any other ending as matplotlib can write it.

    Args:
        outputs, names: as of ``graph_of``.
        path: of the file.

    Raises:
        ImportError: if matplotlib is not installed (for other files than ``.dot``).
        ValueError: if the graph is too large for a picture.
    """
    path = Path(path)
    if path.suffix == ".dot":
        path.write_text(to_dot(outputs, names), encoding="utf-8")
        return
    vertices = graph_of(outputs, names)
    if len(vertices) > LARGEST_PICTURE:
        raise ValueError(
            f"the graph has {len(vertices)} vertices, too many for one picture (at most "
            f"{LARGEST_PICTURE}); write a .dot file and lay it out with Graphviz"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing a graph needs matplotlib (pip install matplotlib); a .dot file does not"
        ) from error
    places = _layout(vertices)
    rows = 1 + max(v.level for v in vertices)
    across = 1 + max(x for x, _ in places.values()) - min(x for x, _ in places.values())
    figure = Figure(figsize=(1.5 + 2.4 * across, 0.8 + 0.75 * rows), dpi=110)
    axes = figure.add_subplot()
    _draw(axes, vertices, places)
    figure.savefig(path, bbox_inches="tight")


def _layout(vertices) -> dict[int, tuple[float, float]]:
    """A place per vertex: one row per level, leaves just above their first use, by barycentres."""
    used_at: dict[int, int] = {}
    for vertex in vertices:
        for key in vertex.inputs:
            used_at[key] = min(used_at.get(key, vertex.level), vertex.level)
    rows: dict[int, list[Vertex]] = {}
    for vertex in vertices:
        level = vertex.level if vertex.inputs else used_at.get(vertex.key, 1) - 1
        rows.setdefault(level, []).append(vertex)
    users: dict[int, list[int]] = {}
    for vertex in vertices:
        for key in vertex.inputs:
            users.setdefault(key, []).append(vertex.key)
    x = {v.key: i - (len(row) - 1) / 2 for row in rows.values() for i, v in enumerate(row)}
    for _ in range(8):  # down by inputs, up by users: few crossings, not the fewest
        for down in (True, False):
            for level in sorted(rows, reverse=not down):
                _settle(rows[level], x, users, down)
    return {v.key: (x[v.key], -float(level)) for level, row in rows.items() for v in row}


def _settle(row, x, users, down) -> None:
    """Order a row by the mean place of its neighbours, one unit between any two."""

    def wanted(vertex) -> float:
        near = vertex.inputs if down else users.get(vertex.key, [])
        return sum(x[key] for key in near) / len(near) if near else x[vertex.key]

    row.sort(key=wanted)
    targets = [wanted(v) for v in row]
    last = float("-inf")
    for vertex, target in zip(row, targets):
        last = x[vertex.key] = max(target, last + 1)
    shift = sum(x[v.key] - t for v, t in zip(row, targets)) / len(row)
    for vertex in row:
        x[vertex.key] -= shift


def _draw(axes, vertices, places) -> None:
    for vertex in vertices:
        x, y = places[vertex.key]
        style = "square,pad=0.3" if vertex.kind == "operation" else "round,pad=0.4"
        axes.text(
            x, y, vertex.label, ha="center", va="center", fontsize=7, zorder=3,
            bbox={"boxstyle": style, "facecolor": COLORS[vertex.kind], "edgecolor": "#888888",
                  "linewidth": 0.6},
        )
        for key in vertex.inputs:
            axes.annotate(
                "", xy=(x, y + 0.22), xytext=(places[key][0], places[key][1] - 0.22), zorder=1,
                arrowprops={"arrowstyle": "->", "color": "#666666", "linewidth": 0.8,
                            "shrinkA": 0, "shrinkB": 0},
            )
    xs, ys = zip(*places.values())
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.set_ylim(min(ys) - 0.6, max(ys) + 0.6)
    axes.axis("off")


__all__ = ["Vertex", "draw_graph", "graph_of", "to_dot"]
