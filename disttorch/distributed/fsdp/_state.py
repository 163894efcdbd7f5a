"""When a unit is gathered, freed and reduced: the hooks around forward and backward.

    pre-forward    gather this unit, begin to gather the next one
    post-forward   free it (reshard_after_forward); watch the gradients of its outputs
    pre-backward   the first such gradient: gather it again, begin to gather the one before
    gradients      the last one of the unit: begin to reduce them, free the whole parameters
    end            reduce what is left, wait for all reductions, free what is whole

Which unit is next is what was next in the last forward; the one before, what ran before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...autograd import Function, is_grad_enabled
from ...autograd.engine import backward_reaches, current_backward, queue_callback
from ...nn import Module
from ...tensor import Tensor
from ._param import ShardedParam
from ._policies import MixedPrecisionPolicy
from ._reduce import Reduction
from ._tree import cast_floating, map_tensors, tensors_in
from ._unit import Unit


class Context:
    """What the units under one root share.

    Attributes:
        states: of all units, in the order of the modules.
        order: units in the order of the last forward; current: of the forward under way.
        finished: (state) for each call in the order in which forwards ended, for backward.
        pending: reductions under way.
        backward: the backward under way, or the one that an exception has left.
        last_backward: wait for reductions at the end of backward.
        events: None, or a list to which units append what they do.
    """

    def __init__(self) -> None:
        self.states: list[State] = []
        self.order: list[State] = []
        self.current: list[State] = []
        self.finished: list[State] = []
        self.pending: list[Reduction] = []
        self.forward_root: State | None = None
        self.backward: Any = None
        self.last_backward = True
        self.events: list[tuple] | None = None

    def enter_backward(self) -> None:
        """Have `finish_backward` called at the end of the backward under way."""
        now = current_backward()
        if self.backward is now:
            return
        self.check_in_step()
        self.backward = now
        queue_callback(self.finish_backward)

    def check_in_step(self) -> None:
        """Raise RuntimeError if the last backward did not come to its end."""
        if self.backward is not None and self.backward is not current_backward():
            raise RuntimeError(
                "the previous backward was left by an exception before all gradients were reduced: "
                "call reset_iter_state() on the root module on all ranks, and begin the step again"
            )

    def reduce(self, unit: Unit) -> None:
        """Begin to reduce a unit's gradients; one other reduction's buffer at most is in memory."""
        if self.pending:
            self.pending[-1].advance()
        self.pending.append(Reduction(unit))

    def finish_backward(self) -> None:
        """Leave no gradient behind, and no unit whole that is not to stay so."""
        for state in reversed(self.states):
            unit = state.unit
            state.begin_step()
            if unit is None:
                continue
            if unit.sync:
                if any(p.whole._grad is not None for p in unit.trained):
                    self.reduce(unit)
            else:
                unit.accumulate()
            if unit.reshard_after_backward:
                unit.reshard()
        if self.last_backward:
            self.wait_for_reductions()
        self.finished.clear()
        self.backward = None

    def wait_for_reductions(self) -> None:
        pending, self.pending = self.pending, []
        for reduction in pending:
            reduction.finish()

    def reset(self) -> None:
        """Forget a step that an exception has left; its gradients are lost."""
        for reduction in self.pending:
            for lane in reduction.lanes:
                if lane.work is not None:
                    lane.work.wait()
        self.pending.clear()
        self.finished.clear()
        self.current, self.forward_root, self.backward = [], None, None
        for state in self.states:
            state.begin_step()
            state.to_run.clear()
            if state.unit is not None:
                state.unit.partial = None
                for p in state.unit.params:
                    p.whole._grad = p.accumulated = None
                state.unit.reshard()


class State:
    """What `fully_shard` has attached to one module, or to several that form one unit.

    Args:
        modules: the modules. unit: their parameters; None if there are none left to shard.
        policy: precisions. automatic: whether the root is to stay whole after forward.
        device: where inputs of the root are brought to; None: they stay.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        unit: Unit | None,
        policy: MixedPrecisionPolicy,
        automatic: bool,
        device: Any,
    ) -> None:
        self.modules, self.unit, self.policy = tuple(modules), unit, policy
        self.automatic, self.device = automatic, device
        self.context: Context | None = None
        self.forward_prefetch: list[State] | None = None
        self.backward_prefetch: list[State] | None = None
        self.to_run: set[Module] = set()
        self.prefetched = False
        self._expected: set[ShardedParam] | None = None
        self._ready: set[ShardedParam] = set()
        self._open_calls = 0  # forward calls whose inputs' gradients are still to come
        for module in modules:
            module.register_forward_pre_hook(self.pre_forward, prepend=True, with_kwargs=True)
            module.register_forward_hook(self.post_forward)
            module.register_state_dict_pre_hook(self._before_state_dict)
            module.register_load_state_dict_pre_hook(self._before_state_dict)
            module.register_load_state_dict_post_hook(self._after_load)
        if unit is not None:
            for p in unit.params:
                if p.whole.is_floating_point() or p.whole.is_complex():
                    p.whole.requires_grad_(True)  # a hook may be given to such tensors only
                    p.whole.register_post_accumulate_grad_hook(_when_ready(self, p))
                    p.whole.requires_grad_(p.sharded.requires_grad)

    def _before_state_dict(self, *_: Any) -> None:
        if self.unit is not None:
            self.unit.reshard()

    def _after_load(self, *_: Any) -> None:
        if self.unit is not None:
            self.unit.refresh()

    # ---- the root ----------------------------------------------------------------------------

    def attach(self) -> Context:
        """The context; made at the first forward, whose module is the root.

        Raises:
            RuntimeError: a part was run before the root.
        """
        if self.context is not None:
            return self.context
        context = Context()
        root = self.modules[0]
        for name, module in root.named_modules():
            state = state_of(module)
            if state is None or state in context.states:
                continue
            if state.context is not None:
                raise RuntimeError(
                    f"FSDP state has already been lazily initialized for {name}: FSDP requires "
                    "running forward through the root module first"
                )
            context.states.append(state)
            if state.unit is not None:
                state.unit.name, state.unit.number = name, len(context.states)
        for state in context.states:
            state.context = context
        if self.automatic and self.unit is not None:
            self.unit.reshard_after_forward = False
        return context

    def begin_step(self) -> None:
        self._expected, self._ready, self._open_calls = None, set(), 0

    # ---- forward -----------------------------------------------------------------------------

    def pre_forward(self, module: Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        context = self.attach()
        if current_backward() is not None:  # activation checkpointing computes it again
            context.enter_backward()
            if self.unit is not None:
                self.unit.finish_gather()
            return self._cast_inputs(args, kwargs)
        if context.forward_root is None or context.states[0] is self:
            args, kwargs = self._begin_pass(context, args, kwargs)
        args, kwargs = self._cast_inputs(args, kwargs)
        first_call = not self.to_run
        if first_call:
            self.to_run = set(self.modules)
            context.current.append(self)
        self.prefetched = False
        if self.unit is not None:
            self.unit.events = context.events
            self.unit.finish_gather()
        if first_call:
            self._prefetch_next(context)
        if self.unit is not None and is_grad_enabled() and self._keeps_frozen():
            args, kwargs = self._watch_inputs(args, kwargs)
        return args, kwargs

    def _begin_pass(self, context: Context, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        context.check_in_step()
        context.forward_root, context.current = self, []
        for state in context.states:
            state.to_run.clear()
            if state.unit is not None:
                state.unit.events = context.events
        if self.device is not None:
            args, kwargs = map_tensors(lambda t: t.to(self.device), (args, kwargs))
        return args, kwargs

    def _cast_inputs(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.policy.param_dtype is None or not self.policy.cast_forward_inputs:
            return args, kwargs
        return cast_floating(self.policy.param_dtype, (args, kwargs))

    def _prefetch_next(self, context: Context) -> None:
        if self.forward_prefetch is not None:
            following = self.forward_prefetch
        else:
            at = len(context.current)
            known = context.order[at - 1] is self if at <= len(context.order) else False
            following = context.order[at : at + 1] if known else []
        for state in following:
            if state.unit is not None and state.unit.state == "sharded":
                state.prefetched = True
                state.unit.begin_gather("prefetch")

    def post_forward(self, module: Module, args: tuple, output: Any) -> Any:
        context = self.attach()
        if current_backward() is None:
            self.to_run.discard(module)
            if not self.to_run:
                self._leave()
            output = self._watch_outputs(context, output)
            if context.forward_root is self and not self.to_run:
                self._end_pass(context)
        if self.policy.output_dtype is not None:
            output = cast_floating(self.policy.output_dtype, output)
        return output

    def _leave(self) -> None:
        if self.unit is not None:
            self.unit._note("forward ends")
            if self.automatic and not is_grad_enabled():
                self.unit.reshard()  # a root stays whole for a backward, and there will be none
            else:
                self.unit.after_forward()

    def _end_pass(self, context: Context) -> None:
        for state in context.states:
            if state.to_run and state is not self:  # of several modules some were not called
                state.to_run.clear()
                state._leave()
            if state.prefetched and state.unit is not None:  # begun for a module that did not run
                state.prefetched = False
                state.unit.reshard()
        if context.states[0] is self:
            context.order = context.current
        context.current, context.forward_root = [], None

    # ---- backward ----------------------------------------------------------------------------

    def _watch_outputs(self, context: Context, output: Any) -> Any:
        watched = [t for t in tensors_in(output) if t.requires_grad and not t.is_leaf]
        if not watched or not is_grad_enabled():
            return output
        context.finished.append(self)
        called = _Call(self, len(context.finished) - 1)
        for t in watched:
            t.register_hook(called.pre_backward)
        return output

    def pre_backward(self, place: int) -> None:
        """Make the unit whole for its backward; begin with the one whose forward ended before."""
        context = self.attach()
        context.enter_backward()
        if self.unit is not None and self.unit.unshard_in_backward:
            self.unit.finish_gather()
        if self.backward_prefetch is not None:
            following = self.backward_prefetch
        else:
            following = context.finished[place - 1 : place] if place else []
        for state in following:
            if state.unit is not None and state.unit.unshard_in_backward:
                state.unit.begin_gather("prefetch")

    def _keeps_frozen(self) -> bool:
        assert self.unit is not None
        return any(not p.sharded.requires_grad for p in self.unit.params)

    def _watch_inputs(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Notice when the gradients of the inputs are there.

        A frozen parameter has no gradient of its own that would tell that it is needed no more.
        """
        watched = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        if not watched:
            return args, kwargs
        passed = _Pass.apply(*watched)
        passed = list(passed) if isinstance(passed, tuple) else [passed]
        passed[0].grad_fn.register_hook(lambda *_: self._inputs_done())
        self._open_calls += 1
        return map_tensors(lambda t: passed.pop(0) if t.requires_grad else t, (args, kwargs))

    def _inputs_done(self) -> None:
        self._open_calls -= 1
        unit = self.unit
        waiting = self._expected is not None and not self._ready >= self._expected
        if self._open_calls == 0 and not waiting and unit is not None:
            if unit.reshard_after_backward:
                unit.reshard()

    def gradient_ready(self, p: ShardedParam) -> None:
        """Called when backward has added to the gradient of a whole parameter."""
        unit, context = self.unit, self.attach()
        assert unit is not None
        context.enter_backward()
        if self._expected is None:
            self._expected = {q for q in unit.trained if backward_reaches(q.whole)}
        self._ready.add(p)
        # Inside a reentrant checkpoint the outer backward reaches none of them
        if not self._ready >= (self._expected or set(unit.trained)):
            return
        self._expected, self._ready = None, set()
        if unit.reshard_after_backward and not self._keeps_frozen():
            unit.reshard()  # before the reduction asks for its buffer
        if unit.sync:
            context.reduce(unit)
        else:
            unit.accumulate()


class _Call:
    """One call of a unit's forward, whose outputs' gradients tell that its backward begins."""

    def __init__(self, state: State, place: int) -> None:
        self.state, self.place = state, place
        self.begun: Any = None

    def pre_backward(self, grad: Tensor) -> None:
        # once in each backward, though there may be several outputs
        now = current_backward()
        if self.begun is not now:
            self.begun = now
            self.state.pre_backward(self.place)


class _Pass(Function):
    """Hands tensors through; the graph gets one node for all of them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Any:
        out = tuple(t.view_as(t) for t in tensors)
        return out if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads if len(grads) > 1 else grads[0]


def _when_ready(state: State, p: ShardedParam) -> Any:
    return lambda _: state.gradient_ready(p)


def state_of(module: Module) -> State | None:
    """What `fully_shard` has attached to a module; None without it."""
    return module.__dict__.get("_fsdp_state")


__all__ = ["Context", "State", "state_of"]
