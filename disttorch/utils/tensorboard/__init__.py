"""Writing logs for TensorBoard, with the API of ``torch.utils.tensorboard``.

Needs the ``tensorboard`` package when a writer is made (``pip install disttorch[tensorboard]``).
"""

from .writer import SummaryWriter

__all__ = ["SummaryWriter"]
