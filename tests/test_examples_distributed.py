"""The recipes for several ranks as a user runs them: the same losses on 1 and 2 ranks, few bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from mpi_runner import Finished, require_mpi, run_command

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
# 4 epochs of 11 steps
DIGITS = ["--epochs=4", "--batch=128", "--width=8", "--lr=0.005"]


def start(name: str, ranks: int, *arguments: str, via: str = "spawn") -> Finished:
    """Run a recipe to its end: alone, by the launcher's own processes, or by mpiexec."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
    if via == "mpi":
        command = [require_mpi(), "-n", str(ranks), *command]
    elif ranks > 1:
        starter = [sys.executable, "-m", "launcher", "--via", via, "-n", str(ranks), "--oversubscribe"]
        command = [*starter, *command[3:]]
    return run_command(command, timeout=100)


def output_of(name: str, ranks: int, *arguments: str, via: str = "spawn") -> str:
    done = start(name, ranks, *arguments, via=via)
    assert done.status == 0 and not done.timed_out, done.output
    return done.output


def losses(output: str) -> tuple[float, float]:
    """(first, last) as the recipe reports them."""
    found = re.search(r"loss: first ([\d.]+), last ([\d.]+)", output)
    assert found, output
    return float(found[1]), float(found[2])


def megabytes(output: str) -> tuple[float, float]:
    """(sent per step, theory) as the recipe reports them."""
    found = re.search(r"sent per step and rank: ([\d.]+) MB .*theory .* = ([\d.]+) MB", output)
    assert found, output
    return float(found[1]), float(found[2])


def right(output: str) -> float:
    """The share of held-out digits in percent."""
    found = re.search(r"held-out digits: ([\d.]+)% right", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("via", ["spawn", "mpi"])
def test_ddp(via: str) -> None:
    pytest.importorskip("sklearn")
    alone, together = output_of("ddp", 1, *DIGITS), output_of("ddp", 2, *DIGITS, via=via)
    first, last = losses(alone)
    assert last < 0.5 * first
    assert losses(together) == pytest.approx((first, last), rel=1e-3)
    assert right(alone) > 80 and abs(right(alone) - right(together)) < 0.6  # 2 of 360
    sent, theory = megabytes(together)
    assert theory > 0 and sent == pytest.approx(theory, rel=0.02)
    assert "nothing, there is one rank" in alone


@pytest.mark.parametrize("precision, near", [("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.03)])
def test_accumulation_and_mixed_precision(precision: str, near: float) -> None:
    pytest.importorskip("sklearn")
    more = [*DIGITS, "--accumulate=4", f"--precision={precision}"]
    alone, together = (output_of("accumulate_amp", ranks, *more) for ranks in (1, 2))
    first, last = losses(alone)
    assert last < 0.5 * first
    assert losses(together) == pytest.approx((first, last), rel=near)
    sent, theory = megabytes(together)  # of a step, not of each of its four parts
    assert sent == pytest.approx(theory, rel=0.02)


def test_parts_change_nothing() -> None:
    pytest.importorskip("sklearn")
    runs = [
        losses(output_of("accumulate_amp", 1, *DIGITS, "--precision=float32", f"--accumulate={parts}"))
        for parts in (1, 4)
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob that names four small files of predictable text."""
    folder = tmp_path_factory.mktemp("text")
    for part in range(4):
        lines = (f"line {i} of {part}: the old cat sat on mat {i * i % 7}" for i in range(200))
        (folder / f"part-{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "*.txt")


TINY_GPT = ["--layers=2", "--heads=2", "--width=16", "--context=16", "--batch=8", "--steps=30"]


def held_out(output: str) -> float:
    found = re.search(r"held-out text: ([\d.]+) nats per character", output)
    assert found, output
    return float(found[1])


@pytest.fixture(scope="session")
def gpt_alone(words: str) -> str:
    """What fsdp.py says on one rank."""
    return output_of("fsdp", 1, *TINY_GPT, "--data", words)


@pytest.mark.parametrize(
    "ranks, more, via",
    [
        (2, [], "mpi"),
        (2, ["--keep-whole"], "spawn"),
        (2, ["--replicas=2", "--recompute"], "spawn"),
        (4, ["--replicas=2"], "spawn"),
    ],
)
def test_fsdp(ranks: int, more: list[str], via: str, words: str, gpt_alone: str) -> None:
    first, last = losses(gpt_alone)
    assert last < 0.9 * first
    together = output_of("fsdp", ranks, *TINY_GPT, *more, "--data", words, via=via)
    assert losses(together) == pytest.approx((first, last), rel=1e-3)
    assert held_out(together) == pytest.approx(held_out(gpt_alone), rel=1e-3)
    # Each step sends one number more for the norm, each first one the ranks' first meeting.
    sent, theory = megabytes(together)
    assert sent == pytest.approx(theory, rel=0.05)
    kept = re.search(r"keeps ([\d.]+) MB of ([\d.]+) MB of weights", together)
    assert kept
    shards = ranks // (2 if "--replicas=2" in more else 1)
    assert float(kept[1]) == pytest.approx(float(kept[2]) / shards, abs=0.002)


def test_fsdp_in_16_bits(words: str, gpt_alone: str) -> None:
    together = output_of("fsdp", 2, *TINY_GPT, "--precision=bfloat16", "--data", words)
    assert losses(together) == pytest.approx(losses(gpt_alone), rel=0.02)
    sent, theory = megabytes(together)
    assert sent == pytest.approx(theory, rel=0.05)


RESUME = ["--epochs=3", "--width=8", "--lr=0.003", "--save-every=5"]  # 42 steps of 96


@pytest.mark.parametrize("ranks, layout", [(1, "ddp"), (3, "fsdp")])
def test_a_killed_run_goes_on_at_another_size(ranks: int, layout: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    undisturbed = output_of("resume", 1, *RESUME, f"--folder={tmp_path / 'whole'}")
    assert "starting at step 0 of 42" in undisturbed

    folder = f"--folder={tmp_path / 'killed'}"
    killed = start("resume", 2, *RESUME, folder, "--kill-at=23")
    assert killed.status != 0 and "held-out" not in killed.output
    goes_on = output_of("resume", ranks, *RESUME, folder, f"--layout={layout}")
    # The save of step 20 may or may not have been whole when the rank was killed.
    found = re.search(r"continuing after step (\d+) of 42", goes_on)
    assert found and int(found[1]) in (15, 20), goes_on
    assert losses(goes_on)[1] == pytest.approx(losses(undisturbed)[1], rel=0.01)
    assert abs(right(goes_on) - right(undisturbed)) < 0.9  # 3 of 360
    assert "steps [35, 40, 42]" in goes_on

    again = start("resume", ranks, *RESUME, folder)
    assert again.status == 2 and "is at step 42 of 42: complete" in again.output


@pytest.mark.parametrize("name", ["ddp", "accumulate_amp", "fsdp", "resume"])
def test_help_shows_examples_once(name: str) -> None:
    output = output_of(name, 2, "--help")
    assert len(re.findall(rf"disttorch-run --nproc-per-node 2 examples/{name}\.py\b", output)) == 1
    assert output.count("usage:") == 1


def test_a_mistake_is_one_sentence() -> None:
    done = start("accumulate_amp", 2, "--batch=63")
    assert done.status == 2
    assert done.output.count("error: --batch 63 must be a multiple of 8") == 1
    assert "Traceback" not in done.output
