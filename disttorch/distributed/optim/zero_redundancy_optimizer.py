"""ZeRO-1: each rank keeps the optimizer state of its part of the parameters, and updates those.

S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", arXiv:1910.02054. After the step the parts are gathered, so that every rank has
all parameters again: together with the all-reduce of the gradients 3·Ψ·(n-1)/n bytes per rank and
step for Ψ bytes of parameters, and 1/n of the optimizer state in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...autograd.graph import bump_version
from ...backend import namespace_of
from ...optim import Optimizer
from ...tensor import Tensor
from ..algorithms.join import Join, Joinable, JoinHook
from ..process_group import ProcessGroup, belonging


class _ZeROJoinHook(JoinHook):
    """A rank without input still updates its part, which the others need."""

    def __init__(self, zero: ZeroRedundancyOptimizer) -> None:
        self.zero = zero

    def main_hook(self) -> None:
        self.zero.step()


class ZeroRedundancyOptimizer(Optimizer, Joinable):
    """Shards the state of any elementwise optimizer over the ranks, by whole parameters.

    Every rank must see the same gradients, as DistributedDataParallel leaves them. The largest
    parameter goes to the rank with the least so far, and so on.

    Args:
        params: parameters or groups of them, all of one dtype, the same on all ranks.
        optimizer_class: of the optimizer of each part.
        process_group: the ranks; None: all.
        parameters_as_bucket_view: keep the parameters in one flat array, from which they are sent;
            saves the copies, and memory for a second set of the parameters during the step.
        overlap_with_ddp: not built.
        defaults: for `optimizer_class`.

    Attributes:
        optim: this rank's optimizer.

    Raises:
        TypeError, ValueError: what are no parameters; several dtypes.
        NotImplementedError: `overlap_with_ddp`.
    """

    def __init__(
        self,
        params: Any,
        optimizer_class: type[Optimizer],
        process_group: ProcessGroup | None = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        **defaults: Any,
    ) -> None:
        if overlap_with_ddp:
            raise NotImplementedError(
                "ZeroRedundancyOptimizer(overlap_with_ddp=True) is not built: call step() after "
                "backward; fully_shard overlaps both"
            )
        params = _checked(params)
        self.process_group = belonging(process_group)
        self.rank, self.world_size = self.process_group.rank(), self.process_group.size()
        self.parameters_as_bucket_view = parameters_as_bucket_view
        self._sizes = [0] * self.world_size  # elements of each rank's part
        self._owner: dict[int, int] = {}  # id of a parameter -> rank
        self._all_state_dicts: list[dict] | None = None
        self.optim: Any = None
        Optimizer.__init__(self, params, dict(defaults))
        Joinable.__init__(self)
        mine = [self._part(group, self.rank) for group in self.param_groups]
        self.optim = optimizer_class(mine, **defaults)
        # Options that the optimizer has by default belong in the groups that schedulers see.
        _copy_options(self.optim.param_groups, self.param_groups)
        self.defaults = {**self.optim.defaults, **self.defaults}
        self._lay_out()

    # ---- the parts -------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose parameters are dealt to the ranks like the others; on all ranks."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in sorted(group["params"], key=lambda p: p.numel(), reverse=True):
            rank = self._sizes.index(min(self._sizes))
            self._owner[id(p)] = rank
            self._sizes[rank] += p.numel()
        if self.optim is not None:
            _copy_options(self.param_groups, self.optim.param_groups)
            self.optim.add_param_group(self._part(group, self.rank))
            _copy_options(self.optim.param_groups, self.param_groups)
            self._lay_out()

    def _part(self, group: dict[str, Any], rank: int) -> dict[str, Any]:
        mine = [p for p in group["params"] if self._owner[id(p)] == rank]
        part = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        return {**part, "params": mine}

    def _partition_parameters(self) -> list[list[dict]]:
        """The groups of every rank's optimizer, by rank."""
        return [
            [self._part(group, rank) for group in self.param_groups]
            for rank in range(self.world_size)
        ]

    def _lay_out(self) -> None:
        """Where each parameter lies in a flat array of all of them, rank after rank."""
        everything = [p for group in self.param_groups for p in group["params"]]
        self._order = sorted(everything, key=lambda p: self._owner[id(p)])  # stable
        self._flat: Any = None
        if self.parameters_as_bucket_view:
            self._flat = self._packed(self._order)
            for p, view in self._views(self._flat):
                p._data = view

    def _packed(self, params: Iterable[Tensor]) -> Any:
        arrays = [p._data.reshape(-1) for p in params]
        if not arrays:
            like = self._order[0]._data
            return namespace_of(like).empty((0,), like.dtype)
        return namespace_of(arrays[0]).concatenate(arrays)

    def _views(self, flat: Any) -> Iterable[tuple[Tensor, Any]]:
        start = 0
        for p in self._order:
            end = start + p._data.size
            yield p, flat[start:end].reshape(p._data.shape)
            start = end

    # ---- the step --------------------------------------------------------------------------------

    def step(self, closure: Callable | None = None, **kwargs: Any) -> Any:
        """Update this rank's part and fetch the others'; all ranks must call it.

        Args:
            closure: computes the loss again and returns it.
            kwargs: for the optimizer.

        Returns:
            What the optimizer of this rank's part returns.
        """
        Join.notify_join_context(self)
        _copy_options(self.param_groups, self.optim.param_groups)
        if closure is not None:
            kwargs["closure"] = closure
        loss = self.optim.step(**kwargs)
        _copy_options(self.optim.param_groups, self.param_groups)
        self._sync_params()
        return loss

    def _sync_params(self) -> None:
        """Gather all parts: one call for all parameters."""
        if self.world_size == 1:
            return
        mine = self._packed(p for p in self._order if self._owner[id(p)] == self.rank)
        flat = self._flat
        if flat is None:
            flat = namespace_of(mine).empty((sum(self._sizes),), mine.dtype)
        self.process_group.ranks.all_gather(flat, mine, counts=self._sizes)
        for p, view in self._views(flat):
            if self._owner[id(p)] != self.rank:
                if self._flat is None:
                    p._data[...] = view
                bump_version(p)

    # ---- state -----------------------------------------------------------------------------------

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring all ranks' states to one rank, for `state_dict` there; all ranks must call it.

        Args:
            to: the group's rank.
        """
        _copy_options(self.param_groups, self.optim.param_groups)
        state = self.optim.state_dict()["state"]
        found = self.process_group.ranks.gather_object(_on_host(state), to)
        self._all_state_dicts = found if self.rank == to else None

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters, as that of the optimizer without sharding.

        Raises:
            RuntimeError: not consolidated on this rank since the last time.
        """
        if self._all_state_dicts is None:
            raise RuntimeError(
                "Optimizer state has not been consolidated on this rank. Please call "
                f"`consolidate_state_dict(to={self.rank})` on all ranks beforehand if you meant to "
                "save the global state."
            )
        result = super().state_dict()
        index = self._index()
        for rank, state in enumerate(self._all_state_dicts):
            params = [p for group in self.param_groups for p in self._part(group, rank)["params"]]
            for local, values in state.items():
                result["state"][index[id(params[local])]] = values
        result["state"] = dict(sorted(result["state"].items()))
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of all parameters, of any number of ranks; keeps this rank's part."""
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )
        everything = [p for group in self.param_groups for p in group["params"]]
        saved = dict(zip((i for g in groups for i in g["params"]), everything))
        mine = [p for group in self.optim.param_groups for p in group["params"]]
        local = {id(p): i for i, p in enumerate(mine)}
        state = {
            local[id(saved[i])]: values
            for i, values in state_dict["state"].items()
            if i in saved and id(saved[i]) in local and values is not None
        }
        _copy_options(groups, self.param_groups)
        _copy_options(groups, self.optim.param_groups)
        own = self.optim.state_dict()
        self.optim.load_state_dict({"state": state, "param_groups": own["param_groups"]})

    def _index(self) -> dict[int, int]:
        everything = [p for group in self.param_groups for p in group["params"]]
        return {id(p): i for i, p in enumerate(everything)}

    # ---- ranks without input -----------------------------------------------------------------------

    def join_hook(self, **kwargs: Any) -> _ZeROJoinHook:
        """The shadow: a step in every iteration of the ranks with input.

        Its gradients are those that the hook of DistributedDataParallel, which must come first in
        the `Join`, has fetched.
        """
        return _ZeROJoinHook(self)

    @property
    def join_device(self) -> Any:
        return self._order[0].device

    @property
    def join_process_group(self) -> ProcessGroup:
        return self.process_group


def _checked(params: Any) -> list[Any]:
    """Parameters or groups as a list; TypeError or ValueError for what is neither."""
    if isinstance(params, Tensor):
        raise TypeError("`params` argument should be an iterable of Tensors, but got a Tensor")
    try:
        given = list(params)
    except TypeError as error:
        raise TypeError(
            "`params` argument should be an iterable of Tensors or dicts, but got "
            f"{type(params).__name__}"
        ) from error
    if not given:
        raise ValueError("ZeroRedundancyOptimizer got an empty parameter list")
    if all(isinstance(p, dict) for p in given):
        for group in given:
            if "params" not in group:
                raise ValueError("Each parameter group passed-in via `params` must have a 'params' key")
            group["params"] = (
                [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            )
        tensors = [p for group in given for p in group["params"]]
    elif all(isinstance(p, Tensor) for p in given):
        tensors = given
    else:
        raise TypeError("`params` argument should be an iterable of Tensors or dicts")
    kinds = sorted({(p.dtype.name, str(p.device)) for p in tensors})
    if len(kinds) > 1:
        raise ValueError(
            "ZeroRedundancyOptimizer only supports using the same dense type for all parameters "
            f"but got {' and '.join(f'{dtype} on {device}' for dtype, device in kinds)}"
        )
    return [dict(p) if isinstance(p, dict) else p for p in given]


def _copy_options(source: list[dict], target: list[dict]) -> None:
    for old, new in zip(source, target):
        new.update({k: v for k, v in old.items() if k not in ("params", "param_names")})


def _on_host(value: Any) -> Any:
    """State with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {k: _on_host(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(v) for v in value)
    return value
