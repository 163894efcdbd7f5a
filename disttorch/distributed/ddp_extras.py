"""What DistributedDataParallel offers beside training: looking inside, changes, copies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from ..nn import Module
from .auditing import Auditor
from .ddp_report import logging_data
from .process_group import ProcessGroup, default_group
from .reducer import Reducer


class Extras:
    """The rarely used methods of DistributedDataParallel, to which they belong."""

    module: Module
    process_group: ProcessGroup
    reducer: Reducer
    static_graph: bool
    parameters_to_ignore: set[str]
    _hook_handles: list[Any]
    _auditor: Auditor | None
    _delayed: Any

    def _start_reducer(self) -> None:
        raise NotImplementedError

    # ---- looking inside --------------------------------------------------------------------------

    @property
    def record_events(self) -> bool:
        """Whether `last_events` is kept; off by default."""
        return self.reducer.events is not None

    @record_events.setter
    def record_events(self, value: bool) -> None:
        self.reducer.events = [] if value else None

    @property
    def last_events(self) -> list[tuple]:
        """What happened in the last reduced backward, in order; see `Reducer.events`."""
        return list(self.reducer.events or [])

    def _get_ddp_logging_data(self) -> dict[str, Any]:
        """Sizes, buckets and times under PyTorch's names: bytes and nanoseconds."""
        return logging_data(self)

    def _set_ddp_runtime_logging_sample_rate(self, sample_rate: int) -> None:
        """Measure one in so many iterations, after the first ten."""
        if sample_rate < 1:
            raise ValueError(
                "DDP runtime logging sample rate should be equal or greater than 1, got "
                f"{sample_rate}"
            )
        self.reducer.clock.every = sample_rate

    def _check_reducer_finalized(self) -> None:
        """Raise RuntimeError if the last backward did not come to its end."""
        self.reducer.check_in_step()

    # ---- changes after construction ----------------------------------------------------------------

    def _set_static_graph(self) -> None:
        """The same as `static_graph=True`; before the first backward."""
        if self.static_graph:
            warnings.warn(
                "You've set static_graph to be True, no need to set it again.", stacklevel=2
            )
            return
        if self.reducer.clock.iteration:
            raise RuntimeError("_set_static_graph() must come before the first backward")
        self.static_graph = self.reducer.static = True

    def _register_fused_optim(
        self, optim: type, *args: Any, optim_params: Any = None, **kwargs: Any
    ) -> None:
        """Update each bucket's parameters in backward, as soon as their mean gradient is there.

        The updates of the first buckets overlap with the reduction of the later ones. Each
        parameter has an optimizer of its own, so this is for optimizers that treat parameters one
        by one; gradients stay until `zero_grad`.

        Args:
            optim: the class; args, kwargs: for it, after the parameters.
            optim_params: which parameters; None: all.
        """
        chosen = self.reducer.parameters if optim_params is None else list(optim_params)
        known = {id(p) for p in self.reducer.parameters}
        if any(id(p) not in known for p in chosen):
            raise ValueError("_register_fused_optim: optim_params are not all of this wrapper's")
        optimizers = {id(p): optim([p], *args, **kwargs) for p in chosen}

        def update(parameters: list[Any]) -> None:
            for p in parameters:
                if id(p) in optimizers:
                    optimizers[id(p)].step()

        self.reducer.after_bucket = update

    def _remove_autograd_hooks(self) -> None:
        """Stop taking part in the backward of the parameters, for good."""
        for handle in self._hook_handles:
            handle.remove()
        self._hook_handles = []

    def _update_process_group(self, new_process_group: ProcessGroup) -> None:
        """Average over other ranks from now on; their models must be the same already."""
        self.process_group = new_process_group
        self.reducer.use_group(new_process_group)

    @staticmethod
    def _set_params_and_buffers_to_ignore_for_model(module: Module, names: Any) -> None:
        """Have a wrapper made later leave parameters and buffers of these full names alone."""
        module._ddp_params_and_buffers_to_ignore = names
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if name in names:
                t._ddp_ignored = True

    @staticmethod
    def _get_data_parallel_params(module: Module, named_params: bool = False) -> Iterator[Any]:
        """The module's parameters that are not ignored."""
        for name, p in module.named_parameters():
            if not hasattr(p, "_ddp_ignored"):
                yield (name, p) if named_params else p

    # ---- copies ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if self._delayed is not None:
            raise RuntimeError("a wrapper with delay_all_reduce_named_params cannot be copied")
        if self.process_group is not default_group():
            raise RuntimeError(
                "DDP Pickling/Unpickling are only supported when using DDP with the default "
                "process group. That is, when you have called init_process_group and have not "
                "passed process_group argument to DDP constructor"
            )
        state = self.__dict__.copy()
        for name in ("process_group", "reducer", "_guard", "_hook_handles", "_auditor", "_delayed"):
            del state[name]
        state["_audit_every"] = None if self._auditor is None else self._auditor.every
        state["_hook_name"] = ""  # a hook and its state belong to this wrapper
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.process_group = default_group()
        every = state.pop("_audit_every", None)
        super().__setstate__(state)  # type: ignore[misc]
        self._delayed = None
        self._auditor = None
        if every is not None:
            ignored = tuple(self.parameters_to_ignore)
            self._auditor = Auditor(self.module, every, self.process_group, ignored)
        self._start_reducer()
