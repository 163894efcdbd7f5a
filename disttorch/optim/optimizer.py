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
from ..backend import dtypes
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
