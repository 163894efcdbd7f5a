"""Many ranks' output on one terminal (or file), and in log files.

Every rank writes into its own pipes, so that lines come here whole. Rank 0, if we are on a
terminal, writes into a pseudo-terminal instead and its output is shown at once, not line by line:
progress bars, prompts and pdb work. When another rank's line comes while rank 0's line is
unfinished, that line is wiped, the other printed, and rank 0's drawn again below.
"""

import contextlib
import fcntl
import os
import re
import select
import shutil
import struct
import termios
import tty
from pathlib import Path

CHUNK = 1 << 16
LONGEST_LINE = 1 << 20  # a longer one is broken, to bound memory
STREAMS = ("stdout", "stderr")
TAIL = 4096  # bytes of each stream kept for the report
WIPE_LINE = b"\r\x1b[K"
COLOURS = (36, 33, 35, 32, 34, 31)
# Escape sequences, line ends, and runs of text; a sequence cut off by a chunk's end stays last.
TOKEN = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[^\[]|\x1b\[?[0-?]*[ -/]*$|[\r\n]|[^\x1b\r\n]+")
CUT_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*)?$")


def wants_colour(fd):
    """Whether to colour what goes to `fd` (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return os.environ["FORCE_COLOR"] != "0"
    return os.isatty(fd) and os.environ.get("TERM") != "dumb"


def write_all(fd, data):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # someone made our terminal non-blocking
            select.select([], [fd], [])


class Screen:
    """Where lines end up: our stdout or stderr, or both when they are one terminal."""

    def __init__(self, fd):
        self.fd = fd
        self.colour = wants_colour(fd)
        self.unfinished = b""  # rank 0's line so far, as drawn

    def write_line(self, line):
        if self.unfinished:
            write_all(self.fd, WIPE_LINE + line + b"\n" + self.unfinished)
        else:
            write_all(self.fd, line + b"\n")

    def finish(self):
        if self.unfinished:
            write_all(self.fd, b"\n")
            self.unfinished = b""

    def prefix(self, rank):
        name = b"[rank %d]" % rank
        if self.colour:
            name = b"\x1b[%dm%b\x1b[0m" % (COLOURS[rank % len(COLOURS)], name)
        return name + b" "


class LineSource:
    """One stream of one rank, shown in whole lines."""

    def __init__(self, fd, screen, prefix, log=None):
        self.fd, self.screen, self.prefix, self.log = fd, screen, prefix, log
        self.rest = b""
        self.tail = b""  # the last bytes read

    def read(self):
        """Takes what is there and shows it; False at the end of the stream."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # a pseudo-terminal's way to say that the other side is closed
            data = b""
        if self.log:
            self.log.write(data)
        if data:
            self.tail = (self.tail + data)[-TAIL:]
            self.feed(data)
        return bool(data)

    def feed(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            self.show(line)

    def show(self, line):
        if self.screen:
            # Of a line redrawn by carriage returns only the last state would be seen.
            text = line.rstrip(b"\r").rpartition(b"\r")[2]
            self.screen.write_line(self.prefix + text)

    def close(self):
        if self.rest:
            self.show(self.rest)
            self.rest = b""
        os.close(self.fd)


class LiveSource(LineSource):
    """A stream shown at once, on a terminal; only the prefix is added at each line's start."""

    def feed(self, data):
        data = self.rest + data
        cut = CUT_SEQUENCE.search(data)
        self.rest = data[cut.start() :] if cut else b""
        shown, line = [], self.screen.unfinished
        for token in TOKEN.findall(data[: cut.start()] if cut else data):
            if token in (b"\r", b"\n"):
                line = b""
            else:
                if not line and not token.startswith(b"\x1b"):
                    shown.append(self.prefix)
                    line = self.prefix
                if line:
                    line += token
            shown.append(token)
        write_all(self.screen.fd, b"".join(shown))
        self.screen.unfinished = line


class Output:
    """The output of all ranks.

    `size`: ranks of the job; `ranks`: those on this node (default: all). `log_dir`: folder for one
    file per rank and stream, appended to, or None. `shown`: the ranks to show here. `prefix`: whether
    lines carry their rank; with one rank they never do.
    """

    def __init__(self, size, log_dir=None, shown=(), prefix=True, ranks=None):
        self.size, self.shown, self.prefixed = size, shown, prefix and size > 1
        self.direct = size == 1 and not log_dir and 0 in shown
        screens = [Screen(1), Screen(2)]
        if os.isatty(1) and os.isatty(2):
            screens[1] = screens[0]
        self.screens = screens
        self.log_dir = Path(log_dir) if log_dir else None
        self.logs = {}
        self.streams = {}  # every rank's sources, also closed ones
        if self.log_dir:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            for rank in range(size) if ranks is None else ranks:
                for name in STREAMS:
                    path = self.log_dir / f"rank{rank}.{name}.log"
                    self.logs[rank, name] = open(path, "ab", buffering=0)  # noqa: SIM115

    def lend(self, rank):
        """Opens stdin, stdout and stderr for `rank`.

        Returns their three descriptors, to be sent to the rank and closed here, the sources to
        read, and the settings that go with them.
        """
        stdin = open_stdin() if rank == 0 else os.open(os.devnull, os.O_RDONLY)
        if self.direct:
            return [stdin, os.dup(1), os.dup(2)], [], {}
        if rank == 0 and rank in self.shown and os.isatty(1) and os.isatty(2) and not self.logs:
            # One terminal for both streams, or their order would be lost.
            read, write, columns = open_terminal(self.prefix_width(rank))
            sources = [LiveSource(read, self.screens[0], self.prefix(0, rank))]
            lent = [stdin, write, os.dup(write)]
            settings = {"columns": columns}
        else:
            lent, sources, settings = [stdin], [], {}
            for stream in (0, 1):
                source, write, columns = self.open_stream(stream, rank)
                sources.append(source)
                lent.append(write)
                if columns:
                    settings["columns"] = columns
        for source in sources:
            os.set_blocking(source.fd, False)
        self.streams[rank] = sources
        return lent, sources, settings

    def open_stream(self, stream, rank):
        """The source of `rank`'s stdout (0) or stderr (1), the rank's end of it, and its columns
        if that is a terminal."""
        screen, prefix = self.screens[stream], self.prefix(stream, rank)
        log = self.logs.get((rank, STREAMS[stream]))
        if rank not in self.shown:
            read, write = os.pipe()
            return LineSource(read, None, prefix, log), write, None
        if rank == 0 and os.isatty(screen.fd):
            read, write, columns = open_terminal(self.prefix_width(rank))
            return LiveSource(read, screen, prefix, log), write, columns
        read, write = os.pipe()
        return LineSource(read, screen, prefix, log), write, None

    def prefix(self, stream, rank):
        return self.screens[stream].prefix(rank) if self.prefixed else b""

    def prefix_width(self, rank):
        return len(f"[rank {rank}] ") if self.prefixed else 0

    def tail(self, rank):
        """The last bytes that `rank` wrote to stdout and to stderr."""
        return b"".join(source.tail for source in self.streams.get(rank, ()))

    def last_words(self, rank, text):
        """Shows `text` (bytes) of `rank` on stderr, line by line, and in its log."""
        if log := self.logs.get((rank, "stderr")):
            log.write(text)
        if self.prefixed:  # an excepthook of the job may have marked its lines already
            mark = b"[rank %d] " % rank
            text = b"\n".join(line.removeprefix(mark) for line in text.split(b"\n"))
        self.show_text(text, self.prefix(1, rank))

    def show_text(self, text, prefix=b""):
        """Shows `text` (bytes) on stderr, each line after `prefix`."""
        for line in text.rstrip(b"\n").split(b"\n") if text else ():
            self.screens[1].write_line(prefix + line)

    def say(self, sentence):
        """Shows a sentence of the launcher's own on stderr."""
        for screen in self.screens:
            screen.finish()
        self.screens[1].write_line(b"disttorch-run: " + sentence.encode(errors="replace"))

    def close(self):
        for screen in self.screens:
            with contextlib.suppress(OSError):
                screen.finish()
        for log in self.logs.values():
            log.close()


def open_stdin():
    try:
        return os.dup(0)
    except OSError:  # we were started with it closed
        return os.open(os.devnull, os.O_RDONLY)


def open_terminal(width_used):
    """A pseudo-terminal: our end, the rank's end, and its columns (ours less `width_used`)."""
    ours, theirs = os.openpty()
    # Bytes go through unchanged: the real terminal turns \n into \r\n.
    tty.setraw(theirs)
    size = shutil.get_terminal_size()
    columns = max(20, size.columns - width_used)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, columns, 0, 0))
    return ours, theirs, columns
