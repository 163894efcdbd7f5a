"""The job's secret, and the handshake by which two processes show each other that they know it.

Every connection of `store` and `tcp` starts with it, before any other byte is interpreted. Both sides
send a fresh random number (a nonce) and then prove by HMAC-SHA256 over both nonces, their role, the
protocol's version and the connection's purpose that they hold the secret. Neither reveals it, a proof
is of no use for another connection, and the side that was connected to proves itself last, so a
stranger who knocks learns nothing.

    connecting side                        accepting side
    MAGIC, nonce, claim (64 bytes) ──────►
                                   ◄────── MAGIC, nonce (40 bytes)
    HMAC as "client"  (32 bytes)   ──────►
                                   ◄────── HMAC as "server", or REFUSED (32 bytes)

What follows the handshake is neither encrypted nor signed: it keeps strangers out, not somebody who
can read or change the packets of the network between the nodes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets as random_bytes
import stat
import tempfile
from pathlib import Path

from .work import CollectiveError

VARIABLE = "DISTTORCH_JOB_SECRET"
TIME_LIMIT = 5.0  # seconds for a whole handshake
MAGIC = b"dstrch\x00\x01"  # the last two bytes are the protocol's version
NONCE = 32
CLAIM = 24
PROOF = 32
REFUSED = b"refused".ljust(PROOF, b"\x00")
ADVICE = f"set {VARIABLE} to the same value on all nodes"


class HandshakeError(CollectiveError):
    """The other side is not of this job, or does not speak our protocol.

    Attributes:
        answer: what the accepting side sends before it closes, so that the other one learns why.
    """

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


def job_secret() -> bytes:
    """The secret of this job: the variable DISTTORCH_JOB_SECRET, else this user's cookie file.

    The file is made at the first use, with random content and readable by its owner only. Ranks on
    several nodes share it where they share a home directory, and need the variable otherwise.

    Raises:
        CollectiveError: the file belongs to somebody else, others may read it, or there is no place
            to keep it.
    """
    value = os.environ.get(VARIABLE, "")
    if value:
        return value.encode()
    path = _cookie_path()
    try:
        return _read_cookie(path)
    except FileNotFoundError:
        pass
    try:
        _make_cookie(path)
    except OSError as error:
        raise CollectiveError(
            f"cannot keep the job's secret in {path} ({error.strerror}): {ADVICE}"
        ) from error
    return _read_cookie(path)


def _cookie_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    except RuntimeError:
        raise CollectiveError(
            f"this user has no home directory to keep the job's secret in: {ADVICE}"
        ) from None
    return folder / "disttorch" / "job_secret"


def _read_cookie(path: Path) -> bytes:
    # Looked at through the open file, so that nobody can exchange it in between.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CollectiveError(
            f"cannot read the job's secret {path} ({error.strerror}): {ADVICE}"
        ) from error
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid():
            raise CollectiveError(
                f"{path} belongs to user {facts.st_uid} and not to {os.geteuid()}, so it is no secret: "
                f"remove it, or set {VARIABLE}"
            )
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise CollectiveError(
                f"{path} has mode {stat.S_IMODE(facts.st_mode):04o}, so others may know it: remove it "
                f"and let a new one be made, or set {VARIABLE}"
            )
        value = file.read().strip()
    if len(value) < 16:
        raise CollectiveError(f"{path} holds {len(value)} bytes, too few for a secret: remove it")
    return value


def _make_cookie(path: Path) -> None:
    """Write the file whole under another name, then link it: of ranks that start together one wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".job_secret")  # mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(random_bytes.token_hex(32).encode() + b"\n")
            file.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(temporary)


class Handshake:
    """One side of the handshake as a state machine that does no input or output itself.

    Args:
        secret: the job's.
        purpose: what the connection is for and of which job it is; both sides must name the same.
        connecting: whether this side made the connection.
        claim: up to 24 bytes that the connecting side says of itself, covered by its proof.

    Attributes:
        needs: number of bytes that `feed` takes next; 0 once the handshake is complete.
        claim: on the accepting side, the other's claim once the handshake is complete.
        sent_proof: whether the other side has seen our proof: if it leaves now, it refused it.
    """

    def __init__(self, secret: bytes, purpose: str, connecting: bool, claim: bytes = b"") -> None:
        if len(claim) > CLAIM:
            raise ValueError(f"the claim may have {CLAIM} bytes, got {len(claim)}")
        self._secret = secret
        self._purpose = purpose.encode()
        self._connecting = connecting
        self._nonce = random_bytes.token_bytes(NONCE)
        self._greeted = False
        self._nonces = b""
        self.claim = claim.ljust(CLAIM, b"\x00")
        self.sent_proof = False
        self.needs = len(MAGIC) + NONCE + (0 if connecting else CLAIM)

    def start(self) -> bytes:
        """The bytes to send before anything has come."""
        return MAGIC + self._nonce + self.claim if self._connecting else b""

    def feed(self, data: bytes) -> bytes:
        """Take exactly `needs` bytes and return what to send.

        Raises:
            HandshakeError: the other side is not of this job.
        """
        if not self._greeted:
            return self._greet(data)
        proof = hmac.digest(self._secret, self._signed(not self._connecting), hashlib.sha256)
        if not hmac.compare_digest(proof, data):
            if self._connecting and data == REFUSED:
                raise HandshakeError(f"refused us: its secret or its job is another one; {ADVICE}")
            raise HandshakeError(f"does not know this job's secret; {ADVICE}", REFUSED)
        self.needs = 0
        return b"" if self._connecting else self._proof()

    def _greet(self, data: bytes) -> bytes:
        if not data.startswith(MAGIC[:-2]):
            raise HandshakeError(f"is no process of a disttorch job: it sent {data[:16]!r}")
        if not data.startswith(MAGIC):
            raise HandshakeError(
                f"speaks version {int.from_bytes(data[6:8], 'big')} of the protocol and not "
                f"{MAGIC[-1]}: use the same disttorch on all nodes",
                MAGIC + self._nonce,
            )
        theirs = data[len(MAGIC) : len(MAGIC) + NONCE]
        self._greeted = True
        self.needs = PROOF
        if self._connecting:
            self._nonces = self._nonce + theirs
            self.sent_proof = True
            return self._proof()
        self.claim = data[len(MAGIC) + NONCE :]
        self._nonces = theirs + self._nonce
        return MAGIC + self._nonce

    def _proof(self) -> bytes:
        return hmac.digest(self._secret, self._signed(self._connecting), hashlib.sha256)

    def _signed(self, as_client: bool) -> bytes:
        role = b"client" if as_client else b"server"
        return b"\x00".join([MAGIC, role, self._nonces, self.claim, self._purpose])
