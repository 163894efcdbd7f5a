"""Messages between the launchers of a job over TCP, and the handshake that lets only them in.

    head                                            member
    disttorch-run 1 <head's nonce>         ──►
                                           ◄──      <member's nonce> <proof of the member>
    <proof of the head>, or "refused"      ──►
    <code> <JSON>                          ◄─►      <code> <JSON>

A proof is an HMAC-SHA256, keyed by the job's secret, of its sender's role and both nonces: each side
shows that it knows the secret without telling it, and no recorded proof can be used again. From then
on each message carries an HMAC of its direction, its number and its text under a key made for this
connection, so that nothing can be inserted or repeated. Before the handshake is complete nothing of
what the other side sends is kept beyond one short line, and none of it is decoded.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket

GREETING = "disttorch-run 1"
SHORT_LINE = 256  # bytes, until the other side is known
LONG_LINE = 1 << 20
SEND_SECONDS = 5.0  # a peer that takes nothing for so long is lost


class ChannelError(Exception):
    """The connection is over; the text says why, as the end of "the connection ..."."""


class Channel:
    """One connection to another launcher.

    `link`: a connected TCP socket. `secret`: the job's, as bytes. `head`: whether we are node 0.
    """

    def __init__(self, link, secret, *, head):
        self.link, self.secret, self.head = link, secret, head
        self.nonce = secrets.token_hex(16)
        self.key = b""  # of this connection, once both sides are known
        self.known = False
        self.ends = self.proof_sent = False
        self.received = b""
        self.sent_count = self.received_count = 0
        link.settimeout(SEND_SECONDS)
        with contextlib.suppress(OSError):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if head:
            self.send_line(f"{GREETING} {self.nonce}")

    def fileno(self):
        return self.link.fileno()

    def read(self):
        """Takes in what has come; returns the complete messages. Raises ChannelError at the end.

        Call it when the socket is readable. Messages before an end are returned first.
        """
        try:
            data = b"" if self.ends else self.link.recv(1 << 16)
        except OSError as error:
            raise ChannelError(f"broke ({error.strerror or error})") from None
        self.received += data
        messages = []
        while (at := self.received.find(b"\n")) >= 0:
            line, self.received = self.received[:at], self.received[at + 1 :]
            message = self.take(line)
            if message is not None:
                messages.append(message)
        if len(self.received) > (LONG_LINE if self.known else SHORT_LINE):
            raise ChannelError("brought a line that is too long")
        if not data:
            if not messages:
                raise ChannelError("was closed")
            self.ends = True
        return messages

    def take(self, line):
        """The message in `line`; None while the handshake goes on."""
        if len(line) > (LONG_LINE if self.known else SHORT_LINE):
            raise ChannelError("brought a line that is too long")
        if not self.known:
            self.shake_hands(line.decode("ascii", "replace").split(" "))
            return None
        code, _, text = line.partition(b" ")
        if not hmac.compare_digest(code, self.code(text, not self.head, self.received_count)):
            raise ChannelError("brought a message that does not come from the job")
        self.received_count += 1
        return json.loads(text)

    def shake_hands(self, words):
        if self.head:
            if len(words) != 2 or len(words[0]) != len(self.nonce):
                raise ChannelError("came from no launcher")
            nonces = f"{self.nonce} {words[0]}"
            if not hmac.compare_digest(words[1].encode(), self.proof("member", nonces).encode()):
                self.send_line("refused")
                raise ChannelError("came from one that does not know the job's secret")
            self.send_line(self.proof("head", nonces))
        elif not self.proof_sent:
            if len(words) != 3 or " ".join(words[:2]) != GREETING:
                raise ChannelError("leads to no launcher of this version")
            self.nonces = f"{words[2]} {self.nonce}"
            self.send_line(f"{self.nonce} {self.proof('member', self.nonces)}")
            self.proof_sent = True
            return
        else:
            nonces = self.nonces
            if words == ["refused"]:
                raise RefusedError("was refused: the job's secret differs")
            if not hmac.compare_digest(" ".join(words).encode(), self.proof("head", nonces).encode()):
                raise RefusedError("leads to one that does not know the job's secret")
        self.key = hmac.digest(self.secret, f"messages {nonces}".encode(), hashlib.sha256)
        self.known = True

    def proof(self, role, nonces):
        return hmac.new(self.secret, f"{role} {nonces}".encode(), hashlib.sha256).hexdigest()

    def code(self, text, from_head, number):
        what = b"%d %d %b" % (from_head, number, text)
        return hmac.new(self.key, what, hashlib.sha256).hexdigest().encode()

    def send(self, **message):
        """Sends a message; if that fails, reading tells."""
        text = json.dumps(message)
        code = self.code(text.encode(), self.head, self.sent_count).decode()
        self.sent_count += 1
        self.send_line(f"{code} {text}")

    def send_line(self, line):
        try:
            self.link.sendall(line.encode() + b"\n")
        except OSError:
            with contextlib.suppress(OSError):
                self.link.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.link.close()


class RefusedError(ChannelError):
    """The other side is a launcher of another job: trying again does not help."""
