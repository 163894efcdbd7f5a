"""Run disttorch-run from a test, and find every process of its job in /proc."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "DISTTORCH_TEST_MARK"
LIMIT = 30  # seconds for a job; a limit against hanging, not a measurement


class Launcher:
    """A disttorch-run whose processes all carry a mark in their environment."""

    def __init__(self, folder, *arguments, env=None, python=sys.executable, **popen):
        self.mark = uuid.uuid4().hex
        dropped = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NO_COLOR",
                   "FORCE_COLOR", "PYTHONPATH", "DISTTORCH_JOB_SECRET")
        full = {k: v for k, v in os.environ.items() if k not in dropped}
        full |= {"PYTHONPATH": str(ROOT), MARK: self.mark, **(env or {})}
        popen = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1, **popen}
        self.process = subprocess.Popen(
            [python, "-m", "launcher", *map(str, arguments)], cwd=folder, env=full, **popen
        )

    def finish(self, stdin=None):
        """Waits for the end; returns (status, stdout, stderr) and checks that nothing is left."""
        try:
            out, err = self.process.communicate(stdin, timeout=LIMIT)
        finally:
            self.process.kill()
            left = self.survivors()
        assert not left, f"processes of the job are still there: {left}"
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()

    def pids(self):
        """The job's living processes: {pid: command}."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = command
        return found

    def survivors(self, seconds=5.0):
        """What still lives after at most `seconds`."""
        end = time.monotonic() + seconds
        while (left := self.pids()) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        return left


def run_job(folder, *arguments, **settings):
    """Runs disttorch-run to its end: (status, stdout, stderr)."""
    return Launcher(folder, *arguments, **settings).finish()


def wait_for(folder, *names):
    """Waits until the files `names` exist in `folder`: scripts create them as signs."""
    end = time.monotonic() + LIMIT
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < end, f"{names} did not all appear"
        time.sleep(0.01)


def run_on_terminal(folder, *arguments, typed=b"", after="", **settings):
    """Runs disttorch-run on a pseudo-terminal: (status, all that it showed).

    `typed` is typed once `after` has been shown.
    """
    ours, theirs = pty.openpty()
    job = Launcher(
        folder,
        *arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # The terminal turns ^C into SIGINT only for those whose controlling terminal it is.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        **settings,
    )
    os.close(theirs)
    shown, end = b"", time.monotonic() + LIMIT
    while time.monotonic() < end:
        if typed and after.encode() in shown:
            os.write(ours, typed)
            typed = b""
        if select.select([ours], [], [], 0.1)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    os.close(ours)
    status, _, _ = job.finish()
    return status, shown.decode()
