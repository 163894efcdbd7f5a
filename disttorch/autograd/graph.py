"""The graph: nodes that know how to turn the gradient of an output into gradients of inputs.

A node is made for every recorded operation. Its *edges* lead to the nodes of the inputs, or to leaf
tensors themselves. Nodes are numbered as they are made, and an operation's inputs always exist
before it, so descending numbers are a valid order for backward: no other sorting is needed.

Values saved for backward are the tensors themselves plus the version each had; one changed in
place since raises instead of giving a wrong gradient.
"""

from __future__ import annotations

import itertools

from ..tensor import Tensor, current_node, wrap

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
        "pre_hooks", "post_hooks", "trace", "metadata", "__weakref__",
    )  # fmt: skip

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
        if F.raw:
            return plan.run_raw(F, g, self._unpack_arrays(saved))
        return plan.run_tensor(F, g, self._unpack_tensors(saved))

    def _unpack_arrays(self, saved):
        positions = self.plan.tensor_positions
        if not positions:
            return saved
        values = list(saved)
        versions = self.versions
        for i in positions:
            t = values[i]
            if isinstance(t, Tensor):
                ver = t._ver
                if ver is not None and ver[0] != (versions[i] if versions is not None else 0):
                    raise RuntimeError(self._changed(t, versions[i] if versions else 0))
                values[i] = t._data
            elif t.__class__ is PackedTensor:
                values[i] = t.unpack(self)._data
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
        for i in self.plan.tensor_positions:
            if values[i].__class__ is PackedTensor:
                values[i] = values[i].unpack(self)
        for i, out_nr in self.plan.out_positions:
            out = wrap(values[i]._data)
            out._node, out._out_nr, out._rg, out._ver = self, out_nr, True, values[i]._ver
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
    def next_functions(self) -> tuple:
        """``((node, output number), ...)`` of the inputs; leaves show as AccumulateGrad."""
        found = {slot: edge for slot, edge in zip(self.plan.slots, self.edges)}
        count = max(found, default=-1) + 1
        out = []
        for i in range(count):
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


class PackedTensor:
    """A saved tensor that ``saved_tensors_hooks`` packed: unpacked when backward needs it."""

    __slots__ = ("packed", "unpack_hook", "node_out", "shape", "dtype")

    def __init__(self, t: Tensor, hooks):
        pack, self.unpack_hook = hooks
        self.packed = pack(t)
        self.shape, self.dtype = t._data.shape, t.dtype

    def unpack(self, node) -> Tensor:
        t = self.unpack_hook(self.packed)
        if not isinstance(t, Tensor):
            raise TypeError(
                f"Output of saved tensor unpack_hook expected to be a Tensor, got {type(t)}"
            )
        return t


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


__all__ = [
    "FREED", "AccumulateGrad", "Node", "PackedTensor", "RemovableHandle", "accumulator",
    "add_accumulated_hook", "bump_version", "edge_to", "next_seq",
    "share_version", "version_of",
]  # fmt: skip
