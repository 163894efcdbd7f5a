"""Values to TensorBoard's protocol buffers, one function per kind."""

from __future__ import annotations

import io
import math
import struct
import wave

from ...tensor import Tensor
from .png import encode_png

_MISSING = (
    "SummaryWriter needs the tensorboard package, which is not installed; "
    "pip install tensorboard (or disttorch[tensorboard])"
)


def protos():
    """The modules with the messages, from the tensorboard package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return summary_pb2, tensor_pb2, tensor_shape_pb2


def as_tensor(value) -> Tensor:
    """A tensor on the CPU, without its history, of a tensor, array, list or number."""
    from ...ops import PUBLIC

    t = value if isinstance(value, Tensor) else PUBLIC["as_tensor"](value)
    return t.detach().cpu()


def as_number(value) -> float:
    """A single value as a Python number.

    Raises:
        ValueError: if it has more than one element.
    """
    if isinstance(value, (int, float)):
        return float(value)  # a tensor of it would be rounded to float32
    t = as_tensor(value)
    if t.numel() != 1:
        raise ValueError(f"a scalar has one element, got shape {list(t.shape)}")
    return float(t.double().reshape(()).item())


def _summary(**fields):
    summary_pb2, _, _ = protos()
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(**fields)])


def _metadata(plugin: str, content: bytes = b""):
    summary_pb2, _, _ = protos()
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return summary_pb2.SummaryMetadata(plugin_data=data)


def scalar(tag: str, value, new_style: bool = False, double_precision: bool = False):
    """One number."""
    number = as_number(value)
    if not new_style:
        return _summary(tag=tag, simple_value=number)
    _, tensor_pb2, _ = protos()
    if double_precision:
        tensor = tensor_pb2.TensorProto(double_val=[number], dtype="DT_DOUBLE")
    else:
        tensor = tensor_pb2.TensorProto(float_val=[number], dtype="DT_FLOAT")
    return _summary(tag=tag, tensor=tensor, metadata=_metadata("scalars"))


def text(tag: str, value: str):
    """A text, shown as Markdown."""
    _, tensor_pb2, tensor_shape_pb2 = protos()
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(
        dtype="DT_STRING", string_val=[value.encode()], tensor_shape=shape
    )
    return _summary(tag=f"{tag}/text_summary", metadata=_metadata("text", b"\x08\x00"),
                    tensor=tensor)


# ---------------------------------------------------------------- distributions
def exponential_bins() -> list[float]:
    """TensorFlow's limits: 1e-12 growing by 10 % to 1e20, with their negatives and zero."""
    limits, value = [], 1e-12
    while value < 1e20:
        limits.append(value)
        value *= 1.1
    return [-v for v in reversed(limits)] + [0.0] + limits


def histogram(tag: str, values, bins="tensorflow", max_bins: int | None = None):
    """How the values are distributed.

    Args:
        bins: ``"tensorflow"``, a number of equal bins, or limits.
        max_bins: join neighbouring bins until there are no more.

    Raises:
        ValueError: if there are no values or one is not finite.
    """
    from ...ops import PUBLIC

    t = as_tensor(values).reshape(-1).double()
    if t.numel() == 0:
        raise ValueError(f"The histogram of {tag!r} is empty: it got no values")
    if not bool(t.isfinite().all()):
        raise ValueError(f"The histogram of {tag!r} is empty: there are NaN or infinite values")
    low, high = t.min().item(), t.max().item()
    if bins == "tensorflow":
        limits = exponential_bins()
    elif isinstance(bins, int):
        pad = 0.5 if low == high else 0.0
        limits = PUBLIC["linspace"](low - pad, high + pad, bins + 1, dtype=t.dtype).tolist()
    else:
        limits = [float(b) for b in bins]
    counts, limits = _counted(t, limits, max_bins)
    return histogram_raw(tag, low, high, t.numel(), t.sum().item(), t.square().sum().item(),
                         limits, counts)


def _counted(t, limits: list[float], max_bins):
    """(counts, right limits) without empty bins at the ends; one empty bin stays on the left."""
    from ...ops import PUBLIC

    edges = PUBLIC["tensor"](limits, dtype=t.dtype)
    inside = t[(t >= edges[0]) & (t <= edges[-1])]
    place = (PUBLIC["searchsorted"](edges, inside, right=True) - 1).clamp(0, len(limits) - 2)
    counts = place.bincount(minlength=len(limits) - 1).tolist()
    if max_bins is not None and len(counts) > max_bins:
        step = math.ceil(len(counts) / max_bins)
        counts = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
        limits = limits[:-1][::step] + [limits[-1]]
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        raise ValueError("no value lies within the limits of the histogram")
    first, last = filled[0], filled[-1] + 1
    return [0, *counts[first:last]], limits[first : last + 1]


def histogram_raw(tag, min, max, num, sum, sum_squares, bucket_limits, bucket_counts):
    """A histogram that was counted before; ``bucket_limits`` are the right ends of the bins."""
    if len(bucket_limits) != len(bucket_counts):
        raise ValueError(
            f"len(bucket_limits) != len(bucket_counts): {len(bucket_limits)} and "
            f"{len(bucket_counts)}"
        )
    summary_pb2, _, _ = protos()
    histo = summary_pb2.HistogramProto(
        min=min, max=max, num=num, sum=sum, sum_squares=sum_squares,
        bucket_limit=list(bucket_limits), bucket=list(bucket_counts),
    )
    return _summary(tag=tag, histo=histo)


# ---------------------------------------------------------------- pictures and sound
def to_hwc(picture: Tensor, dataformats: str) -> Tensor:
    """Height, width, channels of a picture, or a square grid of a batch of them.

    Raises:
        ValueError: if the letters of ``dataformats`` do not fit the shape.
    """
    letters = dataformats.upper()
    if len(set(letters)) != len(letters) or len(letters) != picture.ndim or set(letters) - set(
        "NCHW"
    ) or not {"H", "W"} <= set(letters):
        raise ValueError(
            f"size of input tensor and input format are different: tensor shape: "
            f"{tuple(picture.shape)}, input_format: {dataformats}"
        )
    if "C" not in letters:
        picture, letters = picture.unsqueeze(-1), letters + "C"
    if "N" not in letters:
        return picture.permute(*(letters.index(c) for c in "HWC"))
    return _grid(picture.permute(*(letters.index(c) for c in "NHWC")))


def _grid(pictures: Tensor) -> Tensor:
    """N pictures as one, in the least square number of columns; missing ones are black."""
    from ...ops import PUBLIC

    count, height, width, channels = pictures.shape
    columns = min(count, 8)
    rows = math.ceil(count / columns)
    missing = rows * columns - count
    if missing:
        blank = PUBLIC["zeros"](missing, height, width, channels, dtype=pictures.dtype)
        pictures = PUBLIC["cat"]([pictures, blank])
    laid = pictures.reshape(rows, columns, height, width, channels).permute(0, 2, 1, 3, 4)
    return laid.reshape(rows * height, columns * width, channels)


def image(tag: str, picture, dataformats: str = "NCHW", rescale: float = 1.0):
    """A picture: floats in [0, 1] or uint8 in [0, 255]."""
    summary_pb2, _, _ = protos()
    t = as_tensor(picture)
    scale = 1.0 if not t.dtype.is_floating_point else 255.0
    t = (to_hwc(t, dataformats).double() * (scale * rescale)).clamp(0, 255).byte()
    height, width, channels = t.shape
    data = encode_png(t.contiguous().numpy().tobytes(), height, width, channels)
    encoded = summary_pb2.Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=data
    )
    return _summary(tag=tag, image=encoded)


def audio(tag: str, sound, sample_rate: int = 44100):
    """Mono sound: floats in [-1, 1], shape [1, N] or [N]."""
    summary_pb2, _, _ = protos()
    t = as_tensor(sound).squeeze()
    if t.ndim != 1:
        raise ValueError(f"sound has one dimension, got shape {list(t.shape)}")
    samples = (t.double().clamp(-1, 1) * 32767).short().tolist()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    encoded = summary_pb2.Summary.Audio(
        sample_rate=sample_rate, num_channels=1, length_frames=len(samples),
        encoded_audio_string=file.getvalue(), content_type="audio/wav",
    )
    return _summary(tag=tag, audio=encoded)


# ---------------------------------------------------------------- curves and hyperparameters
def pr_curve(tag: str, labels, predictions, num_thresholds: int = 127, weights=None):
    """Precision over recall at thresholds spread evenly over [0, 1]."""
    from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData

    from ...ops import PUBLIC

    num_thresholds = min(num_thresholds, 127)
    truth = as_tensor(labels).reshape(-1).double()
    score = as_tensor(predictions).reshape(-1).double()
    weight = PUBLIC["ones_like"](truth) if weights is None else as_tensor(weights).reshape(-1)
    bucket = (score * (num_thresholds - 1)).floor().long().clamp(0, num_thresholds - 1)
    curves = []
    for kind in (truth, 1 - truth):  # true and false positives at or above each threshold
        per_bucket = bucket.bincount(kind * weight.double(), minlength=num_thresholds)
        curves.append(per_bucket.flip(0).cumsum(0).flip(0))
    tp, fp = curves
    fn, tn = tp[0] - tp, fp[0] - fp
    tiny = 1e-7
    rows = [tp, fp, tn, fn, tp / (tp + fp).clamp(min=tiny), tp / (tp + fn).clamp(min=tiny)]
    content = PrCurvePluginData(version=0, num_thresholds=num_thresholds).SerializeToString()
    _, tensor_pb2, tensor_shape_pb2 = protos()
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in (6, num_thresholds)]
    tensor = tensor_pb2.TensorProto(
        dtype="DT_FLOAT", float_val=PUBLIC["cat"](rows).tolist(),
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims),
    )
    return _summary(tag=tag, metadata=_metadata("pr_curves", content), tensor=tensor)


def hparams(settings: dict, metrics: dict, domains: dict | None = None) -> tuple:
    """(experiment, start, end) of a run's settings and the names of its metrics.

    Raises:
        TypeError, ValueError: if an argument is no dict, or a setting has no type TensorBoard knows.
    """
    from google.protobuf import struct_pb2
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    if not isinstance(settings, dict) or not isinstance(metrics, dict):
        raise TypeError("hparam_dict and metric_dict should be dictionaries")
    started, infos = plugin_data_pb2.SessionStartInfo(), []
    for name, value in settings.items():
        kind, value = _setting(name, value)
        setattr(started.hparams[name], f"{kind}_value", value)
        info = {"name": name, "type": api_pb2.DataType.Value(f"DATA_TYPE_{_KINDS[kind]}")}
        if domains and name in domains:
            values = [struct_pb2.Value(**{f"{kind}_value": v}) for v in domains[name]]
            info["domain_discrete"] = struct_pb2.ListValue(values=values)
        infos.append(api_pb2.HParamInfo(**info))
    names = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=m)) for m in metrics]
    experiment = plugin_data_pb2.HParamsPluginData(
        experiment=api_pb2.Experiment(hparam_infos=infos, metric_infos=names), version=0
    )
    start = plugin_data_pb2.HParamsPluginData(session_start_info=started, version=0)
    end = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(
            status=api_pb2.Status.Value("STATUS_SUCCESS")
        ),
        version=0,
    )
    return tuple(
        _summary(tag=f"_hparams_/{tag}", metadata=_metadata("hparams", data.SerializeToString()))
        for tag, data in (
            ("experiment", experiment), ("session_start_info", start), ("session_end_info", end)
        )
    )


_KINDS = {"bool": "BOOL", "number": "FLOAT64", "string": "STRING"}


def _setting(name: str, value):
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, (int, float)):
        return "number", float(value)
    if isinstance(value, str):
        return "string", value
    if isinstance(value, Tensor):
        return "number", as_number(value)
    raise ValueError(
        "value should be one of int, float, str, bool, or torch.Tensor, but "
        f"{name!r} is {type(value).__name__}"
    )
