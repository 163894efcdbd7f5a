"""Normalisation with statistics over the batch, or of each sample's channels on their own."""

from __future__ import annotations

from ... import ops
from .. import functional as F
from .. import init
from ..functional.normalization import counted_batch_norm
from ..parameter import Parameter
from .module import Module


class _NormBase(Module):
    """Affine parameters and running statistics of C channels."""

    _version = 2

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        device=None, dtype=None, *, bias=True,
    ):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        where = {"device": device, "dtype": dtype}
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            param = Parameter(ops.empty(num_features, **where)) if wanted else None
            self.register_parameter(name, param)
        stats = track_running_stats
        self.register_buffer("running_mean", ops.zeros(num_features, **where) if stats else None)
        self.register_buffer("running_var", ops.ones(num_features, **where) if stats else None)
        count = ops.tensor(0, device=device) if stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, nothing seen."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Running statistics as at first, weight 1, bias 0."""
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            if self.bias is not None:
                init.zeros_(self.bias)

    def _check_input_dim(self, input) -> None:
        raise NotImplementedError

    def _check_dims(self, input, *allowed) -> None:
        if input.dim() not in allowed:
            words = " or ".join(f"{n}D" for n in allowed)
            raise ValueError(f"expected {words} input (got {input.dim()}D input)")

    def extra_repr(self) -> str:
        # "is not None" alone would be wrong for a lazy module, which makes its bias later
        bias = self.affine and getattr(self, "bias", None) is not None
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={bias}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        """Files of PyTorch before 0.4.1 have no count of batches: they start at this module's."""
        version = local_metadata.get("version")
        key = prefix + "num_batches_tracked"
        if (version is None or version < 2) and self.track_running_stats and key not in state_dict:
            count = self.num_batches_tracked
            state_dict[key] = ops.tensor(0) if count is None else count
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class _BatchNorm(_NormBase):
    def forward(self, input):
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        seen = None
        if self.training and self.track_running_stats:
            seen = self.num_batches_tracked
            if self.momentum is None and seen is not None:  # the plain average over all batches so far
                momentum = 1.0 / float(seen.add_(1))
                seen = None
        batch = self.training or self.running_mean is None and self.running_var is None
        keep = not self.training or self.track_running_stats
        return counted_batch_norm(
            input, self.running_mean if keep else None, self.running_var if keep else None,
            self.weight, self.bias, batch, momentum, self.eps, seen,
        )


class BatchNorm1d(_BatchNorm):
    """Zero mean and unit variance per channel of [N, C] or [N, C, L] (arXiv:1502.03167).

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: how far running statistics move towards each batch's; None averages all batches.
        affine: whether there are weight and bias [C]; ``bias``: whether there is a bias.
        track_running_stats: whether there are running statistics, used in evaluation.

    Raises:
        ValueError: for another number of dims, or one value per channel in training.
    """

    def _check_input_dim(self, input):
        self._check_dims(input, 2, 3)


class BatchNorm2d(_BatchNorm):
    """Zero mean and unit variance per channel of [N, C, H, W]; arguments as of BatchNorm1d."""

    def _check_input_dim(self, input):
        self._check_dims(input, 4)


class BatchNorm3d(_BatchNorm):
    """Zero mean and unit variance per channel of [N, C, D, H, W]; as BatchNorm1d."""

    def _check_input_dim(self, input):
        self._check_dims(input, 5)


class _InstanceNorm(_NormBase):
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = False,
        track_running_stats: bool = False, device=None, dtype=None, *, bias: bool = True,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype,
                         bias=bias)

    def _no_batch_dim(self) -> int:
        raise NotImplementedError

    def forward(self, input):
        self._check_input_dim(input)
        channels = -(self._no_batch_dim())
        if input.shape[channels] != self.num_features:
            if self.affine:
                raise ValueError(
                    f"expected input's size at dim={input.dim() + channels} to match num_features "
                    f"({self.num_features}), but got: {input.shape[channels]}."
                )
            _warn_channels(input.dim() + channels)
        if input.dim() == self._no_batch_dim():
            return self._apply_norm(input.unsqueeze(0)).squeeze(0)
        return self._apply_norm(input)

    def _apply_norm(self, input):
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats, momentum, self.eps,
        )


def _warn_channels(dim):
    import warnings

    warnings.warn(
        f"input's size at dim={dim} does not match num_features. You can silence this warning by "
        "not passing in num_features, which is not used because affine=False",
        stacklevel=4,
    )


class InstanceNorm1d(_InstanceNorm):
    """Zero mean and unit variance per sample and channel of [N, C, L] (arXiv:1607.08022).

    Args:
        num_features: C; others as of BatchNorm1d.
        affine: whether there are weight and bias, False by default.
        track_running_stats: whether evaluation uses running statistics, False by default.

    Raises:
        ValueError: for another number of dims or channels.
    """

    def _no_batch_dim(self):
        return 2

    def _check_input_dim(self, input):
        self._check_dims(input, 2, 3)


class InstanceNorm2d(_InstanceNorm):
    """The same for [N, C, H, W]; arguments as of InstanceNorm1d."""

    def _no_batch_dim(self):
        return 3

    def _check_input_dim(self, input):
        self._check_dims(input, 3, 4)


class InstanceNorm3d(_InstanceNorm):
    """The same for [N, C, D, H, W]; arguments as of InstanceNorm1d."""

    def _no_batch_dim(self):
        return 4

    def _check_input_dim(self, input):
        self._check_dims(input, 4, 5)


class GroupNorm(Module):
    """Zero mean and unit variance per sample and group of channels of [N, C, ...] (1803.08494).

    Args:
        num_groups: a divisor of ``num_channels`` = C.
        affine: whether there are weight and bias [C]; ``bias``: whether there is a bias.

    Raises:
        ValueError: if the channels do not divide into groups.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
        device=None, dtype=None, *, bias: bool = True,
    ):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            empty = ops.empty(num_channels, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if empty is None else Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.affine:
            init.ones_(self.weight)
            if self.bias is not None:
                init.zeros_(self.bias)

    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class LocalResponseNorm(Module):
    """input / (k + alpha·mean of squares over ``size`` neighbouring channels)^beta."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input):
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class CrossMapLRN2d(Module):
    """The legacy form of LocalResponseNorm for [N, C, H, W].

    Its sliding sum never drops channel 0 once that has entered; PyTorch keeps this behaviour for
    old models, and so does this class.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input):
        if input.dim() != 4:
            raise ValueError(
                f"CrossMapLRN2d: Expected input to be 4D, got {input.dim()}D instead."
            )
        reach = (self.size - 1) // 2  # channels to each side
        squares = input * input
        padded = ops.constant_pad_nd(squares, (0, 0, 0, 0, reach, reach))
        total = padded[:, : input.shape[1]]
        for shift in range(1, 2 * reach + 1):
            total = total + padded[:, shift : shift + input.shape[1]]
        late = max(input.shape[1] - reach - 1, 0)
        kept = squares[:, :1].expand(-1, late, -1, -1)
        total = total + ops.constant_pad_nd(kept, (0, 0, 0, 0, input.shape[1] - late, 0))
        return input * (total * (self.alpha / self.size) + self.k).pow(-self.beta)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


__all__ = [
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "CrossMapLRN2d", "GroupNorm", "InstanceNorm1d",
    "InstanceNorm2d", "InstanceNorm3d", "LocalResponseNorm",
]
