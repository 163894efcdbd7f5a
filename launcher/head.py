"""Node 0's launcher in a job over several nodes (see nodes.py)."""

import contextlib
import errno
import socket
import time

from launcher.channel import Channel
from launcher.nodes import Nodes, Peer, reason_from
from launcher.report import Failure
from launcher.verdict import verdict_on

HANDSHAKE_SECONDS = 10.0
MOST_PENDING = 64  # connections that have not joined; the oldest goes first
LINGER_SECONDS = 2.0  # for the verdict to arrive everywhere
SHOWN_STRANGERS = 5  # then dropped in silence


def listener_at(address, port):
    """A socket bound to `address`, or to all of this machine's where that leads elsewhere.

    A name may lead here by translation only (a service's address), or, for its own machine alone, to
    the loopback device (as on some distributions), where no other node could come.
    """
    family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    if address == "localhost" or is_loopback(address) or not is_loopback(place[0]):
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
    )


def is_loopback(address):
    return address == "::1" or address.startswith("127.")


def own_address(listener):
    """The address that `listener` is bound to; empty where it is bound to all."""
    address = listener.getsockname()[0]
    return "" if address in ("0.0.0.0", "::") else address


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
        try:
            self.listener = listener_at(self.settings.address, self.settings.port)
        except OSError as error:
            raise OSError(self.cannot_listen(error)) from None
        self.listener.listen(512)
        self.listener.setblocking(False)
        self.own_address = self.own_address or own_address(self.listener)
        self.loop.watch(self.listener, self.accept)
        self.loop.after(self.settings.start_timeout, self.time_to_join_is_up)
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
            self.job.well.update(message["well"])
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
        verdict = verdict_on(self.job)
        everyone = len(self.joined) == self.settings.nnodes - 1
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
        self.agreed = everyone and not self.joined
        return verdict

    def close(self):
        self.close_listener()
        for peer in self.peers():
            self.close_peer(peer)
