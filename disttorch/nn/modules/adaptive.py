"""A softmax over many classes, of which the rare ones are computed only when asked for.

Shape legend: N batch, I inputs, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from ... import ops
from ...tensor import Tensor
from .. import functional as F
from .container import ModuleList, Sequential
from .linear import Linear
from .module import Module


class _ASMoutput(NamedTuple):
    output: Tensor
    loss: Tensor


class AdaptiveLogSoftmaxWithLoss(Module):
    """Adaptive softmax (Grave et al., arXiv:1609.04309): classes sorted by frequency, the first
    in the head, the others in clusters of narrower and narrower projections.

    Args:
        in_features, n_classes: I and C.
        cutoffs: where the clusters begin, increasing.
        div_value: each cluster's projection is narrower by this factor.
        head_bias: whether the head has a bias.

    Raises:
        ValueError: if cutoffs are not unique, increasing and inside the classes.
    """

    def __init__(
        self, in_features: int, n_classes: int, cutoffs, div_value: float = 4.0,
        head_bias: bool = False, device=None, dtype=None,
    ):
        super().__init__()
        cutoffs = list(cutoffs)
        if not cutoffs:
            raise ValueError("cutoffs should be a sequence of length larger than 0")
        if (
            cutoffs != sorted(set(cutoffs)) or cutoffs[0] <= 0 or cutoffs[-1] > n_classes - 1
            or any(int(c) != c for c in cutoffs)
        ):
            raise ValueError(
                "cutoffs should be a sequence of unique, positive integers sorted in an increasing "
                "order, where each value is between 1 and n_classes-1"
            )
        self.in_features, self.n_classes = in_features, n_classes
        self.cutoffs = [*cutoffs, n_classes]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = cutoffs[0], len(cutoffs)
        self.head_size = self.shortlist_size + self.n_clusters
        where = {"device": device, "dtype": dtype}
        self.head = Linear(in_features, self.head_size, bias=head_bias, **where)
        self.tail = ModuleList()
        for i, (low, high) in enumerate(self._clusters()):
            width = int(in_features // div_value ** (i + 1))
            self.tail.append(Sequential(
                Linear(in_features, width, bias=False, **where),
                Linear(width, high - low, bias=False, **where),
            ))

    def _clusters(self):
        return zip(self.cutoffs, self.cutoffs[1:])

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.head.reset_parameters()
        for cluster in self.tail:
            for layer in cluster.children():
                layer.reset_parameters()

    def forward(self, input_, target_):
        """(log-probability of each target [N], mean negative log-likelihood); or of one, [I], [].

        Raises:
            RuntimeError: if shapes do not fit or a target is no class.
        """
        self._check(input_, target_)
        alone = target_.ndim == 0
        input, target = (input_.unsqueeze(0), target_.unsqueeze(0)) if alone else (input_, target_)
        head = F.log_softmax(self.head(input), 1)
        place = target  # in the head: the class itself, or its cluster
        output = head.new_zeros([target.shape[0]])
        for i, (low, high) in enumerate(self._clusters()):
            inside = (target >= low) & (target < high)
            rows = inside.nonzero().squeeze(1)
            if rows.numel():
                place = ops.where(inside, self.shortlist_size + i, place)
                logs = F.log_softmax(self.tail[i](input.index_select(0, rows)), 1)
                own = logs.gather(1, (target[rows] - low).unsqueeze(1)).squeeze(1)
                output = output.index_add(0, rows, own)
        output = output + head.gather(1, place.unsqueeze(1)).squeeze(1)
        loss = (-output).mean()
        return _ASMoutput(output.squeeze(0) if alone else output, loss)

    def _check(self, input, target):
        if target.ndim > 1:
            raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
        if target.ndim == 1 and input.shape[0] != target.shape[0]:
            raise RuntimeError(
                "Input and target should have the same size in the batch dimension."
            )
        if input.ndim != target.ndim + 1:
            raise RuntimeError(
                f"{target.ndim}D target tensor expects {target.ndim + 1}D input tensors, but found "
                f"inputs with size {input.shape}"
            )
        if target.numel():
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= self.n_classes:
                raise RuntimeError(
                    f"Target values should be in [0, {self.n_classes - 1}], but values in range "
                    f"[{low}, {high}] were found. "
                )

    def log_prob(self, input):
        """Log-probabilities of all classes: [N, I] -> [N, C]."""
        head = F.log_softmax(self.head(input), 1)
        parts = [head[:, : self.shortlist_size]]
        for i, tail in enumerate(self.tail):
            cluster = head[:, self.shortlist_size + i].unsqueeze(1)
            parts.append(F.log_softmax(tail(input), 1) + cluster)
        return ops.cat(parts, 1)

    def predict(self, input):
        """The most probable class: [N, I] -> int64 [N]."""
        best = self.head(input).argmax(1)
        rare = best >= self.shortlist_size
        if not bool(rare.any()):
            return best
        rows = rare.nonzero().squeeze(1)
        return best.index_copy(0, rows, self.log_prob(input[rows]).argmax(1))


__all__ = ["AdaptiveLogSoftmaxWithLoss"]
