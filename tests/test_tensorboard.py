"""SummaryWriter: what it writes is read back by the tensorboard library."""

from __future__ import annotations

import io
import subprocess
import sys
import wave

import pytest

import disttorch as torch

pytest.importorskip("tensorboard")
from disttorch.utils.tensorboard import SummaryWriter
from disttorch.utils.tensorboard import summary as summaries


def events_of(folder) -> list:
    """All events of a folder's files, in order."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        event for path in sorted(folder.glob("events*"))
        for event in LegacyEventFileLoader(str(path)).Load()
    ]


def values_of(folder) -> dict:
    return {v.tag: v for event in events_of(folder) for v in event.summary.value}


def pixels_of(value):
    """(height, width, channels) and the rows of a logged picture, by another library."""
    from matplotlib import image

    decoded = image.imread(io.BytesIO(value.image.encoded_image_string), format="png")
    return torch.tensor((decoded * 255).round().astype("uint8"))


def test_scalars_with_steps_and_times(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        assert writer.get_logdir() == str(tmp_path)
        for step in range(3):
            writer.add_scalar("loss/train", torch.tensor(1.5 - step), step, walltime=100.0 + step)
        writer.add_scalar("exact", 0.1, new_style=True, double_precision=True)
        writer.add_scalar("integer", torch.tensor([7]), 2)
    events = [e for e in events_of(tmp_path) if e.summary.value]
    assert [(e.step, e.wall_time, e.summary.value[0].simple_value) for e in events[:3]] == [
        (0, 100.0, 1.5), (1, 101.0, 0.5), (2, 102.0, -0.5)
    ]
    assert list(events[3].summary.value[0].tensor.double_val) == [0.1]
    assert events[3].summary.value[0].metadata.plugin_data.plugin_name == "scalars"
    assert events[4].summary.value[0].simple_value == 7


def test_flush_makes_events_visible_before_close(tmp_path):
    writer = SummaryWriter(tmp_path, max_queue=1000, flush_secs=1000)
    writer.add_scalar("a", 1.0)
    writer.flush()
    assert values_of(tmp_path)["a"].simple_value == 1
    writer.close()
    writer.add_scalar("after", 2.0)  # opens a new file
    writer.close()
    assert len(list(tmp_path.glob("events*"))) == 2


def test_scalars_of_one_diagram_have_a_folder_each(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalars("curve/all", {"sin": 0.25, "cos": 0.75}, 4)
    for name, number in (("sin", 0.25), ("cos", 0.75)):
        found = values_of(tmp_path / f"curve_all_{name}")
        assert found["curve/all"].simple_value == number


def test_histograms(tmp_path):
    values = torch.tensor([0.0, 0.1, 0.1, 0.9, -3.0])
    with SummaryWriter(tmp_path) as writer:
        writer.add_histogram("default", values)
        writer.add_histogram("three", values, bins=3)
        writer.add_histogram("given", values, bins=[-4, 0, 0.5, 1], max_bins=2)
    found = values_of(tmp_path)
    histo = found["default"].histo
    assert (histo.num, histo.min) == (5, -3) and histo.max == pytest.approx(0.9)
    assert histo.sum == pytest.approx(-1.9) and histo.sum_squares == pytest.approx(9.83)
    assert sum(histo.bucket) == 5
    limits = list(histo.bucket_limit)
    assert limits == sorted(limits) and histo.bucket[limits.index(max(limits))] == 1
    assert list(found["three"].histo.bucket) == [0, 1, 0, 4]
    assert list(found["given"].histo.bucket) == [0, 4, 1]
    with SummaryWriter(tmp_path / "bad") as writer:
        with pytest.raises(ValueError, match="empty"):
            writer.add_histogram("none", torch.zeros(0))
        with pytest.raises(ValueError, match="NaN"):
            writer.add_histogram("nan", torch.tensor([float("nan")]))


def test_images_have_the_pixels_that_were_given(tmp_path):
    torch.manual_seed(0)
    picture = torch.rand(3, 5, 7)
    grey = torch.randint(0, 256, (4, 6), dtype=torch.uint8)
    batch = torch.rand(10, 1, 2, 3)
    with SummaryWriter(tmp_path) as writer:
        writer.add_image("rgb", picture)
        writer.add_image("grey", grey, dataformats="HW")
        writer.add_images("batch", batch)
        with pytest.raises(ValueError, match="input format"):
            writer.add_image("wrong", picture, dataformats="HW")
    found = values_of(tmp_path)
    expected = (picture.permute(1, 2, 0).double() * 255).byte()
    assert torch.equal(pixels_of(found["rgb"])[..., :3], expected)
    assert (found["rgb"].image.height, found["rgb"].image.width) == (5, 7)
    assert torch.equal(pixels_of(found["grey"]), grey)
    grid = pixels_of(found["batch"])
    assert grid.shape == (4, 24)  # ten in rows of eight
    tile = (batch[9, 0].double() * 255).byte()
    assert torch.equal(grid[2:, 3:6], tile) and int(grid[2:, 6:].max()) == 0


def test_figure_is_logged_and_closed(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(2, 1), dpi=50, facecolor="red")
    with SummaryWriter(tmp_path) as writer:
        writer.add_figure("figure", figure, 3)
    shown = pixels_of(values_of(tmp_path)["figure"])
    assert shown.shape[:2] == (50, 100) and shown[0, 0, :3].tolist() == [255, 0, 0]
    assert not pyplot.fignum_exists(figure.number)


def test_text_audio_and_pr_curve(tmp_path):
    labels, scores = torch.tensor([1, 1, 0, 0]), torch.tensor([0.9, 0.4, 0.6, 0.1])
    with SummaryWriter(tmp_path) as writer:
        writer.add_text("note", "**words**", 1)
        writer.add_audio("beep", torch.tensor([0.0, 1.0, -1.0, 0.5]), sample_rate=8000)
        writer.add_pr_curve("pr", labels, scores, num_thresholds=5)
    found = values_of(tmp_path)
    assert found["note/text_summary"].tensor.string_val == [b"**words**"]
    with wave.open(io.BytesIO(found["beep"].audio.encoded_audio_string)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 4)
    tp, fp, tn, fn, precision, recall = torch.tensor(
        list(found["pr"].tensor.float_val)
    ).reshape(6, 5).tolist()
    assert (tp, fp) == ([2, 2, 1, 1, 0], [2, 1, 1, 0, 0])
    assert (tn, fn) == ([0, 1, 1, 2, 2], [0, 0, 1, 1, 2])
    assert precision == pytest.approx([0.5, 2 / 3, 0.5, 1, 0]) and recall == [1, 1, 0.5, 0.5, 0]


def test_hyperparameters(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    with SummaryWriter(tmp_path) as writer:
        writer.add_hparams({"lr": 0.1, "net": "mlp", "bias": True}, {"accuracy": 0.9}, run_name="r")
        with pytest.raises(ValueError, match="'layers' is list"):
            writer.add_hparams({"layers": [1]}, {})
        with pytest.raises(TypeError, match="dictionaries"):
            writer.add_hparams([], {})
    found = values_of(tmp_path / "r")
    content = found["_hparams_/session_start_info"].metadata.plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["lr"].number_value == 0.1 and settings["net"].string_value == "mlp"
    assert settings["bias"].bool_value is True
    assert found["accuracy"].simple_value == pytest.approx(0.9)


def test_what_is_not_built_says_so(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for call in (writer.add_graph, writer.add_embedding):
            with pytest.raises(NotImplementedError, match="not built"):
                call(None)


def test_purge_step_hides_what_came_later(tmp_path):
    SummaryWriter(tmp_path, purge_step=7).close()
    assert any(e.step == 7 and e.HasField("session_log") for e in events_of(tmp_path))


def test_without_the_package_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "import disttorch\n"
        "from disttorch.utils.tensorboard import SummaryWriter\n"
        f"SummaryWriter({str(tmp_path / 'log')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "pip install tensorboard" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "log").exists()


def test_bins_grow_by_ten_percent_on_both_sides_of_zero():
    limits = summaries.exponential_bins()
    middle = len(limits) // 2
    assert limits[middle] == 0 and limits[middle + 1] == 1e-12 and limits[-1] < 1e20
    assert [-v for v in limits] == limits[::-1]
