"""For ``pytest -p cupy_standin.plugin``: the stand-in as ``cupy``, its cuBLAS, and one check a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "packages"))


def install() -> None:
    """Let disttorch compute with the stand-in, cuBLAS among it."""
    from cublas_twin import NumpyCublas

    from disttorch.backend.gpu import cublas

    from . import memory, order

    class Twin(NumpyCublas):
        def submit(self, name, reads, writes, work):
            spans = [[memory.span(address, size) for address, size in part] for part in (reads, writes)]
            order.give(f"cublas {name}", *spans, work)

    cublas.FACTORY = Twin


def pytest_configure(config):
    install()


@pytest.fixture(autouse=True)
def _borders():
    """Nobody has written next to a block of the pool."""
    yield
    from . import memory

    memory.default_pool.free_all_blocks()
