"""What all optimizers share: parameter groups, state, hooks, and both as a dict."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from copy import deepcopy
from itertools import chain

from .. import ops
from ..autograd import enable_grad, no_grad
from ..autograd.graph import bump_version
from ..backend import dtypes, namespace_of
from ..nn.modules.hooks import RemovableHandle, add_hook
from ..nn.modules.module import typename
from ..tensor import Tensor

_global_step_pre_hooks: OrderedDict = OrderedDict()
_global_step_post_hooks: OrderedDict = OrderedDict()

_HOOKS = (
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks", "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class _RequiredParameter:
    def __repr__(self):
        return "<required parameter>"


required = _RequiredParameter()


def register_optimizer_step_pre_hook(hook) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` before every optimizer's step."""
    return add_hook(_global_step_pre_hooks, hook)


def register_optimizer_step_post_hook(hook) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after every optimizer's step."""
    return add_hook(_global_step_post_hooks, hook)


def _with_hooks(step):
    """``step`` between the hooks, and noting that it ran (schedulers check their order by it)."""

    @functools.wraps(step)
    def wrapped(self, *args, **kwargs):
        self._opt_called = True
        pre = [*_global_step_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()]
        for hook in pre:
            result = hook(self, args, kwargs)
            if result is not None:
                if not (isinstance(result, tuple) and len(result) == 2):
                    raise RuntimeError(
                        f"{type(self).step} must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {result}."
                    )
                args, kwargs = result
        out = step(self, *args, **kwargs)
        for hook in [
            *self._optimizer_step_post_hooks.values(), *_global_step_post_hooks.values()
        ]:
            hook(self, args, kwargs)
        return out

    wrapped.hooked = True
    return wrapped


class Optimizer:
    """Base of all optimizers.

    A subclass calls ``super().__init__(params, defaults)`` and defines ``step``. Options are read
    from the groups at each step, so that schedulers may change them.

    Args:
        params: parameters, (name, parameter) pairs, or dicts: groups with options of their own.
        defaults: the options of groups that do not set them.

    Raises:
        TypeError, ValueError: if ``params`` holds something that cannot be optimized.
    """

    _optimizer_step_pre_hooks: OrderedDict
    _optimizer_step_post_hooks: OrderedDict
    _optimizer_state_dict_pre_hooks: OrderedDict
    _optimizer_state_dict_post_hooks: OrderedDict
    _optimizer_load_state_dict_pre_hooks: OrderedDict
    _optimizer_load_state_dict_post_hooks: OrderedDict

    def __init__(self, params, defaults: dict):
        self.defaults = defaults
        for name in _HOOKS:
            setattr(self, name, OrderedDict())
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                f"dicts, but got {typename(params)}"
            )
        self.state: defaultdict = defaultdict(dict)
        self.param_groups: list[dict] = []
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__ and not getattr(cls.step, "hooked", False):
            setattr(cls, "step", _with_hooks(cls.step))  # noqa: B010

    def step(self, closure=None):
        """Update the parameters once.

        Args:
            closure: computes the loss again and returns it, for those optimizers that ask for it.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- groups
    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with options of their own; missing options take the defaults.

        Raises:
            TypeError, ValueError: if it holds something that cannot be optimized, a parameter
                that another group has, or lacks a required option.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the "
                "ordering of tensors in sets will change between runs. Please use a list instead."
            )
        params, names = _split_names(list(params))
        param_group["params"] = params
        if names:
            param_group["param_names"] = names
        for param in params:
            self._check_param(param)
        for name, default in self.defaults.items():
            if default is required and name not in param_group:
                raise ValueError(
                    "parameter group didn't specify a value of required optimization parameter "
                    f"{name}"
                )
            param_group.setdefault(name, default)
        if len(params) != len(set(params)):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters; in future, this "
                "will cause an error",
                stacklevel=3,
            )
        if not {p for g in self.param_groups for p in g["params"]}.isdisjoint(params):
            raise ValueError("some parameters appear in more than one parameter group")
        if self.param_groups and ("param_names" in param_group) != (
            "param_names" in self.param_groups[0]
        ):
            raise ValueError(
                "all optimizer param groups should be with/without names. Some are with, some "
                "without."
            )
        self.param_groups.append(param_group)

    def _check_param(self, param):
        if not isinstance(param, Tensor):
            raise TypeError(
                f"optimizer can only optimize Tensors, but one of the params is {typename(param)}"
            )
        if not param.is_leaf and not param.retains_grad:
            raise ValueError("can't optimize a non-leaf Tensor")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or fill them with zeros.

        Args:
            set_to_none: drop them; saves memory, and a parameter without gradient is left out
                of the next step.
        """
        for p in self._all_params():
            if p.grad is not None:
                if set_to_none:
                    p.grad = None
                else:
                    if p.grad.grad_fn is not None:
                        p.grad = p.grad.detach()
                    p.grad.requires_grad_(False)
                    p.grad.zero_()

    def _all_params(self):
        return chain.from_iterable(g["params"] for g in self.param_groups)

    # ---------------------------------------------------------------- hooks
    def register_step_pre_hook(self, hook) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` before each step; may return (args, kwargs)."""
        return add_hook(self._optimizer_step_pre_hooks, hook)

    def register_step_post_hook(self, hook) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` after each step."""
        return add_hook(self._optimizer_step_post_hooks, hook)

    def register_state_dict_pre_hook(self, hook, prepend=False) -> RemovableHandle:
        """Call ``hook(optimizer)`` before ``state_dict``."""
        return add_hook(self._optimizer_state_dict_pre_hooks, hook, prepend=prepend)

    def register_state_dict_post_hook(self, hook, prepend=False) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` after ``state_dict``; may return another."""
        return add_hook(self._optimizer_state_dict_post_hooks, hook, prepend=prepend)

    def register_load_state_dict_pre_hook(self, hook, prepend=False) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` before loading; may return another dict."""
        return add_hook(self._optimizer_load_state_dict_pre_hooks, hook, prepend=prepend)

    def register_load_state_dict_post_hook(self, hook, prepend=False) -> RemovableHandle:
        """Call ``hook(optimizer)`` after loading."""
        return add_hook(self._optimizer_load_state_dict_post_hooks, hook, prepend=prepend)

    # ---------------------------------------------------------------- state
    def state_dict(self) -> dict:
        """``{"state": {index: values}, "param_groups": [options and indices]}``.

        Parameters are numbered in the order of the groups; tensors are shared, not copied.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        index: dict = {}
        for p in self._all_params():
            index.setdefault(id(p), len(index))
        groups = []
        for group in self.param_groups:
            packed = {k: v for k, v in group.items() if k != "params"}
            packed["params"] = [index[id(p)] for p in group["params"]]
            groups.append(packed)
        state = {
            (index[id(k)] if isinstance(k, Tensor) else k): (
                k._spread_state(v) if getattr(k, "_local_tensor", None) is not None else v
            )
            for k, v in self.state.items()
        }
        result = {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            result = hook(self, result) or result
        return result

    @no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take over state and options from ``state_dict()`` of an optimizer over such parameters.

        State tensors are cast to their parameter's dtype and device.

        Raises:
            ValueError: if number or sizes of the groups differ.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved_groups = deepcopy(state_dict["param_groups"])
        if len(self.param_groups) != len(saved_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(
            len(g["params"]) != len(s["params"]) for g, s in zip(self.param_groups, saved_groups)
        ):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )
        param_of = dict(
            zip(chain.from_iterable(s["params"] for s in saved_groups), self._all_params())
        )
        state: defaultdict = defaultdict(dict)
        for key, value in state_dict["state"].items():
            if key in param_of:
                state[param_of[key]] = _cast_like(param_of[key], value)
            else:
                state[key] = value
        for group, saved in zip(self.param_groups, saved_groups):
            saved["params"] = group["params"]
            if "param_names" in group and "param_names" not in saved:
                saved["param_names"] = group["param_names"]
        self.__setstate__({"state": state, "param_groups": saved_groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self):
        return {k: getattr(self, k) for k in ("defaults", "state", "param_groups")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        for name in _HOOKS:
            self.__dict__.setdefault(name, OrderedDict())
        self.defaults.setdefault("differentiable", False)

    def __repr__(self):
        text = type(self).__name__ + " ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            for key in sorted(group):
                if key != "params":
                    text += f"    {key}: {group[key]}\n"
        return text + ")"

    # ---------------------------------------------------------------- for subclasses
    def _call_closure(self, closure):
        if closure is None:
            return None
        with enable_grad():
            return closure()


class ElementwiseOptimizer(Optimizer):
    """An optimizer that treats each parameter by itself.

    A subclass names its ``_rule``, of which the backend has a kernel for many tensors
    (``xp.optimizer_steps``), and defines ``_shared`` and ``_prepare``; or it defines ``_update``.

    ``foreach``, ``fused`` and ``capturable`` choose between implementations in PyTorch. Here there
    is one, so on the CPU they change nothing. On a GPU the last two let Adam and AdamW keep their
    step counts on the device, as a CUDA graph needs it, and ``GradScaler`` then does not wait.
    """

    _rule: str = ""
    _counts = True  # whether the formula depends on the number of the step
    _scales = False  # whether the rule's kernel takes the scale and the overflow of gradients
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
        super().__init__(params, defaults)

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
        for group in self.param_groups:
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
                self._update_all(xp, group, given, found)
            for mine in changed:
                bump_version(mine)
        return loss

    def _update_all(self, xp, group, given, found) -> None:
        """Update the parameters of one device: (parameter, its array, its gradient's array) each."""
        on_device = self._on_device(xp, group)
        if found is not None and not on_device and float(found):
            return  # GradScaler has found an overflow
        if self._counts and not on_device:
            xp.counts_on_host()
        if not self._rule:
            for param, data, grad in given:
                self._update(xp, group, param, data, grad)
            return
        arrays, own, keeps = [], [], self._keeps_state(group)
        for param, data, grad in given:
            state = self.state[param] if keeps else {}
            states, options = self._prepare(xp, group, param, data, state)
            arrays.append((data, grad, *states))
            own.append(options)
        more = {}
        if (scale := getattr(self, "grad_scale", None)) is not None:
            more["scale"] = _on(xp, scale)
        if found is not None and on_device:
            more["found"] = _on(xp, found)
        xp.optimizer_steps(self._rule, arrays, own, self._shared(xp, group), **more)

    def _on_device(self, xp, group) -> bool:
        """Whether what changes from step to step is on the device: ``fused`` and ``capturable`` ask."""
        asked = group.get("fused") or group.get("capturable")
        return bool(asked) and xp.steps_on_device and self._scales

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

    def _prepare(self, xp, group, param, data, state) -> tuple[tuple, dict]:
        """The arrays of a parameter's state, made if need be, and the options of its own."""
        raise NotImplementedError

    def _update(self, xp, group, param, data, grad) -> None:
        """Change ``data`` (the parameter's array) by its gradient array, and its state."""
        raise NotImplementedError


def _on(xp, number: Tensor):
    """The array of a 0-dim tensor on the device of ``xp``."""
    data = number._data
    return data if isinstance(data, xp.ndarray) else xp.from_host(namespace_of(data).to_host(data))


def _split_names(params: list):
    """(parameters, names) of a list of parameters or of (name, parameter) pairs."""
    named = [isinstance(p, tuple) for p in params]
    if not any(named):
        return params, []
    if not all(named):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    return [p for _, p in params], [n for n, _ in params]


def _cast_like(param: Tensor, value, key=None):
    """State values with their tensors in the parameter's dtype and on its device."""
    if isinstance(value, Tensor):
        if value._local_tensor is not None:
            value = value._local_tensor
        if key == "step":  # a count keeps its type: bfloat16 cannot count to 300
            return value
        dtype = param.dtype if param.is_floating_point() else None
        return value.to(device=param.device, dtype=dtype)
    if isinstance(value, dict):
        return {k: _cast_like(param, v, k) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        kind: type = type(value)
        return kind(_cast_like(param, v) for v in value)
    return value


# ---------------------------------------------------------------- helpers of update rules
def new_step_count() -> Tensor:
    """A step counter as PyTorch's state dicts have it: 0-dim, float32 (or 64) on the CPU."""
    wide = dtypes.get_default_dtype() is dtypes.float64
    return ops.tensor(0.0, dtype=dtypes.float64 if wide else dtypes.float32, device="cpu")


def count_step(state: dict) -> float:
    """Increase ``state["step"]`` in place and return it."""
    step = state["step"]._data
    step += 1
    return float(step)


def check_range(name: str, value, low=0.0, high=None) -> None:
    """Raise a ValueError unless low <= value (< high)."""
    if not low <= value or (high is not None and not value < high):
        raise ValueError(f"Invalid {name}: {value}")


def check_lr(lr) -> None:
    """Raise a ValueError for a learning rate that is negative or a tensor of several elements."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    check_range("learning rate", lr)
