"""The reduction of gradients during backward: what DistributedDataParallel does behind the scenes.

Each parameter's hook reports its gradient here as soon as it is whole. It is copied into its
bucket, and when a bucket is full its all-reduce starts, while backward goes on with older layers.
Buckets start strictly in their order, because ranks must make the same calls in the same order. At
the end of backward the reduced values are copied back into the gradients.

The order of the buckets is at first the reverse of the parameters' and, after the first backward,
that in which rank 0 saw gradients become ready. (S. Li et al., "PyTorch Distributed: Experiences
on Accelerating Data Parallel Training", VLDB 2020, section 3.2.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import collectives

from ..autograd import no_grad
from ..autograd.engine import backward_reaches, current_backward, queue_callback
from ..autograd.graph import bump_version
from ..backend import CPU
from ..tensor import Tensor, wrap
from .buckets import Bucket, GradBucket, assign
from .ddp_report import Clock
from .process_group import ProcessGroup


class Reducer:
    """Averages the gradients of `parameters` over the ranks of a group, backward by backward.

    Args:
        names, parameters: what to reduce, the same on every rank.
        group: the ranks.
        caps: limits in bytes of the first bucket, the second, …; the last one holds for the rest.
        find_unused: let a rank's backward leave parameters out; they count as zeros there.
        as_view: make each `.grad` a view of its bucket, which spares copying back.
        static: the parameters used, and how often each, are the same in every backward, so they are
            found in the first one, which is reduced at its end.
        skip_unused: with `find_unused`, do not reduce buckets that this rank's backward leaves out
            whole. It must leave out the same on all ranks.

    Attributes:
        events: None, or a list to which every backward appends ("ready", parameter's name),
            ("launched", bucket's number) and ("backward finished",).
        hook: None, or what is called with a GradBucket in the place of the all-reduce.
        scale: None, or what gives the factor of this rank's gradients before they are averaged.
        joining: whether ranks may be without input (`Join`).
        after_bucket: None, or what is called with the parameters of each bucket once their reduced
            gradients are in place, while later buckets are still under way.
        local: weak references to gradients that were accumulated without being reduced since, by
            number of the parameter.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        group: ProcessGroup,
        caps: Sequence[int],
        find_unused: bool,
        as_view: bool,
        static: bool,
        skip_unused: bool = False,
    ) -> None:
        self.names, self.parameters, self.group = list(names), list(parameters), group
        self.caps, self.find_unused = list(caps), find_unused
        self.as_view, self.static, self.skip_unused = as_view, static, skip_unused
        self.events: list[tuple] | None = None
        self.hook: Callable[[GradBucket], Any] | None = None
        self.scale: Callable[[], float] | None = None
        self.joining = False
        self.after_bucket: Callable[[list[Tensor]], None] | None = None
        self.local: dict[int, weakref.ref] = {}
        self.clock = Clock()
        self.futures: list[Any] = []  # of buffers' hooks, to be waited for at the end of backward
        self._backward: object | None = None  # the one whose gradients come in
        self._rebuilt = group.size() == 1
        self._ready: set[int] = set()
        self._order: dict[int, None] = {}  # an ordered set
        self._fired: dict[int, int] = {}
        self._expected: dict[int, int] | None = None  # with `static`, once known
        self._launched = 0
        self._factor = 1.0
        self._absent: list[int] | None = None  # with `static`, once known
        self._first_fired: dict[int, int] | None = None
        self.was_static = True  # whether all backwards so far used the same parameters as often
        self.buckets: list[Bucket] = []
        self.build(range(len(self.parameters))[::-1])

    @property
    def alone(self) -> bool:
        """Whether there is nothing to do, as nobody else is there and no hook wants to look."""
        return self.hook is None and self.group.size() == 1

    @property
    def rebuilt(self) -> bool:
        """Whether the buckets have the order that the first backward showed."""
        return self._rebuilt and self.group.size() > 1

    @property
    def last_order(self) -> list[int]:
        """The parameters in the order in which the last backward computed their gradients."""
        return list(self._order)

    def build(self, order: Sequence[int]) -> None:
        """Lay out buckets for gradients expected in this order."""
        self.buckets = []  # free the old memory before asking for the new
        self.order = list(order)
        layout = assign(self.order, self.parameters, self.caps)
        self._place = {
            i: (number, slot) for number, each in enumerate(layout) for slot, i in enumerate(each)
        }
        if not self.alone:
            self.buckets = [Bucket(members, self.parameters) for members in layout]

    def check_in_step(self) -> None:
        """Raise RuntimeError if the last backward did not come to its end."""
        if self._backward in (None, current_backward()) or self.alone:
            return
        raise RuntimeError(
            "the previous backward was left by an exception before all gradients were reduced on "
            f"rank {self.group.rank()}: ranks are no longer in step, restart the job from a "
            "checkpoint"
        )

    # ---- during backward ---------------------------------------------------------------------

    def gradient_ready(self, i: int) -> None:
        """Take in the gradient of parameter `i`; called by its hook."""
        if self._backward is not current_backward():
            self.check_in_step()
            self._begin()
        if self.events is not None:
            self.events.append(("ready", self.names[i]))
        if self.alone:
            self._ready.add(i)
            return
        if i not in self._place:
            raise RuntimeError(
                f"parameter {self.names[i]!r} has a gradient on rank {self.group.rank()}, but no "
                "rank used it in the first backward: with static_graph=True the parameters that "
                "are used may not change"
            )
        number, slot = self._place[i]
        if number < self._launched:
            raise RuntimeError(self._late_message(i))
        bucket = self.buckets[number]
        self._fill(bucket, slot)
        self._order.pop(i, None)
        self._order[i] = None
        self._fired[i] = self._fired.get(i, 0) + 1
        if i in self._ready or self._expected and self._fired[i] < self._expected.get(i, 1):
            return
        self._ready.add(i)
        bucket.missing -= 1
        if not self.static or self._expected is not None:
            self._launch_full_buckets()

    def gradient_stays(self, i: int) -> None:
        """Note that a gradient of parameter `i` has been accumulated and is not reduced now."""
        grad = self.parameters[i]._grad
        if grad is not None and self.group.size() > 1:
            self.local[i] = weakref.ref(grad)

    def _begin(self) -> None:
        queue_callback(self._finish)
        self._backward = current_backward()
        self._start_pass()
        if self.alone:
            return
        if self._absent is not None:
            self._leave_out(self._absent)
        elif self.find_unused:
            absent = [i for i in self._place if not backward_reaches(self.parameters[i])]
            self._leave_out(absent)
            if self.skip_unused:
                for bucket in self.buckets:
                    bucket.idle = bucket.missing == 0

    def _start_pass(self) -> None:
        self._ready, self._order, self._fired, self._launched = set(), {}, {}, 0
        self.clock.backward_began()
        if self.events is not None:
            self.events.clear()
        for bucket in self.buckets:
            bucket.missing, bucket.work = len(bucket.members), None

    def _leave_out(self, absent: Sequence[int]) -> None:
        """Count parameters that this backward does not reach as ready."""
        for i in absent:
            number, slot = self._place[i]
            self._fill(self.buckets[number], slot)
            self._ready.add(i)
            self.buckets[number].missing -= 1

    def _fill(self, bucket: Bucket, slot: int) -> None:
        parameter, view = self.parameters[bucket.members[slot]], bucket.views[slot]
        grad = parameter._grad
        if grad is None:
            view[...] = 0
        elif grad._data is not view:
            if grad._data.dtype != view.dtype:
                raise RuntimeError(
                    f"the gradient of {self.names[bucket.members[slot]]!r} is of {grad.dtype}, but "
                    f"was {view.dtype} when the module was wrapped: convert a module before "
                    "wrapping it in DistributedDataParallel"
                )
            view[...] = grad._data
            if self.as_view:
                parameter._grad = wrap(view)

    # ---- the reduction of a bucket -------------------------------------------------------------

    def _launch_full_buckets(self) -> None:
        while self._launched < len(self.buckets) and not self.buckets[self._launched].missing:
            number = self._launched
            if number == 0:
                self._factor = 1.0 if self.scale is None else self.scale()
                self.clock.reduction_began()
            if not self.buckets[number].idle:
                self._launch(number)
            self._launched += 1

    def _launch(self, number: int) -> None:
        bucket = self.buckets[number]
        if self._factor == 0:
            bucket.flat[...] = 0  # a mean over no samples is not a number
        elif self._factor != 1.0:
            bucket.flat *= self._factor
        last = all(later.idle for later in self.buckets[number + 1 :])
        if self.hook is None:
            bucket.work = self.group.ranks.all_reduce(
                bucket.flat, collectives.ReduceOp.AVG, async_op=True
            )
            self.clock.watch(bucket.work, last)
        else:
            parameters = [self.parameters[i] for i in bucket.members]
            with no_grad():
                bucket.work = self.hook(GradBucket(number, wrap(bucket.flat), parameters, last))
            if not hasattr(bucket.work, "wait"):
                raise TypeError(
                    "a communication hook must return a torch.futures.Future of the bucket's new "
                    f"tensor, got {type(bucket.work).__name__}"
                )
        if self.events is not None:
            self.events.append(("launched", number))

    def _await(self, bucket: Bucket) -> None:
        """Have the reduced values in the bucket."""
        if self.hook is None:
            bucket.work.wait(self.group.timeout)
            return
        with no_grad():
            result = bucket.work.wait()
        if isinstance(result, list | tuple) and len(result) == 1:
            (result,) = result
        if not isinstance(result, Tensor) or result._data.size != bucket.flat.size:
            raise RuntimeError(
                "the future of a communication hook must hold one tensor of the bucket's "
                f"{bucket.flat.size} elements, got {result!r}"
            )
        if result._data is not bucket.flat:
            bucket.flat[...] = result._data.reshape(-1)

    # ---- at the end of backward --------------------------------------------------------------

    def _finish(self) -> None:
        if self.events is not None:
            self.events.append(("backward finished",))
        self.clock.compute_ended()
        absent = sorted(i for i in self._place if i not in self._ready)
        finding = self._finding
        if absent and not finding:
            self._backward = None
            raise RuntimeError(self._unused_message(absent))
        self.local.clear()
        if self.alone:
            self._scale_alone()
        else:
            self._leave_out(absent)
            self._launch_full_buckets()
            self._collect(finding, [p._grad is not None for p in self.parameters])
        for future in self.futures:
            future.wait()
        self.futures = []
        if self._first_fired is None:
            self._first_fired = self._fired
        self.was_static = self.was_static and self._fired == self._first_fired
        came = self._ready if self.alone else self._fired
        self.clock.backward_ended([i for i in range(len(self.parameters)) if i not in came])
        self._backward = None

    @property
    def _finding(self) -> bool:
        return self.find_unused or (self.static and self._absent is None)

    def _collect(self, finding: bool, mine: Sequence[bool]) -> None:
        """Wait for all buckets and bring their values into the gradients."""
        used = None
        if finding:
            # A parameter that no rank used keeps its `.grad` as it was.
            used = CPU.array(mine)
            self.group.ranks.all_reduce(used, collectives.ReduceOp.MAX)
        for bucket in self.buckets:
            if bucket.idle:
                continue
            self._await(bucket)
            came = []
            for i, view in zip(bucket.members, bucket.views):
                if used is None or used[i]:
                    self._bring_back(self.parameters[i], view)
                    came.append(self.parameters[i])
            if self.after_bucket is not None:
                self.after_bucket(came)
        if not self._rebuilt:
            self._rebuild(used)
        if self.static and self._expected is None:
            self._expected = self._fired

    def use_hook(self, hook: Callable[[GradBucket], Any] | None) -> None:
        """Have `hook` reduce the buckets in the place of the all-reduce."""
        self.hook = hook
        if self.group.size() == 1:  # there were no buckets before
            self.build(self.order)

    def use_group(self, group: ProcessGroup) -> None:
        """Reduce over other ranks from now on; the buckets' order is measured again."""
        self.check_in_step()
        self.group, self._rebuilt = group, group.size() == 1
        self._expected = self._absent = None
        self.build(range(len(self.parameters))[::-1])

    def _scale_alone(self) -> None:
        factor = 1.0 if self.scale is None else self.scale()
        for i in self._ready if factor != 1.0 else ():
            grad = self.parameters[i]._grad
            if grad is not None:
                self._bring_back(self.parameters[i], grad._data * factor)
        if self.after_bucket is not None:
            self.after_bucket([self.parameters[i] for i in sorted(self._ready)])

    def _bring_back(self, parameter: Tensor, view: Any) -> None:
        grad = parameter._grad
        if grad is None or grad.requires_grad:
            # Unused here but not elsewhere; or recorded by create_graph, and the mean over ranks
            # is not what that graph would differentiate.
            parameter._grad = wrap(view if self.as_view else view.copy())
            return
        if grad._data is not view:
            grad._data[...] = view
        bump_version(grad)

    def _rebuild(self, used: Any) -> None:
        """Lay the buckets out anew, in the order in which rank 0 saw gradients become ready."""
        self._rebuilt = True
        if self.find_unused and not self.static:
            return  # the order would lack the parameters that rank 0 happens not to use
        mine = list(self._order)
        if self.joining:  # rank 0 may have no input any more, and then has seen nothing
            orders = self.group.ranks.all_gather_object(mine)
            order = list(next(each for each in orders if each))
        else:
            order = list(self.group.ranks.broadcast_object(mine, 0))
        if used is not None:
            seen = set(order)
            order += [i for i in self._place if used[i] and i not in seen]
            self._absent = [i for i in order if i not in self._order]
        if order != [i for bucket in self.buckets for i in bucket.members]:
            self.build(order)

    def shadow(self) -> None:
        """Make the calls of the others' backward, with zeros; this rank has no input any more."""
        if self.static and not self._rebuilt:
            raise RuntimeError(
                f"static_graph=True: rank {self.group.rank()} has no input in the first iteration, "
                "in which it learns what its backward uses; give every rank one input at least"
            )
        self._start_pass()
        for bucket in self.buckets:
            bucket.flat[...] = 0
            bucket.missing = 0
        self._launch_full_buckets()
        if not self.alone:
            self._collect(self._finding, [False] * len(self.parameters))

    # ---- messages --------------------------------------------------------------------------------

    def _late_message(self, i: int) -> str:
        return (
            f"a gradient of parameter {self.names[i]!r} became ready on rank {self.group.rank()} "
            "after its reduction had started, so a part of it would not be reduced. Its graph is "
            "entered more than once per backward (reentrant checkpointing does that): use "
            "non-reentrant checkpointing, or static_graph=True, or run forward and backward in "
            "no_sync() and reduce in a last pass"
        )

    def _unused_message(self, absent: Sequence[int]) -> str:
        names = [self.names[i] for i in absent]
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        frozen = [self.names[i] for i in absent if not self.parameters[i].requires_grad]
        hint = (
            f"{', '.join(frozen[:20])} stopped requiring grad after wrapping: freeze parameters "
            "before"
            if frozen
            else "pass find_unused_parameters=True if that is intended"
        )
        return (
            f"{len(names)} parameter(s) of DistributedDataParallel received no gradient in this "
            f"backward on rank {self.group.rank()}: {shown}. Their gradients would differ between "
            f"ranks; {hint}"
        )
