"""The launchers of a job over several nodes: they begin together, and end together.

    node 0, the Head, listens on --master-addr at port --master-port + 1
    every other node, a Member, connects to it

When all have joined, every launcher starts its ranks. Whatever ends the job on one node (a rank that
failed, a signal, the time, a lost connection) is told to the Head and by it to all; each stops its
ranks, sends what its failed ranks said last, and prints the one Verdict that the Head then gives. A
launcher that dies is noticed by the end of its connection, a node that dies by missing heartbeats.
"""

import contextlib
import errno
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass

from launcher.channel import Channel, ChannelError, RefusedError
from launcher.plan import set_run_id
from launcher.report import NO_RANK, Failure, Verdict

BEAT_SECONDS = 1.0
CONNECT_SECONDS = 5.0  # for one attempt
RETRY_SECONDS = 0.3
HANDSHAKE_SECONDS = 10.0
MOST_PENDING = 64  # connections that have not joined; the oldest goes first
LINGER_SECONDS = 2.0  # for the verdict to arrive everywhere
SHOWN_STRANGERS = 5  # then dropped in silence


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


class Head(Nodes):
    """Node 0's launcher: lets the others in, collects what they tell, and gives the verdict."""

    def __init__(self, settings):
        super().__init__(settings)
        self.pending = []
        self.joined = {}
        self.strangers = 0
        self.listener: socket.socket | None = None

    def peers(self):
        return list(self.joined.values())

    def open(self):
        wanted = self.settings
        try:
            family, kind, _, _, place = socket.getaddrinfo(
                wanted.address, wanted.port, type=socket.SOCK_STREAM
            )[0]
            self.listener = socket.socket(family, kind)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(place)
        except OSError as error:
            raise OSError(self.cannot_listen(error)) from None
        self.listener.listen(512)
        self.listener.setblocking(False)
        self.own_address = self.own_address or self.listener.getsockname()[0]
        self.loop.watch(self.listener, self.accept)
        self.loop.after(wanted.start_timeout, self.time_to_join_is_up)
        self.beat()

    def cannot_listen(self, error):
        address, port = self.settings.address, self.settings.port
        why = f"node 0 cannot listen on --master-addr {address}, port {port} (--master-port + 1): "
        if error.errno == errno.EADDRINUSE:
            return why + "the port is in use; choose another --master-port on all nodes"
        return why + f"{error.strerror}; give an address of node 0's machine on all nodes"

    def accept(self):
        assert self.listener
        try:
            link, address = self.listener.accept()
        except OSError:  # it has gone already
            return
        peer = Peer(Channel(link, self.settings.secret, head=True), address[0])
        self.pending.append(peer)
        self.loop.watch(peer.channel, lambda: self.hear(peer))
        self.loop.after(HANDSHAKE_SECONDS, lambda: self.expire(peer))
        if len(self.pending) > MOST_PENDING:
            self.gone(self.pending[0], "was the oldest of too many")

    def expire(self, peer):
        if peer in self.pending:
            self.gone(peer, "did not say who it is")

    def gone(self, peer, error):
        self.close_peer(peer)
        if peer in self.pending:
            self.pending.remove(peer)
            self.strangers += 1
            if self.strangers <= SHOWN_STRANGERS:
                self.job.output.say(f"a connection from {peer.address} {error}; it was dropped")
        elif self.joined.pop(peer.node, None) and not self.finished:
            if self.started:
                if not peer.ended:
                    self.lost(peer.name, error)
            elif not self.job.reason:
                self.job.output.say(f"{peer.name} left before the job began; waiting for it")

    def take(self, peer, message):
        word = message["word"]
        if word == "join":
            self.join(peer, message)
        elif word == "failure":
            told = {name: message[name] for name in ("rank", "host", "status", "consequence", "what")}
            self.job.failed(Failure(time=time.monotonic(), **told))
        elif word == "stop":
            self.job.stop(reason_from(message["reason"]), message["where"])
        elif word == "kill":
            self.job.kill_ranks()
            self.tell(word="kill")
        elif word == "ended":
            peer.ended = True
            if self.job.verbose:
                self.job.output.say(f"the ranks of {peer.name} have ended")
            self.words |= {int(r): text.encode() for r, text in message["words"].items()}

    def join(self, peer, message):
        if reason := self.objection(message):
            peer.channel.send(word="refused", reason=reason)
            self.gone(peer, f"was refused: {reason}")
            return
        self.pending.remove(peer)
        peer.node, peer.name = message["node"], message["name"]
        self.joined[peer.node] = peer
        if self.job.verbose:
            self.job.output.say(f"{peer.name} has joined")
        if len(self.joined) == self.settings.nnodes - 1:
            self.close_listener()
            self.tell(word="start", run_id=self.job.plan.env["DISTTORCH_RUN_ID"])
            self.begin()

    def objection(self, message):
        """Why the launcher that sent this `join` cannot be let in; empty if it can."""
        mine, node = self.settings, message["node"]
        if message["nnodes"] != mine.nnodes:
            return f"{message['name']} has --nnodes {message['nnodes']}, node 0 has {mine.nnodes}"
        if message["local_size"] != mine.local_size:
            return (
                f"{message['name']} has --nproc-per-node {message['local_size']}, node 0 has "
                f"{mine.local_size}; give the same number on all nodes"
            )
        if node in self.joined:
            return (
                f"--node-rank {node} is taken by host {self.joined[node].name.split()[-1]} already; "
                "give every node its own"
            )
        return ""

    def close_listener(self):
        for peer in list(self.pending):
            self.pending.remove(peer)
            self.close_peer(peer)
        if self.listener is not None:
            if self.loop.watches(self.listener):
                self.loop.unwatch(self.listener)
            self.listener.close()
            self.listener = None

    def time_to_join_is_up(self):
        if self.started or self.job.reason:
            return
        missing = [n for n in range(1, self.settings.nnodes) if n not in self.joined]
        names = ", ".join(map(str, missing))
        self.job.complaint = (
            f"node{'s' * (len(missing) > 1)} {names} of {self.settings.nnodes} did not join at "
            f"{self.settings.address} port {self.settings.port} within "
            f"{self.settings.start_timeout:g} s; start disttorch-run there with --node-rank "
            f"{missing[0]}, or wait longer by --rdzv-timeout"
        )
        self.job.stop("nodes")

    def tell_failure(self, failure):
        pass  # it is ours to judge

    def tell_stop(self, reason, where):
        self.tell(word="stop", reason=reason, where=where)

    def tell_kill(self):
        self.tell(word="kill")

    def agree(self):
        """The Verdict on the whole job, once all nodes' ranks have ended; all are told."""
        self.close_listener()
        while not self.given_up and not all(peer.ended for peer in self.peers()):
            self.loop.turn()
        verdict = self.job.verdict()
        self.finished = True
        for peer in self.peers():
            peer.channel.send(
                word="verdict", status=verdict.status, sentence=verdict.sentence,
                rank=verdict.rank, text=verdict.text.decode(errors="replace"),
            )
            with contextlib.suppress(OSError):
                peer.channel.link.shutdown(socket.SHUT_WR)
        # To close now could destroy what is still on its way: they close first.
        self.given_up = False
        self.expect_end(LINGER_SECONDS)
        while self.joined and not self.given_up:
            self.loop.turn()
        return verdict

    def close(self):
        self.close_listener()
        for peer in self.peers():
            self.close_peer(peer)


class Member(Nodes):
    """Another node's launcher: joins node 0's, and tells it what happens here."""

    def __init__(self, settings):
        super().__init__(settings)
        self.head = None
        self.link: socket.socket | None = None  # to the Head, while it is being connected
        self.attempts = 0
        self.why = ""  # the last attempt failed
        self.given = None  # the verdict

    def peers(self):
        return [self.head] if self.joined else []

    @property
    def joined(self):
        return self.head is not None and self.head.channel.known

    def open(self):
        self.loop.after(self.settings.start_timeout, self.time_to_join_is_up)
        self.connect()
        self.beat()

    def connect(self):
        """Begins an attempt to connect; another follows where it fails."""
        if self.job.reason:
            return
        self.attempts += 1
        attempt = self.attempts
        try:
            places = socket.getaddrinfo(
                self.settings.address, self.settings.port, type=socket.SOCK_STREAM
            )
            family, kind, _, _, place = places[attempt % len(places)]
            self.link = socket.socket(family, kind)
            self.link.setblocking(False)
            if self.settings.local_address:
                self.link.bind((self.settings.local_address, 0))
            status = self.link.connect_ex(place)
        except OSError as error:
            self.retry(error.strerror or str(error))
            return
        if status not in (0, errno.EINPROGRESS):
            self.retry(os.strerror(status))
            return
        self.loop.watch(self.link, self.connected, selectors.EVENT_WRITE)
        self.loop.after(CONNECT_SECONDS, lambda: self.attempt_is_late(attempt))

    def attempt_is_late(self, attempt):
        if self.link is not None and attempt == self.attempts:
            self.retry("no answer")

    def retry(self, why):
        self.why = why
        if self.link is not None:
            if self.loop.watches(self.link):
                self.loop.unwatch(self.link)
            self.link.close()
            self.link = None
        self.loop.after(RETRY_SECONDS, self.connect)

    def connected(self):
        assert self.link
        if status := self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.retry(os.strerror(status))
            return
        self.loop.unwatch(self.link)
        link, self.link = self.link, None
        self.own_address = self.own_address or link.getsockname()[0]
        self.head = Peer(Channel(link, self.settings.secret, head=False), self.settings.address)
        self.head.name = f"node 0 at {self.settings.address}"
        self.loop.watch(self.head.channel, lambda peer=self.head: self.hear(peer))

    def hear(self, peer):
        before = self.joined
        super().hear(peer)
        if self.joined and not before:
            mine = self.settings
            peer.channel.send(
                word="join", node=mine.node, nnodes=mine.nnodes, local_size=mine.local_size,
                name=self.name,
            )

    def gone(self, peer, error):
        joined, self.head = self.joined, None
        self.close_peer(peer)
        if self.given:
            return
        if self.started:
            self.lost(peer.name, error)
        elif isinstance(error, RefusedError):
            self.refuse(f"{error}; give the same DISTTORCH_JOB_SECRET or --secret-file on all nodes")
        elif joined:
            self.refuse(f"{error} before the job began")
        else:
            self.retry(f"the connection {error}")

    def refuse(self, reason):
        if not self.job.reason:
            place = f"{self.settings.address} port {self.settings.port}"
            self.job.complaint = f"the connection to node 0 at {place} {reason}"
            self.job.stop("nodes")

    def take(self, peer, message):
        word = message["word"]
        if word == "refused":
            self.refuse(f"was refused: {message['reason']}")
        elif word == "start":
            set_run_id(self.job.plan.env, message["run_id"])
            self.begin()
        elif word == "stop":
            self.job.stop(reason_from(message["reason"]), message["where"])
        elif word == "kill":
            self.job.kill_ranks()
        elif word == "verdict":
            text = message["text"].encode()
            self.given = Verdict(message["status"], message["sentence"], message["rank"], text)

    def time_to_join_is_up(self):
        if self.started or self.joined or self.job.reason:
            return  # what else may be missing, the Head says
        self.job.complaint = (
            f"node 0's launcher could not be reached at {self.settings.address} port "
            f"{self.settings.port} (--master-port + 1) within {self.settings.start_timeout:g} s "
            f"({self.why}); start disttorch-run --node-rank 0 there, or wait longer by --rdzv-timeout"
        )
        self.job.stop("nodes")

    def tell_failure(self, failure):
        self.tell(
            word="failure", rank=failure.rank, host=failure.host, status=failure.status,
            consequence=failure.consequence, what=failure.what,
        )

    def tell_stop(self, reason, where):
        self.tell(word="stop", reason=reason, where=where)

    def tell_kill(self):
        self.tell(word="kill")

    def agree(self):
        """The Head's Verdict on the whole job, or our own where it has none for us."""
        words = self.job.words_of_failed_ranks()
        self.tell(word="ended", words={r: text.decode(errors="replace") for r, text in words.items()})
        while self.joined and not self.given and not self.given_up:
            self.loop.turn()
        return self.given or self.job.verdict()

    def close(self):
        if self.link is not None:
            self.link.close()
        if self.head is not None:
            self.close_peer(self.head)
