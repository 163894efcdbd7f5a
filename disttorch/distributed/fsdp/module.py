"""FSDPModule: the methods that a module gets from `fully_shard`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...nn import Module
from ._setup import reshard_mode
from ._state import State, state_of
from ._unit import Unit


class UnshardHandle:
    """What `unshard(async_op=True)` returns.

    Args:
        unit: the unit under way; None for none.
    """

    def __init__(self, unit: Unit | None = None) -> None:
        self._unit = unit

    def wait(self) -> None:
        """Block until the parameters are whole; the module shows them then."""
        unit, self._unit = self._unit, None
        if unit is not None:
            unit.finish_gather()


class FSDPModule:
    """Mixed into the class of every module given to `fully_shard`.

    Methods with `recurse` act on all FSDP modules below this one too.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # A container makes another one of its class when it is sliced: that one is not sharded
        plain: Any = cls.__mro__[2]
        made = plain.__new__(plain)
        made.__init__(*args, **kwargs)
        return made

    def _get_fsdp_state(self) -> State:
        state = state_of(self)  # type: ignore[arg-type]
        assert state is not None
        return state

    def _modules_below(self, recurse: bool) -> list[Module]:
        me: Any = self
        return list(me.modules()) if recurse else [me]

    def _units(self, recurse: bool) -> Iterator[Unit]:
        seen = set()
        for module in self._modules_below(recurse):
            state = state_of(module)
            if state is not None and state.unit is not None and state not in seen:
                seen.add(state)
                yield state.unit

    # ---- now -----------------------------------------------------------------------------------

    def unshard(self, async_op: bool = False) -> UnshardHandle | None:
        """Make this unit's parameters whole; a call of all its ranks. Not recursive.

        Returns:
            With `async_op` a handle to wait with; forward waits by itself.
        """
        unit = self._get_fsdp_state().unit
        if unit is not None:
            unit.begin_gather("unshard")
        handle = UnshardHandle(unit)
        if async_op:
            return handle
        handle.wait()
        return None

    def reshard(self) -> None:
        """Free this unit's whole parameters; the module shows the shards. Not recursive."""
        unit = self._get_fsdp_state().unit
        if unit is not None:
            unit.reshard()

    def reset_iter_state(self) -> None:
        """Begin anew after an exception in forward or backward; gradients of that step are lost.

        Raises:
            RuntimeError: not called on the root.
        """
        state = self._get_fsdp_state()
        context = state.attach()
        if context.states[0] is not state:
            raise RuntimeError("reset_iter_state must be called on the root FSDP module")
        context.reset()

    # ---- gradients -----------------------------------------------------------------------------

    def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        """Whether backward reduces gradients; False lets them accumulate, whole, on each rank."""
        for unit in self._units(recurse):
            unit.sync = unit.all_reduce = requires_gradient_sync

    def set_requires_all_reduce(self, requires_all_reduce: bool, *, recurse: bool = True) -> None:
        """HSDP: whether gradients are reduced over the replicas too; False accumulates shards."""
        for unit in self._units(recurse):
            unit.all_reduce = requires_all_reduce

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Whether the next backward waits for the reductions under way, or leaves them to go on."""
        self._get_fsdp_state().attach().last_backward = is_last_backward

    def set_gradient_divide_factor(self, factor: float) -> None:
        """Divide the sum of the gradients by `factor` instead of by the number of ranks."""
        for unit in self._units(False):
            unit.divide_by = float(factor)

    set_reduce_scatter_divide_factor = set_gradient_divide_factor

    def set_force_sum_reduction_for_comms(self, enable: bool) -> None:
        """Accepted: the transport sums, and the division is made outside it, in any case."""

    def set_reduce_scatter_unused_params(
        self, reduce_scatter_unused_params: bool, *, recurse: bool = True
    ) -> None:
        """Accepted: a parameter that some ranks did not use always counts as zero there."""

    def set_reduce_scatter_max_input_buffers(
        self, max_input_buffers: int, *, recurse: bool = True
    ) -> None:
        """How many gradient buffers may be in memory at once; built is 1.

        Raises:
            TypeError: no int. NotImplementedError: more than 1.
        """
        if isinstance(max_input_buffers, bool) or not isinstance(max_input_buffers, int):
            raise TypeError(
                f"max_input_buffers must be an int, got {type(max_input_buffers).__name__}"
            )
        if max_input_buffers != 1:
            raise NotImplementedError(
                f"set_reduce_scatter_max_input_buffers({max_input_buffers}): built is 1"
            )

    # ---- when parameters are whole -------------------------------------------------------------

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool = True) -> None:
        """Whether the whole parameters are freed after forward.

        Raises:
            ValueError: no bool.
        """
        if not isinstance(reshard_after_forward, bool):
            raise ValueError(
                f"reshard_after_forward should be a bool, got {type(reshard_after_forward)}"
            )
        for module in self._modules_below(recurse):
            state = state_of(module)
            if state is not None:
                state.automatic = False
                if state.unit is not None:
                    axis = None if state.unit.shards is None else state.unit.mesh.ndim - 1
                    state.unit.reshard_after_forward = reshard_mode(
                        reshard_after_forward, state.unit.mesh, axis
                    )

    def set_reshard_after_backward(self, reshard_after_backward: bool, *, recurse: bool = True) -> None:
        """Whether the whole parameters are freed after backward; keeping them spares a gather."""
        for unit in self._units(recurse):
            unit.reshard_after_backward = reshard_after_backward

    def set_unshard_in_backward(self, unshard_in_backward: bool) -> None:
        """Whether backward needs this unit's parameters (that of an embedding does not)."""
        for unit in self._units(False):
            unit.unshard_in_backward = unshard_in_backward

    def set_modules_to_forward_prefetch(self, modules: list[FSDPModule]) -> None:
        """Begin to gather these in this module's forward, instead of what came next last time."""
        self._get_fsdp_state().forward_prefetch = _states(modules)

    def set_modules_to_backward_prefetch(self, modules: list[FSDPModule]) -> None:
        """Begin to gather these in this module's backward, instead of what ran before it."""
        self._get_fsdp_state().backward_prefetch = _states(modules)

    # ---- what PyTorch has for its own streams and allocators -----------------------------------

    def set_custom_all_gather(self, comm: Any) -> None:
        """Not built: raises NotImplementedError."""
        raise _not_built("set_custom_all_gather")

    def set_custom_reduce_scatter(self, comm: Any) -> None:
        """Not built: raises NotImplementedError."""
        raise _not_built("set_custom_reduce_scatter")

    def set_all_reduce_hook(self, hook: Any, *, stream: Any = None) -> None:
        """Not built: raises NotImplementedError."""
        raise _not_built("set_all_reduce_hook")

    def set_allocate_memory_from_process_group_for_comm(self, enable: bool) -> None:
        """Not built: raises NotImplementedError for True."""
        if enable:
            raise _not_built("set_allocate_memory_from_process_group_for_comm")

    def set_symm_mem_for_comm(self, backend: str = "NCCL") -> None:
        """Not built: raises NotImplementedError."""
        raise _not_built("set_symm_mem_for_comm")

    def set_separate_reduce_scatter_group(self, enable: bool = True, *, recurse: bool = True) -> None:
        """Not built: raises NotImplementedError for True."""
        if enable:
            raise _not_built("set_separate_reduce_scatter_group")

    def set_post_optim_event(self, event: Any) -> None:
        """Accepted: a gather reads the shards when it is begun, after the step in program order."""

    def _set_unshard_async_op(self, async_op: bool) -> None:
        """Accepted: gathers go on in the communication thread in any case."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop or zero all gradients, those of the shards too where whole parameters are shown."""
        for unit in self._units(True):
            unit.partial = None
            for p in unit.params:
                p.accumulated = p.whole._grad = None
                if p.sharded.grad is not None:
                    if set_to_none:
                        p.sharded.grad = None
                    else:
                        p.sharded.grad.zero_()
        super().zero_grad(set_to_none)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.reshard()
        result = super()._apply(*args, **kwargs)  # type: ignore[misc]
        for unit in self._units(False):
            unit.refresh()
        return result


def _states(modules: list[Any]) -> list[State]:
    for module in modules:
        if not isinstance(module, FSDPModule):
            raise ValueError(f"Expects FSDPModule but got {type(module)}: {module}")
    return [module._get_fsdp_state() for module in modules]


def _not_built(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name} is not built: gathers and reductions go through the process group's own calls"
    )


def is_sharded(module: Module) -> bool:
    """Whether a module was given to `fully_shard`."""
    return state_of(module) is not None


__all__ = ["FSDPModule", "UnshardHandle"]
