"""examples/train_gpt.py as a user runs it: in processes of its own, with tiny settings."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_runner import clean_environment, require_mpi

import disttorch as torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPT = str(EXAMPLES / "train_gpt.py")
sys.path.insert(0, str(EXAMPLES))

import gpt  # noqa: E402
import runfolder  # noqa: E402
import text  # noqa: E402

TINY = [
    "--layers=1", "--heads=2", "--width=16", "--context=16", "--global-batch=8", "--steps=12",
    "--warmup=2", "--log-every=1", "--eval-every=4", "--eval-windows=33", "--save-every=3",
    "--keep=9", "--sample-length=20",
]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob that names four small files of predictable text."""
    folder = tmp_path_factory.mktemp("text")
    for part in range(4):
        lines = (f"line {i} of {part}: the old cat sat on mat {i * i % 7}" for i in range(120))
        (folder / f"part-{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "*.txt")


def start(
    arguments: list[str], ranks: int = 1, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run the example to its end on ``ranks`` ranks; 1 is a lone process without mpiexec."""
    command = [sys.executable, "-W", "error", SCRIPT, *arguments]
    if ranks > 1:
        command = [require_mpi(), "-n", str(ranks), *command]
    return subprocess.run(
        command, env=clean_environment(), cwd=cwd, capture_output=True, text=True, timeout=100
    )


def train(arguments: list[str], out: Path, ranks: int = 1) -> list[dict]:
    """Run the example into ``out``; return its metrics."""
    done = start([*arguments, f"--out={out}"], ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows(out)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(metrics: list[dict]) -> list[tuple]:
    """Return what must be reproducible in metrics."""
    return [(r["step"], r["train_loss"], r["val_loss"], r["lr"], r["grad_norm"]) for r in metrics]


@pytest.fixture(scope="session")
def finished(words: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with dropout in one process; read only."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train([*TINY, "--dropout=0.2", "--data", words], run)
    return run


def test_run_folder_holds_everything(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoints", "config.json", "loss.png", "metrics.jsonl", "sample.txt"
    ]
    config = json.loads((finished / "config.json").read_text())
    assert (config["layers"], config["dropout"], config["world_size"]) == (1, 0.2, 1)
    metrics = rows(finished)
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert [row["step"] for row in metrics if row["val_loss"] is not None] == [4, 8, 12]
    assert all(row["tokens_per_s"] > 0 and row["bytes_per_step"] == 0 for row in metrics)
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    sample = (finished / "sample.txt").read_text()
    assert sample.startswith("de") and len(sample) == len("def ") + 20 + 1
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-{step:07d}.pt" for step in (3, 6, 9, 12))]


def test_standard_library_without_mpi(tmp_path: Path) -> None:
    """The default text, and a lone process that never loads MPI."""
    arguments = [*TINY, "--steps=2", "--max-mb=0.5", "--keep=1", f"--out={tmp_path / 'run'}"]
    code = (
        f"import runpy, sys; sys.argv[1:] = {arguments!r}; sys.path.insert(0, {str(EXAMPLES)!r});"
        f"runpy.run_path({SCRIPT!r}, run_name='__main__');"
        "assert 'mpi4py.MPI' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Python standard library" in done.stdout and str(tmp_path / "run") in done.stdout
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))) == 1


def test_it_learns(words: str, tmp_path: Path) -> None:
    """Text whose characters have an entropy of about 3.2 nats is learnt far below that."""
    arguments = [*TINY, "--steps=150", "--lr=1e-2", "--eval-every=150", "--log-every=50",
                 "--save-every=150", "--tie", "--data", words]
    metrics = train(arguments, tmp_path / "run")
    assert metrics[0]["train_loss"] > 3.0
    assert metrics[-1]["val_loss"] < 1.6


def test_resume_is_exact(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-0000006.pt"
    resumed = train([f"--resume={checkpoint}"], tmp_path / "resumed")
    assert losses(resumed) == losses(rows(finished))[6:]


def test_resume_in_place(finished: Path, tmp_path: Path) -> None:
    """A run that was cut after a checkpoint and some further steps gives the whole curve."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for step in (9, 12):
        (run / "checkpoints" / f"step-{step:07d}.pt").unlink()
    (run / "checkpoints" / "latest").write_text("step-0000006.pt\n")
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(whole[:8]) + whole[8][:20])
    assert start([f"--resume={run}"]).returncode == 0
    assert losses(rows(run)) == losses(rows(finished))


def test_two_ranks_resume_exactly(words: str, tmp_path: Path) -> None:
    arguments = [*TINY, "--dropout=0.2", "--accumulate=2", "--data", words]
    whole = train(arguments, tmp_path / "whole", ranks=2)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-0000009.pt"
    resumed = train([f"--resume={checkpoint}"], tmp_path / "resumed", ranks=2)
    assert losses(resumed) == losses(whole)[9:]
    gradient = sum(
        tensor.numel() * 4 for tensor in runfolder.load_checkpoint(checkpoint)["model"].values()
    )
    # 2 P (n - 1) / n of n = 2 is P; once a step in spite of two accumulation steps.
    assert whole[-1]["bytes_per_step"] == pytest.approx(gradient, rel=0.01)


def test_two_ranks_train_like_one(words: str, tmp_path: Path) -> None:
    arguments = [*TINY, "--steps=20", "--eval-every=10", "--save-every=20", "--data", words]
    one = train(arguments, tmp_path / "one")
    two = train(arguments, tmp_path / "two", ranks=2)
    assert len(one) == 20
    for key in ("train_loss", "val_loss"):
        expected = [row[key] for row in one if row[key] is not None]
        assert [row[key] for row in two if row[key] is not None] == pytest.approx(
            expected, rel=1e-5
        )


def test_ranks_share_the_global_batch() -> None:
    ids = torch.arange(1000, dtype=torch.int16)
    training = text.TrainingWindows(ids, context=10, global_batch=8, seed=3)
    seen = []
    for step in range(training.per_epoch // 8):
        whole, targets = training.batch(step, 0, 1)
        assert whole.shape == (8, 10) and torch.equal(targets, whole + 1)
        parts = [training.batch(step, rank, 4)[0] for rank in range(4)]
        assert torch.equal(torch.cat(parts), whole)
        seen += whole.flatten().tolist()
    assert len(set(seen)) == len(seen), "an epoch shows no character twice"
    again = text.TrainingWindows(ids, context=10, global_batch=8, seed=3)
    assert torch.equal(again.batch(30, 0, 1)[0], training.batch(30, 0, 1)[0])
    other = text.TrainingWindows(ids, context=10, global_batch=8, seed=4)
    assert not torch.equal(other.batch(0, 0, 1)[0], training.batch(0, 0, 1)[0])


def test_split_is_by_file_and_stable() -> None:
    texts = {f"{i}.py": f"<{i}>" for i in range(200)}
    training, held_out = text.split_by_file(texts)
    assert 0.04 < held_out.count("<") / 200 < 0.2
    assert training.count("<") + held_out.count("<") == 200
    fewer = {name: texts[name] for name in list(texts)[::2]}
    assert set(text.split_by_file(fewer)[1].split("\n")) <= set(held_out.split("\n"))
    assert text.split_by_file({"one": "abcdefghij"}) == ("abcdefghi", "j")


def test_vocabulary_falls_back_on_one_id() -> None:
    vocabulary = text.Vocabulary.of("abc" * 100_000 + "\u20ac")
    assert len(vocabulary) == 4
    ids = vocabulary.encode("cab\u20ac\U0001f600")
    assert ids.tolist() == [3, 1, 2, 0, 0] and ids.dtype == torch.int16
    assert vocabulary.decode(ids.tolist()) == "cab" + text.UNKNOWN * 2


def test_generate_takes_the_likeliest_with_top_1() -> None:
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(11, context=5, layers=1, heads=2, width=8, dropout=0.5))
    prompt = torch.tensor([[1, 2, 3]])
    ids = model.generate(prompt, 9, top_k=1)
    assert model.training and ids.shape == (1, 12)
    model.eval()
    for end in range(3, 12):
        with torch.no_grad():
            logits = model(ids[:, max(0, end - 5) : end])[0, -1]
        assert int(logits.argmax()) == int(ids[0, end])


def test_gpt_sees_no_later_position() -> None:
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(11, context=6, layers=2, heads=2, width=8))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 9, 5, 6]])
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-6)


MISTAKES = {
    "missing file": (["--data", "nowhere.txt"], "--data nowhere.txt matches no file"),
    "small file": (["--data", "small.txt"], "too small"),
    "batch": (["--global-batch=9", "--accumulate=2"], "--global-batch 9 does not divide"),
    "heads": (["--heads=3"], "--width 16 is not a multiple of --heads 3"),
    "steps": (["--steps=0"], "--steps is 0; it must be at least 1"),
    "no number": (["--steps=many"], "invalid int value: 'many'"),
    "unknown option": (["--stepps=1"], "unrecognized arguments: --stepps=1"),
    "dtype": (["--dtype=int8"], "invalid choice: 'int8'"),
    "dropout": (["--dropout=1"], "--dropout is 1.0"),
    "no such run": (["--resume=nowhere"], "nowhere does not exist"),
    "not a run": (["--resume=."], "holds no checkpoint"),
    "not a checkpoint": (["--resume=small.txt"], "small.txt cannot be read as a checkpoint"),
    "divergence": (["--lr=1e30", "--clip=0"], "the loss is"),
}


def sentence(done: subprocess.CompletedProcess) -> str:
    """Check that a run failed with one sentence and no traceback; return it."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, done.stderr
    return found[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, words: str, tmp_path: Path) -> None:
    arguments, expected = MISTAKES[mistake]
    (tmp_path / "small.txt").write_text("too short a text\n")
    done = start([*TINY, "--data", words, "--out=run", *arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert expected in sentence(done)
    if mistake != "divergence":
        assert not (tmp_path / "run").exists()


def test_a_mistake_on_two_ranks_is_said_once(words: str, tmp_path: Path) -> None:
    done = start([*TINY, "--data", words, "--global-batch=15", "--out=run"], ranks=2, cwd=tmp_path)
    assert "--global-batch 15 does not divide into 2 ranks" in sentence(done)
    assert not (tmp_path / "run").exists()


def test_no_gpu_is_one_sentence(words: str, tmp_path: Path) -> None:
    hidden = {**clean_environment(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, *TINY, "--data", words, "--device=cuda", "--out=run"],
        env=hidden,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "no usable CUDA device" in sentence(done)


def test_another_model_or_text_overwrites_nothing(
    finished: Path, words: str, tmp_path: Path
) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}

    before = content()
    other = tmp_path / "other.txt"
    other.write_text("quite another text " * 200)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.zeros(3)}, foreign)
    attempts = [
        (["--data", words, f"--out={finished}"], "already holds a run"),
        ([f"--resume={finished}"], "the run is complete"),
        ([f"--resume={finished}", "--steps=20", "--width=32"], "width is 16 there and 32 here"),
        ([f"--resume={finished}", "--steps=20", "--data", str(other)], "data is"),
        ([f"--resume={foreign}"], "not a checkpoint of this example"),
    ]
    for arguments, expected in attempts:
        assert expected in sentence(start(arguments, cwd=tmp_path)), arguments
    assert content() == before


def test_changed_text_is_refused(tmp_path: Path) -> None:
    """The same file name with other characters or other content is another text."""
    file = tmp_path / "text.txt"
    file.write_text("abcd " * 400)
    train([*TINY, "--steps=3", "--data", str(file)], tmp_path / "run")
    for changed, field in (("abce " * 400, "vocabulary"), ("abdc " * 400, "text")):
        file.write_text(changed)
        done = start([f"--resume={tmp_path / 'run'}", "--steps=9"])
        assert f"its {field} differs" in sentence(done)


def test_kill_while_saving_leaves_a_whole_checkpoint(words: str, tmp_path: Path) -> None:
    """SIGKILL as soon as a save is seen in progress, again and again, then finish the run."""
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    wide = ["--width=96", "--layers=2", "--steps=60", "--save-every=1", "--keep=2"]
    begin = [*TINY, *wide, "--eval-every=60", "--data", words, f"--out={run}"]
    interrupted = 0
    arguments = begin
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments], env=clean_environment(), stdout=subprocess.DEVNULL
        )
        seen = checkpoints / "latest"
        before = seen.read_text() if seen.exists() else ""
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if seen.exists() and seen.read_text() != before and unfinished(checkpoints):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted += bool(unfinished(checkpoints))
        latest = runfolder.RunFolder(run).latest_checkpoint()
        for path in [latest, *checkpoints.glob("step-*.pt")]:
            assert runfolder.load_checkpoint(path)["step"] == int(path.stem.removeprefix("step-"))
        assert latest.name > before
        arguments = [f"--resume={run}"]
    assert interrupted, "no kill hit a save: the test has shown nothing"
    assert start([f"--resume={run}", "--save-every=20"]).returncode == 0
    assert not unfinished(checkpoints)
    assert [row["step"] for row in rows(run)] == list(range(1, 61))
    assert all(math.isfinite(row["train_loss"]) for row in rows(run))


def unfinished(checkpoints: Path) -> list[str]:
    """Return the temporary files in a folder of checkpoints."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return [n for n in names if n != "latest" and not runfolder.CHECKPOINT_NAME.fullmatch(n)]
