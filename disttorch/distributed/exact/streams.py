"""Streams of random numbers named by numbers: what they yield does not depend on who draws.

The default generator is a counter-based one (Philox; Salmon et al., SC 2011): a stream is its key,
so there are as many as there are keys, and no state has to travel between ranks.
"""

from __future__ import annotations

import contextlib
import hashlib

from ...ops.random import own_stream

__all__ = ["random_stream", "stream_seed"]


def stream_seed(*key: int) -> int:
    """A seed of 63 bits for the stream that `key` names; other keys give unrelated seeds."""
    text = ",".join(str(int(part)) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def random_stream(*key: int) -> contextlib.AbstractContextManager[None]:
    """Inside, this thread's random numbers (of this library) come from the stream of `key`.

    The streams from before go on afterwards where they stood. For a sample's augmentation in a
    dataset, for example: `with random_stream(seed, epoch, index): ...`.
    """
    return own_stream(stream_seed(*key))
