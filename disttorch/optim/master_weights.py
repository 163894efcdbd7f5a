"""Float32 copies of 16-bit parameters, which are what an optimizer really updates.

A bfloat16 number has 8 bits of precision: an update below 1/256 of a weight is lost when it is added to
it. Kept in float32, small updates add up (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

from ..autograd import no_grad
from ..autograd.graph import bump_version
from ..backend import dtypes, namespace_of
from ..nn.parameter import Parameter
from ..tensor import Tensor, wrap
from .optimizer import Optimizer

_HALF = (dtypes.float16, dtypes.bfloat16)


class MasterWeights(Optimizer):
    """An optimizer for a model in bfloat16 or float16 that keeps float32 master weights::

        model = Model().to(torch.bfloat16)
        optimizer = torch.optim.MasterWeights(torch.optim.AdamW(model.parameters(), lr=1e-3))

    A step converts the gradients to float32, lets the optimizer given update the master weights, and
    rounds them into the model's parameters: one launch each way on a GPU. Parameters of other dtypes
    are updated as they are. Memory: 4 bytes a parameter, and 4 more of its gradient within a step.

    Its groups hold the model's parameters, so schedulers, clipping and ``zero_grad`` work on it; the
    state and the master weights are in ``state_dict()``. ``GradScaler`` serves it where the optimizer
    given is ``fused`` or ``capturable`` (others would divide float16 gradients, which overflow).

    Args:
        optimizer: made for the model's parameters; not to be stepped by itself afterwards.

    Raises:
        TypeError: if it is no optimizer.
        NotImplementedError: for parameters spread over ranks: ``fully_shard`` with a
            ``MixedPrecisionPolicy`` keeps them in float32 already.
    """

    def __init__(self, optimizer: Optimizer):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"MasterWeights takes an optimizer, not {type(optimizer).__name__}")
        self.inner = optimizer
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (parameter, its master weights)
        groups = [dict(group) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            self._give_masters(group)
        super().__init__(groups, dict(optimizer.defaults))
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self._step_supports_amp_scaling = True

    @no_grad()
    def _give_masters(self, group: dict) -> None:
        """Put master weights into a group of the optimizer, with the state there is."""
        state, params = self.inner.state, group["params"]
        group["params"] = masters = []
        for p in params:
            if getattr(p, "_local_tensor", None) is not None:
                raise NotImplementedError(
                    f"MasterWeights is not built for DTensors, such as a parameter of shape "
                    f"{tuple(p.shape)}: keep it in float32 and give fully_shard a MixedPrecisionPolicy")
            if p.dtype not in _HALF:
                masters.append(p)
                continue
            master = Parameter(p.detach().to(dtypes.float32), requires_grad=p.requires_grad)
            if p in state:
                kept = state.pop(p)
                state[master] = {
                    k: v.to(dtypes.float32) if isinstance(v, Tensor) and v.dtype in _HALF else v
                    for k, v in kept.items()}
            self._pairs.append((p, master))
            masters.append(master)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with options of their own, to the optimizer, too."""
        super().add_param_group(param_group)
        if len(self.param_groups) > len(self.inner.param_groups):
            self.inner.add_param_group(dict(self.param_groups[-1]))
            self._give_masters(self.inner.param_groups[-1])

    def _pass_options_on(self) -> None:
        """What schedulers and users have changed in the groups here holds for the optimizer's."""
        for mine, theirs in zip(self.param_groups, self.inner.param_groups):
            theirs.update({k: v for k, v in mine.items() if k != "params"})

    @no_grad()
    def step(self, closure=None):
        """Update the master weights of every parameter that has a gradient, and the parameters.

        Args:
            closure: computes the loss again and returns it.

        Returns:
            the closure's loss, or None.
        """
        loss = self._call_closure(closure)
        self._pass_options_on()
        moved = [(p, m) for p, m in self._pairs if p.grad is not None]
        for xp, pairs in _by_device(moved).items():
            wide = [xp.empty(p.shape, dtypes.float32.np) for p, _ in pairs]
            xp.convert_all([p.grad._data for p, _ in pairs], wide)
            for (_, m), g in zip(pairs, wide):
                m.grad = wrap(g)
        for name in ("grad_scale", "found_inf"):  # set by GradScaler while it steps
            if hasattr(self, name):
                setattr(self.inner, name, getattr(self, name))
        try:
            self.inner.step()
        finally:
            for name in ("grad_scale", "found_inf"):
                self.inner.__dict__.pop(name, None)
            for _, m in moved:
                m.grad = None
        self._round(moved)
        return loss

    @staticmethod
    def _round(pairs) -> None:
        """The parameters take the values of their master weights."""
        for xp, here in _by_device(pairs).items():
            xp.convert_all([m._data for _, m in here], [p._data for p, _ in here])
        for p, _ in pairs:
            bump_version(p)

    def state_dict(self) -> dict:
        """The optimizer's, and ``master_weights``: those of each parameter by its number, or None."""
        self._pass_options_on()
        masters = {id(p): m.detach() for p, m in self._pairs}
        found = [masters.get(id(p)) for p in self._all_params()]
        return {**self.inner.state_dict(), "master_weights": dict(enumerate(found))}

    @no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what ``state_dict`` gave; the parameters get the rounded master weights.

        Raises:
            ValueError: if it has no master weights, or those of other parameters.
        """
        saved = state_dict.get("master_weights")
        masters = {id(p): m for p, m in self._pairs}
        wanted = {i: masters.get(id(p)) for i, p in enumerate(self._all_params())}
        if saved is None:
            raise ValueError(
                "the state dict has no 'master_weights': another optimizer saved it; load it into the "
                "optimizer that MasterWeights is then made of")
        for i, master in wanted.items():
            have = saved.get(i)
            if (have is None) != (master is None) or master is not None and have.shape != master.shape:
                raise ValueError(
                    f"the state dict has master weights {_shape(have)} for parameter {i}, which needs "
                    f"{_shape(master)}")
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != "master_weights"})
        for mine, theirs in zip(self.param_groups, self.inner.param_groups):
            mine.update({k: v for k, v in theirs.items() if k != "params"})
        for i, master in wanted.items():
            if master is not None:
                master.copy_(saved[i])
        self._round(self._pairs)


def _shape(t) -> str:
    return "none" if t is None else f"of shape {tuple(t.shape)}"


def _by_device(pairs) -> dict:
    """The pairs by the namespace of their device."""
    found: dict = {}
    for pair in pairs:
        found.setdefault(namespace_of(pair[0]._data), []).append(pair)
    return found


__all__ = ["MasterWeights"]
