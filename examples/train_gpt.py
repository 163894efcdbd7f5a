"""Train a character-level GPT on real text, on any number of ranks.

    disttorch-run --nproc-per-node 2 examples/train_gpt.py
    mpirun -n 2 python examples/train_gpt.py
    python examples/train_gpt.py

Without --data the text is the Python standard library of this machine. All ranks together work on
one global batch per step, whose order does not depend on how many they are. Everything goes into
one run folder; --resume continues a run exactly where its last checkpoint was taken.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import disttorch as torch
import disttorch.distributed as dist
import disttorch.nn.functional as F
from disttorch.nn.parallel import DistributedDataParallel as DDP
from disttorch.nn.utils import clip_grad_norm_
from gpt import GPT, GPTConfig
from progress import Status, make_progress
from runfolder import FORMAT, RunFolder, draw_losses, load_checkpoint
from settings import Settings, check, parse, resumed
from text import Corpus, TrainingWindows, UserError, held_out_starts, windows
from traffic import Traffic, gradient_bytes

EVAL_BATCH = 64  # windows in one forward pass of the validation


@dataclass
class Job:
    """What a run needs, read and checked before anything is written."""

    settings: Settings
    folder: RunFolder
    corpus: Corpus
    training: TrainingWindows
    eval_starts: torch.Tensor
    checkpoint: dict[str, Any] | None
    in_place: bool


def prepare(arguments: list[str] | None, default_out: str) -> Job:
    """Read the command line, the checkpoint and the text; raises UserError, writes nothing."""
    given = parse(arguments, __doc__.splitlines()[0], speaks=dist.get_rank() == 0)
    out, resume = given.pop("out", None), given.pop("resume", None)
    checkpoint = None
    if resume is None:
        settings = Settings(**given)
    else:
        source = Path(resume)
        path = RunFolder(source).latest_checkpoint() if source.is_dir() else source
        checkpoint = load_checkpoint(path)
        settings = resumed(checkpoint["settings"], given, path)
        if checkpoint["step"] >= settings.steps:
            raise UserError(
                f"{path} is at step {checkpoint['step']} of {settings.steps}: the run is "
                "complete; give more --steps to train on"
            )
    check(settings, dist.get_world_size())
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no usable CUDA device was found; use --device cpu")

    # A run folder is continued in place; a single checkpoint begins a new run from that point.
    in_place = resume is not None and Path(resume).is_dir() and out in (None, resume)
    folder = RunFolder(Path(resume if in_place else out or default_out))
    if not in_place:
        folder.refuse_if_taken()

    corpus = Corpus.load(settings.data, settings.max_mb)
    for name, mine in (
        ("vocabulary", corpus.vocabulary.characters),
        ("text", corpus.fingerprint),
    ):
        if checkpoint is not None and checkpoint[name] != mine:
            raise UserError(
                f"{path} is of another model or run: its {name} differs from that of the text "
                "here; resume it with the same files"
            )
    training = TrainingWindows(
        corpus.training, settings.context, settings.global_batch, settings.seed
    )
    eval_starts = held_out_starts(corpus.held_out, settings.context, settings.eval_windows)
    return Job(settings, folder, corpus, training, eval_starts, checkpoint, in_place)


class Trainer:
    """Model, optimizer and loop of one rank. The collectives in it run on every rank alike."""

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = self._pick_device()
        job.training.ids = job.training.ids.to(self.device)
        job.corpus.held_out = job.corpus.held_out.to(self.device)

        torch.manual_seed(self.settings.seed)
        config = GPTConfig(
            len(job.corpus.vocabulary),
            self.settings.context,
            self.settings.layers,
            self.settings.heads,
            self.settings.width,
            self.settings.dropout,
            self.settings.tie,
        )
        self.model = GPT(config).to(self.device, getattr(torch, self.settings.dtype))
        self.ddp = DDP(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.decay_groups(self.settings.weight_decay),
            lr=self.settings.lr,
            betas=(0.9, 0.95),
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, warmup_then_cosine(self.settings)
        )
        # Equal weights, but different dropout on every rank: each works on other sequences.
        torch.manual_seed(self.settings.seed * 1_000_003 + 1 + self.rank)
        self.step = 0
        self.traffic = Traffic()
        self.progress = make_progress(self.rank, self.settings.steps)

    def run(self) -> None:
        """Train to the last step, then write the sample and the picture."""
        if self.job.checkpoint is not None:
            self._restore(self.job.checkpoint)
        self._open_folder()
        settings = self.settings
        val_loss = None
        mark, marked_step = time.perf_counter(), self.step
        while self.step < settings.steps:
            loss, norm = self._train_step()
            last = self.step == settings.steps
            evaluate = last or self.step % settings.eval_every == 0
            save = last or self.step % settings.save_every == 0
            if evaluate or self.step == 1 or self.step % settings.log_every == 0:
                train_loss = self._mean_over_ranks(loss)
                pace = (time.perf_counter() - mark) / (self.step - marked_step)
                mark, marked_step = time.perf_counter(), self.step
                if not math.isfinite(train_loss):
                    raise UserError(
                        f"the loss is {train_loss} at step {self.step}; try a smaller --lr than "
                        f"{settings.lr}"
                    )
                if evaluate:
                    val_loss = self._validate()
                self._log(train_loss, val_loss if evaluate else None, norm, pace)
                self.progress.update(
                    Status(
                        self.step,
                        settings.steps,
                        train_loss,
                        val_loss,
                        self._tokens_per_step() / pace,
                        (settings.steps - self.step) * pace,
                    )
                )
            if save:
                self._save()
            if evaluate or save:  # neither counts as training time
                mark, marked_step = time.perf_counter(), self.step
        self.progress.close()
        if self.rank == 0:
            self._finish(val_loss)

    def _train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one optimizer step; return this rank's mean loss and the norm of the gradient."""
        parts = self.settings.accumulate
        inputs, targets = self.job.training.batch(self.step, self.rank, self.world_size)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad()
        with self.traffic.step():
            for part, (x, y) in enumerate(zip(inputs.chunk(parts), targets.chunk(parts))):
                # Gradients add up locally; only the last part's backward pass reduces them.
                last = part == parts - 1
                with contextlib.nullcontext() if last else self.ddp.no_sync():
                    loss = cross_entropy(self.ddp(x), y) / parts
                    loss.backward()
                total += loss.detach()
        norm = clip_grad_norm_(self.model.parameters(), self.settings.clip or math.inf)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return total, norm

    def _mean_over_ranks(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar over all ranks; their shares of the batch are equal."""
        total = value.clone()
        dist.all_reduce(total)
        return total.item() / self.world_size

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the mean loss over the held-out windows, each seen by exactly one rank."""
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss sum, characters
        mine = self.job.eval_starts[self.rank :: self.world_size]
        for start in range(0, len(mine), EVAL_BATCH):
            inputs, targets = windows(
                self.job.corpus.held_out, mine[start : start + EVAL_BATCH], self.settings.context
            )
            total[0] += cross_entropy(self.model(inputs), targets, reduction="sum").double()
            total[1] += targets.numel()
        dist.all_reduce(total)
        self.model.train()
        return (total[0] / total[1]).item()

    def _log(
        self, train_loss: float, val_loss: float | None, norm: torch.Tensor, pace: float
    ) -> None:
        if self.rank != 0:
            return
        self.job.folder.log(
            {
                "step": self.step,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "lr": self.scheduler.get_last_lr()[0],
                "grad_norm": float(norm),
                "tokens_per_s": round(self._tokens_per_step() / pace, 1),
                "bytes_per_step": self.traffic.bytes_per_step(),
            }
        )

    def _save(self) -> None:
        """Write a checkpoint. The generators differ between ranks, so all of them are kept."""
        generators: list[Any] = [None] * self.world_size
        dist.all_gather_object(generators, self._generator_states())
        if self.rank != 0:
            return
        checkpoint = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "vocabulary": self.job.corpus.vocabulary.characters,
            "text": self.job.corpus.fingerprint,
            "step": self.step,  # also the position in the data, see TrainingWindows
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": generators,
        }
        self.job.folder.save(checkpoint, self.settings.keep)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.step = checkpoint["step"]
        states = checkpoint["generators"]
        if len(states) == self.world_size and states[self.rank].keys() >= {self.device.type}:
            torch.set_rng_state(states[self.rank]["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(states[self.rank]["cuda"], self.device)
        elif self.settings.dropout:
            self.progress.note(
                f"The checkpoint is of {len(states)} ranks: dropout starts from a new seed."
            )

    def _generator_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _open_folder(self) -> None:
        together(self._create_folder)
        ranks = f"{self.world_size} rank" + "s" * (self.world_size > 1)
        parameters = sum(p.numel() for p in self.model.parameters())
        self.progress.note(self.job.corpus.source)
        self.progress.note(
            f"{parameters / 1e6:.2f} M parameters, {self.settings.steps} steps of "
            f"{self._tokens_per_step()} characters on {ranks}; run folder {self.job.folder.path}"
        )
        if self.step:
            self.progress.note(f"continuing after step {self.step}")

    def _create_folder(self) -> None:
        if self.rank != 0:
            return
        try:
            self.job.folder.create({**asdict(self.settings), "world_size": self.world_size})
        except OSError as error:
            raise UserError(f"cannot write {self.job.folder.path}: {error.strerror}") from error
        if self.job.in_place:
            self.job.folder.forget_after(self.step)

    def _tokens_per_step(self) -> int:
        return self.settings.global_batch * self.settings.context

    def _pick_device(self) -> torch.device:
        if self.settings.device == "cpu":
            return torch.device("cpu")
        # More ranks than devices is legal over MPI: they share.
        local_rank = dist.get_node_local_rank(fallback_rank=self.rank)
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def _finish(self, val_loss: float | None) -> None:
        """Write and show what the run has come to. On rank 0 only: no collectives."""
        folder, vocabulary = self.job.folder, self.job.corpus.vocabulary
        generator = torch.Generator(device=self.device)
        generator.manual_seed(self.settings.seed)
        prompt = vocabulary.encode(self.settings.prompt or "\n").long().unsqueeze(0)
        ids = self.model.generate(
            prompt.to(self.device),
            self.settings.sample_length,
            self.settings.temperature,
            self.settings.top_k or None,
            generator,
        )
        sample = vocabulary.decode(ids[0].tolist())
        folder.sample.write_text(sample + "\n", encoding="utf-8")
        no_picture = draw_losses(folder.rows(), folder.plot)

        self.progress.note(f"{'sample':-^60}\n{sample}\n{'':-^60}")
        self.progress.note(f"validation loss {val_loss:.4f} nats per character")
        self.progress.note(self.traffic.report(gradient_bytes(self.model), self.world_size))
        self.progress.note(no_picture or f"loss curve: {folder.plot}")
        self.progress.note(f"everything else: {folder.path}")


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Return the loss in nats of logits [B, T, V] for targets [B, T], in float32 or wider."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def warmup_then_cosine(settings: Settings) -> Callable[[int], float]:
    """Return the factor on the learning rate over steps: a linear rise, then half a cosine."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return settings.final_lr + (1 - settings.final_lr) * cosine

    return factor


def together(function: Callable, *arguments: Any) -> Any:
    """Call ``function`` on every rank; if any of them raised UserError, all of them do.

    A rank must not go on into a collective that another one will never reach.
    """
    result, problem = None, None
    try:
        result = function(*arguments)
    except UserError as error:
        problem = str(error)
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for first in problems:
        if first is not None:
            raise UserError(first)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the example; a mistake of the user ends every rank with status 2 and one sentence."""
    dist.init_process_group()
    default_out = [time.strftime("runs/gpt-%Y%m%d-%H%M%S")]
    dist.broadcast_object_list(default_out, src=0)
    try:
        job = together(prepare, arguments, default_out[0])
        Trainer(job).run()
    except UserError as error:
        if dist.get_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        dist.barrier()  # a launcher ends all ranks once one has left: let rank 0 speak first
        dist.destroy_process_group()
        raise SystemExit(2) from None
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
