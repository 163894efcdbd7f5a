"""User-defined differentiable functions: ``autograd.Function``."""

from __future__ import annotations

import functools
import weakref

from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .anomaly import user_trace
from .graph import (
    FREED,
    Node,
    PackedTensor,
    accumulator,
    bump_version,
    edge_to,
    linked,
    next_seq,
    node_type,
    share_version,
    version_of,
)
from .modes import no_grad, state

_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a tensor that {} saved is at version {}; expected version {} instead."
)


class FunctionCtx:
    """What ``forward`` and ``backward`` share (``ctx``); users may set attributes of their own."""

    saved_tensors_list: tuple = ()
    materialize_grads = True
    non_differentiable: tuple = ()
    dirty: tuple = ()
    needs_input_grad: tuple = ()
    # weak: the node owns ctx, and a cycle would keep every saved tensor until a garbage collection
    _node_ref = None

    def save_for_backward(self, *tensors) -> None:
        """Keep inputs or outputs for ``backward``; read them there as ``ctx.saved_tensors``."""
        for i, t in enumerate(tensors):
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument {i} is of type "
                    f"{type(t).__name__}"
                )
        self.saved_tensors_list = tensors

    def save_for_forward(self, *tensors) -> None:
        """For forward-mode derivatives, which disttorch computes by two backwards: not needed."""

    @property
    def saved_tensors(self) -> tuple:
        """The saved tensors, in order; an error if one was changed in place since."""
        node = None if self._node_ref is None else self._node_ref()
        return self.saved_tensors_list if node is None else node.unpack()

    def mark_non_differentiable(self, *tensors) -> None:
        """These outputs have no gradient."""
        self.non_differentiable = tensors

    def mark_dirty(self, *tensors) -> None:
        """These inputs were changed in place and are returned."""
        self.dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing output gradients arrive as zeros (default) or None."""
        self.materialize_grads = bool(value)


class FunctionNode(Node):
    """The graph node of one application of a Function."""

    __slots__ = ("ctx", "cls", "needs", "saved_info")

    def __init__(self, cls, ctx, edges, needs, outputs):
        self.plan, self.saved, self.versions = _PLAN, (), None
        self.edges, self.seq = edges, next_seq()
        self.hooks = self.retain = self.pre_hooks = self.post_hooks = None
        self.trace = user_trace() if state.anomaly else None
        self.metas = tuple((o._data.shape, o._data.dtype) for o in outputs)
        self.shape = self.dtype = None
        self.ctx, self.cls, self.needs = ctx, cls, needs
        self._save(ctx, outputs)
        ctx._node_ref = weakref.ref(self)

    def __getattr__(self, name):
        if name.startswith("__") or name in FunctionNode.__slots__ or name in Node.__slots__:
            raise AttributeError(name)
        return getattr(self.ctx, name)

    def _save(self, ctx, outputs):
        """Outputs are kept without their node, or they would keep themselves alive for ever."""
        info = []
        for t in ctx.saved_tensors_list:
            if t is None:
                info.append((None, 0, None))
                continue
            out_nr = next((i for i, o in enumerate(outputs) if o is t), None)
            version = version_of(t)
            if state.saved_hooks:
                t = PackedTensor(t, state.saved_hooks[-1], out_nr is not None)
            elif out_nr is not None:
                kept = wrap(t._data)
                kept._ver = share_version(t)
                t = kept
            info.append((t, version, out_nr))
        self.saved_info = info
        ctx.saved_tensors_list = ()

    def unpack(self) -> tuple:
        if self.saved_info is None:
            raise RuntimeError(FREED)
        out = []
        for t, version, out_nr in self.saved_info:
            if isinstance(t, PackedTensor):
                t = t.unpack_linked()
            elif t is not None and version_of(t) != version:
                raise RuntimeError(_CHANGED.format(self.cls.__name__, version_of(t), version))
            if out_nr is not None:
                kept, t = t, linked(t._data, self, out_nr)
                t._ver = kept._ver
            out.append(t)
        return tuple(out)

    def name(self):
        return f"{self.cls.__name__}Backward"

    def release(self):
        self.saved_info = None

    def backward(self, g, F):
        ctx = self.ctx
        grads = [d if d is None or not F.raw else wrap(d) for d in g]
        if ctx.materialize_grads:
            grads = [
                _zeros(meta, next(x for x in grads if x is not None)) if d is None else d
                for d, meta in zip(grads, self.metas)
            ]
        previous, state.enabled = state.enabled, not F.raw
        try:
            result = _backward_of(self.cls)(ctx, *grads)
        finally:
            state.enabled = previous
        result = result if isinstance(result, tuple) else (result,)
        return self._checked(result, F)

    def _checked(self, result, F):
        """The gradients of the inputs that need one, once their number and shapes are right."""
        extra = result[len(self.needs):]
        if len(result) < len(self.needs) or any(r is not None for r in extra):
            raise RuntimeError(
                f"function {self.name()} returned an incorrect number of gradients (expected "
                f"{len(self.needs)}, got {len(result)})"
            )
        picked, edges = [], iter(self.edges)
        for i, (need, d) in enumerate(zip(self.needs, result)):
            if not need:
                continue
            target, nr = next(edges)
            if d is not None:
                self._check_gradient(i, d, _shape_of(target, nr))
            picked.append(d if d is None or not F.raw else d._data)
        return picked

    def _check_gradient(self, i, d, shape):
        if not isinstance(d, Tensor):
            raise RuntimeError(
                f"expected Variable or None (got {type(d).__name__}) as gradient {i} of "
                f"{self.name()}"
            )
        xp = namespace_of(d._data)
        try:
            fits = xp.broadcast_shapes(d._data.shape, shape) == d._data.shape
        except ValueError:
            fits = False
        if not fits:
            raise RuntimeError(
                f"Function {self.name()} returned an invalid gradient at index {i} - got "
                f"{list(d._data.shape)} but expected shape compatible with {list(shape)}"
            )

    @property
    def next_functions(self):
        edges, out = iter(self.edges), []
        for need in self.needs:
            target, nr = next(edges) if need else (None, 0)
            out.append((accumulator(target) if isinstance(target, Tensor) else target, nr))
        return tuple(out)


def _shape_of(target, nr):
    """The shape of what an edge leads to."""
    if isinstance(target, Tensor):
        return target._data.shape
    return target.shape if target.metas is None else target.metas[nr][0]


def _backward_of(cls):
    """A Function's backward, which may be written under the name ``vjp``."""
    if cls.vjp is Function.vjp:
        return cls.backward
    if cls.backward is not Function.backward:
        raise RuntimeError(
            f"Implementing both 'backward' and 'vjp' for a custom Function ({cls.__name__}) is not "
            "allowed. You should only implement one of them."
        )
    return cls.vjp


class _FunctionPlan:
    slots, tensor_positions, out_positions, keeps_nothing = (), (), (), False


_PLAN = _FunctionPlan()


def _zeros(meta, like):
    shape, dtype = meta
    return wrap(namespace_of(like._data).zeros(shape, dtype))


class Function:
    """Base of user-defined functions.

    Subclass it with static methods ``forward(ctx, *args)`` and ``backward(ctx, *grad_outputs)``, or
    with ``forward(*args)`` and ``setup_context(ctx, inputs, output)``; use it by ``apply``.
    """

    generate_vmap_rule = False

    def __call__(self, *args, **kwargs):
        raise RuntimeError(
            f"{type(self).__name__} was called as an object: autograd Functions have static methods "
            f"and are used by {type(self).__name__}.apply(...)"
        )

    @staticmethod
    def forward(*args, **kwargs):
        raise NotImplementedError(
            "You must implement the forward function for custom autograd.Function."
        )

    @staticmethod
    def backward(ctx, *grad_outputs):
        raise NotImplementedError(
            "You must implement either the backward or vjp method for your custom "
            "autograd.Function to use it with backward mode AD."
        )

    vjp = backward
    setup_context = None

    @staticmethod
    def jvp(ctx, *grad_inputs):
        raise NotImplementedError(
            "disttorch never calls a custom Function's jvp: torch.func.jvp differentiates its "
            "backward instead, so implement `backward`."
        )

    @staticmethod
    def vmap(info, in_dims, *args):
        raise NotImplementedError(
            "disttorch never calls a custom Function's vmap: torch.func.vmap runs the function "
            "once per element of the batch."
        )

    @classmethod
    def apply(cls, *args):
        """Run forward and record the function in the graph."""
        ctx = FunctionCtx()
        ctx.needs_input_grad = tuple(
            isinstance(a, Tensor) and a.requires_grad for a in args
        )
        record = state.enabled and any(ctx.needs_input_grad)
        # edges lead to what the inputs were before forward may change them in place
        edges = [edge_to(a) for a, n in zip(args, ctx.needs_input_grad) if n] if record else []
        with no_grad():
            if cls.setup_context is None:
                output = cls.forward(ctx, *args)
            else:
                output = cls.forward(*args)
                cls.setup_context(ctx, args, output)
        for t in ctx.dirty:
            bump_version(t)
        if not record:
            return output
        return _record(cls, ctx, args, output, edges)


def _record(cls, ctx, args, output, edges):
    several = isinstance(output, tuple)
    outputs = list(output) if several else [output]
    given = {id(a) for a in args if isinstance(a, Tensor)}
    dirty = {id(t) for t in ctx.dirty}
    constant = {id(t) for t in ctx.non_differentiable}
    for i, out in enumerate(outputs):
        if not isinstance(out, Tensor):
            continue
        if id(out) in given and id(out) not in dirty:
            ver = out._ver  # an input handed through becomes an output of its own
            outputs[i] = wrap(out._data)
            outputs[i]._ver = ver
    tensors = [o for o in outputs if isinstance(o, Tensor)]
    kind = node_type(f"{cls.__name__}Backward", FunctionNode)
    node = kind(cls, ctx, edges, ctx.needs_input_grad, tensors)
    nr = 0
    for out in outputs:
        if not isinstance(out, Tensor):
            continue
        if id(out) in dirty:
            _check_dirty(out, cls)
        elif out._base is not None:
            out._view_kind = kind.__name__  # a change in place would lose the custom backward
        if id(out) not in constant and out.dtype.category >= dtypes.FLOAT:
            out._node, out._out_nr, out._rg = node, nr, True
        nr += 1
    return tuple(outputs) if several else outputs[0]


def _check_dirty(out, cls):
    if out._node is None and out._rg:
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation."
        )
    if out._base is not None and out._base.requires_grad:
        raise RuntimeError(
            f"{cls.__name__} changes a view in place (mark_dirty), and its custom backward cannot "
            "be carried over to the tensor it is a view of; pass a clone() of the view."
        )


class InplaceFunction(Function):
    """A Function whose instances remember whether to work in place.

    Args:
        inplace: read by the subclass.
    """

    def __init__(self, inplace: bool = False):
        self.inplace = inplace


def once_differentiable(fn):
    """Decorator for ``backward``: its result may not be differentiated again."""

    @functools.wraps(fn)
    def wrapper(ctx, *grads):
        with no_grad():
            result = fn(ctx, *grads)
        if not state.enabled or not any(isinstance(g, Tensor) and g.requires_grad for g in grads):
            return result
        results = result if isinstance(result, tuple) else (result,)
        marked = tuple(_Refuse.apply(r, *grads) if isinstance(r, Tensor) else r for r in results)
        return marked if isinstance(result, tuple) else marked[0]

    return wrapper


class _Refuse(Function):
    """Passes a value on and raises when someone differentiates through it."""

    @staticmethod
    def forward(ctx, value, *depends_on):
        return wrap(value._data)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "trying to differentiate twice a function that was marked with @once_differentiable"
        )
