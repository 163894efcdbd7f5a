"""PyTorch's names of what goes wrong between ranks, for the errors of `collectives`."""

from __future__ import annotations

from collectives.store import QueueEmpty, StoreConnectionError, StoreError
from collectives.work import CollectiveError

DistError = CollectiveError
"""Base of all errors between ranks, a RuntimeError. Those that ran out of time are TimeoutErrors too."""
DistBackendError = CollectiveError
"""A call that could not be carried out."""
DistNetworkError = StoreConnectionError
"""The store's server cannot be reached."""
DistStoreError = StoreError
"""Any error of a store."""
QueueEmptyError = QueueEmpty
"""`queue_pop(block=False)` of an empty queue."""
