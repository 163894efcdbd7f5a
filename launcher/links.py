"""The sockets between the launcher and its ranks' watchers (their other end is in child.py)."""

import contextlib
import os
import secrets
import socket
import struct
import sys
import tempfile

from launcher.report import Failure


def listen():
    """A listening unix socket; returns it, its address as the child takes it, and its folder.

    On Linux the name is abstract: nothing is left in the file system even after SIGKILL, and the
    folder is None.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if sys.platform == "linux":
        folder, address = None, f"@disttorch-run-{secrets.token_hex(16)}"
        listener.bind("\0" + address[1:])
    else:
        folder = tempfile.mkdtemp(prefix="disttorch-run-")
        address = os.path.join(folder, "socket")
        listener.bind(address)
    listener.listen(512)
    return listener, address, folder


def same_user(link):
    """Whether the process at the other end is ours: anyone may connect to an abstract socket."""
    if sys.platform != "linux":
        return True  # the socket's folder is closed to others
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.getuid()


class RankLink:
    """The launcher's side of one rank: its socket, what it told, and its last words.

    `hello` is the watcher's first message: rank, size, local rank, local size, node rank, host.
    """

    def __init__(self, link, hello):
        self.link = link
        self.rank, self.size, self.host = int(hello[0]), int(hello[1]), hello[5]
        self.last_words_file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.failure = None
        self.ended = False  # the rank's process is gone
        self.lost = False  # and not of itself
        self.well = False  # it ended with status 0

    def lend(self, files, settings):
        """Sends the rank its open `files`, which are closed here, and `settings`."""
        message = " ".join(["go", *(f"{name}={value}" for name, value in settings.items())])
        with contextlib.suppress(OSError):  # it died meanwhile; reading its link will tell
            socket.send_fds(self.link, [message.encode()], [*files, self.last_words_file.fileno()])
        for file in files:
            os.close(file)

    def send_signal(self, signum, if_caught=False):
        """Sends the rank a signal; `if_caught`: only if it has a handler for it."""
        if not self.ended:
            with contextlib.suppress(OSError):
                self.link.send(f"signal {int(signum)}{' if caught' * if_caught}".encode())

    def hear(self):
        """Takes in one message, WORD TIME STATUS [cause or consequence]; False at the end of them.

        `failing`: an exception left the script, which may be the consequence of another rank's
        failure; `ended`: the rank's process ended; `stopped`: it
        was ended by its watcher, because mpiexec ended.
        """
        try:
            words = self.link.recv(4096).decode().split()
        except OSError:
            words = []
        if not words:
            self.lost = self.lost or not self.ended
            self.ended = True
            return False
        self.ended = words[0] != "failing"
        self.well = words[0] == "ended" and int(words[2]) == 0
        # What a rank announced itself stands; how it then died (often by MPI_Abort) adds nothing.
        if words[0] == "stopped":
            self.lost = True
        elif int(words[2]) != 0 and self.failure is None:
            consequence = words[3:] == ["consequence"]
            self.failure = Failure(
                self.rank, self.host, float(words[1]), int(words[2]), consequence
            )
        return True

    def last_words(self):
        size = os.fstat(self.last_words_file.fileno()).st_size
        return os.pread(self.last_words_file.fileno(), size, 0)

    def close(self):
        self.link.close()
        self.last_words_file.close()
