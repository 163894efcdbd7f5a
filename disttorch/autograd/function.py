"""User-defined differentiable functions: ``autograd.Function``."""

from __future__ import annotations

import functools

from ..backend import dtypes
from ..tensor import Tensor, wrap
from .graph import Node, bump_version, edge_to, next_seq, version_of
from .modes import no_grad, state

_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a tensor that {} saved is at version {}; expected version {} instead."
)


class FunctionCtx:
    """What ``forward`` and ``backward`` share (``ctx``)."""

    saved_tensors_list: tuple = ()
    materialize_grads = True

    def __init__(self):
        self.non_differentiable: tuple = ()
        self.dirty: tuple = ()
        self.needs_input_grad: tuple = ()
        self._node = None

    def save_for_backward(self, *tensors) -> None:
        """Keep inputs or outputs for ``backward``; read them there as ``ctx.saved_tensors``."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument is of type {type(t)}"
                )
        self.saved_tensors_list = tensors

    @property
    def saved_tensors(self) -> tuple:
        """The saved tensors, in order; an error if one was changed in place since."""
        if self._node is not None:
            return self._node.unpack()
        return self.saved_tensors_list

    def mark_non_differentiable(self, *tensors) -> None:
        """These outputs have no gradient."""
        self.non_differentiable = tensors

    def mark_dirty(self, *tensors) -> None:
        """These inputs were changed in place and are returned."""
        self.dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing output gradients arrive as zeros (default) or None."""
        self.materialize_grads = value


class FunctionNode(Node):
    """The graph node of one application of a Function."""

    __slots__ = ("ctx", "cls", "needs", "out_arrays_meta", "saved_info")

    def __init__(self, cls, ctx, edges, needs, outputs):
        self.plan, self.saved, self.versions = _PLAN, (), None
        self.edges, self.seq = edges, next_seq()
        self.hooks = self.retain = self.pre_hooks = self.post_hooks = self.trace = None
        self.metas = tuple((o._data.shape, o._data.dtype) for o in outputs)
        self.shape = self.dtype = None
        self.ctx, self.cls, self.needs = ctx, cls, needs
        self._save(ctx, outputs)

    def _save(self, ctx, outputs):
        """Outputs are kept without their node, or they would keep themselves alive for ever."""
        info = []
        for t in ctx.saved_tensors_list:
            out_nr = next((i for i, o in enumerate(outputs) if o is t), None)
            if t is not None and out_nr is not None:
                kept = wrap(t._data)
                kept._ver = t._ver
                info.append((kept, version_of(t), out_nr))
            else:
                info.append((t, 0 if t is None else version_of(t), None))
        if state.saved_hooks:
            pack, unpack = state.saved_hooks[-1]
            info = [(t if t is None else _Packed(pack(t), unpack), v, None) for t, v, _ in info]
        self.saved_info = info
        ctx.saved_tensors_list = ()

    def unpack(self) -> tuple:
        from .graph import FREED

        if self.saved_info is None:
            raise RuntimeError(FREED)
        out = []
        for t, version, out_nr in self.saved_info:
            if isinstance(t, _Packed):
                t = t.unpack(t.value)
            elif t is not None:
                if version_of(t) != version:
                    raise RuntimeError(
                        _CHANGED.format(self.cls.__name__, version_of(t), version)
                    )
                if out_nr is not None:
                    kept, t = t, wrap(t._data)
                    t._node, t._out_nr, t._rg, t._ver = self, out_nr, True, kept._ver
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
            result = self.cls.backward(ctx, *grads)
        finally:
            state.enabled = previous
        result = result if isinstance(result, tuple) else (result,)
        if len(result) != len(self.needs):
            extra = result[len(self.needs):]
            if len(result) < len(self.needs) or any(r is not None for r in extra):
                raise RuntimeError(
                    f"function {self.name()} returned an incorrect number of gradients (expected "
                    f"{len(self.needs)}, got {len(result)})"
                )
        picked = []
        for need, d in zip(self.needs, result):
            if not need:
                continue
            if d is not None and not isinstance(d, Tensor):
                raise RuntimeError(
                    f"function {self.name()} returned a gradient of type {type(d).__name__}; "
                    "expected a Tensor or None"
                )
            picked.append(d if d is None or not F.raw else d._data)
        return picked

    @property
    def next_functions(self):
        from .graph import accumulator

        edges, out = iter(self.edges), []
        for need in self.needs:
            target, nr = next(edges) if need else (None, 0)
            out.append((accumulator(target) if isinstance(target, Tensor) else target, nr))
        return tuple(out)


class _Packed:
    def __init__(self, value, unpack):
        self.value, self.unpack = value, unpack


class _FunctionPlan:
    slots, tensor_positions, out_positions, keeps_nothing = (), (), (), False


_PLAN = _FunctionPlan()


def _zeros(meta, like):
    from ..backend import namespace_of

    shape, dtype = meta
    return wrap(namespace_of(like._data).zeros(shape, dtype))


class Function:
    """Base of user-defined functions.

    Subclass it with static methods ``forward(ctx, *args)`` and ``backward(ctx, *grad_outputs)``, or
    with ``forward(*args)`` and ``setup_context(ctx, inputs, output)``; use it by ``apply``.
    """

    generate_vmap_rule = False

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
    node = FunctionNode(cls, ctx, edges, ctx.needs_input_grad, tensors)
    ctx._node = node
    nr = 0
    for out in outputs:
        if not isinstance(out, Tensor):
            continue
        if id(out) in dirty and out._node is None and out._rg:
            raise RuntimeError(
                "a leaf Variable that requires grad is being used in an in-place operation."
            )
        if id(out) not in constant and out.dtype.category >= dtypes.FLOAT:
            out._node, out._out_nr, out._rg = node, nr, True
        nr += 1
    return tuple(outputs) if several else outputs[0]


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
