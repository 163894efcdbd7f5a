"""Which submodules become units: policies for `auto_wrap_policy`, and `wrap` in a constructor."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...nn import Module, ModuleDict, ModuleList, MultiheadAttention

Chosen = dict[Module, dict[str, Any]]


def always_wrap_policy(*args: Any, **kwargs: Any) -> bool:
    """Every module is a unit."""
    return True


def lambda_auto_wrap_policy(
    module: Module, recurse: bool, nonwrapped_numel: int, lambda_fn: Callable[[Module], bool]
) -> bool:
    """Modules for which `lambda_fn` is true are units; use it with `functools.partial`."""
    return True if recurse else lambda_fn(module)


def transformer_auto_wrap_policy(
    module: Module, recurse: bool, nonwrapped_numel: int, transformer_layer_cls: set[type[Module]]
) -> bool:
    """Modules of the given classes are units; use it with `functools.partial`."""
    return True if recurse else isinstance(module, tuple(transformer_layer_cls))


def size_based_auto_wrap_policy(
    module: Module,
    recurse: bool,
    nonwrapped_numel: int,
    min_num_params: int = int(1e8),
    force_leaf_modules: set[type[Module]] | None = None,
    exclude_wrap_modules: set[type[Module]] | None = None,
) -> bool:
    """Modules with many parameters that are in no unit yet are units.

    Args:
        recurse: the question is whether to look at the children, not whether it is a unit.
        nonwrapped_numel: elements of parameters that no unit has.
        min_num_params: the least number of elements of a unit.
        force_leaf_modules: classes whose children are not looked at; None: attention.
        exclude_wrap_modules: classes that are never units; None: module lists and dicts.
    """
    leaves = FORCE_LEAF_MODULES if force_leaf_modules is None else force_leaf_modules
    excluded = EXCLUDE_WRAP_MODULES if exclude_wrap_modules is None else exclude_wrap_modules
    if nonwrapped_numel < min_num_params:
        return False
    return not isinstance(module, tuple(leaves if recurse else excluded))


EXCLUDE_WRAP_MODULES: set[type[Module]] = {ModuleList, ModuleDict}
FORCE_LEAF_MODULES: set[type[Module]] = {MultiheadAttention}
size_based_auto_wrap_policy.EXCLUDE_WRAP_MODULES = EXCLUDE_WRAP_MODULES  # type: ignore[attr-defined]
size_based_auto_wrap_policy.FORCE_LEAF_MODULES = FORCE_LEAF_MODULES  # type: ignore[attr-defined]


class _Policy:
    """Chooses units by looking at all modules at once."""

    def _run_policy(self, root: Module, ignored: set[Module], options: dict[str, Any]) -> Chosen:
        raise NotImplementedError


class ModuleWrapPolicy(_Policy):
    """Modules of the given classes are units."""

    def __init__(self, module_classes: Iterable[type[Module]]) -> None:
        self._module_classes = set(module_classes)

    def _run_policy(self, root: Module, ignored: set[Module], options: dict[str, Any]) -> Chosen:
        classes = tuple(self._module_classes)
        return {
            m: dict(options) for m in root.modules() if isinstance(m, classes) and m not in ignored
        }

    def __call__(self, module: Module, recurse: bool, *args: Any, **kwargs: Any) -> bool:
        return True if recurse else isinstance(module, tuple(self._module_classes))

    def __repr__(self) -> str:
        return f"{super().__repr__()}({self._module_classes})"


class CustomPolicy(_Policy):
    """Modules for which a function is true are units; a dict that it returns changes arguments.

    Raises:
        ValueError: (when used) the function returned neither a bool nor a dict.
    """

    def __init__(self, lambda_fn: Callable[[Module], bool | dict[str, Any]]) -> None:
        self._lambda_fn = lambda_fn

    def _run_policy(self, root: Module, ignored: set[Module], options: dict[str, Any]) -> Chosen:
        found: Chosen = {}
        for module in root.modules():
            if module in ignored:
                continue
            answer = self._lambda_fn(module)
            if not isinstance(answer, (bool, dict)):
                raise ValueError(
                    "The lambda_fn passed to CustomPolicy should return False/True or a kwarg dict, "
                    f"but it returned {answer}"
                )
            if answer:
                found[module] = {**options, **(answer if isinstance(answer, dict) else {})}
        return found


def auto_wrap(
    root: Module, policy: Any, ignored: set[Module], options: dict[str, Any], wrapper: Callable
) -> None:
    """Replace submodules of `root` (not itself) by `wrapper(submodule, **options)`, inside first."""
    if isinstance(policy, _Policy):
        _replace(root, policy._run_policy(root, ignored, options), wrapper)
    else:
        skipped = {id(p) for m in ignored for p in m.parameters()}
        _wrap_below(root, policy, ignored, skipped, options, wrapper)


def _replace(module: Module, chosen: Chosen, wrapper: Callable) -> None:
    for name, child in module.named_children():
        _replace(child, chosen, wrapper)
        if child in chosen:
            setattr(module, name, wrapper(child, **chosen[child]))


def _wrap_below(
    module: Module, policy: Any, ignored: set[Module], skipped: set[int], options: Any, wrapper: Any
) -> int:
    """Wrap what the policy wants below `module`; returns the elements that are in units then."""
    total = sum(p.numel() for p in module.parameters() if id(p) not in skipped)
    if not policy(module=module, recurse=True, nonwrapped_numel=total):
        return 0
    wrapped = 0
    for name, child in module.named_children():
        if child in ignored:
            continue
        count = sum(p.numel() for p in child.parameters() if id(p) not in skipped)
        inside = _wrap_below(child, policy, ignored, skipped, options, wrapper)
        if policy(module=child, recurse=False, nonwrapped_numel=count - inside):
            setattr(module, name, wrapper(child, **options))
            inside = count
        wrapped += inside
    return wrapped


_enabled: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "enable_wrap", default=None
)


@contextlib.contextmanager
def enable_wrap(*, wrapper_cls: Any, **wrapper_kwargs: Any) -> Iterator[None]:
    """Inside, `wrap(module)` gives `wrapper_cls(module, **wrapper_kwargs)`."""
    token = _enabled.set({"wrapper_cls": wrapper_cls, **wrapper_kwargs})
    try:
        yield
    finally:
        _enabled.reset(token)


def wrap(module: Module, **wrap_overrides: Any) -> Module:
    """The module wrapped as the `enable_wrap` around says, or itself outside of one."""
    chosen = _enabled.get()
    if chosen is None:
        return module
    options = {**chosen, **wrap_overrides}
    return options.pop("wrapper_cls")(module, **options)


__all__ = [
    "CustomPolicy", "ModuleWrapPolicy", "always_wrap_policy", "enable_wrap",
    "lambda_auto_wrap_policy", "size_based_auto_wrap_policy", "transformer_auto_wrap_policy", "wrap",
]
