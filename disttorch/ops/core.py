"""What an op is, how a call of one runs, and how it is recorded for backward.

An op is one block of code::

    @op(samples=...)
    def tanh(xp, input):                    # the forward, on raw arrays of namespace xp
        return xp.tanh(input)

    @tanh.grad("input")                     # the gradient rule of one input
    def _(F, g, out):
        return g * (1 - out * out)

A rule names what it needs by its argument names: inputs and parameters of the forward,
``input_shape`` (of any input, the shape alone), ``out`` (or ``out0``, ``out1``, ... of several),
and ``aux`` (what a forward declared with ``aux=True`` returns beside its output). Only that is
kept alive until backward, and only tensors that it names may not change in place before. ``F``
holds every op by name: in ordinary backward over raw arrays, under ``create_graph`` over tensors,
so one rule serves both. An op may add ``fast``: a backward over raw arrays only, for speed; and
``composed``: the same function written with other ops, which then is differentiated instead of a
rule when a graph is wanted.
"""

from __future__ import annotations

import functools
import inspect

from ..autograd.anomaly import user_trace
from ..autograd.autocast import switch as autocast
from ..autograd.graph import (
    Node,
    PackedNode,
    edge_to,
    node_type,
    pack_saved,
    share_version,
    version_of,
)
from ..autograd.modes import state
from ..backend import CPU, dtypes, namespace_of, ndarray
from ..tensor import Tensor, wrap
from .checks import check_castable, type_name, wrap_dim, wrap_dims  # noqa: F401
from .fused import compile_fused

REGISTRY: dict[str, Op] = {}
_new = object.__new__
_asarray = CPU.asarray
F32, F64 = dtypes.float32.np, dtypes.float64.np
HALF = dtypes.HALF_NP


class Op:
    """A registered operation.

    Args:
        forward: function ``(xp, *inputs and parameters)`` on raw arrays.
        tensors: names of the parameters that are tensors; others are plain values.
        optional: those of ``tensors`` that may be None; ``numbers``: those that may be numbers.
        nout: number of outputs; 0 means a tuple of any length.
        aux: the forward returns ``(output, aux tuple)``.
        view: the output may share the input's memory.
        moves: it only moves elements, so 16-bit types need no widening.
        fused: where the namespace has kernels of its own (``xp.fused_half``), its forward and its
            fast gradient take 16-bit floats as they are, compute wider inside and round once.
        kernel: the function of ``xp.fused`` that computes it in one launch, where there is one.
        samples: function that yields ``(args, kwargs)`` for the tests; see ``tests/op_cases.py``.
        method: whether Tensor gets a method of this name; ``inplace``: also ``name_``.
    """

    def __init__(
        self, forward, *, tensors=("input",), optional=(), numbers=(), nout=1, aux=False,
        view=False, moves=False, fused=False, samples=None, method=True, inplace=False, name=None,
        node_name=None, out=True, kernel=None,
    ):
        self.forward = forward
        self.name = name or forward.__name__
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        self.params = [p.name for p in parameters]
        self.tensors = tuple(tensors)
        self.slots = tuple(self.params.index(t) for t in tensors)
        self.optional = frozenset(self.params.index(t) for t in optional)
        self.numbers = frozenset(self.params.index(t) for t in numbers)
        self.nout, self.aux, self.view, self.moves = nout, aux, view, moves or view
        self.fused, self.kernel = fused, kernel
        self.casts = True  # ask autocast at each call; see ``autocast.close_lists``
        self.samples, self.method, self.inplace = samples, method, inplace
        self.rules: dict[str, object] = {}
        self.joint = self.fast = self.composed = None
        self.fused_rules: dict[str, object] = {}  # see fused.py
        self.fused_joints: dict[tuple, tuple] = {}
        self.rule_slots: tuple = ()
        self.plans: dict[int, Plan] = {}
        self.node_name = (node_name or _camel(self.name)) + "Backward0"
        self.bind = _binder(self.name, parameters)
        self.has_out = out and nout == 1 and not view
        self.call = self._make_call()
        self.call.__name__ = self.call.__qualname__ = self.name
        self.call.__doc__ = forward.__doc__
        self.call.op = self
        if self.name in REGISTRY:
            raise ValueError(f"op {self.name} is registered twice")
        REGISTRY[self.name] = self

    # ------------------------------------------------------------- declaring gradients
    def grad(self, *names):
        """Decorator: ``rule(F, g, ...)`` is the gradient of each of the named inputs."""

        def register(rule):
            for name in names:
                self.rules[name] = rule
            self._set_rule_slots(self.rules)
            return rule

        return register

    def joint_grad(self, *names):
        """Decorator: ``rule(F, g, needs, ...)`` gives a tuple, one gradient per named input.

        ``needs`` is a tuple of bools in the same order; unneeded places may be None.
        """

        def register(rule):
            self.joint = (names, rule)
            self._set_rule_slots(names)
            return rule

        return register

    def fast_grad(self, *names):
        """Decorator like ``joint_grad``, for raw arrays only (``F.xp`` has the kernels)."""

        def register(rule):
            self.fast = (names, rule)
            self._set_rule_slots(names)
            return rule

        return register

    def fused_grad(self, name, kernel):
        """A kernel of ``xp.fused`` for the rule of one input; see ``fused.py``."""
        self.fused_rules[name] = kernel

    def fused_grads(self, names, kernel, arguments):
        """One kernel for the rules of several inputs, where just these need gradients."""
        self.fused_joints[names] = kernel, arguments

    def compose(self, function):
        """Decorator: the same operation written with other ops, for graphs of the gradient."""
        self.composed = function
        return function

    def _set_rule_slots(self, names):
        self.rule_slots = tuple(sorted({self.params.index(n) for n in names} |
                                       set(self.rule_slots)))

    @property
    def differentiable(self) -> bool:
        return bool(self.rule_slots)

    # ------------------------------------------------------------- running
    def raw(self, xp, *args):
        """The op on raw arrays, as gradient rules call it: 16-bit floats widened, aux dropped."""
        result = self._forward(xp, args)
        return result[0] if self.aux else result

    def _forward(self, xp, args):
        if self.kernel is not None and xp is not CPU and xp.fused is not None:
            out = getattr(xp.fused, self.kernel)(*args)
            if out is not NotImplemented:
                return out
        if xp.widens_half and not self.moves and not (self.fused and xp.fused_half):
            for i in self.slots:
                a = args[i]
                if getattr(a, "dtype", None) in HALF:
                    return self._widened(xp, args, a.dtype)
        return self.forward(xp, *args)

    def _widened(self, xp, args, dtype):
        """Compute in float32 what is stored in 16 bits; only outputs are rounded."""
        wide = list(args)
        for i in self.slots:
            if getattr(args[i], "dtype", None) in HALF:
                wide[i] = xp.cast(args[i], F32)
        result = self.forward(xp, *wide)
        if self.aux:
            return _narrow(xp, result[0], dtype), result[1]
        return _narrow(xp, result, dtype)

    def _make_call(self):
        bind, apply = self.bind, self.apply

        if self.has_out:
            def call(*args, out=None, **kwargs):
                if out is None:
                    return apply(bind(*args, **kwargs))
                return write_out(apply(bind(*args, **kwargs)), out, self.name)
        else:
            def call(*args, **kwargs):
                return apply(bind(*args, **kwargs))
        return call

    def apply(self, args):
        """Run the op on a full tuple of arguments (tensors and plain values) and record it."""
        if autocast.on and self.casts:
            args = autocast.cast(self, args)
        raw, mask, first = list(args), 0, None
        for i in self.slots:
            t = raw[i]
            if isinstance(t, Tensor):
                raw[i] = a = t._data
                if t._rg or (t._base is not None and t._base._rg):
                    mask |= 1 << i
                if first is None:
                    first = a
                elif a.__class__ is not first.__class__:
                    raise device_error(self.name, first, a)
            elif t is None and i in self.optional:
                continue
            elif i not in self.numbers or not isinstance(t, (int, float, complex)):
                raise argument_error(self, i, t)
        xp = CPU if first.__class__ is ndarray else namespace_of(first)
        out = self.forward(xp, *raw) if self.moves else self._forward(xp, raw)
        aux = None
        if self.aux:
            out, aux = out
        return self.finish(xp, args, mask, out, aux)

    def finish(self, xp, args, mask, out, aux):
        """Arrays to tensors, recorded if a gradient is wanted."""
        if out.__class__ is tuple or out.__class__ is list:
            out = tuple(o if isinstance(o, xp.ndarray) else xp.asarray(o) for o in out)
            result = tuple(map(wrap, out))
        else:
            if out.__class__ is not xp.ndarray:
                out = xp.asarray(out)
            result = _new(Tensor)
            result._data = out
        if mask and state.enabled and self.rule_slots:
            self.record(mask, args, result, out, aux)
        if self.view:
            mark_views(self, args, result)
        if state.inference:
            for t in result if result.__class__ is tuple else (result,):
                mark_inference(t)
        return result

    def record(self, mask, args, result, out, aux):
        """Make the node of this call and hang it on the result tensors."""
        plan = self.plans.get(mask)
        if plan is None:
            plan = self.plans[mask] = Plan(self, mask)
        if not plan.slots:
            return None
        node = make_node(plan, args, result, out, aux)
        if result.__class__ is tuple:
            for i, t in enumerate(result):
                if t._data.dtype in dtypes.FLOAT_NP:
                    t._node, t._out_nr, t._rg = node, i, True
        else:
            result._node, result._rg = node, True
        return node

    def replay(self, t, extra):
        """Do the same view again on another tensor (or with ``out_nr``, one of several)."""
        args, out_nr = extra
        result = self.apply((t, *args))
        return result if out_nr is None else result[out_nr]

    def __repr__(self):
        return f"<op {self.name}>"


def make_node(plan, args, result, out, aux) -> Node:
    saved = versions = None
    if plan.pick is not None:
        saved = plan.pick(args, result, aux)
        for i in plan.tensor_positions:
            t = saved[i]
            if t.__class__ is list or isinstance(t, Tensor) and t._ver is not None:
                versions = tuple([_version_of_saved(v) for v in saved])
                break
        if state.saved_hooks:
            saved, versions = pack_saved(plan, saved, _is_array), None
            edges = [edge_to(args[i]) for i in plan.slots]
            node = node_type(plan.node_name, PackedNode)(plan, saved, versions, edges, out)
            return _traced(node) if state.anomaly else node
    else:
        saved = ()
    edges = [edge_to(args[i]) for i in plan.slots]
    node = plan.node_class(plan, saved, versions, edges, out)
    return _traced(node) if state.anomaly else node


def _traced(node) -> Node:
    """Anomaly mode: remember the user's lines that led to this operation."""
    node.trace = user_trace()
    return node


def _is_array(value) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "strides")


def mark_inference(t: Tensor) -> Tensor:
    """Note that ``t`` was made under inference_mode.

    It gets a version counter at once, so that saving it takes the path that looks at versions:
    there it is refused, and other tensors pay nothing for the check.
    """
    t._inference = True
    share_version(t)
    return t


def _version_of_saved(v):
    if isinstance(v, Tensor):
        if v._inference:
            raise RuntimeError(
                "Inference tensors cannot be saved for backward. Please do not use Tensors created "
                "in inference mode in computation tracked by autograd. To work around this, you "
                "can make a clone to get a normal tensor and use it in autograd, or use "
                "`torch.no_grad()` instead of `torch.inference_mode()`."
            )
        return version_of(v)
    return [version_of(t) for t in v] if v.__class__ is list else 0


class Plan:
    """How to run the backward of one op for one set of inputs that need gradients.

    Made once for each combination and kept: it decides what is saved, and holds two small compiled
    functions that pass the saved values to the rules (over arrays, and over tensors).
    """

    keeps_nothing = False
    run_fused = None  # made when first needed

    def __init__(self, op: Op, mask: int):
        self.op, self.node_name = op, op.node_name
        self.node_class = node_type(op.node_name)
        self.slots = tuple(i for i in op.rule_slots if mask >> i & 1)
        raw_calls, raw_names = self._calls(op, fast=True)
        tensor_calls, tensor_names = self._calls(op, fast=False)
        names = list(dict.fromkeys(raw_names + tensor_names))
        self.names = names
        slot_names = {op.params[i] for i in op.slots}
        self.out_positions = tuple(
            (i, int(n[3:] or 0)) for i, n in enumerate(names) if _is_out(n)
        )
        self.tensor_positions = tuple(
            i for i, n in enumerate(names) if n in slot_names or _is_out(n)
        )
        self.aux_position = names.index("aux") if "aux" in names else None
        # plain values may stay: only tensors make a second backward an error
        self.keeps_nothing = not self.tensor_positions and self.aux_position is None
        self.pick = self._compile_pick(op, names) if names else None
        self.run_raw = self._compile_run(raw_calls, names)
        self.run_tensor = self._compile_run(tensor_calls, names)
        if self.aux_position is not None:
            self.run_tensor = _with_tensor_aux(self.run_tensor, self.aux_position)

    def fused(self):
        """The backward over arrays of a namespace with kernels of its own."""
        if self.run_fused is None:
            self.run_fused = compile_fused(self)
        return self.run_fused

    def _calls(self, op, fast):
        """([(function, fixed args, argument names, which outputs to take)], all names)."""
        wanted = [op.params[i] for i in self.slots]
        if fast and op.fast is not None or op.joint is not None:
            names, rule = op.fast if fast and op.fast is not None else op.joint
            if rule is not (op.joint or (None, None))[1]:
                rule = _widening(rule, op.fused)
            needs = tuple(n in wanted for n in names)
            arguments = list(inspect.signature(inspect.unwrap(rule)).parameters)[3:]
            take = [names.index(n) for n in wanted]
            return [(rule, needs, arguments, take)], arguments
        if all(n in op.rules for n in wanted):
            calls = []
            for n in wanted:
                arguments = list(inspect.signature(op.rules[n]).parameters)[2:]
                calls.append((op.rules[n], None, arguments, None))
            return calls, [a for c in calls for a in c[2]]
        if op.composed is None:
            raise NotImplementedError(f"the gradient of {op.name} has no gradient of its own yet")
        return [(_composed_gradient(op, wanted), None, list(op.params), "all")], list(op.params)

    @staticmethod
    def _compile_pick(op, names):
        def source(n):
            if _is_out(n):
                return "keep_output(result)" if n == "out" else f"keep_output(result[{n[3:]}])"
            if n == "aux":
                return n
            if n not in op.params and n.endswith("_shape"):
                return f"args[{op.params.index(n[:-6])}]._data.shape"
            return f"args[{op.params.index(n)}]"

        text = ", ".join(map(source, names))
        return eval(f"lambda args, result, aux: ({text},)", {"keep_output": keep_output})

    @staticmethod
    def _compile_run(calls, names):
        scope, parts = {}, []
        for k, (rule, needs, arguments, take) in enumerate(calls):
            scope[f"r{k}"] = rule
            given = [repr(needs)] if needs is not None else []
            given += [f"s[{names.index(a)}]" for a in arguments]
            call = f"r{k}(F, g, {', '.join(given)})"
            if take is None:
                parts.append(call)
            elif take == "all":
                return eval(f"lambda F, g, s: {call}", scope)
            elif len(take) == 1:
                parts.append(f"{call}[{take[0]}]")
            else:
                scope.update(take=take, pick=_pick)
                return eval(f"lambda F, g, s: pick({call}, take)", scope)
        return eval(f"lambda F, g, s: ({', '.join(parts)},)", scope)


def _pick(values, indices):
    return [values[i] for i in indices]


def _widening(rule, fused):
    """A fast rule for 16-bit types: computed in float32; the engine rounds the results. That of a
    ``fused`` op gets them as they are where the namespace has kernels for them."""

    @functools.wraps(rule)
    def wrapped(F, g, needs, *args):
        if F.xp.widens_half and not (fused and F.xp.fused_half):
            several = g.__class__ is tuple or g.__class__ is list
            if any(getattr(a, "dtype", None) in HALF for a in (g if several else (g,))):
                cast = F.xp.cast
                g = tuple([_widen(x, cast) for x in g]) if several else _widen(g, cast)
                args = [_widen(a, cast) for a in args]
        return rule(F, g, needs, *args)

    return wrapped


def _widen(a, cast):
    return cast(a, F32) if getattr(a, "dtype", None) in HALF else a


def _with_tensor_aux(run, position):
    """Under create_graph, rules see the arrays in aux as tensors (constants of the graph)."""

    def wrapped(F, g, s):
        s = list(s)
        s[position] = tuple(
            wrap(a) if hasattr(a, "dtype") and hasattr(a, "shape") else a for a in s[position]
        )
        return run(F, g, s)

    return wrapped


def _composed_gradient(op, wanted):
    """The gradient by differentiating ``op.composed`` (only for a graph of the gradient)."""

    def rule(F, g, *args):
        from ..autograd import grad

        inputs = [args[op.params.index(n)] for n in wanted]
        out = op.composed(*args)
        return grad(out, inputs, g, create_graph=True, allow_unused=True)

    return rule


def keep_output(t: Tensor) -> Tensor:
    """An output saved for its own backward: without the node, or node and tensor would form a
    cycle that only the garbage collector frees."""
    kept = wrap(t._data)
    kept._ver = share_version(t)
    return kept


def mark_views(op, args, result):
    """Tell results that share the input's memory whose views they are."""
    source = args[op.slots[0]]
    several = result.__class__ is tuple
    for i, t in enumerate(result) if several else ((None, result),):
        memory = t._data.base
        if memory is None or memory is not source._data and memory is not source._data.base:
            continue
        base = source if source._base is None else source._base
        t._base = base
        extra = ((op, (args[1:], i)),)
        t._view_ops = extra if source._view_ops is None else source._view_ops + extra
        ver = t._ver = share_version(source)
        t._view_ver = ver[0]
        if several:
            t._view_kind = op.name
        elif not state.enabled:
            t._view_kind = "no_grad"
        else:
            t._view_kind = source._view_kind


# ---------------------------------------------------------------- small helpers
def _narrow(xp, out, dtype):
    if out.__class__ is tuple or out.__class__ is list:
        return tuple(_narrow(xp, o, dtype) for o in out)
    return xp.cast(out, dtype) if getattr(out, "dtype", None) == F32 else out


def _is_out(name: str) -> bool:
    return name.startswith("out") and (name == "out" or name[3:].isdigit())


def _camel(name: str) -> str:
    return "".join(p[:1].upper() + p[1:] for p in name.strip("_").split("_"))


def _binder(name, parameters):
    """A function with the op's Python signature that returns all arguments as a tuple.

    It fills defaults and raises Python's own TypeError for a wrong or missing argument.
    """
    scope, parts = {}, []
    for p in parameters:
        if p.default is p.empty:
            parts.append(p.name)
        else:
            scope[f"_{p.name}"] = p.default
            parts.append(f"{p.name}=_{p.name}")
    names = "".join(f"{p.name}, " for p in parameters)
    exec(f"def {name}({', '.join(parts)}): return ({names})", scope)
    return scope[name]


def argument_error(op, slot, value):
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        got = f"{type(value).__name__} of tensors"
    else:
        got = type(value).__name__
    return TypeError(
        f"{op.name}(): argument '{op.params[slot]}' (position {slot + 1}) must be Tensor, not {got}"
    )


def argument_must_be_tensor(function, argument, position, value):
    """PyTorch's TypeError for an argument that is no tensor."""
    return TypeError(
        f"{function}(): argument '{argument}' (position {position}) must be Tensor, not "
        f"{type(value).__name__}"
    )


def device_error(name, a, b):
    da, db = namespace_of(a).device_of(a), namespace_of(b).device_of(b)
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {da} and "
        f"{db}! (in {name})"
    )


def write_out(result: Tensor, out: Tensor, name: str) -> Tensor:
    """The ``out=`` form: put a result into an existing tensor, resized if it must be.

    Raises:
        RuntimeError: if gradients are wanted, or the result's kind does not fit out's dtype.
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}(): argument 'out' must be Tensor, not {type(out).__name__}")
    if (result._rg or out._rg) and state.enabled:
        raise RuntimeError(
            f"{name}(): functions with out=... arguments don't support automatic differentiation, "
            "but one of the arguments requires grad."
        )
    check_castable(result.dtype, out.dtype)
    if out._data.shape != result._data.shape:
        out._data = namespace_of(out._data).empty(result._data.shape, out._data.dtype)
    out._data[...] = result._data
    share_version(out)[0] += 1
    return out


def op(**options):
    """Decorator that registers a forward as an op; see ``Op`` for the options."""

    def register(forward):
        return Op(forward, **options)

    return register
