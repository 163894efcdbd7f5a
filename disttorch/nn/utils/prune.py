"""Pruning: parameters with some elements, or whole channels, held at 0.

``l1_unstructured(layer, "weight", 0.3)`` keeps the parameter as ``weight_orig`` and the mask as the
buffer ``weight_mask``; a hook sets ``layer.weight`` to their product before each forward.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable

from ... import ops
from ...tensor import Tensor
from .convert_parameters import parameters_to_vector


class BasePruningMethod(ABC):
    """A pruning method and the hook that applies it; subclasses define ``compute_mask``.

    ``PRUNING_TYPE`` says what a further pruning leaves out: "unstructured", elements that are
    pruned already; "structured", channels (dim ``self.dim``) that are; "global", nothing.
    """

    PRUNING_TYPE = "unstructured"
    _tensor_name: str

    def __call__(self, module, inputs):
        setattr(module, self._tensor_name, self.apply_mask(module))

    @abstractmethod
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask for scores ``t``, on top of ``default_mask``: 0 where pruned."""

    def apply_mask(self, module) -> Tensor:
        """The pruned tensor of ``module``."""
        mask = getattr(module, self._tensor_name + "_mask")
        orig = getattr(module, self._tensor_name + "_orig")
        return mask.to(orig.dtype) * orig

    @classmethod
    def apply(cls, module, name, *args, importance_scores=None, **kwargs):
        """Prune ``module.<name>`` from now on, on top of earlier prunings.

        Args:
            args, kwargs: for the method's constructor.
            importance_scores: what to judge by, of the tensor's shape; the tensor by default.

        Returns:
            the hook.
        """
        method = cls(*args, **kwargs)
        method._tensor_name = name
        earlier = [(k, h) for k, h in module._forward_pre_hooks.items()
                   if isinstance(h, BasePruningMethod) and h._tensor_name == name]
        before = getattr(module, name)
        scores = before if importance_scores is None else importance_scores
        if scores.shape != before.shape:
            raise AssertionError(
                f"importance_scores should have the same shape as parameter {name} of {module}, "
                f"got {scores.shape} vs {before.shape}"
            )
        if earlier:
            old = earlier[0][1]
            chain = old if isinstance(old, PruningContainer) else PruningContainer(old)
            mask = chain._combined(method, scores.detach(), getattr(module, name + "_mask"))
            chain.add_pruning_method(method)
            del module._forward_pre_hooks[earlier[0][0]]
            method = chain
        else:
            mask = method.compute_mask(scores.detach(), ops.ones_like(before.detach()))
            del module._parameters[name]
            module.register_parameter(name + "_orig", before)
        module.register_buffer(name + "_mask", mask.detach().clone())
        setattr(module, name, method.apply_mask(module))
        module.register_forward_pre_hook(method)
        return method

    def prune(self, t: Tensor, default_mask=None, importance_scores=None) -> Tensor:
        """``t`` pruned, without a module."""
        scores = t if importance_scores is None else importance_scores
        if scores.shape != t.shape:
            raise AssertionError(
                "importance_scores should have the same shape as tensor t, got "
                f"{scores.shape} vs {t.shape}"
            )
        default_mask = ops.ones_like(t.detach()) if default_mask is None else default_mask
        return t * self.compute_mask(scores.detach(), default_mask)

    def remove(self, module) -> None:
        """Make the pruned tensor an ordinary parameter."""
        name, weight = self._tensor_name, self.apply_mask(module)
        delattr(module, name)
        param = module._parameters.pop(name + "_orig")
        param.data = weight.detach()
        del module._buffers[name + "_mask"]
        module.register_parameter(name, param)


class PruningContainer(BasePruningMethod):
    """Several prunings of one tensor, one after the other."""

    PRUNING_TYPE = "container"

    def __init__(self, *args):
        self._pruning_methods: tuple = ()
        if len(args) == 1 and not isinstance(args[0], Iterable):
            self._tensor_name = args[0]._tensor_name
        methods = args[0] if len(args) == 1 and isinstance(args[0], Iterable) else args
        for method in methods:
            self.add_pruning_method(method)

    def add_pruning_method(self, method) -> None:
        """Append a pruning of the same tensor.

        Raises:
            TypeError, ValueError: if it is no pruning method or of another tensor.
        """
        if not isinstance(method, BasePruningMethod):
            raise TypeError(f"{type(method)} is not a BasePruningMethod subclass")
        if getattr(self, "_tensor_name", method._tensor_name) != method._tensor_name:
            raise ValueError(
                "Can only add pruning methods acting on the parameter named "
                f"'{self._tensor_name}' to PruningContainer {self}. Found '{method._tensor_name}'"
            )
        self._tensor_name = method._tensor_name
        self._pruning_methods += (method,)

    def __len__(self):
        return len(self._pruning_methods)

    def __iter__(self):
        return iter(self._pruning_methods)

    def __getitem__(self, index):
        return self._pruning_methods[index]

    def compute_mask(self, t, default_mask):
        return self._combined(self._pruning_methods[-1], t, default_mask)

    @staticmethod
    def _combined(method, t, mask):
        """The mask of ``method`` on what ``mask`` leaves of ``t``."""
        kind = method.PRUNING_TYPE
        if kind == "unstructured":
            left: object = mask == 1
        elif kind == "structured":
            if not hasattr(method, "dim"):
                raise AttributeError(
                    'Pruning methods of PRUNING_TYPE "structured" need to have the attribute '
                    "`dim` defined."
                )
            dim = method.dim + t.ndim if method.dim < 0 else method.dim
            if dim < 0:
                raise IndexError(
                    f"Index is out of bounds for tensor with dimensions {t.ndim}"
                )
            channels = mask.sum([d for d in range(t.ndim) if d != dim]) != 0
            left = (slice(None),) * dim + (channels,)
        elif kind == "global":
            left = (slice(None),) * t.ndim
        else:
            raise ValueError(f"Unrecognized PRUNING_TYPE {kind}")
        new = mask.to(t.dtype).clone()
        new[left] = method.compute_mask(t[left], mask[left]).to(new.dtype)
        return new


# ---------------------------------------------------------------- how much
def _check_amount(amount) -> None:
    if not isinstance(amount, numbers.Real):
        raise TypeError(f"Invalid type for amount: {amount}. Must be int or float.")
    if float(amount) < 0 or (not isinstance(amount, numbers.Integral) and float(amount) > 1.0):
        raise ValueError(
            f"amount={amount} should either be a float in the range [0, 1] or a non-negative "
            "integer"
        )


def _how_many(amount, size: int) -> int:
    count = int(amount) if isinstance(amount, numbers.Integral) else round(amount * size)
    if count > size:
        raise ValueError(
            f"amount={count} should be smaller than the number of parameters to prune={size}"
        )
    return int(count)


def _check_channels(t, dim) -> None:
    if t.ndim <= 1:
        raise ValueError(
            "Structured pruning can only be applied to multidimensional tensors. Found tensor of "
            f"shape {t.shape} with {t.ndim} dims"
        )
    if dim >= t.ndim:
        raise IndexError(f"Invalid index {dim} for tensor of size {t.shape}")


def _without(mask: Tensor, index: Tensor) -> Tensor:
    flat = mask.clone().reshape(-1)
    return flat.index_fill(0, index, 0).reshape(mask.shape)


def _channel_mask(mask: Tensor, dim: int, kept: Tensor) -> Tensor:
    """``mask`` with all channels but ``kept`` (along ``dim``) at 0."""
    size = [1] * mask.ndim
    size[dim] = mask.shape[dim]
    line = ops.zeros([mask.shape[dim]], dtype=mask.dtype, device=mask.device)
    return mask * line.index_fill(0, kept, 1).reshape(size)


# ---------------------------------------------------------------- methods
class Identity(BasePruningMethod):
    """Prunes nothing; makes the mask."""

    def compute_mask(self, t, default_mask):
        return default_mask


class RandomUnstructured(BasePruningMethod):
    """Random elements: a share of them (float) or a number (int)."""

    def __init__(self, amount):
        _check_amount(amount)
        self.amount = amount

    def compute_mask(self, t, default_mask):
        count = _how_many(self.amount, t.numel())
        if not count:
            return default_mask.clone()
        return _without(default_mask, ops.randperm(t.numel(), device=t.device)[:count])


class L1Unstructured(BasePruningMethod):
    """The elements of least magnitude: a share of them (float) or a number (int)."""

    def __init__(self, amount):
        _check_amount(amount)
        self.amount = amount

    def compute_mask(self, t, default_mask):
        count = _how_many(self.amount, t.numel())
        if not count:
            return default_mask.clone()
        least = ops.topk(t.abs().reshape(-1), count, largest=False)[1]
        return _without(default_mask, least)


class RandomStructured(BasePruningMethod):
    """Random channels along ``dim``: a share of them (float) or a number (int)."""

    PRUNING_TYPE = "structured"

    def __init__(self, amount, dim=-1):
        _check_amount(amount)
        self.amount, self.dim = amount, dim

    def compute_mask(self, t, default_mask):
        _check_channels(t, self.dim)
        size = t.shape[self.dim]
        count = _how_many(self.amount, size)
        if not count:
            return default_mask
        kept = ops.randperm(size, device=t.device)[count:]
        return _channel_mask(default_mask.to(t.dtype), self.dim, kept)


class LnStructured(BasePruningMethod):
    """The channels along ``dim`` of least n-norm: a share of them (float) or a number (int)."""

    PRUNING_TYPE = "structured"

    def __init__(self, amount, n, dim=-1):
        _check_amount(amount)
        self.amount, self.n, self.dim = amount, n, dim

    def compute_mask(self, t, default_mask):
        _check_channels(t, self.dim)
        size = t.shape[self.dim]
        count = _how_many(self.amount, size)
        if not count:
            return default_mask
        norms = t.norm(self.n, [d for d in range(t.ndim) if d != self.dim % t.ndim])
        kept = ops.topk(norms, size - count)[1]
        return _channel_mask(default_mask.to(t.dtype), self.dim, kept)


class CustomFromMask(BasePruningMethod):
    """A given mask."""

    PRUNING_TYPE = "global"

    def __init__(self, mask):
        self.mask = mask

    def compute_mask(self, t, default_mask):
        if default_mask.shape != self.mask.shape:
            raise AssertionError(
                f"mask of shape {self.mask.shape} does not fit {default_mask.shape}"
            )
        return default_mask * self.mask.to(default_mask.dtype)


# ---------------------------------------------------------------- functions
def identity(module, name):
    """Make mask and hook of ``module.<name>``, pruning nothing; returns the module."""
    Identity.apply(module, name)
    return module


def random_unstructured(module, name, amount):
    """Prune random elements of ``module.<name>``; returns the module."""
    RandomUnstructured.apply(module, name, amount)
    return module


def l1_unstructured(module, name, amount, importance_scores=None):
    """Prune the elements of least magnitude of ``module.<name>``; returns the module."""
    L1Unstructured.apply(module, name, amount=amount, importance_scores=importance_scores)
    return module


def random_structured(module, name, amount, dim):
    """Prune random channels of ``module.<name>``; returns the module."""
    RandomStructured.apply(module, name, amount, dim)
    return module


def ln_structured(module, name, amount, n, dim, importance_scores=None):
    """Prune the channels of least n-norm of ``module.<name>``; returns the module."""
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


def custom_from_mask(module, name, mask):
    """Prune ``module.<name>`` where ``mask`` is 0; returns the module."""
    CustomFromMask.apply(module, name, mask)
    return module


def global_unstructured(parameters, pruning_method, importance_scores=None, **kwargs) -> None:
    """Prune several tensors together: the method sees them as one vector.

    Args:
        parameters: pairs (module, name).
        pruning_method: an unstructured method's class; ``kwargs`` are for it.
        importance_scores: scores by pair; the tensors themselves by default.

    Raises:
        TypeError: if the method is not unstructured or the arguments are of other types.
    """
    if not isinstance(parameters, Iterable):
        raise TypeError("global_unstructured(): parameters is not an Iterable")
    importance_scores = {} if importance_scores is None else importance_scores
    if not isinstance(importance_scores, dict):
        raise TypeError("global_unstructured(): importance_scores must be of type dict")
    pairs = list(parameters)
    method = pruning_method(**kwargs)
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            'Only "unstructured" PRUNING_TYPE supported for the `pruning_method`. Found method '
            f"{pruning_method} of type {method.PRUNING_TYPE}"
        )
    tensors = [getattr(m, n).detach() for m, n in pairs]
    scores = [importance_scores.get(p, t) for p, t in zip(pairs, tensors)]
    masks: list = [getattr(m, n + "_mask", None) for m, n in pairs]
    masks = [ops.ones_like(t) if m is None else m for m, t in zip(masks, tensors)]
    mask = PruningContainer._combined(
        method, parameters_to_vector(scores).detach(), parameters_to_vector(masks)
    )
    start = 0
    for (module, name), t in zip(pairs, tensors):
        custom_from_mask(module, name, mask[start : start + t.numel()].reshape(t.shape))
        start += t.numel()


def remove(module, name):
    """Make a pruned tensor an ordinary parameter with its pruned value; returns the module.

    Raises:
        ValueError: if it is not pruned.
    """
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            hook.remove(module)
            del module._forward_pre_hooks[key]
            return module
    raise ValueError(
        f"Parameter '{name}' of module {module} has to be pruned before pruning can be removed"
    )


def is_pruned(module) -> bool:
    """Whether any tensor of the module or of those below is pruned."""
    return any(
        isinstance(hook, BasePruningMethod)
        for m in module.modules()
        for hook in m._forward_pre_hooks.values()
    )


__all__ = [
    "BasePruningMethod", "CustomFromMask", "Identity", "L1Unstructured", "LnStructured",
    "PruningContainer", "RandomStructured", "RandomUnstructured", "custom_from_mask",
    "global_unstructured", "identity", "is_pruned", "l1_unstructured", "ln_structured",
    "random_structured", "random_unstructured", "remove",
]
