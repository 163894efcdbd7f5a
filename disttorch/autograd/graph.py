"""The graph: nodes that know how to turn the gradient of an output into gradients of inputs.

A node is made for every recorded operation. Its *edges* lead to the nodes of the inputs, or to leaf
tensors themselves. Nodes are numbered as they are made, and an operation's inputs always exist
before it, so descending numbers are a valid order for backward: no other sorting is needed.

Values saved for backward are the tensors themselves plus the version each had; one changed in
place since raises instead of giving a wrong gradient.
"""

from __future__ import annotations

import functools
import itertools

from ..tensor import Tensor, current_node, wrap
from .modes import state

next_seq = itertools.count().__next__


class Node:
    """One recorded operation.

    Attributes:
        edges: for each input whose gradient it computes, ``(target, output number)`` where the
            target is a Node or a leaf Tensor.
        seq: its number in order of creation.
        shape, dtype: of its output (NumPy's); for several outputs, ``metas`` lists all.
        hooks: ``{output number: {id: hook}}`` on the gradient of an output, or None.
        retain: ``{output number: weak reference}`` of tensors that keep their gradient, or None.
        pre_hooks, post_hooks: on all incoming, on all resulting gradients, or None.
    """

    __slots__ = (
        "plan", "saved", "versions", "edges", "seq", "shape", "dtype", "metas", "hooks", "retain",
        "pre_hooks", "post_hooks", "trace", "_metadata", "__weakref__",
    )

    def __init__(self, plan, saved, versions, edges, out):
        self.plan, self.saved, self.versions, self.edges = plan, saved, versions, edges
        self.seq = next_seq()
        self.hooks = self.retain = self.pre_hooks = self.post_hooks = self.trace = None
        if out.__class__ is tuple:
            self.metas = tuple((o.shape, o.dtype) for o in out)
            self.shape = self.dtype = None
        else:
            self.metas = None
            self.shape, self.dtype = out.shape, out.dtype

    # ------------------------------------------------------------- running
    def backward(self, g, F):
        """Gradients for ``edges``, from arrays (F: raw operations) or tensors (F: the ops).

        ``g`` is the gradient of the output; for several outputs, a tuple that may hold None.
        """
        saved = self.saved
        if saved is None:
            raise RuntimeError(FREED)
        plan = self.plan
        raw = F.raw
        if raw is True:
            return plan.run_raw(F, g, self._unpack_arrays(saved))
        if raw:  # arrays of a namespace with kernels of its own
            return (plan.run_fused or plan.fused())(F, g, self._unpack_arrays(saved))
        return plan.run_tensor(F, g, self._unpack_tensors(saved))

    def _unpack_arrays(self, saved):
        positions = self.plan.tensor_positions
        if not positions:
            return saved
        values = list(saved)
        versions = self.versions
        for i in positions:
            t = values[i]
            if t.__class__ is Tensor or isinstance(t, Tensor):
                ver = t._ver
                if ver is not None and ver[0] != (versions[i] if versions is not None else 0):
                    raise RuntimeError(self._changed(t, versions[i] if versions else 0))
                values[i] = t._data
            elif t.__class__ is list:  # a list of tensors is one argument
                for x, version in zip(t, versions[i]):
                    if version_of(x) != version:
                        raise RuntimeError(self._changed(x, version))
                values[i] = [x._data for x in t]
        return values

    def _unpack_tensors(self, saved):
        """The same as tensors in the graph: an output gets this node back as its maker."""
        self._unpack_arrays(saved)  # the version check
        values = list(saved)
        for i, out_nr in self.plan.out_positions:
            out = linked(values[i]._data, self, out_nr)
            out._ver = values[i]._ver
            values[i] = out
        return values

    def _changed(self, t: Tensor, expected: int) -> str:
        maker = "a leaf" if t._node is None else f"output {t._out_nr} of {t._node.name()}"
        kind = {"float32": "FloatTensor", "float64": "DoubleTensor"}.get(t.dtype.name, "Tensor")
        return (
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: [torch.{kind} {list(t._data.shape)}], which is {maker}, is at version "
            f"{t._version}; expected version {expected} instead (needed by {self.name()}). Hint: "
            "enable anomaly detection to find the operation that failed to compute its gradient, "
            "with torch.autograd.set_detect_anomaly(True)."
        )

    def is_plain(self) -> bool:
        """Whether nobody watches this node."""
        return (
            self.hooks is None
            and self.retain is None
            and self.pre_hooks is None
            and self.post_hooks is None
        )

    def release(self):
        """Drop what was saved; a second backward through here is an error."""
        if self.plan.keeps_nothing:
            return
        self.saved = None

    # ------------------------------------------------------------- what users see
    def name(self) -> str:
        """For example ``MulBackward0``."""
        return self.plan.node_name

    @property
    def metadata(self) -> dict:
        """A dict for the user's own notes about this node."""
        try:
            return self._metadata
        except AttributeError:
            self._metadata: dict = {}
            return self._metadata

    @property
    def next_functions(self) -> tuple:
        """``((node, output number), ...)`` of the inputs; leaves show as AccumulateGrad."""
        found = dict(zip(self.plan.slots, self.edges))
        op = getattr(self.plan, "op", None)
        out = []
        for i in self.plan.slots if op is None else op.slots:
            target, nr = found.get(i, (None, 0))
            out.append((accumulator(target) if isinstance(target, Tensor) else target, nr))
        return tuple(out)

    def register_hook(self, fn):
        """Call ``fn(grad_inputs, grad_outputs)`` after this node ran; may return new inputs."""
        if self.post_hooks is None:
            self.post_hooks = {}
        return RemovableHandle(self.post_hooks, fn)

    def register_prehook(self, fn):
        """Call ``fn(grad_outputs)`` before this node runs; may return new ones."""
        if self.pre_hooks is None:
            self.pre_hooks = {}
        return RemovableHandle(self.pre_hooks, fn)

    def __repr__(self):
        return f"<{self.name()} object at {hex(id(self))}>"


FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you call "
    ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
    "graph a second time or if you need to access saved tensors after calling backward."
)


@functools.cache
def node_type(name: str, base: type = Node) -> type:
    """The class of nodes of one operation: a Node whose class has the operation's name."""
    return type(name, (base,), {"__slots__": (), "__module__": __name__})


def linked(array, node, out_nr) -> Tensor:
    """A tensor over ``array`` that counts as output ``out_nr`` of ``node``."""
    t = wrap(array)
    t._node, t._out_nr, t._rg = node, out_nr, True
    return t


class PackedTensor:
    """A saved tensor that the hooks of ``saved_tensors_hooks`` packed.

    The pack hook sees the values without their history: history kept in what it returns would keep
    the graph alive in a cycle. The edge is remembered here instead, for second derivatives.
    """

    __slots__ = ("packed", "unpack_hook", "edge")

    def __init__(self, t: Tensor, hooks, is_output: bool = False):
        pack, self.unpack_hook = hooks
        self.edge = edge_to(t) if t.requires_grad and not is_output else None
        values = wrap(t._data)
        previous, state.enabled = state.enabled, False
        try:
            self.packed = pack(values)
        finally:
            state.enabled = previous
        if values._version:
            raise RuntimeError(
                "A saved tensor pack hook is modifying its input in place. Tensors provided as "
                "input to pack hook can not be modified by in-place operations as this can lead "
                "to unexpected side-effects. Please open an issue if you need to perform in-place "
                "operations on the input to a pack hook."
            )

    def unpack(self) -> Tensor:
        """The values that the unpack hook gives back, outside any graph."""
        previous, state.enabled = state.enabled, False
        try:
            t = self.unpack_hook(self.packed)
        finally:
            state.enabled = previous
        if not isinstance(t, Tensor):
            raise TypeError(
                f"Output of saved tensor unpack_hook expected to be a Tensor but got {type(t)}"
            )
        return wrap(t._data)

    def unpack_linked(self) -> Tensor:
        """The same with the history that the tensor had when it was saved."""
        t = self.unpack()
        if self.edge is None:
            return t
        target, out_nr = self.edge
        if isinstance(target, Tensor):  # a leaf: a step that hands its gradient on
            step = node_type("AliasBackward0")(_HAND_ON, (), None, [self.edge], t._data)
            return linked(t._data, step, 0)
        return linked(t._data, target, out_nr)


class _HandOnPlan:
    slots, tensor_positions, out_positions = (0,), (), ()
    node_name, keeps_nothing = "AliasBackward0", True

    @staticmethod
    def run_raw(F, g, saved):
        return (g,)

    run_tensor = run_fused = run_raw


_HAND_ON = _HandOnPlan()


class PackedNode(Node):
    """A node recorded under ``saved_tensors_hooks``: all that it saved is packed."""

    __slots__ = ()

    def _unpack_arrays(self, saved):
        return [_map_packed(v, lambda p: p.unpack()._data) for v in saved]

    def _unpack_tensors(self, saved):
        values = [_map_packed(v, PackedTensor.unpack_linked) for v in saved]
        for i, out_nr in self.plan.out_positions:
            values[i] = linked(values[i]._data, self, out_nr)
        aux = getattr(self.plan, "aux_position", None)
        if aux is not None:  # rules are handed arrays here, see ops.core
            values[aux] = tuple(a._data if isinstance(a, Tensor) else a for a in values[aux])
        return values


def _map_packed(value, unpack):
    if value.__class__ is PackedTensor:
        return unpack(value)
    if value.__class__ in (list, tuple):
        return value.__class__(_map_packed(v, unpack) for v in value)
    return value


def pack_saved(plan, saved: tuple, is_array) -> tuple:
    """What an operation saves, packed by the innermost hooks.

    Args:
        is_array: tells the arrays among the values in ``aux``.
    """
    hooks = state.saved_hooks[-1]
    outputs = {i for i, _ in plan.out_positions}
    aux = getattr(plan, "aux_position", None)
    packed = []
    for i, v in enumerate(saved):
        if isinstance(v, Tensor):
            v = PackedTensor(v, hooks, i in outputs)
        elif v.__class__ is list:
            v = [PackedTensor(t, hooks) if isinstance(t, Tensor) else t for t in v]
        elif i == aux:
            v = tuple(PackedTensor(wrap(a), hooks) if is_array(a) else a for a in v)
        packed.append(v)
    return tuple(packed)


class RemovableHandle:
    """Removes a hook again: ``handle.remove()``, or at the end of a ``with`` block."""

    _ids = itertools.count()

    def __init__(self, hooks: dict, fn):
        self.id = next(self._ids)
        self._hooks = hooks
        hooks[self.id] = fn

    def remove(self) -> None:
        """Stop calling the hook; a second call does nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


class AccumulateGrad:
    """What users see at the end of ``next_functions``: the place a leaf collects its gradient."""

    def __init__(self, leaf: Tensor):
        self.variable = leaf
        self.next_functions = ()

    def name(self) -> str:
        return "torch::autograd::AccumulateGrad"

    def register_hook(self, fn):
        """Call ``fn(grad_inputs, grad_outputs)`` once the leaf's gradient is accumulated."""
        return add_accumulated_hook(self.variable, lambda leaf: fn((), (leaf._grad,)))

    def __repr__(self):
        return f"<AccumulateGrad object at {hex(id(self))}>"


def accumulator(leaf: Tensor) -> AccumulateGrad:
    """The leaf's AccumulateGrad, the same object every time."""
    if leaf._acc is None:
        leaf._acc = AccumulateGrad(leaf)
    return leaf._acc


def add_accumulated_hook(leaf: Tensor, fn) -> RemovableHandle:
    if leaf._acc_hooks is None:
        leaf._acc_hooks = {}
    return RemovableHandle(leaf._acc_hooks, fn)


def edge_to(t: Tensor):
    """The edge a recorded operation keeps for its input ``t``."""
    node = t._node if t._base is None else current_node(t)
    return (t, 0) if node is None else (node, t._out_nr)


def version_of(t: Tensor) -> int:
    ver = t._ver
    return 0 if ver is None else ver[0]


def share_version(t: Tensor) -> list:
    """The version counter of ``t``, made if nobody needed one yet."""
    if t._ver is None:
        t._ver = [0]
    return t._ver


def bump_version(t: Tensor) -> None:
    """Note an in-place change, for all views of the storage."""
    if t._ver is None:
        t._ver = [1]
    else:
        t._ver[0] += 1


# The public names of torch.autograd.graph that are built on the above
from .saved import (  # noqa: E402
    GradientEdge,
    disable_saved_tensors_hooks,
    get_gradient_edge,
    increment_version,
    register_multi_grad_hook,
    save_on_cpu,
    saved_tensors_hooks,
)

__all__ = [
    "FREED", "AccumulateGrad", "GradientEdge", "Node", "PackedNode", "PackedTensor",
    "disable_saved_tensors_hooks", "get_gradient_edge", "increment_version", "linked", "node_type",
    "pack_saved", "register_multi_grad_hook", "save_on_cpu", "saved_tensors_hooks",
    "RemovableHandle", "accumulator", "add_accumulated_hook", "bump_version", "edge_to", "next_seq",
    "share_version",
    "version_of",
]
