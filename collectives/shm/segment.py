"""A piece of memory that the ranks of one node share."""

from __future__ import annotations

import errno
import mmap
import os
import secrets

import numpy as np

from . import futex

FOLDER = "/dev/shm"


def why_not() -> str:
    """Why shared-memory collectives cannot be used on this machine; "" where they can."""
    reason = futex.why_not()
    if reason:
        return reason
    if not os.path.isdir(FOLDER):
        return f"there is no {FOLDER}"
    if not os.access(FOLDER, os.W_OK | os.X_OK):
        return f"{FOLDER} is not writable for this user"
    return ""


def available() -> bool:
    """Whether shared-memory collectives can be used on this machine (`why_not` gives the reason)."""
    return not why_not()


class Segment:
    """Shared memory behind a file in /dev/shm that only this user may open.

    One rank creates it, the others attach by path, and then the creator unlinks it: from there on
    the memory lives exactly as long as a process has it mapped, however the processes end.

    Attributes:
        path: of the file.
        memory: uint8 array over all of it.
    """

    def __init__(self, path: str, descriptor: int, nbytes: int) -> None:
        self.path = path
        self._linked = False
        self._map: mmap.mmap | None = mmap.mmap(descriptor, nbytes)
        self.memory = np.frombuffer(self._map, np.uint8)

    @classmethod
    def create(cls, nbytes: int) -> Segment:
        """A new segment, filled with zeros.

        Raises:
            OSError: /dev/shm has no room for it.
        """
        path = os.path.join(FOLDER, f"disttorch_{secrets.token_hex(12)}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Without it the first touch of a page that /dev/shm cannot give is a SIGBUS.
            os.posix_fallocate(descriptor, 0, nbytes)
            segment = cls(path, descriptor, nbytes)
        except OSError as error:
            os.unlink(path)
            if error.errno != errno.ENOSPC:
                raise
            room = os.statvfs(FOLDER)
            raise OSError(
                errno.ENOSPC,
                f"{FOLDER} has {room.f_bavail * room.f_frsize} bytes left, and collectives of this node "
                f"need {nbytes}: enlarge it (docker run --shm-size), or use fewer groups",
            ) from None
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        segment._linked = True
        return segment

    @classmethod
    def attach(cls, path: str, nbytes: int) -> Segment:
        """The segment that another rank created.

        Raises:
            OSError: it does not exist, is not this user's, or is not `nbytes` long.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_size != nbytes:
                raise OSError(
                    errno.EINVAL,
                    f"the segment has {status.st_size} bytes of user {status.st_uid}, expected are "
                    f"{nbytes} of user {os.geteuid()}: do all ranks run the same version?",
                    path,
                )
            return cls(path, descriptor, nbytes)
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Remove the file; the memory stays where it is mapped. Only the creator's call does it."""
        if self._linked:
            self._linked = False
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Unlink the file, if this is its creator, and let go of the memory."""
        self.unlink()
        self.memory = np.empty(0, np.uint8)
        mapped, self._map = self._map, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                pass  # an engine still has views of it: it is unmapped with the last of them
