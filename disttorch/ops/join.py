"""Joining tensors: cat, stack and their kin. The first argument is a list of tensors."""

from __future__ import annotations

from ..autograd.graph import edge_to, node_type
from ..autograd.modes import state
from ..backend import CPU, dtypes, namespace_of, ndarray
from ..tensor import Tensor, wrap
from .core import REGISTRY, Op, _camel, device_error, wrap_dim
from .samples import case


class ListPlan:
    """The plan of an op over a list: one rule gives the gradients of all members."""

    tensor_positions = out_positions = ()
    keeps_nothing = False

    def __init__(self, rule, name, needs):
        self.node_name, self.slots = name, tuple(i for i, n in enumerate(needs) if n)

        def run(F, g, saved):
            grads = rule(F, g, *saved)
            return [grads[i] for i in self.slots]

        self.run_raw = self.run_tensor = self.run_fused = run


class ListOp(Op):
    """An op whose first argument is a list of tensors.

    Its rule is ``rule(F, g, shapes, *parameters) -> list of gradients``, where ``shapes`` are the
    members' shapes.
    """

    def __init__(self, forward, rule, **options):
        super().__init__(forward, tensors=(), method=False, moves=True, **options)
        self.rule, self.rule_slots = rule, (0,)
        self.slots = (0,)

    def raw(self, xp, tensors, *args):
        return self.forward(xp, tensors, *args)

    def apply(self, args):
        tensors = args[0]
        if isinstance(tensors, Tensor) or not hasattr(tensors, "__iter__"):
            raise TypeError(
                f"{self.name}(): argument 'tensors' (position 1) must be tuple of Tensors, not "
                f"{type(tensors).__name__}"
            )
        tensors = list(tensors)
        if not tensors:
            kind = ValueError if self.name == "cat" else RuntimeError
            raise kind(f"{self.name}(): expected a non-empty list of Tensors")
        for i, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"expected Tensor as element {i} in argument 0, but got {type(t).__name__}"
                )
        tensors = self._promoted(tensors)
        first = tensors[0]._data
        for t in tensors:
            if t._data.__class__ is not first.__class__:
                raise device_error(self.name, first, t._data)
        xp = CPU if first.__class__ is ndarray else namespace_of(first)
        out = self.forward(xp, [t._data for t in tensors], *args[1:])
        result = wrap(out)
        needs = [t.requires_grad for t in tensors]
        if state.enabled and any(needs):
            plan = ListPlan(self.rule, self.node_name, needs)
            saved = ([t._data.shape for t in tensors], *args[1:])
            edges = [edge_to(t) for t, n in zip(tensors, needs) if n]
            node = node_type(self.node_name)(plan, saved, None, edges, out)
            result._node, result._rg = node, True
        return result

    def _promoted(self, tensors):
        dtype = tensors[0]._data.dtype
        if all(t._data.dtype == dtype for t in tensors):
            return tensors
        want = dtypes.result_type([t._data for t in tensors])
        cast = REGISTRY["to_dtype"]
        return [t if t._data.dtype == want.np else cast.call(t, want) for t in tensors]


def list_op(rule, **options):
    """Decorator that registers an op over a list of tensors."""
    return lambda forward: ListOp(forward, rule, **options)


def _cat_rule(F, g, shapes, dim):
    if any(len(s) == 1 and s[0] == 0 for s in shapes) and g.ndim > 1:
        real = [s for s in shapes if len(s) == g.ndim]
    else:
        real = shapes
    d = dim % g.ndim
    pieces = iter(_pieces(F, g, [s[d] for s in real], d))
    return [next(pieces) if len(s) == g.ndim else F.reshape(F.slice(g, (0,) * g.ndim), (1,))[:0]
            for s in shapes]


def _pieces(F, g, lengths, dim):
    start, lead = 0, (slice(None),) * dim
    for n in lengths:
        yield F.slice(g, (*lead, slice(start, start + n)))
        start += n


@list_op(_cat_rule, samples=lambda m: [
    case([m(2, 3), m(4, 3)]), case([m(2, 3), m(2, 1), m(2, 2)], -1), case([m(0, 3), m(2, 3)]),
])
def cat(xp, tensors, dim=0):
    """Tensors joined along an existing dim.

    Raises:
        RuntimeError: if the other dims differ.
    """
    real = [a for a in tensors if a.shape != (0,)] or tensors[:1]  # PyTorch skips empty vectors
    if real[0].ndim == 0:
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    d = wrap_dim(dim, real[0].ndim)
    for i, a in enumerate(real):
        if a.ndim != real[0].ndim:
            raise RuntimeError(
                f"Tensors must have same number of dimensions: got {real[0].ndim} and {a.ndim}"
            )
        for k in range(a.ndim):
            if k != d and a.shape[k] != real[0].shape[k]:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {d}. Expected size "
                    f"{real[0].shape[k]} but got size {a.shape[k]} for tensor number {i} in the "
                    "list."
                )
    return xp.concatenate(real, axis=d)


@list_op(lambda F, g, shapes, dim: F.unbind(g, dim), samples=lambda m: [
    case([m(2, 3), m(2, 3)]), case([m(2), m(2), m(2)], -1), case([m(), m()])])
def stack(xp, tensors, dim=0):
    """Tensors of one shape joined along a new dim."""
    for i, a in enumerate(tensors):
        if a.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(tensors[0].shape)} at "
                f"entry 0 and {list(a.shape)} at entry {i}"
            )
    return xp.stack(tensors, axis=wrap_dim(dim, tensors[0].ndim + 1))


COMPOSITES = {"cat": cat.call, "concat": cat.call, "concatenate": cat.call, "stack": stack.call}
__all__ = ["COMPOSITES", "ListOp", "ListPlan", "_camel", "cat", "list_op", "stack"]
