"""ExactDataParallel: data parallelism that gives the same weights on any number of ranks."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ... import ops
from ...autograd import is_grad_enabled
from ...autograd.graph import bump_version
from ...nn import Module
from ...nn.utils import clip_grad_norm_
from ...ops.random import initial_seed
from ...tensor import Tensor, wrap
from ..process_group import ProcessGroup, belonging
from . import surroundings
from .agreement import check_modules, compare, copy_from_first, digests, is_cut
from .cutting import cut, groups_of
from .running import RunningBuffers
from .sampler import check_shards
from .streams import random_stream
from .tree_sum import TreeSum

_TRAIN, _EVALUATE = 0, 1  # the last number of a stream's key


class ExactDataParallel(Module):
    """Wraps a model so that training it gives bitwise the same weights on 1, 2, 3, ... ranks.

        model = ExactDataParallel(model, virtual_shards=12)
        for x, y in loader:                     # this rank's part of the global batch
            optimizer.zero_grad()
            for x, y in model.shards(x, y):     # the only line to add to a script
                F.cross_entropy(model(x), y).backward()
            optimizer.step()

    The global batch is always V virtual shards; each of n ranks has V/n of them. The loop yields
    them one by one. When it ends, `.grad` holds the mean of the V shards' gradients, added up in
    one fixed tree, the same bits on every rank and for every n. A loss that is a mean over the
    samples so has the gradient of the whole batch. Gradients from before the loop are added to, as
    usual. Inside the loop the default random generators are the shard's own.

    One collective call per bucket of gradients, after the last shard. Besides `.grad` a rank keeps
    log2(V/n) times the gradients (at least once; at most 3 more where V/n is no power of two).

    Args:
        module: the model, the same on every rank; its state is copied from rank 0.
        virtual_shards: V, a multiple of the number of ranks, and of all that the training shall
            ever run on. It decides the result, as the batch size does.
        seed: of the shards' random numbers; None: the seed of rank 0's default generator.
        threads: of NumPy's BLAS in this process from now on: its bits depend on them, so they may
            not follow the number of ranks.
        process_group: the ranks; None: all.
        bucket_cap_mb: limit of a bucket in MiB; without effect on the bits.
        strict: raise where ranks would not compute alike; False warns.

    Attributes:
        module: the wrapped model; its keys in `state_dict()` begin with "module.". The state also
            has the step, the seed, V and the fingerprint (`surroundings`).
        step_number: how many loops with gradients have ended.

    Raises:
        ValueError: V is not a multiple of the number of ranks; no parameter requires grad.
        RuntimeError: ranks differ in their model, or in what the bits depend on; a SyncBatchNorm.
    """

    def __init__(
        self,
        module: Module,
        virtual_shards: int,
        *,
        seed: int | None = None,
        threads: int = 1,
        process_group: ProcessGroup | None = None,
        bucket_cap_mb: float = 25,
        strict: bool = True,
    ) -> None:
        super().__init__()
        group = belonging(process_group)
        check_shards(virtual_shards, group.size())
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("ExactDataParallel: no parameter of the module requires grad")
        check_modules(module)
        self.module, self.process_group, self.virtual_shards = module, group, virtual_shards
        surroundings.fix_threads(threads)
        device = str(trained[0][1].device)
        surroundings.prepare_gpu(device)
        self.fingerprint = surroundings.fingerprint(device)
        surroundings.compare_ranks(self.fingerprint, group, strict)
        self.seed = int(group.ranks.broadcast_object(initial_seed() if seed is None else seed, 0))
        self.step_number = 0
        copy_from_first(module, group)
        self._parameters_here = [p for _, p in trained if not is_cut(p)]
        self._sharded = _sharded_gradients(module, group, virtual_shards)
        self._frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
        self._buckets = [
            (members, TreeSum([self._parameters_here[i]._data for i in members], group, virtual_shards))
            for members in groups_of(self._parameters_here, bucket_cap_mb * 2**20)
        ]
        self._running = RunningBuffers(module, group, virtual_shards)
        self._loop: weakref.ref | None = None
        self._inside = False
        self._left = ""

    # ---- the loop ----------------------------------------------------------------------------

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the module: on a virtual shard in training, on anything else otherwise.

        Raises:
            RuntimeError: in training outside of a loop over `shards`, where no gradient would be
                averaged.
        """
        if self.training and not self._inside and is_grad_enabled():
            raise RuntimeError(
                "ExactDataParallel: a forward pass in training mode outside of `for ... in "
                "model.shards(...)`: its gradients would not be averaged over the ranks. Put it "
                "there, or use eval() or no_grad()"
            )
        return self.module(*inputs, **kwargs)

    def shards(self, *batch: Any, whole: bool = False) -> Iterator[Any]:
        """This rank's virtual shards, one after the other; a collective call at the loop's end.

        Without gradients (`no_grad`) nothing is reduced but buffers, and no step is counted.

        Args:
            batch: this rank's part of the global batch: tensors [N·V/n, ...], also in lists, tuples
                and dicts, which are cut into V/n parts of N samples.
            whole: `batch` is the global one, [N·V, ...]; the other ranks' shards are left out.

        Yields:
            the shard's part of the only argument, or a tuple for several; without any the number of
            the shard, from 0 to V - 1.

        Raises:
            ValueError: the batch cannot be cut so.
            RuntimeError: the last loop was left before its end; a frozen parameter requires grad
                now; shards of other sizes on other ranks.
        """
        self._check_ready()
        each = self.virtual_shards // self.process_group.size()
        first = self.process_group.rank() * each
        parts: Sequence[Any] = range(first, first + each)
        size = 0
        if batch:
            pieces = self.virtual_shards if whole else each
            parts, size = cut(batch, pieces, first if whole else 0, each, self.process_group.rank())
        loop = self._run(parts, size, first)
        self._loop = weakref.ref(loop)
        return loop

    def backward(self, loss: Callable[..., Tensor], *batch: Any, whole: bool = False) -> Tensor:
        """The loop in one call: `loss(*shard).backward()` for every shard.

        Args:
            loss: called with the parts of `batch`; returns a scalar.
            batch, whole: see `shards`.

        Returns:
            the mean of all shards' losses, the same bits on every rank.
        """
        losses = []
        for shard in self.shards(*batch, whole=whole):
            value = loss(*shard) if len(batch) > 1 else loss(shard)
            value.backward()
            losses.append(value.detach())
        return self.mean(losses)

    def _run(self, parts: Sequence[Any], size: int, first: int) -> Iterator[Any]:
        training = is_grad_enabled()
        before = self._begin() if training else []
        self._running.begin()
        self._left = f"before virtual shard {first} of {self.virtual_shards}"
        kind = _TRAIN if training else _EVALUATE
        try:
            for i, part in enumerate(parts):
                with random_stream(self.seed, self.step_number, first + i, kind):
                    self._inside = True
                    self._left = f"in virtual shard {first + i} of {self.virtual_shards}"
                    yield part
                self._inside = False
                self._running.collect()
                if training:
                    self._collect(size)
            self._left = "while the shards were reduced"
            self._running.finish()
            if training:
                self._finish(before, size)
                self.step_number += 1
            self._left = ""
        finally:
            self._inside = False
            if training and self._sharded is not None:
                self._sharded.end()

    def _check_ready(self) -> None:
        loop = None if self._loop is None else self._loop()
        if loop is not None:
            loop.close()  # it would keep the shard's random numbers in force
        if self._left:
            raise RuntimeError(
                f"ExactDataParallel: the last loop over shards was left {self._left} on rank "
                f"{self.process_group.rank()}, so its gradients are not whole and ranks may not be "
                "in step; go on from a checkpoint"
            )
        for name, p in self._frozen:
            if p.requires_grad:
                raise RuntimeError(
                    f"ExactDataParallel: parameter {name!r} was frozen when the module was wrapped "
                    "and requires grad now: its gradient would not be reduced; wrap it again"
                )

    # ---- gradients ---------------------------------------------------------------------------

    def _begin(self) -> list[Tensor | None]:
        before = [p.grad for p in self._parameters_here]
        for p in self._parameters_here:
            p.grad = None
        for _, total in self._buckets:
            total.restart()
        if self._sharded is not None:
            self._sharded.begin()
        return before

    def _collect(self, size: int) -> None:
        for members, total in self._buckets:
            grads = [self._parameters_here[i].grad for i in members]
            total.push([None if g is None else g._data for g in grads], size)
            for i in members:
                self._parameters_here[i].grad = None
        if self._sharded is not None:
            self._sharded.collect(size)

    def _finish(self, before: list[Tensor | None], size: int) -> None:
        used = 0
        for samples, shards_with in [] if self._sharded is None else self._sharded.finish():
            self._check_samples(samples, size)
            used += shards_with
        for members, total in self._buckets:
            means, counts, samples = total.mean()
            self._check_samples(samples, size)
            used += sum(counts)
            for i, mean, count in zip(members, means, counts):
                earlier = before[i]
                if earlier is None:
                    self._parameters_here[i].grad = wrap(mean) if count else None
                    continue
                if count:
                    earlier._data[...] += mean
                    bump_version(earlier)
                self._parameters_here[i].grad = earlier
        if not used:
            raise RuntimeError(
                "ExactDataParallel: no virtual shard had a gradient: call backward() on each shard's "
                "loss inside the loop, not after it; or loop under no_grad()"
            )

    def _check_samples(self, samples: int, size: int) -> None:
        if samples != size * self.virtual_shards:
            raise RuntimeError(
                f"ExactDataParallel: virtual shards have {size} samples on rank "
                f"{self.process_group.rank()}, but {samples} in all {self.virtual_shards}: they "
                "must be of one size on all ranks, or their mean is not that of the batch"
            )

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """`nn.utils.clip_grad_norm_` of all gradients, also where they are cut by `fully_shard`.

        Returns:
            the 2-norm before clipping, the same bits on every rank.
        """
        if self._sharded is None:
            return clip_grad_norm_(self.parameters(), max_norm)
        return self._sharded.clip(self.parameters(), max_norm)

    # ---- numbers of all shards ---------------------------------------------------------------

    def sum(self, values: Sequence[Any]) -> Tensor:
        """The sum over all V shards of a number or tensor of each; a collective call.

        Args:
            values: this rank's V/n, in the loop's order: numbers, or floating tensors of one shape.

        Returns:
            a tensor without gradient, float64 for numbers; the same bits on every rank and any n.
        """
        each = self.virtual_shards // self.process_group.size()
        if len(values) != each:
            raise ValueError(
                f"ExactDataParallel: {len(values)} values given, but this rank has {each} of the "
                f"{self.virtual_shards} virtual shards"
            )
        tensors = [
            v.detach() if isinstance(v, Tensor) and v.is_floating_point() else _double(v) for v in values
        ]
        total = TreeSum([tensors[0]._data], self.process_group, self.virtual_shards)
        for t in tensors:
            total.push([t._data])
        array = total.total()[0][0]
        return wrap(array.astype(tensors[0]._data.dtype, copy=False))

    def mean(self, values: Sequence[Any]) -> Tensor:
        """Like `sum`, divided by V: the mean over the batch of what are means over shards."""
        return self.sum(values) / self.virtual_shards

    # ---- state -------------------------------------------------------------------------------

    def digest(self) -> str:
        """SHA-256 of all parameters and buffers with their names: equal where all bits are."""
        found = hashlib.sha256()
        for name, value in digests(self.module).items():
            found.update(f"{name} {value}\n".encode())
        return found.hexdigest()

    def audit(self) -> None:
        """Compare the bits of all parameters and buffers over the ranks; a collective call.

        Raises:
            RuntimeError: on every rank, which tensor differs on which rank.
        """
        compare(self.module, self.process_group, self.step_number)

    def get_extra_state(self) -> dict[str, Any]:
        """What else decides the training's next steps, and where it was run."""
        return {
            "virtual_shards": self.virtual_shards, "seed": self.seed, "step": self.step_number,
            "fingerprint": dict(self.fingerprint),
        }  # fmt: skip

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved step; warns where the bits may differ from then on.

        Raises:
            ValueError: it was saved with another number of virtual shards.
        """
        if state["virtual_shards"] != self.virtual_shards:
            raise ValueError(
                f"the checkpoint was trained with {state['virtual_shards']} virtual shards, this "
                f"model has {self.virtual_shards}: its weights would go another way; give "
                f"virtual_shards={state['virtual_shards']}"
            )
        self.seed, self.step_number, self._left = state["seed"], state["step"], ""
        found = surroundings.differences(self.fingerprint, state["fingerprint"])
        if found and self.process_group.rank() == 0:
            told = surroundings.in_words(found, "here", "in the checkpoint")
            what = "bits may differ from here on" if surroundings.decisive(found) else "names differ"
            warnings.warn(f"exact: {what}: {told}", stacklevel=2)


def _double(value: Any) -> Tensor:
    return value.detach().double() if isinstance(value, Tensor) else ops.tensor(value).double()


def _sharded_gradients(module: Module, group: ProcessGroup, shards: int) -> Any:
    """What sums the gradients of modules under `fully_shard`; None without any."""
    if not any("_fsdp_state" in each.__dict__ for each in module.modules()):
        return None
    from .sharded import ShardedGradients

    return ShardedGradients(module, group, shards)
