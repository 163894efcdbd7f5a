"""Two network namespaces joined by a cable: two nodes, as far as sockets can tell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class TwoNodes:
    """Names and addresses of the two namespaces.

    Attributes:
        prefixes: for each node the command that runs what follows it there.
        addresses: of each node on the cable.
    """

    def __init__(self) -> None:
        names = [f"disttorch-{os.getpid()}-{node}" for node in (0, 1)]
        self.names = names
        self.prefixes = [["ip", "netns", "exec", name] for name in names]
        self.addresses = ["10.213.77.1", "10.213.77.2"]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Make two namespaces and remove them afterwards; skips the test where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command (iproute2)")
    nodes = TwoNodes()
    first, second = nodes.names
    try:
        try:
            _ip("netns", "add", first)
            _ip("netns", "add", second)
            _ip("link", "add", "cable0", "netns", first, "type", "veth", "peer", "name", "cable1",
                "netns", second)  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here (they need root): {error.stderr.strip()}")
        for node, name in enumerate(nodes.names):
            _ip("-n", name, "addr", "add", f"{nodes.addresses[node]}/24", "dev", f"cable{node}")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", f"cable{node}", "up")
        yield nodes
    finally:
        for name in nodes.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)
