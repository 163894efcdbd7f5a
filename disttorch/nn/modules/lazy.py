"""Lazy modules: layers that learn the number of their input's channels from the first input.

Until then their parameters are uninitialised; at the first call they get their shape and values,
and the module's class becomes that of the ordinary layer.
"""

from __future__ import annotations

from ... import ops
from ..parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from .batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
)
from .conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from .linear import Linear


class LazyModuleMixin:
    """For layers with uninitialised parameters.

    A subclass sets ``cls_to_become`` and defines ``initialize_parameters(*inputs)``, which gives
    every parameter and buffer a shape (``materialize``) and values.
    """

    cls_to_become: type | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._initialize_hook = self.register_forward_pre_hook(_infer, with_kwargs=True)

    def initialize_parameters(self, *args, **kwargs):
        """Give parameters and buffers their shapes and values, from the forward's arguments."""
        raise NotImplementedError(
            f"initialize_parameters is not implemented for {type(self).__name__}"
        )

    def has_uninitialized_params(self) -> bool:
        """Whether a parameter or buffer of this module has no shape yet."""
        return any(map(is_lazy, (*self._parameters.values(), *self._buffers.values())))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Like Module's, with uninitialised entries as they are."""
        persistent = {n: b for n, b in self._buffers.items()
                      if n not in self._non_persistent_buffers_set}
        for name, value in (self._parameters | persistent).items():
            if value is not None:
                keep = keep_vars or is_lazy(value)
                destination[prefix + name] = value if keep else value.detach()

    def _load_one(self, name, key, param, value, assign):
        """An uninitialised entry takes the shape of what is loaded into it."""
        if is_lazy(param):
            if is_lazy(value):
                return None
            param.materialize(value.shape)
        return super()._load_one(name, key, param, value, assign)

    def _apply(self, fn, recurse=True):
        """Like Module's; uninitialised buffers keep their identity."""
        lazy = {n: b for n, b in self._buffers.items() if is_lazy(b)}
        for buffer in lazy.values():
            buffer.data = fn(buffer.data)
        kept, self._buffers = self._buffers, {n: b for n, b in self._buffers.items() if n not in lazy}
        try:
            super()._apply(fn, recurse)
        finally:
            kept.update(self._buffers)
            self._buffers = kept
        return self


def _infer(module, args, kwargs):
    """The hook before the first forward: make the parameters, become the ordinary layer."""
    module.initialize_parameters(*args, **kwargs)
    if module.has_uninitialized_params():
        raise RuntimeError(f"module {module._get_name()} has not been fully initialized")
    module._initialize_hook.remove()
    del module._initialize_hook
    if module.cls_to_become is not None:
        module.__class__ = module.cls_to_become


class _LazyLayer(LazyModuleMixin):
    """A layer whose ordinary ``reset_parameters`` runs once the shapes are known."""

    def reset_parameters(self) -> None:
        """Draw the values anew, if there are any yet."""
        if not self.has_uninitialized_params() and self._sized():
            super().reset_parameters()

    def _sized(self) -> bool:
        return self.in_channels != 0


class LazyLinear(_LazyLayer, Linear):
    """Linear whose ``in_features`` come from the first input."""

    cls_to_become = Linear

    def __init__(self, out_features: int, bias: bool = True, device=None, dtype=None):
        super().__init__(0, 0, False)
        where = {"device": device, "dtype": dtype}
        self.weight = UninitializedParameter(**where)
        self.out_features = out_features
        if bias:
            self.bias = UninitializedParameter(**where)

    def _sized(self):
        return self.in_features != 0

    def initialize_parameters(self, input) -> None:
        if self.has_uninitialized_params():
            self.in_features = input.shape[-1]
            self.weight.materialize((self.out_features, self.in_features))
            if self.bias is not None:
                self.bias.materialize((self.out_features,))
            self.reset_parameters()
        elif self.in_features == 0:  # loaded from a state_dict
            self.in_features = self.weight.shape[-1]


class _LazyConv(_LazyLayer):
    """A convolution whose ``in_channels`` come from the first input."""

    def _make_lazy(self, out_channels, bias, device, dtype):
        where = {"device": device, "dtype": dtype}
        self.weight = UninitializedParameter(**where)
        self.out_channels = out_channels
        if bias:
            self.bias = UninitializedParameter(**where)

    def initialize_parameters(self, input) -> None:
        dims = len(self.kernel_size)
        if not self.has_uninitialized_params():
            if self.in_channels == 0:  # loaded from a state_dict
                n = self.weight.shape[0 if self.transposed else 1]
                self.in_channels = n if self.transposed else n * self.groups
            return
        if input.dim() not in (dims + 1, dims + 2):
            raise RuntimeError(
                f"Expected {dims + 1}D (unbatched) or {dims + 2}D (batched) input to "
                f"{type(self).__name__}, but got input of size: {input.shape}"
            )
        self.in_channels = input.shape[-dims - 1]
        if self.in_channels % self.groups:
            raise ValueError(
                f"in_channels must be divisible by groups, but got in_channels={self.in_channels} "
                f"and groups={self.groups}"
            )
        ends = (self.in_channels, self.out_channels)
        first, second = ends if self.transposed else ends[::-1]
        self.weight.materialize((first, second // self.groups, *self.kernel_size))
        if self.bias is not None:
            self.bias.materialize((self.out_channels,))
        self.reset_parameters()


class _LazyPlainConv(_LazyConv):
    def __init__(
        self, out_channels: int, kernel_size, stride=1, padding=0, dilation=1, groups: int = 1,
        bias: bool = True, padding_mode: str = "zeros", device=None, dtype=None,
    ):
        super().__init__(0, 0, kernel_size, stride, padding, dilation, groups, False, padding_mode)
        self._make_lazy(out_channels, bias, device, dtype)


class _LazyTransposedConv(_LazyConv):
    def __init__(
        self, out_channels: int, kernel_size, stride=1, padding=0, output_padding=0,
        groups: int = 1, bias: bool = True, dilation=1, padding_mode: str = "zeros", device=None,
        dtype=None,
    ):
        super().__init__(0, 0, kernel_size, stride, padding, output_padding, groups, False, dilation,
                         padding_mode)
        self._make_lazy(out_channels, bias, device, dtype)


class LazyConv1d(_LazyPlainConv, Conv1d):
    """Conv1d whose ``in_channels`` come from the first input."""

    cls_to_become = Conv1d


class LazyConv2d(_LazyPlainConv, Conv2d):
    """Conv2d whose ``in_channels`` come from the first input."""

    cls_to_become = Conv2d


class LazyConv3d(_LazyPlainConv, Conv3d):
    """Conv3d whose ``in_channels`` come from the first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_LazyTransposedConv, ConvTranspose1d):
    """ConvTranspose1d whose ``in_channels`` come from the first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyTransposedConv, ConvTranspose2d):
    """ConvTranspose2d whose ``in_channels`` come from the first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyTransposedConv, ConvTranspose3d):
    """ConvTranspose3d whose ``in_channels`` come from the first input."""

    cls_to_become = ConvTranspose3d


class _LazyNorm(_LazyLayer):
    """A normalisation whose ``num_features`` come from the first input."""

    def __init__(
        self, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, device=None,
        dtype=None, *, bias=True,
    ):
        # no parameters and buffers of size 0 first: they come uninitialised below
        super().__init__(0, eps, momentum, False, False)
        where = {"device": device, "dtype": dtype}
        self.affine, self.track_running_stats = affine, track_running_stats
        if affine:
            self.weight = UninitializedParameter(**where)
            if bias:
                self.bias = UninitializedParameter(**where)
        if track_running_stats:
            self.running_mean = UninitializedBuffer(**where)
            self.running_var = UninitializedBuffer(**where)
            self.num_batches_tracked = ops.tensor(0, device=device)

    def _sized(self):
        return self.num_features != 0

    def initialize_parameters(self, input) -> None:
        if self.has_uninitialized_params():
            self._check_input_dim(input)
            self.num_features = input.shape[1]
            for value in (*self._parameters.values(), *self._buffers.values()):
                if is_lazy(value):
                    value.materialize((self.num_features,))
            self.reset_parameters()
        elif self.num_features == 0:  # loaded from a state_dict
            known = self.weight if self.affine else self.running_mean
            self.num_features = input.shape[1] if known is None else known.shape[0]


class LazyBatchNorm1d(_LazyNorm, BatchNorm1d):
    """BatchNorm1d whose ``num_features`` come from the first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyNorm, BatchNorm2d):
    """BatchNorm2d whose ``num_features`` come from the first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_LazyNorm, BatchNorm3d):
    """BatchNorm3d whose ``num_features`` come from the first input."""

    cls_to_become = BatchNorm3d


class LazyInstanceNorm1d(_LazyNorm, InstanceNorm1d):
    """InstanceNorm1d whose ``num_features`` come from the first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyNorm, InstanceNorm2d):
    """InstanceNorm2d whose ``num_features`` come from the first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyNorm, InstanceNorm3d):
    """InstanceNorm3d whose ``num_features`` come from the first input."""

    cls_to_become = InstanceNorm3d


__all__ = [
    "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d", "LazyConv1d", "LazyConv2d",
    "LazyConv3d", "LazyConvTranspose1d", "LazyConvTranspose2d", "LazyConvTranspose3d",
    "LazyInstanceNorm1d", "LazyInstanceNorm2d", "LazyInstanceNorm3d", "LazyLinear",
]
