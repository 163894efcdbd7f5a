"""fully_shard: weights, gradients and optimizer state cut over the ranks, for models of any size.

    python examples/fsdp.py
    disttorch-run --nproc-per-node 2 examples/fsdp.py
    disttorch-run --nproc-per-node 2 --via spawn examples/fsdp.py --precision bfloat16 --steps 60
    mpirun -n 4 python examples/fsdp.py --replicas 2 --recompute

The same file on a GPU cluster, four nodes of eight GPUs: sharded inside a node, replicated across:

    srun --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 python examples/fsdp.py --device cuda
        --layers 32 --heads 32 --width 4096 --context 2048 --batch 128 --lr 3e-4 --steps 20000
        --precision bfloat16 --replicas 4 --recompute --data '/data/books/**/*.txt' --max-mb 4000

A character-level GPT learns text, without --data the Python standard library. It is made without
memory, sharded, and only then gets its weights, the same whatever the number of ranks: no rank ever
holds the whole model. Each step gathers a block's weights before they are needed, frees them, and
leaves each rank the mean of its part of the gradients.
"""

from __future__ import annotations

import argparse

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from disttorch.nn.utils import clip_grad_norm_
from disttorch.utils.checkpoint import checkpoint
from gpt import GPT, Block, GPTConfig
from ranks import Meter, own_device, parameter_bytes, parser, run, share_of
from small import positive
from text import Corpus, TrainingWindows, UserError, held_out_starts, windows


class RecomputedBlock(Block):
    """A block whose inside is computed again in backward instead of being kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def make_model(given: argparse.Namespace, config: GPTConfig, device: torch.device) -> GPT:
    """The sharded model with its first weights."""
    ranks = dist.get_world_size()
    mesh = dist.init_device_mesh(
        device.type, (given.replicas, share_of(ranks, given.replicas, "the number of ranks")),
        mesh_dim_names=("replicas", "shards"),
    )  # fmt: skip
    precision = None if given.precision == "float32" else getattr(torch, given.precision)
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    with torch.device("meta"):  # shapes only
        model = GPT(config)
    for block in model.blocks:
        if given.recompute:
            block.__class__ = RecomputedBlock
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not given.keep_whole)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)  # this rank's shards
    torch.manual_seed(given.seed)
    model.initialise()
    return model


def theory(model: GPT, given: argparse.Namespace) -> float:
    """Bytes that a rank must send per step at least (Rajbhandari et al. 2020, section 7)."""
    n = dist.get_world_size() // given.replicas
    whole, blocks = parameter_bytes(model), parameter_bytes(model.blocks)
    narrow = 1.0 if given.precision == "float32" else 0.5
    # The outermost unit, embeddings and head, stays whole between forward and backward.
    gathered = narrow * (whole + (0 if given.keep_whole else blocks))
    over_replicas = 2 * whole / n * (given.replicas - 1) / given.replicas
    return (gathered + whole) * (n - 1) / n + over_replicas


def loss_of(model: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean nats per character."""
    return F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model: GPT, ids: torch.Tensor, context: int) -> float:
    """The mean over up to 64 windows; every rank has as many, as each forward gathers the weights."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    starts = held_out_starts(ids, context, 64)
    mine = starts[: len(starts) // ranks * ranks][rank::ranks]
    if not len(mine):
        raise UserError(f"the held-out text has {len(starts)} windows, fewer than ranks: give more text")
    loss = loss_of(model, *windows(ids, mine, context)).double()
    dist.all_reduce(loss, op=dist.ReduceOp.AVG)
    return loss.item()


def main(given: argparse.Namespace) -> None:
    """Train and report."""
    device, ranks = own_device(given.device), dist.get_world_size()
    share_of(given.batch, ranks, "--batch")
    corpus = Corpus.load(given.data, given.max_mb)
    data = TrainingWindows(corpus.training.to(device), given.context, given.batch, given.seed)
    config = GPTConfig(len(corpus.vocabulary), given.context, given.layers, given.heads, given.width)
    model = make_model(given, config, device)
    optimizer = torch.optim.AdamW(model.decay_groups(0.1), lr=given.lr, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, total_steps=given.steps)

    meter = Meter(given.steps, given.batch * given.context, "characters")
    whole = parameter_bytes(model)
    own = sum(p.to_local().numel() * p.to_local().element_size() for p in model.parameters())
    meter.note(corpus.source)
    meter.note(
        f"{whole / 4e6:.2f} M parameters on {ranks} ranks, {given.replicas} replica(s): this rank keeps "
        f"{own / 1e6:.3f} MB of {whole / 1e6:.3f} MB of weights, and of AdamW's state twice that"
    )
    for step in range(given.steps):
        inputs, targets = data.batch(step, dist.get_rank(), ranks)
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)  # the norm over all ranks' shards
        optimizer.step()
        scheduler.step()
        meter.step(step + 1, loss)
    held_out = held_out_loss(model, corpus.held_out.to(device), given.context)
    meter.close()
    meter.show_bytes(theory(model, given), "gather + reduce")
    meter.note(f"held-out text: {held_out:.4f} nats per character")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    for name, default, text in (
        ("layers", 2, "blocks"), ("heads", 4, "attention heads"), ("width", 128, "of the model"),
        ("context", 64, "characters seen at once"), ("batch", 16, "sequences per step, all ranks"),
        ("steps", 150, "optimizer steps"), ("replicas", 1, "HSDP: copies of the sharded model"),
    ):  # fmt: skip
        text += f" (default: {default})"
        made.add_argument(f"--{name}", type=positive, default=default, help=text)
    made.add_argument("--lr", type=float, default=4e-3, help="peak learning rate (default: 4e-3)")
    made.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "float16"))
    made.add_argument("--keep-whole", action="store_true", help="ZeRO-2: gather once per step")
    made.add_argument("--recompute", action="store_true", help="activation checkpointing of blocks")
    made.add_argument("--data", nargs="+", help="text files or quoted globs")
    made.add_argument("--max-mb", type=float, default=4.0, help="of text at most (default: 4)")
    return made


if __name__ == "__main__":
    run(main, options())
