from cupy_standin.memory import *  # noqa: F403
from cupy_standin.memory import OutOfMemoryError, PooledMemory

__all__ = ["OutOfMemoryError", "PooledMemory"]
