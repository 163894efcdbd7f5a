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

from collections.abc import Sequence
from typing import Any

import collectives

from ..autograd.engine import backward_reaches, current_backward, queue_callback
from ..autograd.graph import bump_version
from ..backend import CPU
from ..tensor import Tensor, wrap
from .buckets import MIB, Bucket, assign
from .process_group import ProcessGroup


class Reducer:
    """Averages the gradients of `parameters` over the ranks of a group, backward by backward.

    Args:
        names, parameters: what to reduce, the same on every rank.
        group: the ranks.
        cap_bytes: limit of a bucket; the first one is at most 1 MiB.
        find_unused: let a rank's backward leave parameters out; they count as zeros there.
        as_view: make each `.grad` a view of its bucket, which spares copying back.
        static: the parameters left out are the same in every backward, so they are found once.

    Attributes:
        events: None, or a list to which every backward appends ("ready", parameter's name),
            ("launched", bucket's number) and ("backward finished",).
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        group: ProcessGroup,
        cap_bytes: int,
        find_unused: bool,
        as_view: bool,
        static: bool,
    ) -> None:
        self.names, self.parameters, self.group = list(names), list(parameters), group
        self.cap_bytes, self.find_unused = cap_bytes, find_unused
        self.as_view, self.static = as_view, static
        self.events: list[tuple] | None = None
        self._backward: object | None = None  # the one whose gradients come in
        self._alone = group.size() == 1
        self._rebuilt = self._alone
        self._ready: set[int] = set()
        self._order: list[int] = []
        self._launched = 0
        self._absent: list[int] | None = None  # with `static`, once known
        self.buckets: list[Bucket] = []
        self._build(range(len(self.parameters))[::-1])

    def _build(self, order: Sequence[int]) -> None:
        self.buckets = []  # free the old memory before asking for the new
        layout = assign(order, self.parameters, min(MIB, self.cap_bytes), self.cap_bytes)
        self._place = {
            i: (number, slot) for number, each in enumerate(layout) for slot, i in enumerate(each)
        }
        if not self._alone:
            self.buckets = [Bucket(members, self.parameters) for members in layout]

    def check_in_step(self) -> None:
        """Raise RuntimeError if the last backward did not come to its end."""
        if self._backward in (None, current_backward()) or self._alone:
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
        again = i in self._ready
        self._ready.add(i)
        if self._alone:
            return
        if i not in self._place:
            raise RuntimeError(
                f"parameter {self.names[i]!r} has a gradient on rank {self.group.rank()}, but no "
                "rank used it in the first backward: with static_graph=True the parameters that "
                "are used may not change"
            )
        number, slot = self._place[i]
        if number < self._launched:
            raise RuntimeError(
                f"a gradient of parameter {self.names[i]!r} became ready on rank "
                f"{self.group.rank()} after its reduction had started, so a part of it would not "
                "be reduced. Its graph is entered more than once per backward (reentrant "
                "checkpointing does that): use non-reentrant checkpointing, or run forward and "
                "backward in no_sync() and reduce in a last pass"
            )
        bucket = self.buckets[number]
        self._fill(bucket, slot)
        if not again:
            self._order.append(i)
            bucket.missing -= 1
            self._launch_full_buckets()

    def _begin(self) -> None:
        queue_callback(self._finish)
        self._backward = current_backward()
        self._ready, self._order, self._launched = set(), [], 0
        if self.events is not None:
            self.events.clear()
        for bucket in self.buckets:
            bucket.missing, bucket.work = len(bucket.members), None
        if self._alone:
            return
        if self._absent is not None:
            self._leave_out(self._absent)
        elif self.find_unused:
            self._leave_out([i for i in self._place if not backward_reaches(self.parameters[i])])

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

    def _launch_full_buckets(self) -> None:
        while self._launched < len(self.buckets) and not self.buckets[self._launched].missing:
            bucket = self.buckets[self._launched]
            bucket.work = self.group.ranks.all_reduce(
                bucket.flat, collectives.ReduceOp.AVG, async_op=True
            )
            if self.events is not None:
                self.events.append(("launched", self._launched))
            self._launched += 1

    # ---- at the end of backward --------------------------------------------------------------

    def _finish(self) -> None:
        if self.events is not None:
            self.events.append(("backward finished",))
        absent = sorted(i for i in self._place if i not in self._ready)
        finding = self.find_unused or (self.static and self._absent is None)
        if absent and not finding:
            self._backward = None
            raise RuntimeError(self._unused_message(absent))
        if not self._alone:
            self._leave_out(absent)
            self._launch_full_buckets()
            used = self._used_anywhere() if finding else None
            for bucket in self.buckets:
                bucket.work.wait(self.group.timeout)
                for i, view in zip(bucket.members, bucket.views):
                    if used is None or used[i]:
                        self._bring_back(self.parameters[i], view)
            if not self._rebuilt:
                self._rebuild(used)
        self._backward = None

    def _used_anywhere(self) -> Any:
        """For each parameter, whether any rank has a gradient; `.grad` stays None otherwise."""
        used = CPU.array([p._grad is not None for p in self.parameters])
        self.group.ranks.all_reduce(used, collectives.ReduceOp.MAX)
        return used

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
        order = list(self.group.ranks.broadcast_object(self._order, 0))
        if used is not None:
            seen = set(order)
            order += [i for i in self._place if used[i] and i not in seen]
            mine = set(self._order)
            self._absent = [i for i in order if i not in mine]
        if order != [i for bucket in self.buckets for i in bucket.members]:
            self._build(order)

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
