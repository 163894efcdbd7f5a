"""``SummaryWriter``: events into a file that TensorBoard reads while training goes on."""

from __future__ import annotations

import os
import socket
import time
from datetime import datetime

from ...backend import dtypes
from . import summary


class _Events:
    """One event file in a folder."""

    def __init__(self, folder: str, max_queue: int, flush_secs: int, suffix: str):
        summary.protos()  # the error of a missing package, before anything is written
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = event_pb2.Event
        self._writer = EventFileWriter(folder, max_queue, flush_secs, suffix)

    def add(self, message, step, walltime) -> None:
        event = self._event(summary=message, wall_time=time.time() if walltime is None else walltime)
        if step is not None:
            event.step = int(step)
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class SummaryWriter:
    """Writes scalars, distributions, pictures and texts for TensorBoard.

    Args:
        log_dir: the folder; default: ``runs/DATE_HOST`` followed by ``comment``.
        comment: end of the default folder's name.
        purge_step: what was logged at this step and later, before a crash, is hidden.
        max_queue: events that wait in memory; flush_secs: and for how long at most.
        filename_suffix: end of the event file's name.

    Raises:
        ImportError: if the tensorboard package is not installed.
    """

    def __init__(self, log_dir=None, comment: str = "", purge_step: int | None = None,
                 max_queue: int = 10, flush_secs: int = 120, filename_suffix: str = ""):
        if not log_dir:
            now = datetime.now().strftime("%b%d_%H-%M-%S")
            log_dir = os.path.join("runs", f"{now}_{socket.gethostname()}{comment}")
        self.log_dir, self.purge_step = os.fspath(log_dir), purge_step
        self._options = max_queue, flush_secs, filename_suffix
        self._folders: dict[str, _Events] = {}
        events = self._events()
        if purge_step is not None:
            from tensorboard.compat.proto import event_pb2

            events._writer.add_event(event_pb2.Event(
                step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            ))

    def _events(self, folder: str | None = None) -> _Events:
        """The file of a folder (default the writer's own), made when it is first written to."""
        folder = self.log_dir if folder is None else folder
        if folder not in self._folders:
            self._folders[folder] = _Events(folder, *self._options)
        return self._folders[folder]

    def get_logdir(self) -> str:
        """The folder."""
        return self.log_dir

    def _add(self, message, step, walltime, folder: str | None = None) -> None:
        self._events(folder).add(message, step, walltime)

    # ------------------------------------------------------------- numbers
    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False,
                   double_precision=False) -> None:
        """Log one number (a tensor with one element, or a Python number)."""
        message = summary.scalar(tag, scalar_value, new_style, double_precision)
        self._add(message, global_step, walltime)

    def add_scalars(self, main_tag, tag_scalar_dict, global_step=None, walltime=None) -> None:
        """Log several numbers to be shown in one diagram; each gets an event file of its own."""
        for tag, value in tag_scalar_dict.items():
            name = f"{main_tag.replace('/', '_')}_{tag}"
            self._add(summary.scalar(main_tag, value), global_step, walltime,
                      os.path.join(self.log_dir, name))

    def add_histogram(self, tag, values, global_step=None, bins="tensorflow", walltime=None,
                      max_bins=None) -> None:
        """Log how values are distributed; see ``summary.histogram``."""
        self._add(summary.histogram(tag, values, bins, max_bins), global_step, walltime)

    def add_histogram_raw(self, tag, min, max, num, sum, sum_squares, bucket_limits,
                          bucket_counts, global_step=None, walltime=None) -> None:
        """Log a histogram that was counted before."""
        message = summary.histogram_raw(
            tag, min, max, num, sum, sum_squares, bucket_limits, bucket_counts
        )
        self._add(message, global_step, walltime)

    def add_pr_curve(self, tag, labels, predictions, global_step=None, num_thresholds=127,
                     weights=None, walltime=None) -> None:
        """Log a precision-recall curve of labels (0 or 1) and predictions in [0, 1]."""
        message = summary.pr_curve(tag, labels, predictions, num_thresholds, weights)
        self._add(message, global_step, walltime)

    def add_hparams(self, hparam_dict, metric_dict, hparam_domain_discrete=None, run_name=None,
                    global_step=None) -> None:
        """Log the settings of a run and what came of it, into a sub-folder ``run_name``."""
        messages = summary.hparams(hparam_dict, metric_dict, hparam_domain_discrete)
        folder = os.path.join(self.log_dir, run_name or str(time.time()))
        for message in messages:
            self._add(message, None, None, folder)
        for name, value in metric_dict.items():
            self._add(summary.scalar(name, value), global_step, None, folder)
        self._folders.pop(folder).close()

    # ------------------------------------------------------------- pictures, sound, text
    def add_image(self, tag, img_tensor, global_step=None, walltime=None,
                  dataformats="CHW") -> None:
        """Log a picture: floats in [0, 1] or uint8."""
        self._add(summary.image(tag, img_tensor, dataformats), global_step, walltime)

    def add_images(self, tag, img_tensor, global_step=None, walltime=None,
                   dataformats="NCHW") -> None:
        """Log a batch of pictures, laid out in rows of eight."""
        self._add(summary.image(tag, img_tensor, dataformats), global_step, walltime)

    def add_figure(self, tag, figure, global_step=None, close=True, walltime=None) -> None:
        """Log a matplotlib figure, or several; ``close`` frees them."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from ...ops import PUBLIC

        figures, pictures = figure if isinstance(figure, list) else [figure], []
        for one in figures:
            canvas = FigureCanvasAgg(one)
            canvas.draw()
            pixels = PUBLIC["frombuffer"](bytearray(canvas.buffer_rgba()), dtype=dtypes.uint8)
            width, height = canvas.get_width_height()
            pictures.append(pixels.reshape(height, width, 4)[..., :3])
            if close:
                from matplotlib import pyplot

                pyplot.close(one)
        if len(pictures) == 1:
            self.add_image(tag, pictures[0], global_step, walltime, "HWC")
        else:
            self.add_images(tag, PUBLIC["stack"](pictures), global_step, walltime, "NHWC")

    def add_audio(self, tag, snd_tensor, global_step=None, sample_rate=44100,
                  walltime=None) -> None:
        """Log mono sound in [-1, 1]."""
        self._add(summary.audio(tag, snd_tensor, sample_rate), global_step, walltime)

    def add_text(self, tag, text_string, global_step=None, walltime=None) -> None:
        """Log a text."""
        self._add(summary.text(tag, text_string), global_step, walltime)

    # ------------------------------------------------------------- not built
    def add_graph(self, model, input_to_model=None, verbose=False, use_strict_trace=True):
        """Not built."""
        raise NotImplementedError(
            "add_graph is not built; disttorch.debug.draw_graph(output, 'graph.png') draws the "
            "graph, and disttorch.utils.model_summary.summary(model, *inputs) lists the layers"
        )

    def add_embedding(self, mat, metadata=None, label_img=None, global_step=None, tag="default",
                      metadata_header=None):
        """Not built."""
        raise NotImplementedError(
            "add_embedding is not built; project the vectors with torch.pca_lowrank and log a "
            "scatter plot with add_figure"
        )

    def add_video(self, tag, vid_tensor, global_step=None, fps=4, walltime=None):
        """Not built."""
        raise NotImplementedError("add_video is not built; log the frames with add_images")

    def add_mesh(self, tag, vertices, colors=None, faces=None, config_dict=None, global_step=None,
                 walltime=None):
        """Not built."""
        raise NotImplementedError("add_mesh is not built; log a 3-D plot with add_figure")

    # ------------------------------------------------------------- the files
    def flush(self) -> None:
        """Write what waits."""
        for events in self._folders.values():
            events.flush()

    def close(self) -> None:
        """Write what waits and close the files; a later ``add_`` opens new ones."""
        for events in self._folders.values():
            events.close()
        self._folders.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


__all__ = ["SummaryWriter"]
