"""Batch normalisation over the batches of all ranks."""

from __future__ import annotations

import sys

from .batchnorm import _BatchNorm
from .module import Module


class SyncBatchNorm(_BatchNorm):
    """Zero mean and unit variance per channel of [N, C, …] over the batches of all ranks together.

    As one process would on the whole batch, also where ranks have batches of different sizes or
    none. In evaluation, without a process group and on one rank it is BatchNorm. Works on the CPU
    too; PyTorch's needs a GPU.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: how far running statistics move towards each batch's; None averages all batches.
        affine: whether there are weight and bias [C]; ``bias``: whether there is a bias.
        track_running_stats: whether there are running statistics, used in evaluation.
        process_group: the ranks; None: all.

    Raises:
        ValueError: fewer than 2 dims, no channels, or one value per channel in training.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, process_group=None, device=None,
        dtype=None, *, bias: bool = True,
    ):
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group

    def _check_input_dim(self, input):
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.shape[1] == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def forward(self, input):
        group = self._ranks() if self.training else None
        if group is None:
            return super().forward(input)
        from ...distributed.sync_batch_norm import sync_batch_norm

        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        keep = self.track_running_stats
        return sync_batch_norm(
            input, self.weight, self.bias, self.running_mean if keep else None,
            self.running_var if keep else None, momentum, self.eps, group,
        )

    def _ranks(self):
        """The process group, or None where there is nobody else."""
        # Plain training must not load MPI: a job with ranks has imported it.
        dist = sys.modules.get("disttorch.distributed")
        if dist is None or not dist.is_initialized():
            return None
        group = self.process_group or dist.group.WORLD
        return group if group.size() > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group=None) -> Module:
        """``module`` with a SyncBatchNorm in the place of each BatchNorm.

        Args:
            module: changed in place; a BatchNorm itself is not, and its substitute is returned.
            process_group: the ranks; None: all.

        Returns:
            ``module`` or its substitute, with the same parameter and buffer objects.
        """

        def substitute(old: _BatchNorm) -> Module:
            new = SyncBatchNorm(
                old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats,
                process_group, bias=old.bias is not None,
            )
            new.__dict__["_converted_from"] = getattr(old, "_converted_from", type(old))
            return new

        return _replaced(module, lambda m: isinstance(m, _BatchNorm), substitute)

    @classmethod
    def revert_sync_batchnorm(cls, module: Module) -> Module:
        """The way back: ``module`` with the BatchNorm that each SyncBatchNorm was made from.

        One that was made directly becomes a BatchNorm of any number of dims. PyTorch has no such
        function; use it to run a model in one process, or to export it.
        """

        def substitute(old: SyncBatchNorm) -> Module:
            kind = getattr(old, "_converted_from", SyncBatchNorm)
            if kind is SyncBatchNorm or not issubclass(kind, _BatchNorm):
                kind = BatchNormNd
            return kind(
                old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats,
                bias=old.bias is not None,
            )

        return _replaced(module, lambda m: isinstance(m, SyncBatchNorm), substitute)


class BatchNormNd(_BatchNorm):
    """Batch normalisation of [N, C, …] with any number of dims."""

    _check_input_dim = SyncBatchNorm._check_input_dim


def _replaced(module: Module, matches, substitute) -> Module:
    if matches(module):
        new = substitute(module)
        for name in ("weight", "bias"):
            new.register_parameter(name, getattr(module, name, None))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            new.register_buffer(name, getattr(module, name, None))
        return new.train(module.training)
    for name, child in list(module.named_children()):
        module.add_module(name, _replaced(child, matches, substitute))
    return module


__all__ = ["SyncBatchNorm"]
