"""Counting floating point operations: those of matrix products, convolutions, attention and RNNs.

A multiplication with its addition counts as two. Elementwise work is not counted, as in PyTorch. The
backward passes that are kernels of their own are counted by formula, the others by the products in
them.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict

from ..autograd.graph import next_seq
from ..nn.modules.hooks import register_module_forward_hook, register_module_forward_pre_hook
from ..ops.observe import Observer, attach, detach, label
from ..tensor import Tensor


# ---------------------------------------------------------------- formulas
def _matmul(args, out) -> int:
    return 2 * math.prod(out.shape) * args[0].shape[-1]


def _two_layers(args, out) -> int:
    rows, (weight1, weight2) = math.prod(args[0].shape[:-1]), (args[1], args[3])
    return 2 * rows * (math.prod(weight1.shape) + math.prod(weight2.shape))


def _conv(args, out) -> int:
    return 2 * math.prod(out.shape) * math.prod(args[1].shape[1:])


def _conv_input_grad(args, out) -> int:
    return 2 * math.prod(args[0].shape) * math.prod(args[1].shape[1:])


def _conv_weight_grad(args, out) -> int:
    return 2 * math.prod(args[1].shape) * math.prod(out.shape[1:])


def _attention(args, out) -> int:
    query, key, value = args[:3]
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrent(*weights):
    """A layer that multiplies each of its rows with the weights at these positions."""

    def count(args, out) -> int:
        sizes = (math.prod(args[i].shape) for i in weights if args[i] is not None)
        return 2 * args[0].shape[0] * sum(sizes)

    return count


# operation: its floating point operations from (arrays and values of the call, result)
FORMULAS = {
    "matmul": _matmul, "linear": _matmul, "add_matmul": lambda args, out: _matmul(args[1:], out),
    "linear_gelu_linear": _two_layers, "conv_nd": _conv, "conv_input_grad": _conv_input_grad,
    "conv_weight_grad": _conv_weight_grad, "attention_kept": _attention,
    "attention_anew": _attention, "attention_fused": _attention, "rnn_layer": _recurrent(2, 3),
    "gru_layer": _recurrent(2, 3), "lstm_layer": _recurrent(3, 4, 7),
}


def _two_layers_backward(saved, wanted, grad) -> int:
    rows = math.prod(grad.shape[:-1])
    inner = len({"input", "weight1"} & wanted) * math.prod(saved["weight1"].shape)
    through = bool({"input", "weight1", "bias1"} & wanted) + ("weight2" in wanted)
    return 2 * rows * (inner + through * math.prod(saved["weight2"].shape))


def _conv_backward(saved, wanted, grad) -> int:
    products = len({"input", "weight"} & wanted)
    return products * 2 * math.prod(grad.shape) * math.prod(saved["weight"].shape[1:])


def _attention_backward(saved, wanted, grad) -> int:
    query, key, value = saved["query"], saved["key"], saved["value"]
    return 2 * _attention((query, key, value), None)


def _attention_anew_backward(saved, wanted, grad) -> int:
    """The weights are computed a second time."""
    query, key = saved["query"], saved["key"]
    again = 2 * math.prod(query.shape[:-1]) * key.shape[-2] * query.shape[-1]
    return _attention_backward(saved, wanted, grad) + again


def _recurrent_backward(saved, wanted, grad) -> int:
    rows = saved["input"].shape[0]
    total = 0
    for name in ("weight_ih", "weight_hh", "weight_hr"):
        if saved.get(name) is not None:
            into = "input" if name == "weight_ih" else "h0"
            products = (name in wanted) + (into in wanted or name != "weight_ih")
            total += products * 2 * rows * math.prod(saved[name].shape)
    return total


# the same of kernels that compute gradients, from (what was saved by name, names of the inputs whose
# gradients are computed, gradient of the output)
BACKWARD_FORMULAS = {
    "linear_gelu_linear": _two_layers_backward, "conv_nd": _conv_backward,
    "attention_kept": _attention_backward, "attention_anew": _attention_anew_backward,
    "rnn_layer": _recurrent_backward, "gru_layer": _recurrent_backward,
    "lstm_layer": _recurrent_backward,
}


def node_flops(node, grad) -> int:
    """Floating point operations of the backward of a node that is a kernel of its own, else 0."""
    op = getattr(node.plan, "op", None)
    formula = BACKWARD_FORMULAS.get(op.name) if op is not None else None
    if op is None or formula is None or node.saved is None:
        return 0
    saved = dict(zip(node.plan.names, node.saved))
    wanted = {op.params[i] for i in node.plan.slots}
    return formula(saved, wanted, grad)


# ---------------------------------------------------------------- the counter
class _Inside(threading.local):
    def __init__(self):
        self.counts: list[int] = []  # per node that is running: what was counted inside it


class FlopCounterMode(Observer):
    """Count floating point operations inside a ``with`` block, per module and operation.

    Backward passes are credited to the modules whose forward recorded them. The operations have the
    names of the profiler (``addmm``, ``matmul``, ``convolution``, ...), those of gradient kernels
    end in ``_backward``.

    Args:
        mods: accepted as in older versions of PyTorch; modules are found without it.
        depth: of modules in the table that is printed.
        display: print the table at the end of the block.
        custom_mapping: operation name to ``f(*arguments, out_val=result)`` on arrays.
    """

    def __init__(self, mods=None, depth: int = 2, display: bool = True, custom_mapping=None):
        self.depth, self.display = depth, display
        self.formulas = {**FORMULAS}
        for name, function in (custom_mapping or {}).items():
            self.formulas[name] = lambda args, out, f=function: f(*args, out_val=out)
        self._clear()

    def _clear(self):
        self.flop_counts = defaultdict(lambda: defaultdict(int))
        self._names: dict[int, tuple] = {}  # id of a module: (the module, its name)
        self._spans: list[list] = []  # [name, first, last + 1 node number] of calls of modules
        self._open: list[list] = []
        self._inside = _Inside()
        self._lock = threading.Lock()

    def __enter__(self):
        self._clear()
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        attach(self)
        return self

    def __exit__(self, *exc):
        detach(self)
        for hook in self._hooks:
            hook.remove()
        if self.display and exc[0] is None:
            print(self.get_table(self.depth))

    # ------------------------------------------------------------- modules
    def _enter_module(self, module, args):
        if id(module) not in self._names:
            root = type(module).__name__
            for name, part in module.named_modules():
                full = f"{root}.{name}" if name else root
                self._names.setdefault(id(part), (part, full))
        self._open.append([self._names[id(module)][1], next_seq(), None])

    def _leave_module(self, module, args, result):
        span = self._open.pop()
        span[2] = next_seq()
        self._spans.append(span)

    def _add(self, name: str, count: int, modules) -> None:
        with self._lock:
            for module in {"Global", *modules}:
                self.flop_counts[module][name] += count
        if self._inside.counts:
            self._inside.counts[-1] += count

    # ------------------------------------------------------------- what the engine tells
    def end_op(self, op, args, out, token, begin, end):
        formula = self.formulas.get(op.name)
        if formula is None or out is None:
            return
        if self._node_modules:
            modules = self._node_modules[-1]
        else:
            modules = [span[0] for span in self._open]
        self._add(label(op), formula(args, out), modules)

    @property
    def _node_modules(self) -> list:
        return self._inside.__dict__.setdefault("modules", [])

    def begin_node(self, node, grad):
        self._inside.counts.append(0)
        self._node_modules.append(
            [name for name, first, last in self._spans if first < node.seq < last]
        )
        grads = grad if isinstance(grad, tuple) else (grad,)
        first = next((g for g in grads if g is not None), None)
        return node_flops(node, first._data if isinstance(first, Tensor) else first)

    def end_node(self, node, grad, token, begin, end):
        inside, modules = self._inside.counts.pop(), self._node_modules.pop()
        if token and not inside:  # what ran as operations has been counted already
            self._add(f"{label(node.plan.op)}_backward", token, modules)
        elif self._inside.counts:
            self._inside.counts[-1] += inside

    # ------------------------------------------------------------- results
    def get_total_flops(self) -> int:
        """All that were counted."""
        return sum(self.flop_counts["Global"].values())

    def get_flop_counts(self) -> dict[str, dict[str, int]]:
        """Counts per module (``"Global"`` is all) and operation."""
        return {module: dict(counts) for module, counts in self.flop_counts.items()}

    def get_table(self, depth: int | None = None) -> str:
        """Counts per module down to ``depth`` and per operation, with their share of the total."""
        depth = self.depth if depth is None else depth
        total = self.get_total_flops() or 1
        rows = [("Module", "FLOP", "% Total")]
        order = sorted(m for m in self.flop_counts if m != "Global")
        for module in ["Global", *order]:
            level = 0 if module == "Global" else module.count(".") + 1
            if level > depth:
                continue
            counts = self.flop_counts[module]
            entries = [(module, sum(counts.values()))]
            entries += [(f" - {name}", n) for name, n in counts.items()]
            indent = " " * level
            rows += [(indent + name, in_words(n), f"{100 * n / total:.2f}%") for name, n in entries]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {count:>{widths[1]}}  {share:>{widths[2]}}"
            for name, count, share in rows
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join(lines)


def in_words(count: float) -> str:
    """A count with its unit: 1234567 is ``1.235M``."""
    for unit in ("", "K", "M", "B"):
        if abs(count) < 1000:
            return f"{count:.3f}{unit}" if unit else str(count)
        count /= 1000
    return f"{count:.3f}T"


__all__ = ["FORMULAS", "FlopCounterMode", "in_words", "node_flops"]
