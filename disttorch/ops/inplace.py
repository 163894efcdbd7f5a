"""In-place operations: on plain tensors, and on views whose base is in the graph.

``x.op_(...)`` computes like ``op`` and writes into x. In the graph x then is the output of that
operation. When x is a view of a base, the base changes too, so the base gets a node (CopySlices)
that sends the gradient of the changed part through the operation and leaves the rest as it is; the
view's own node is rebuilt from the base when it is next needed.
"""

from __future__ import annotations

from ..autograd.graph import Node, PackedNode, bump_version, edge_to, next_seq, share_version
from ..autograd.modes import state
from ..backend import CPU, namespace_of, ndarray
from ..backend.storage import is_writeable
from ..tensor import Tensor, wrap
from .core import REGISTRY, Op, Plan, check_castable, device_error, make_node, op
from .elementwise_core import ElementwiseOp, expand_error
from .inplace_direct import computed_there, may_overlap, recorded
from .samples import case


def check_inplace(t: Tensor, name: str) -> None:
    """RuntimeErrors for tensors that may not be changed in place here."""
    if t._inference and not state.inference:
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed. You can make "
            "a clone to get a normal tensor before doing inplace update."
        )
    if not is_writeable(t._data) and not _reopened(t._data):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a "
            "single memory location. Please clone() the tensor before performing the operation "
            f"({name})."
        )
    if not state.enabled:
        return
    base = t._base
    if base is None:
        if t._rg and t._node is None:
            raise RuntimeError(
                "a leaf Variable that requires grad is being used in an in-place operation."
            )
        return
    if not (base._rg or t._rg):
        return
    if t._view_kind not in (None, "no_grad"):
        raise RuntimeError(
            f"Output {t._out_nr} of {t._view_kind.capitalize()} is a view and is being modified "
            "inplace. This view is the output of a function that returns multiple views. Such "
            "functions do not allow the output views to be modified inplace. You should replace "
            "the inplace operation by an out-of-place one."
        )
    if base._rg and base._node is None:
        raise RuntimeError(
            "a view of a leaf Variable that requires grad is being used in an in-place operation."
        )
    if t._view_kind == "no_grad":
        raise RuntimeError(
            "A view was created in no_grad mode and is being modified inplace with grad mode "
            "enabled. Given that this use case is ambiguous and error-prone, it is forbidden. You "
            "can clarify your code by moving both the view and the inplace either both inside the "
            "no_grad block (if you don't want the inplace to be tracked) or both outside (if you "
            "want the inplace to be tracked)."
        )


def _reopened(array) -> bool:
    """Whether an array that NumPy keeps read-only can be written: a part of an expanded one that
    repeats no element."""
    if any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape)):
        return False
    try:
        array.flags.writeable = True
    except ValueError:
        return False
    return True


def apply_inplace(op: Op, args: tuple) -> Tensor:
    """Run ``op`` and put the result into its first argument."""
    target = args[0]
    if not isinstance(target, Tensor):
        raise TypeError(f"{op.name}_(): argument 'self' must be Tensor, not {type(target).__name__}")
    check_inplace(target, op.name.removeprefix("plain_") + "_")
    others = any(
        isinstance(args[i], Tensor) and args[i].requires_grad for i in op.slots if i
    )
    record = state.enabled and (others or target.requires_grad) and op.differentiable
    if not record:
        if computed_there(op, target, args):
            share_version(target)[0] += 1
        else:
            _write(op, target, _compute(op, args)._data)
        return target
    stand_in = _old_state(op, target)
    call_args = tuple(stand_in if a is target else a for a in args)
    if computed_there(op, target, call_args):
        result = recorded(op, call_args, target._data)
        share_version(target)[0] += 1
    else:
        result = _compute(op, call_args)
        _write(op, target, result._data)
    _rebase(target, stand_in, result)
    return target


def _compute(op, args):
    result = op.apply(args)
    target = args[0]
    if result._data.__class__ is not target._data.__class__:
        raise device_error(op.name, target._data, result._data)
    if result._data.shape != target._data.shape:
        raise RuntimeError(
            f"output with shape {list(target._data.shape)} doesn't match the broadcast shape "
            f"{list(result._data.shape)}"
        )
    return result


def _write(op, target, array):
    if isinstance(op, ElementwiseOp) and array.dtype != target._data.dtype:
        from ..backend import dtypes

        check_castable(dtypes.FROM_NP[array.dtype], target.dtype)
    namespace_of(target._data).assign(target._data, array)
    share_version(target)[0] += 1


def _old_state(op, target) -> Tensor:
    """The target as the operation's input: with the node it had, and values that stay."""
    saves_self = _saves_input(op)
    data = target._data
    old = wrap(namespace_of(data).contiguous_copy(data) if saves_self else data)
    node = edge_to(target)
    if node[0] is not target:
        old._node, old._out_nr = node
    old._rg = target.requires_grad
    return old


def _saves_input(op) -> bool:
    key = "saves_self"
    known = getattr(op, key, None)
    if known is None:
        mask = sum(1 << i for i in op.rule_slots)
        known = op.params[0] in Plan(op, mask).names
        setattr(op, key, known)
    return known


def _rebase(target, old, result) -> None:
    """Make ``target`` (and its base, if it is a view) the output of the recorded operation."""
    node, out_nr = result._node, result._out_nr
    _saved_output_is(target, result, node)
    if target._base is None:
        move_retained(target, node, out_nr)
        target._node, target._out_nr, target._rg = node, out_nr, True
        if node is not None and node.dtype != target._data.dtype:
            node.dtype = target._data.dtype
        return
    base = target._base
    slices = CopySlices(base, target._view_ops, node, old)
    move_retained(base, slices, 0)
    base._node, base._out_nr, base._rg = slices, 0, True


def move_retained(t, node, out_nr) -> None:
    """``retain_grad`` follows a tensor to the node that now makes it; hooks stay where they are."""
    if t._retains and t._node is not None and t._node.retain and node is not None:
        reference = t._node.retain.pop(t._out_nr, None)
        if reference is not None:
            node.retain = node.retain or {}
            node.retain[out_nr] = reference


def _saved_output_is(target, result, node) -> None:
    """What the node saved as its output now lives in the target, under its version counter."""
    if node is None or not getattr(node.plan, "out_positions", ()):
        return
    if isinstance(node, PackedNode):
        return  # the hooks were given the result, which is not the target's memory
    for i, _ in node.plan.out_positions:
        node.saved[i]._data, node.saved[i]._ver = target._data, target._ver
    versions = list(node.versions) if node.versions else [0] * len(node.saved)
    for i, _ in node.plan.out_positions:
        versions[i] = target._ver[0]
    node.versions = tuple(versions)


class CopySlices(Node):
    """The node of a base after an operation wrote into one of its views."""

    __slots__ = ("view_ops", "inner", "self_at", "base_edge")

    def __init__(self, base, view_ops, inner, old):
        self.plan = _COPY_SLICES_PLAN
        self.saved, self.versions = (), None
        self.seq = next_seq()
        self.hooks = self.retain = self.pre_hooks = self.post_hooks = self.trace = None
        self.metas, self.shape, self.dtype = None, base._data.shape, base._data.dtype
        self.view_ops, self.inner = view_ops, inner
        self.base_edge = edge_to(base) if base.requires_grad else None
        inner_edges = list(inner.edges) if inner is not None else []
        self.self_at = None
        if inner is not None and old._rg:
            slots = inner.plan.slots
            self.self_at = slots.index(0) if 0 in slots else None
        rest = [e for i, e in enumerate(inner_edges) if i != self.self_at]
        self.edges = ([self.base_edge] if self.base_edge is not None else []) + rest

    def name(self):
        return "CopySlices"

    def backward(self, g, F):
        part = _replay(F, g, self.view_ops)
        grads = []
        if self.inner is not None:
            inner_g = part
            if inner_g.shape != self.inner.shape:
                raise AssertionError(f"{inner_g.shape} != {self.inner.shape}")
            grads = list(self.inner.backward(inner_g, F))
        mine = None
        if self.self_at is not None:
            mine = grads.pop(self.self_at)
        if self.base_edge is None:
            return grads
        if mine is None:
            mine = F.zeros_like(part)
        return [F.view_scatter(g, mine, self.view_ops), *grads]

    def release(self):
        if self.inner is not None:
            self.inner.release()

    @property
    def next_functions(self):
        from ..autograd.graph import accumulator

        return tuple(
            (accumulator(t) if isinstance(t, Tensor) else t, nr) for t, nr in self.edges
        )


class _CopySlicesPlan:
    slots, tensor_positions, out_positions = (), (), ()
    node_name, keeps_nothing = "CopySlices", True


_COPY_SLICES_PLAN = _CopySlicesPlan()


def _replay(F, g, view_ops):
    """The part of ``g`` that a view shows, as a view."""
    for view, (args, out_nr) in view_ops:
        g = getattr(F, view.name)(g, *args)
        if out_nr is not None:
            g = g[out_nr]
    return g


def replay_arrays(xp, array, view_ops):
    for view, (args, out_nr) in view_ops:
        array = view.forward(xp, array, *args)
        if out_nr is not None:
            array = array[out_nr]
    return array


@op(tensors=("input", "src"), method=False, moves=True, samples=lambda m: [
    case(m(3, 4), m(4), ((REGISTRY["slice"], (((1,),), None)),)),
    case(m(3, 4), m(2, 3), ((REGISTRY["transpose"], ((0, 1), None)),
                            (REGISTRY["slice"], (((slice(0, 2),),), None)))),
])
def view_scatter(xp, input, src, view_ops):
    """``input`` with the part that the views lead to replaced by ``src``."""
    out = xp.contiguous_copy(input)
    part = replay_arrays(xp, out, view_ops)
    if not is_writeable(part):
        _reopened(part)  # what could be written in the forward repeats no element
    xp.assign(part, src)
    return out


@view_scatter.grad("input")
def _(F, g, src_shape, view_ops):
    return F.view_scatter(g, F.zeros_shaped(g, src_shape), view_ops)


@view_scatter.grad("src")
def _(F, g, view_ops):
    return _replay(F, g, view_ops)


@op(tensors=("input", "src"), method=False, moves=True, node_name="Copy", samples=lambda m: [
    case(m(3, 4), m(3, 4)), case(m(3, 4), m(4)), case(m(3, 4), m())])
def copy(xp, input, src):
    """``src`` broadcast to the shape and cast to the dtype of ``input``."""
    if src.dtype.kind == "c" and input.dtype.kind != "c":
        src = src.real
    try:
        return xp.cast(xp.broadcast_to(src, input.shape), input.dtype)
    except ValueError:
        raise expand_error(src.shape, input.shape) from None


@copy.grad("input")
def _(F, g):
    return F.zeros_like(g)


@copy.grad("src")
def _(F, g, src_shape):
    return F.sum_to(g, src_shape)


def _copied_straight(input: Tensor, src: Tensor, non_blocking: bool) -> bool:
    """Copy between the CPU and a GPU right into the memory of ``input``, where nothing is recorded."""
    if state.enabled and (input.requires_grad or src.requires_grad):
        return False
    xp = namespace_of((input if input.is_cuda else src)._data)
    if not hasattr(xp, "copy_into"):
        return False  # the meta device
    check_inplace(input, "copy_")
    if not xp.copy_into(input._data, src._data, non_blocking):
        return False
    bump_version(input)
    return True


def copy_(input: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """Fill this tensor with the values of ``src``, broadcast and cast; returns self."""
    if not isinstance(src, Tensor):
        raise TypeError(f"copy_(): argument 'other' must be Tensor, not {type(src).__name__}")
    if src._data.__class__ is not input._data.__class__:
        if _copied_straight(input, src, non_blocking):
            return input
        src = REGISTRY["to_device"].call(src, input.device, non_blocking)
    if not (state.enabled and (input.requires_grad or src.requires_grad)):
        return _copied(input, src)
    return apply_inplace(copy, (input, src))


def _copied(input, src):
    """``copy_`` outside the graph: one pass straight into the memory, but for shared memory."""
    target, source = input._data, src._data
    xp = namespace_of(target)
    check_inplace(input, "copy_")
    if xp.fused is None or may_overlap(target, source):
        return apply_inplace(copy, (input, src))
    if source.dtype.kind == "c" and target.dtype.kind != "c":
        source = source.real
    try:
        xp.assign(target, source)
    except ValueError:
        raise expand_error(source.shape, target.shape) from None
    share_version(input)[0] += 1
    return input


@op(method=False, moves=True, samples=lambda m: [case(m(3, 4), 2.0)], node_name="Fill")
def fill(xp, input, value):
    return xp.full(input.shape, value, input.dtype)


@fill.grad("input")
def _(F, g):
    return F.zeros_like(g)


def fill_(input: Tensor, value) -> Tensor:
    """Set every element to ``value`` (a number or a 0-dim tensor); returns self."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(
                "fill_ only supports 0-dimension value tensor but got tensor with "
                f"{value.ndim} dimensions."
            )
        return copy_(input, value)
    xp = namespace_of(input._data)
    if xp.fused is None or state.enabled and input.requires_grad:
        return apply_inplace(fill, (input, value))
    check_inplace(input, "fill_")
    xp.fill_with(input._data, value)
    share_version(input)[0] += 1
    return input


def zero_(input: Tensor) -> Tensor:
    """Set every element to 0; returns self."""
    return fill_(input, 0)


def inplace_of(made: Op):
    """The ``name_`` method of an op."""

    def method(self, *args, **kwargs):
        return apply_inplace(made, made.bind(self, *args, **kwargs))

    method.__name__ = method.__qualname__ = made.name + "_"
    method.__doc__ = f"In-place form of ``{made.name}``; returns self."
    return method


def inplace_of_function(name, function):
    """The ``name_`` method of a function built from ops: compute, then write."""

    def method(self, *args, **kwargs):
        check_inplace(self, name + "_")
        if not (state.enabled and (self.requires_grad or _any_requires_grad(args, kwargs))):
            result = function(self, *args, **kwargs)
            _finish_write(self, result)
            return self
        old = _detached_state(self)
        result = function(old, *(old if a is self else a for a in args), **kwargs)
        _finish_write(self, result)
        node_result = result
        if self._base is None:
            self._node, self._out_nr, self._rg = result._node, result._out_nr, result._rg
        else:
            base = self._base
            base._node, base._out_nr, base._rg = _copy_into_view(self, old, node_result), 0, True
        return self

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"In-place form of ``{name}``; returns self."
    return method


def _copy_into_view(view, old, result):
    """CopySlices of a plain copy of ``result``, which has its own history."""
    plan = copy.plans.get(3)
    if plan is None:
        plan = copy.plans[3] = Plan(copy, 3)
    inner = make_node(plan, (old, result), result, result._data, None)
    return CopySlices(view._base, view._view_ops, inner, old)


def _detached_state(t):
    old = wrap(namespace_of(t._data).contiguous_copy(t._data))
    target, nr = edge_to(t)
    if target is not t:
        old._node, old._out_nr = target, nr
    old._rg = t.requires_grad
    return old


def _finish_write(target, result):
    from ..backend import dtypes

    if result._data.__class__ is not target._data.__class__:
        raise device_error("an operation in place", target._data, result._data)
    if result._data.shape != target._data.shape:
        raise RuntimeError(
            f"output with shape {list(target._data.shape)} doesn't match the broadcast shape "
            f"{list(result._data.shape)}"
        )
    check_castable(dtypes.FROM_NP[result._data.dtype], target.dtype)
    namespace_of(target._data).assign(target._data, result._data)
    share_version(target)[0] += 1


def _any_requires_grad(args, kwargs):
    return any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values()))


METHODS = {"copy_": copy_, "fill_": fill_, "zero_": zero_}
__all__ = ["CPU", "METHODS", "apply_inplace", "check_inplace", "inplace_of",
           "inplace_of_function", "namespace_of", "ndarray"]
