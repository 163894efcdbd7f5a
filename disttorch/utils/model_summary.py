"""A model as a table: its layers, the shapes that come out of them, and their parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..autograd import no_grad
from ..nn import Module
from ..tensor import Tensor
from .flop_counter import FlopCounterMode, in_words


@dataclass
class Layer:
    """One row: a module at its place in the model.

    Attributes:
        name: attribute path; ``""`` is the model itself.
        kind: class name; depth: how deep it lies.
        output: shapes of what its last call gave, None if it was not called.
        parameters: its own, those of modules inside left out; trainable: of them.
        total: parameters with those inside, each counted once.
        calls: how often it ran; flops: floating point operations of its forward.
    """

    name: str
    kind: str
    depth: int
    parameters: int
    trainable: int
    total: int
    output: Any = None
    calls: int = 0
    flops: int = 0


@dataclass
class ModelSummary:
    """What ``summary`` found; as text it is a table."""

    layers: list[Layer]
    total_parameters: int
    trainable_parameters: int
    parameter_bytes: int
    buffer_bytes: int
    total_flops: int
    depth: int | None = None
    shared: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("Layer", "Type", "Output shape", "Parameters", "FLOP")]
        for layer in self.layers:
            if self.depth is not None and layer.depth > self.depth:
                continue
            name = "  " * layer.depth + (layer.name.rpartition(".")[2] or "(model)")
            own = self.depth is not None and layer.depth == self.depth
            count = layer.total if own else layer.parameters
            rows.append((
                name, layer.kind, "--" if layer.output is None else _as_text(layer.output),
                f"{count:,}" if count else "--", in_words(layer.flops) if layer.flops else "--",
            ))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self._totals()])

    def _totals(self) -> list[str]:
        fixed = self.total_parameters - self.trainable_parameters
        lines = [
            f"Parameters: {self.total_parameters:,} ({self.trainable_parameters:,} trainable, "
            f"{fixed:,} fixed)",
            f"Memory: {self.parameter_bytes / 2**20:.2f} MiB of parameters, "
            f"{self.buffer_bytes / 2**20:.2f} MiB of buffers",
        ]
        if self.total_flops:
            lines.append(f"Forward: {in_words(self.total_flops)} FLOP")
        if self.shared:
            lines.append(f"Shared and counted once: {', '.join(self.shared)}")
        return lines


def summary(model: Module, *inputs, depth: int | None = None, **kwargs) -> ModelSummary:
    """Describe a model; with inputs it runs once, without gradients and in evaluation mode.

    Args:
        model: any module.
        inputs, kwargs: what to call it with; without any, shapes and operations stay unknown.
        depth: rows of the printed table end at this depth, with what lies deeper summed up.

    Returns:
        A ``ModelSummary``; ``print`` it, or read its ``layers``.
    """
    if not isinstance(model, Module):
        raise TypeError(f"summary() describes an nn.Module, got {type(model).__name__}")
    layers = {id(m): _describe(name, m) for name, m in model.named_modules()}
    flops = 0
    if inputs or kwargs:
        counter = _run(model, layers, inputs, kwargs)
        flops = counter.get_total_flops()
    parameters = list(model.parameters())
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    unique = {n for n, _ in model.named_parameters()}
    return ModelSummary(
        list(layers.values()),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() * p.element_size() for p in parameters),
        sum(b.numel() * b.element_size() for b in model.buffers()),
        flops,
        depth,
        [n for n in names if n not in unique],
    )


def _describe(name: str, module: Module) -> Layer:
    own = list(module.parameters(recurse=False))
    return Layer(
        name, type(module).__name__, name.count(".") + 1 if name else 0,
        sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad),
        sum(p.numel() for p in module.parameters()),
    )


def _run(model, layers, inputs, kwargs) -> FlopCounterMode:
    """Call the model, noting what comes out of each layer; its mode is put back afterwards."""
    counter = FlopCounterMode(display=False)
    before: dict[int, int] = {}

    def enter(module, args):
        before[id(module)] = counter.get_total_flops()

    def leave(module, args, result):
        layer = layers[id(module)]
        layer.output, layer.calls = _shapes(result), layer.calls + 1
        layer.flops += counter.get_total_flops() - before[id(module)]

    modules = list(model.modules())
    training = [m.training for m in modules]
    hooks = [h for m in modules
             for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        model.eval()
        with no_grad(), counter:
            model(*inputs, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in zip(modules, training):
            module.training = mode
    return counter


def _shapes(value):
    """Shapes of the tensors in a nested result, in its structure."""
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, dict):
        return {key: _shapes(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_shapes(v) for v in value)
    return type(value).__name__


def _as_text(shape) -> str:
    if isinstance(shape, tuple):
        return ", ".join(_as_text(s) for s in shape)
    return str(shape)


__all__ = ["Layer", "ModelSummary", "summary"]
