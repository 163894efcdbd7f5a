"""The launchers of a job over several nodes: they begin together, and end together.

    node 0, the Head (head.py), listens on --master-addr at port --master-port + 1
    every other node, a Member (member.py), connects to it

When all have joined, every launcher starts its ranks. Whatever ends the job on one node (a rank that
failed, a signal, the time, a lost connection) is told to the Head and by it to all; each stops its
ranks, sends what its failed ranks said last, and prints the one Verdict that the Head then gives. A
launcher that dies is noticed by the end of its connection, a node that dies by missing heartbeats.
"""

import signal
import socket
import time
from dataclasses import dataclass

from launcher.channel import ChannelError
from launcher.report import NO_RANK, Failure

BEAT_SECONDS = 1.0


@dataclass
class NodeSettings:
    """This node's `node` of `nnodes`, each with `local_size` ranks; the Head's `address` and `port`;
    the job's `secret` (bytes); `local_address`: ours, where it is not the system's choice;
    `start_timeout`: seconds for all to join; `heartbeat_timeout`: seconds of silence that mean that a
    node is lost."""

    node: int
    nnodes: int
    local_size: int
    address: str
    port: int
    secret: bytes
    local_address: str = ""
    start_timeout: float = 300.0
    heartbeat_timeout: float = 30.0


def reason_from(text):
    """The reason of a stop as the Job has it: a word, or a signal by its number."""
    return signal.Signals(text) if isinstance(text, int) else str(text)


class Nodes:
    """What Head and Member share. `attach` them to their Job before use."""

    def __init__(self, settings):
        self.settings = settings
        self.started = False
        self.given_up = False
        self.finished = False  # the verdict is given
        self.agreed = False  # and all nodes have it
        self.words = {}  # of failed ranks elsewhere
        self.own_address = settings.local_address
        self.name = f"node {settings.node} on host {socket.gethostname()}"

    def attach(self, job):
        self.job, self.loop = job, job.loop

    def peers(self):
        """The other launchers that have joined."""
        raise NotImplementedError

    def take(self, peer, message):
        """Acts on a message."""
        raise NotImplementedError

    def gone(self, peer, error):
        """Acts on the end of a connection, for the reason `error`."""
        raise NotImplementedError

    def begin(self):
        if not self.job.reason:
            self.started = True
            self.job.start_ranks()

    def put_address(self, env):
        """Tells the ranks by which address the others reach this node; what the user set wins."""
        if self.settings.local_address:
            env["DISTTORCH_NODE_ADDR"] = self.settings.local_address
        elif self.own_address:
            env.setdefault("DISTTORCH_NODE_ADDR", self.own_address)

    def beat(self):
        if self.finished:
            return
        for peer in self.peers():
            peer.channel.send(word="beat")
            if (silence := time.monotonic() - peer.heard) > self.settings.heartbeat_timeout:
                self.gone(peer, f"was silent for {silence:.0f} s")
        self.loop.after(BEAT_SECONDS, self.beat)

    def hear(self, peer):
        try:
            messages = peer.channel.read()
        except ChannelError as error:
            self.gone(peer, error)
            return
        peer.heard = time.monotonic()
        for message in messages:
            self.take(peer, message)

    def close_peer(self, peer):
        if self.loop.watches(peer.channel):
            self.loop.unwatch(peer.channel)
        peer.channel.close()

    def lost(self, name, error):
        """The job fails because the launcher of the node called `name` is gone."""
        what = f"was lost: the connection to its launcher {error}"
        ranks = self.settings.local_size
        self.job.failed(Failure(NO_RANK, name, time.monotonic(), 1, what=what, ranks=ranks))

    def tell(self, **message):
        for peer in self.peers():
            peer.channel.send(**message)

    def expect_end(self, seconds):
        """Waits at most so long, from now, for the others once our ranks have ended."""
        self.loop.after(seconds, self.give_up)

    def give_up(self):
        self.given_up = True


class Peer:
    """The launcher at the other end of `channel`."""

    def __init__(self, channel, address):
        self.channel, self.address = channel, address
        self.heard = time.monotonic()
        self.node = None  # once it has joined
        self.name = ""
        self.ended = False  # all its ranks have
