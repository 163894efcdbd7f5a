"""Training whose weights are bitwise the same on any number of ranks.

A floating-point sum depends on its order, and a matrix product on its shape. Data parallelism as
usual therefore gives other bits on 2 ranks than on 4. Here the global batch is cut into V *virtual
shards*, whatever the number of ranks n, a divisor of V. Each shard is computed alone, with random
numbers of its own, and the V gradients are added up in one fixed binary tree (`collectives.tree`).
What is left to depend on n is where a shard is computed.

    model          the wrapper of a model: the loop over shards, means, the guards
    cutting        a batch into shards, parameters into buckets
    tree_sum       arrays of the shards, added up in the tree
    sharded        the same for modules under fully_shard
    running        running statistics (BatchNorm)
    streams        random numbers by (seed, step, shard)
    sampler        the samples of each rank
    agreement      whether ranks have the same model
    surroundings   what the bits depend on besides: compared between ranks and with a checkpoint
                   (backend/fingerprint.py, backend/blas.py)

docs/exact.md says when the promise holds, and what it costs.
"""

from .model import ExactDataParallel
from .sampler import VirtualShardSampler
from .streams import random_stream, stream_seed
from .surroundings import differences, fingerprint

__all__ = [
    "ExactDataParallel", "VirtualShardSampler", "differences", "fingerprint", "random_stream",
    "stream_seed",
]
