"""Optimizers that treat each parameter by itself, through kernels over many tensors."""

from __future__ import annotations

from .. import ops
from ..autograd import no_grad
from ..autograd.graph import bump_version
from ..backend import dtypes, namespace_of
from ..tensor import Tensor, wrap
from .optimizer import Optimizer, new_step_count


class ElementwiseOptimizer(Optimizer):
    """An optimizer that treats each parameter by itself.

    A subclass names its ``_rule``, of which the backend has a kernel for many tensors
    (``xp.optimizer_steps``), and defines ``_shared``, ``_states`` and ``_own``; or it defines
    ``_update``.

    ``foreach``, ``fused`` and ``capturable`` choose between implementations in PyTorch. Here there
    is one, so on the CPU they change nothing. On a GPU the last two keep the step counts on the
    device, as a CUDA graph needs it, where the learning rate may then be a tensor, too; and
    ``GradScaler`` does not wait for Adam, AdamW and SGD.
    """

    _rule: str = ""
    _counts = True  # whether the formula depends on the number of the step
    _counters: tuple[str, ...] | None = None  # states that count on the device if asked; None: none can
    _scales = False  # whether GradScaler leaves the scale and the overflow of gradients to it
    _updates_parts = True  # whether a part of a parameter is updated as it would be in the whole

    def __init__(self, params, defaults: dict):
        if defaults.get("differentiable"):
            raise NotImplementedError(
                f"{type(self).__name__}(differentiable=True) is not built: updates are made in "
                "place, outside the graph; leave it False"
            )
        if defaults.get("fused") and defaults.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if self._scales and (defaults.get("fused") or defaults.get("capturable")):
            self._step_supports_amp_scaling = True  # what GradScaler asks for
        self._repeated: dict[int, _Repeated] = {}  # of each group, if its last step can be repeated
        super().__init__(params, defaults)

    def __setstate__(self, state):
        self._repeated = {}
        super().__setstate__(state)

    @no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it.

        Returns:
            the closure's loss, or None.
        """
        loss = self._call_closure(closure)
        found = getattr(self, "found_inf", None)
        for number, group in enumerate(self.param_groups):
            last = self._repeated.get(number)
            if last is not None:
                if last.step(self, group, found):
                    continue
                del self._repeated[number]
            self._step_group(number, group, found)
        return loss

    def _step_group(self, number, group, found) -> None:
        updates: dict = {}  # namespace -> what it is to update
        changed = []
        for param in group["params"]:
            # of a distributed parameter each rank updates its part, with a state for the part
            mine = param if param._local_tensor is None else param._local_tensor
            if mine is not param and not self._updates_parts:
                raise NotImplementedError(
                    f"{type(self).__name__} needs whole matrices and is not built for DTensors, "
                    f"such as a parameter of shape {tuple(param.shape)} with placements "
                    f"{param.placements}: use an elementwise rule such as AdamW"
                )
            if "_replaced_by" in param.__dict__:
                raise RuntimeError(
                    f"{type(self).__name__} holds a parameter of shape {tuple(param.shape)} as it "
                    f"was before {param._replaced_by}, which no training changes any more: make the "
                    "optimizer after it"
                )
            if mine.grad is not None:
                data = mine._data
                updates.setdefault(namespace_of(data), []).append((param, data, mine.grad._data))
                changed.append(mine)
        for xp, given in updates.items():
            plan = self._update_all(xp, group, given, found)
            if plan is not None and len(updates) == 1 and all(p is q for p, q in zip(
                    changed, (p for p, _, _ in given))):
                self._repeated[number] = _Repeated(self, xp, group, plan)
        for mine in changed:
            bump_version(mine)

    def _update_all(self, xp, group, given, found):
        """Update the parameters of one device: (parameter, its array, its gradient's array) each.

        Returns:
            the backend's plan of such a step, or None.
        """
        on_device = self._on_device(xp, group)
        if self._skips(xp, on_device, found):
            return None
        if not self._rule:
            for param, data, grad in given:
                self._update(xp, group, param, data, grad)
            return None
        arrays, keeps, states = [], self._keeps_state(group), []
        for param, data, grad in given:
            state = self.state[param] if keeps else {}
            arrays.append((data, grad, *self._states(xp, group, data, state)))
            states.append(state)
            if xp.steps_on_device:
                self._move_counts(xp, data, state, on_device)
        counts = []
        if on_device:
            counts = [tuple([s[key]._data for key in self._counters]) for s in states]
        return xp.optimizer_steps(
            self._rule, arrays, self._all_own(group, states, on_device), self._shared(xp, group),
            counts=counts if self._counters else (), **self._scaling(xp, on_device, found))

    def _skips(self, xp, on_device: bool, found) -> bool:
        """Whether GradScaler has found an overflow, if that is for the host to know."""
        if found is not None and not on_device and float(found):
            return True
        if self._counts and not on_device:
            xp.counts_on_host()
        return False

    def _scaling(self, xp, on_device: bool, found) -> dict:
        """What GradScaler has set, as arguments of ``xp.optimizer_steps``."""
        more = {}
        if (scale := getattr(self, "grad_scale", None)) is not None:
            more["scale"] = _on(xp, scale)
        if found is not None and on_device:
            more["found"] = _on(xp, found)
        return more

    def _all_own(self, group, states: list[dict], on_device: bool) -> list[dict]:
        """The options of their own of all parameters, which have been counted on."""
        if on_device and self._counters:
            return [{}] * len(states)
        return [self._own(group, state) for state in states]

    def _on_device(self, xp, group) -> bool:
        """Whether what changes from step to step is on the device: ``fused`` and ``capturable`` ask."""
        asked = group.get("fused") or group.get("capturable")
        return bool(asked) and xp.steps_on_device and self._counters is not None

    def _new_count(self, xp, group, value: float = 0.0) -> Tensor:
        """A count of steps, or a number that goes with it, where it belongs."""
        if self._on_device(xp, group):
            return wrap(xp.full((), value, "float32"))
        return ops.full_like(new_step_count(), value)

    def _move_counts(self, xp, data, state, on_device: bool) -> None:
        """Counts of a state that was made or loaded under the other setting go where they belong."""
        for key in self._counters or ():
            count = state[key]
            if (count._data.__class__ is data.__class__) != on_device:
                state[key] = count.to(xp.device_of(data) if on_device else "cpu", dtypes.float32)

    def _keeps_state(self, group) -> bool:
        """Whether parameters have entries in ``state``."""
        return True

    def _learning_rate(self, xp, group):
        """A float; or the array of a tensor that a kernel may read."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and isinstance(lr._data, xp.ndarray) and self._on_device(xp, group):
            return lr._data.reshape(())
        return float(lr)

    def _shared(self, xp, group) -> dict:
        """The rule's options that all parameters of a group share."""
        raise NotImplementedError

    def _states(self, xp, group, data, state) -> tuple:
        """The arrays of a parameter's state, which is made if it is empty; ``data``: its array."""
        raise NotImplementedError

    def _own(self, group, state) -> dict:
        """Count a step of a parameter on the host: the options that may differ from others'."""
        raise NotImplementedError

    def _update(self, xp, group, param, data, grad) -> None:
        """Change ``data`` (the parameter's array) by its gradient array, and its state."""
        raise NotImplementedError


class _Repeated:
    """The last step of a group whose parameters are on one GPU, to be made again for new gradients.

    It holds as long as the parameters that have gradients, and the tensors of their states, are the
    same arrays: that is looked at for each of them, everything else is put together once.
    """

    def __init__(self, optimizer: ElementwiseOptimizer, xp, group: dict, plan):
        self._xp, self._plan, self._on_device = xp, plan, optimizer._on_device(xp, group)
        self._settings = self._settings_of(group)
        self._keeps = optimizer._keeps_state(group)
        self._params = list(group["params"])
        # of each parameter with a gradient: its array, its state and the state's tensors
        self._checks: list[tuple | None] = []
        for p in self._params:
            if p._grad is None:
                self._checks.append(None)
                continue
            state = optimizer.state[p] if self._keeps else {}
            tensors = [(k, t, t._data) for k, t in state.items() if isinstance(t, Tensor)]
            self._checks.append((p._data, state, tensors))

    @staticmethod
    def _settings_of(group: dict) -> tuple:
        """The options that decide which arrays a step has."""
        get = group.get
        return get("amsgrad"), bool(get("momentum")), get("centered"), get("fused"), get("capturable")

    def step(self, optimizer, group: dict, found) -> bool:
        """Make it; False, and nothing done, if it is not the same."""
        params, kept, keeps = group["params"], optimizer.state, self._keeps
        if len(params) != len(self._params) or self._settings_of(group) != self._settings:
            return False
        grads, states, changed = [], [], []
        for param, before, check in zip(params, self._params, self._checks):
            grad = param._grad
            if grad is None and check is None and param is before:
                continue
            if grad is None or check is None or param is not before:
                return False
            data, state, tensors = check
            if param._data is not data or keeps and kept.get(param) is not state:
                return False
            for key, tensor, array in tensors:
                if state.get(key) is not tensor or tensor._data is not array:
                    return False
            grads.append(grad._data)
            states.append(state)
            changed.append(param)
        return self._run(optimizer, group, grads, states, changed, found)

    def _run(self, optimizer, group, grads, states, changed, found) -> bool:
        xp, on_device = self._xp, self._on_device
        if not self._plan.fits(grads):
            return False
        if not optimizer._skips(xp, on_device, found):
            own = optimizer._all_own(group, states, on_device)
            self._plan.give_gradients(grads)
            self._plan.run(own, optimizer._shared(xp, group), **optimizer._scaling(xp, on_device, found))
        for param in changed:
            bump_version(param)
        return True


def _on(xp, number: Tensor):
    """The array of a 0-dim tensor on the device of ``xp``."""
    data = number._data
    return data if isinstance(data, xp.ndarray) else xp.from_host(namespace_of(data).to_host(data))
