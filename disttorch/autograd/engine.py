"""Backward: walk the recorded nodes from newest to oldest, passing gradients along their edges.

Ordinary backward moves raw arrays and builds no graph. With ``create_graph`` the same gradient
rules run on tensors, and what they do is recorded like any other operation.

A leaf's gradient is finished, and its hooks run, as soon as the last node that feeds it is done,
while older nodes are still waiting: this is what lets a gradient travel while backward goes on.
"""

from __future__ import annotations

import threading
from operator import attrgetter

from ..backend import gpu_arrays, layouts, namespace_of, ndarray, side_streams
from ..backend.storage import is_writeable
from ..tensor import Tensor, current_node, wrap
from .graph import PackedTensor, bump_version
from .modes import state

_by_seq = attrgetter("seq")


class _Execution:
    """One backward pass: the pending gradients and what to do with finished ones."""

    def __init__(self, roots, grads, retain_graph, create_graph, inputs, accumulate):
        self.retain_graph, self.create_graph = retain_graph, create_graph
        self.ops = tensor_ops() if create_graph else None
        self.pending: dict = {}  # Node -> gradient (or list of them); ids of leaves -> gradient
        self.owned: dict = {}  # like pending: whether the gradient is ours to change or keep
        self.captured: dict = {}  # input index -> gradient, where gradients are returned
        self.accumulate = accumulate
        self.nodes, self.waiting = _reachable(roots)
        self.only = None
        self.capture_nodes: dict = {}
        self.capture_leaves: dict = {}
        if inputs is not None:
            self._restrict_to(inputs)
        for (target, nr), g in zip(roots, grads):
            self._add(target, nr, g, False)
            if isinstance(target, Tensor):
                self.waiting[id(target)][1] -= 1

    # ------------------------------------------------------------- set-up
    def _restrict_to(self, inputs):
        """Keep to nodes on a path to ``inputs``; note where their gradients are taken off."""
        for index, t in enumerate(inputs):
            node = current_node(t)
            if node is None:
                self.capture_leaves.setdefault(id(t), []).append(index)
            else:
                self.capture_nodes.setdefault(node, []).append((t._out_nr, index))
        self.only = set()
        for node in reversed(self.nodes):  # oldest first: the inputs of a node come before it
            if node in self.capture_nodes or any(self._leads_on(t) for t, _ in node.edges):
                self.only.add(node)

    # ------------------------------------------------------------- the walk
    def run(self):
        """Walk the nodes; returns the gradients taken off at ``inputs``."""
        previous = state.enabled
        state.enabled = self.create_graph
        try:
            for leaf, count in list(self.waiting.values()):
                if count == 0:
                    self._finish_leaf(leaf)
            self._walk()
        finally:
            state.enabled = previous
        return self.captured

    def _walk(self):
        pending, only, plain = self.pending, self.only, not (self.create_graph or state.anomaly)
        retain_graph, give_up, deliver = self.retain_graph, self.owned.pop, self._deliver
        for node in self.nodes:
            g = pending.pop(node, None)
            if g is None or only is not None and node not in only:
                self._skip(node)
            elif plain and only is None and node.metas is None and node.is_plain():
                # the frequent case, without the calls that the general one needs
                owned = give_up(node, False)
                edges = node.edges
                try:
                    grads = node.backward(g, _raw_cpu if g.__class__ is ndarray else raw_ops(g))
                except Exception as error:
                    _annotate(error, node)
                    raise
                if not retain_graph:
                    node.release()
                deliver(edges, grads, g, owned)
            else:
                self._step(node, g)

    def _skip(self, node):
        for target, _ in node.edges:
            if isinstance(target, Tensor):
                self._leaf_done(target)

    def _step(self, node, g):
        """Any node: hooks, gradients that are taken off, several outputs, anomaly checks."""
        owned = self.owned.pop(node, False)
        if node.metas is not None:
            g = tuple(g)
        if node.pre_hooks or node.hooks or node.retain or node in self.capture_nodes:
            g = self._at_output(node, g)
            owned = False
            if node in self.capture_nodes and self.only is not None:
                if not any(self._leads_on(target) for target, _ in node.edges):
                    self._skip(node)
                    return
        F = self.ops or raw_ops(g if node.metas is None else next(x for x in g if x is not None))
        edges = node.edges
        try:
            grads = node.backward(g, F)
        except Exception as error:
            _annotate(error, node)
            raise
        if state.anomaly and state.check_nan:
            _check_nan(node, grads)
        if node.post_hooks:
            grads = self._after(node, g, grads)
        if not self.retain_graph:
            node.release()
        self._deliver(edges, grads, g, owned)

    def _deliver(self, edges, grads, g, owned):
        """Pass a node's results on along its edges."""
        single, pending = len(grads) == 1, self.pending
        for (target, nr), d in zip(edges, grads):
            leaf = isinstance(target, Tensor)
            if d is not None:
                is_array = d.__class__ is ndarray or d.__class__ in gpu_arrays
                # An array made by the rule is ours; one handed through, a view or shared is not
                if d is g:
                    fresh = owned and single
                else:
                    fresh = is_array and d.base is None and (
                        single or sum([x is d for x in grads]) == 1)
                key, meta = (id(target), target._data) if leaf else (target, target)
                if is_array and key not in pending and (
                    d.dtype is meta.dtype and d.shape == meta.shape
                ):  # the first to arrive, and as it must be
                    pending[key], self.owned[key] = d, fresh
                else:
                    self._add(target, nr, d, fresh)
            if leaf:
                self._leaf_done(target)

    def _leads_on(self, target) -> bool:
        if isinstance(target, Tensor):
            return id(target) in self.capture_leaves
        return target in self.only

    # ------------------------------------------------------------- gradients on their way
    def _add(self, target, nr, d, fresh):
        """Add gradient ``d`` to what output ``nr`` of ``target`` has received so far."""
        if isinstance(target, Tensor):
            shape, dtype = target._data.shape, target._data.dtype
            key = id(target)
        else:
            metas = target.metas
            if metas is None:
                shape, dtype = target.shape, target.dtype
            else:
                shape, dtype = metas[nr]
            key = target
        if self.create_graph:
            if d._data.shape != shape or d._data.dtype != dtype:
                d = self.ops.fit_gradient(d, shape, dtype)
        elif d.shape != shape or d.dtype != dtype or (
            d.__class__ is not ndarray and d.__class__ not in gpu_arrays
        ):
            d, fresh = _fit_array(d, shape, dtype, fresh)
        pending = self.pending
        if key is not target or metas is None:
            before = pending.get(key)
            if before is None:
                pending[key], self.owned[key] = d, fresh
            else:
                pending[key] = self._sum(before, d, self.owned[key])
                self.owned[key] = not self.create_graph
        else:
            slots = pending.get(key)
            if slots is None:
                slots = pending[key] = [None] * len(metas)
            slots[nr] = d if slots[nr] is None else self._sum(slots[nr], d, False)

    def _sum(self, a, b, may_change_a):
        if self.create_graph:
            return self.ops.plain_add(a, b)
        if may_change_a:
            return _add_to(a, b)
        if a.__class__ is ndarray and a.dtype.itemsize > 2:
            return _as_array(a + b, a)
        return raw_ops(a).plain_add(a, b)

    def _leaf_done(self, target):
        """One of the edges into a leaf is done; after the last its gradient is whole."""
        entry = self.waiting[id(target)]
        entry[1] -= 1
        if entry[1] == 0:
            self._finish_leaf(target)

    def _finish_leaf(self, leaf):
        g = self.pending.pop(id(leaf), None)
        if g is None:
            return
        owned = self.owned.pop(id(leaf), False)
        if leaf._hooks:
            g, owned = self._run_hooks(leaf._hooks, g), False
        for index in self.capture_leaves.get(id(leaf), ()):
            self.captured[index] = self._as_tensor(g)
        if self.accumulate and (not self.capture_leaves and not self.capture_nodes
                                or id(leaf) in self.capture_leaves):
            self._accumulate(leaf, g, owned)

    def _accumulate(self, leaf, g, owned):
        grad = leaf._grad
        if self.create_graph:
            leaf._grad = g if grad is None else self.ops.plain_add(grad, g)
        elif grad is None:
            last = layouts.is_channels_last(leaf._data)  # a gradient has its leaf's layout
            if not owned or not layouts.is_dense(g, last):
                # Someone else holds this memory, and optimizers change gradients in place
                g = layouts.copied(namespace_of(g), g, last)
            leaf._grad = wrap(g)
        elif is_writeable(grad._data):
            grad._data = _add_to(grad._data, g)
            bump_version(grad)
        else:
            leaf._grad = wrap(grad._data + g)
        if leaf._acc_hooks:
            for hook in list(leaf._acc_hooks.values()):
                hook(leaf)

    # ------------------------------------------------------------- hooks
    def _as_tensor(self, g) -> Tensor:
        return g if self.create_graph else wrap(g)

    def _run_hooks(self, hooks, g):
        """Tensor hooks, in order of registration; one that returns a tensor replaces the gradient."""
        t = self._as_tensor(g)
        for hook in list(hooks.values()):
            result = hook(t)
            if result is None:
                continue
            if not isinstance(result, Tensor):
                raise TypeError(f"hook returned {type(result).__name__}; expected a Tensor or None")
            if result._data.shape != t._data.shape:
                raise RuntimeError(
                    f"hook has changed the size of value: {list(t._data.shape)} to "
                    f"{list(result._data.shape)}"
                )
            t = result
        return t if self.create_graph else t._data

    def _at_output(self, node, g):
        """Everything that looks at the gradient of a node's outputs before the node runs."""
        grads = [g] if node.metas is None else list(g)
        if node.hooks:
            for nr, hooks in node.hooks.items():
                if grads[nr] is not None:
                    grads[nr] = self._run_hooks(hooks, grads[nr])
        if node.retain:
            for nr, ref in node.retain.items():
                t = ref()
                if t is not None and grads[nr] is not None:
                    self._keep(t, grads[nr])
        if node.pre_hooks:
            tensors = tuple(None if x is None else self._as_tensor(x) for x in grads)
            for hook in list(node.pre_hooks.values()):
                result = hook(tensors)
                if result is not None:
                    tensors = result if isinstance(result, tuple) else (result,)
            grads = [None if x is None else (x if self.create_graph else x._data) for x in tensors]
        for nr, index in self.capture_nodes.get(node, ()):
            if grads[nr] is not None:
                self.captured[index] = self._as_tensor(grads[nr])
                if self.accumulate:
                    self._keep(self.input_tensors[index], grads[nr])
        return grads[0] if node.metas is None else tuple(grads)

    def _keep(self, t, g):
        """Add ``g``, which travels on, to the ``.grad`` of a tensor inside the graph."""
        before = t._grad
        if self.create_graph:
            t._grad = g if before is None else self._sum(before, g, False)
        else:
            t._grad = wrap(g.copy() if before is None else self._sum(before._data, g, False))

    input_tensors: tuple = ()

    def _after(self, node, g, grads):
        outs = (g,) if node.metas is None else g
        ins = tuple(None if d is None else self._as_tensor(d) for d in grads)
        outs = tuple(None if d is None else self._as_tensor(d) for d in outs)
        for hook in list(node.post_hooks.values()):
            result = hook(ins, outs)
            if result is not None:
                ins = result if isinstance(result, tuple) else (result,)
        return tuple(None if d is None else (d if self.create_graph else d._data) for d in ins)


def _reachable(roots):
    """(nodes newest first, ``{id(leaf): [leaf, edges that lead to it]}``)."""
    nodes, leaves, stack = set(), {}, []
    for target, _ in roots:
        if isinstance(target, Tensor):
            leaves.setdefault(id(target), [target, 0])[1] += 1
        elif target not in nodes:
            nodes.add(target)
            stack.append(target)
    while stack:
        for target, _ in stack.pop().edges:
            if isinstance(target, Tensor):
                entry = leaves.get(id(target))
                if entry is None:
                    leaves[id(target)] = [target, 1]
                else:
                    entry[1] += 1
            elif target not in nodes:
                nodes.add(target)
                stack.append(target)
    return sorted(nodes, key=_by_seq, reverse=True), leaves


def _annotate(error, node) -> None:
    """Add the forward's stack to an error, where anomaly mode kept it."""
    if node.trace:
        error.add_note(f"in the backward of {node.name()}, whose forward was:\n{node.trace}")


def _as_array(value, like):
    return value if value.__class__ is like.__class__ else namespace_of(like).asarray(value)


def _add_to(a, b):
    """``a += b`` in one step; returns ``a``."""
    if a.__class__ is not ndarray:
        fused = namespace_of(a).fused
        if fused is not None and fused.add(a, b, out=a) is not NotImplemented:
            return a
    a += b
    return a


def _fit_array(d, shape, dtype, fresh=False):
    """Undo broadcasting by summing; a real value takes the real part of a complex gradient.

    Returns:
        the array, and whether it is still ours alone (see ``_deliver``).
    """
    xp = namespace_of(d)
    if d.__class__ is xp.ndarray and d.shape == shape and d.dtype == dtype:
        return d, fresh
    d = xp.asarray(d)
    if d.shape != shape:
        d = xp.sum_rows_to(d, shape)
    if d.dtype != dtype:
        if d.dtype.kind == "c" and dtype.kind != "c":
            d = d.real
        return xp.cast(d, dtype), True  # a copy
    return d, False


def _check_nan(node, grads):
    for i, d in enumerate(grads):
        if d is not None:
            a = d._data if isinstance(d, Tensor) else d
            if namespace_of(a).isnan(a).any():
                raise RuntimeError(
                    f"Function '{node.name()}' returned nan values in its {i}th output."
                    + (f" Its forward was:\n{node.trace}" if node.trace else "")
                )


def _root_gradient(t: Tensor, g, create_graph):
    if g is None:
        if t._data.size != 1:
            raise RuntimeError(
                "grad can be implicitly created only for scalar outputs "
                f"(this one has shape {list(t._data.shape)})"
            )
        return wrap(namespace_of(t._data).ones_like(t._data))
    if not isinstance(g, Tensor):
        raise TypeError(f"gradients can be either Tensors or None, but got {type(g).__name__}")
    if g._data.shape != t._data.shape:
        raise RuntimeError(
            f"Mismatch in shape: grad_output[0] has a shape of {g.shape} and output[0] has a "
            f"shape of {t.shape}."
        )
    return g


def run_backward(
    tensors, grad_tensors, retain_graph, create_graph, inputs=None, accumulate=True
) -> dict:
    """Propagate gradients from ``tensors`` down the graph.

    Args:
        tensors: where to start; each must require grad.
        grad_tensors: their gradients, or None for scalars (1).
        retain_graph: keep saved values for another backward.
        create_graph: record the gradient computation itself.
        inputs: stop at these tensors; None means all leaves.
        accumulate: add to ``.grad``; otherwise return the gradients of ``inputs``.

    Returns:
        ``{index in inputs: gradient}``, for those reached.
    """
    roots, grads = [], []
    for i, (t, g) in enumerate(zip(tensors, grad_tensors)):
        if not t.requires_grad:
            raise RuntimeError(
                f"element {i} of tensors does not require grad and does not have a grad_fn"
            )
        g = _root_gradient(t, g, create_graph)
        node = current_node(t)
        roots.append((t, 0) if node is None else (node, t._out_nr))
        grads.append(g if create_graph else g._data)
    execution = _Execution(roots, grads, retain_graph, create_graph, inputs, accumulate)
    if inputs is not None:
        execution.input_tensors = inputs
    return _run(execution)


class _Running(threading.local):
    """This thread's outermost backward, if one is under way, and what to call at its end."""

    execution: _Execution | None = None
    callbacks: list = []


_running = _Running()


def _run(execution: _Execution) -> dict:
    if _running.execution is not None:  # a hook or a rule started a backward of its own
        return execution.run()
    _running.execution, _running.callbacks = execution, []
    several = bool(side_streams.used)
    if several:
        side_streams.before_backward()
    try:
        found = execution.run()
        for callback in _running.callbacks:  # one callback may queue another
            callback()
        return found
    finally:
        _running.execution, _running.callbacks = None, []
        if several:
            side_streams.after_backward()


def queue_callback(callback) -> None:
    """Call ``callback()`` when this thread's outermost backward has ended without an exception.

    Raises:
        RuntimeError: if no backward is under way in this thread.
    """
    if _running.execution is None:
        raise RuntimeError("Final callbacks can only be installed during backward pass.")
    _running.callbacks.append(callback)


def current_backward() -> _Execution | None:
    """This thread's outermost backward, or None."""
    return _running.execution


def backward_reaches(t: Tensor) -> bool:
    """Whether this thread's outermost backward computes the gradient of ``t``."""
    execution, node = _running.execution, current_node(t)
    if execution is None:
        return False
    if node is not None:
        return node in (execution.nodes if execution.only is None else execution.only)
    leaf = t
    if id(leaf) not in execution.waiting:
        return False
    return execution.only is None or id(leaf) in execution.capture_leaves


# ops sits above autograd and registers its two faces here: the operations on tensors, and for a
# given array the same operations on raw arrays.
_providers: dict = {}
_raw_cpu = None


def register_ops(tensor_namespace, raw_for_array, raw_cpu) -> None:
    """Called once by ``ops``: its tensor namespace, and its raw one for an array and the CPU."""
    global _raw_cpu
    _providers["tensor"], _providers["raw"] = tensor_namespace, raw_for_array
    _raw_cpu = raw_cpu


def tensor_ops():
    return _providers["tensor"]


def raw_ops(array):
    return _providers["raw"](array)


__all__ = [
    "PackedTensor", "backward_reaches", "current_backward", "queue_callback", "raw_ops",
    "register_ops", "run_backward", "tensor_ops",
]
