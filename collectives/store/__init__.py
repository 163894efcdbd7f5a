"""Stores: keys and values that all processes of a job see, as in torch.distributed.

`HashStore` lives in one process, `FileStore` in a file, `TCPStore` in a server that one of the
processes hosts; `PrefixStore` keeps several users of one store apart.
"""

from .base import HashStore, PrefixStore, Store
from .file import FileStore
from .table import QueueEmpty, StoreConnectionError, StoreError, StoreTimeout
from .tcp import TCPStore

__all__ = [
    "FileStore",
    "HashStore",
    "PrefixStore",
    "QueueEmpty",
    "Store",
    "StoreConnectionError",
    "StoreError",
    "StoreTimeout",
    "TCPStore",
]
