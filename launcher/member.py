"""The launcher of a node other than node 0 in a job over several nodes (see nodes.py)."""

import errno
import os
import selectors
import socket

from launcher.channel import Channel, RefusedError
from launcher.nodes import Nodes, Peer, reason_from
from launcher.plan import set_run_id
from launcher.report import Verdict
from launcher.verdict import verdict_on

CONNECT_SECONDS = 5.0  # for one attempt
RETRY_SECONDS = 0.3


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
        self.tell(
            word="ended",
            words={rank: text.decode(errors="replace") for rank, text in words.items()},
            well=sorted(self.job.well),
        )
        while self.joined and not self.given and not self.given_up:
            self.loop.turn()
        self.agreed = self.given is not None
        return self.given or verdict_on(self.job)

    def close(self):
        if self.link is not None:
            self.link.close()
        if self.head is not None:
            self.close_peer(self.head)
