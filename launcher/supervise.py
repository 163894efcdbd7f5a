"""One job from start to end: an event loop over the ranks' links, their output and our signals.

A job ends well when all ranks end with status 0. Otherwise a *stop* begins: a rank failed, a
signal came, the time is up, or mpiexec broke down. A stop asks every living rank to end (by SIGINT
if that came, else by SIGTERM), kills those that have not after the grace period, and only then lets
the watchers end, because mpiexec kills everyone at once when it sees one fail.
"""

import contextlib
import os
import select
import selectors
import shutil
import signal
import subprocess
import time

from launcher.child import (
    PR_SET_CHILD_SUBREAPER,
    SOCKET_VARIABLE,
    children_of,
    die_with_parent,
    prctl,
)
from launcher.links import RankLink, listen, same_user
from launcher.output import CHUNK
from launcher.plan import CHILD
from launcher.report import (
    Failure,
    aborted_by,
    cleaned,
    exit_status,
    failure_sentence,
    rank_list,
    signal_name,
)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILL_SECONDS = 0.5  # between SIGKILL to the ranks, and to all that is left
DUMP_SECONDS = 0.3  # for the ranks to write their stacks when the time is up
LOST_SECONDS = 1.0  # for mpiexec to end the job when a watcher was killed
TIMEOUT_STATUS = 124  # as timeout(1)


class Job:
    """Runs a Plan; `run` returns the exit status.

    `output`: an Output. `timeout`: seconds until the job is ended, or None. `grace`: seconds that
    ranks may take to end once asked to. `verbose`: show the plan's notes and mpiexec's own output.
    """

    def __init__(self, plan, output, *, timeout=None, grace=3.0, verbose=False):
        self.plan, self.output, self.verbose = plan, output, verbose
        self.timeout, self.grace = timeout, grace
        self.ranks = {}
        self.sources = set()
        self.selector = selectors.DefaultSelector()
        self.timers = []  # (time, function)
        self.caught = []  # signals not yet handled
        self.process: subprocess.Popen | None = None  # mpiexec
        self.status: int | None = None  # its exit status
        self.mpiexec_said = b""
        self.stopped_at = None
        self.reason = None  # of the stop: "failure", "timeout", "mpiexec" or a signal
        self.complaint = ""

    def run(self):
        self.children_before = set(children_of(os.getpid()))
        # Orphans of the job become our children, so that none can hide.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            with self.own_signals():
                self.start()
                while not self.over():
                    self.turn()
                self.kill_everything()
                self.drain()
                return self.report()
        except BrokenPipeError:  # whoever read our output has gone, as in `... | head -1`
            return 128 + signal.SIGPIPE
        except OSError as error:
            with contextlib.suppress(OSError):
                self.output.say(f"the job was stopped: {error}")
            return 1
        finally:
            self.kill_everything()
            self.close()
            prctl(PR_SET_CHILD_SUBREAPER, 0)

    def start(self):
        if self.verbose:
            for note in self.plan.notes:
                self.output.say(note)
        self.listener, address, self.socket_folder = listen()
        self.selector.register(self.listener, selectors.EVENT_READ, self.welcome)
        self.mpiexec_output, written = os.pipe()
        self.selector.register(self.mpiexec_output, selectors.EVENT_READ, self.read_mpiexec)
        us = os.getpid()
        try:
            self.process = subprocess.Popen(
                self.plan.argv,
                env=self.plan.env | {SOCKET_VARIABLE: address},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,  # the terminal's Ctrl-C reaches us only: we pass it on
                preexec_fn=lambda: die_with_parent(us),
            )
        finally:
            os.close(written)
        if self.timeout:
            self.after(self.timeout, self.time_is_up)

    # -- the loop --

    def after(self, seconds, action):
        self.timers.append((time.monotonic() + seconds, action))

    def turn(self, wait=None):
        """Waits for events, at most until the next timer, and handles them; False if none came."""
        if self.timers and wait is None:
            wait = max(0.0, min(when for when, _ in self.timers) - time.monotonic())
        events = self.selector.select(wait)
        for key, _ in events:
            if key.fileobj in self.selector.get_map():  # not closed by an earlier one's handler
                key.data()
        while self.caught:
            self.on_signal(self.caught.pop(0))
        now = time.monotonic()
        due = [action for when, action in self.timers if when <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for action in due:
            action()
        return bool(events)

    def over(self):
        """Whether mpiexec and all ranks have ended."""
        assert self.process
        if self.status is None:
            self.status = self.process.poll()
            if self.status is None:
                return False
            # What the ranks said before mpiexec ended waits in the sockets: it tells who failed.
            while self.turn(0):
                pass
            self.mpiexec_ended()
        return all(rank.ended for rank in self.ranks.values())

    def mpiexec_ended(self):
        if self.complaint:
            return
        if cut := [rank for rank in self.ranks.values() if rank.lost or not rank.ended]:
            self.complaint = f"{self.mpiexec_end()} while {len(cut)} ranks were running"
            # It killed them (for MPI_Abort), and they are about to be gone; or someone killed it.
            self.after(LOST_SECONDS, lambda: self.stop("mpiexec"))
        elif len(self.ranks) < self.plan.size or self.status:
            self.complaint = (
                f"{self.mpiexec_end()} after starting {len(self.ranks)} of {self.plan.size} ranks"
            )

    @contextlib.contextmanager
    def own_signals(self):
        """Signals wake the loop up and are handled there; the old handlers come back at the end."""
        self.wakeup, written = os.pipe()
        for end in (self.wakeup, written):
            os.set_blocking(end, False)
        self.selector.register(
            self.wakeup, selectors.EVENT_READ, lambda: os.read(self.wakeup, CHUNK)
        )
        old_wakeup = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        old = {s: signal.signal(s, lambda n, _: self.caught.append(n)) for s in STOP_SIGNALS}
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(old_wakeup)
            os.close(written)
            os.close(self.wakeup)

    # -- ranks and their output --

    def welcome(self):
        """A watcher connected: lends it the rank's files, unless the job is ending."""
        link, _ = self.listener.accept()
        words = link.recv(4096).decode().split() if same_user(link) else []
        if self.reason or words[:1] != ["hello"]:
            link.close()
            return
        rank = RankLink(link, words[1:])
        if rank.size != self.plan.size or rank.rank in self.ranks:
            rank.close()
            self.complaint = (
                f"{self.plan.argv[0]} started rank {rank.rank} of {rank.size} where "
                f"{self.plan.size} ranks were asked for; check --mpiexec and --mpiexec-args"
            )
            self.stop("mpiexec")
            return
        files, sources, settings = self.output.lend(rank.rank)
        rank.lend(files, settings)
        self.ranks[rank.rank] = rank
        for source in sources:
            self.sources.add(source)
            self.selector.register(
                source.fd, selectors.EVENT_READ, lambda source=source: self.pump(source)
            )
        self.selector.register(link, selectors.EVENT_READ, lambda: self.hear(rank))

    def hear(self, rank):
        if not rank.hear():
            self.selector.unregister(rank.link)
            rank.link.close()
        if rank.lost:
            self.after(LOST_SECONDS, self.rank_was_lost)
        if rank.failure and not self.reason:
            self.stop("failure")
        self.let_go()

    def pump(self, source):
        if not source.read():
            self.drop(source)

    def drop(self, source):
        self.sources.discard(source)
        self.selector.unregister(source.fd)
        source.close()

    def read_mpiexec(self):
        data = os.read(self.mpiexec_output, CHUNK)
        if not data:
            self.selector.unregister(self.mpiexec_output)
        elif self.verbose:
            self.output.show_text(data)
        self.mpiexec_said = (self.mpiexec_said + data)[-CHUNK:]

    def drain(self):
        """Shows what is left in the pipes."""
        for source in list(self.sources):
            while source in self.sources and select.select([source.fd], [], [], 0)[0]:
                self.pump(source)
        said = self.mpiexec_output
        while said in self.selector.get_map() and select.select([said], [], [], 0)[0]:
            self.read_mpiexec()
        for source in list(self.sources):
            self.drop(source)

    # -- ending --

    def on_signal(self, signum):
        if self.reason:
            self.kill_ranks()
            return
        self.output.say(
            f"{signal_name(signum)}: the ranks may end by themselves within {self.grace:g} s; "
            "once more kills them"
        )
        self.stop(signal.Signals(signum))

    def time_is_up(self):
        if self.plan.mode != "program":  # in which nobody listens to this signal: see child.py
            for rank in self.ranks.values():
                rank.send_signal(signal.SIGQUIT)
        self.after(DUMP_SECONDS, lambda: self.stop("timeout"))

    def rank_was_lost(self):
        """A front or watcher was killed and mpiexec, which should end the job for that, did not."""
        if not self.reason and self.status is None:
            lost = rank_list(rank.rank for rank in self.ranks.values() if rank.lost)
            name = os.path.basename(self.plan.argv[0])
            self.complaint = f"{name} lost {lost}: a process between them was killed"
            self.stop("mpiexec")

    def stop(self, reason):
        """Begins to end the job, unless that has begun."""
        if self.reason:
            return
        self.reason, self.stopped_at = reason, time.monotonic()
        # Of the signals that may come, MPI libraries catch SIGHUP and do nothing about it.
        signum = signal.SIGINT if reason == signal.SIGINT else signal.SIGTERM
        for rank in self.ranks.values():
            if not rank.failure:  # else it is running its exit functions
                rank.send_signal(signum)
        self.after(self.grace, self.kill_ranks)
        self.let_go()

    def let_go(self):
        """Once a stop has ended every rank, lets the watchers, and so mpiexec, end too."""
        if self.reason and all(rank.ended for rank in self.ranks.values()):
            self.let_go_of_links()
            self.after(KILL_SECONDS, self.kill_everything)

    def let_go_of_links(self):
        for rank in self.ranks.values():
            if rank.link.fileno() >= 0:
                self.selector.unregister(rank.link)
                rank.link.close()

    def kill_ranks(self):
        for rank in self.ranks.values():
            rank.send_signal(signal.SIGKILL)
        self.after(KILL_SECONDS, self.kill_everything)

    def kill_everything(self):
        """Kills what is left of the job, and waits for it to be gone.

        The children of a killed child become ours, so that the next round finds them.
        """
        patience = time.monotonic() + 2.0  # a process in uninterruptible sleep cannot be ended
        while time.monotonic() < patience:
            left = set(children_of(os.getpid())) - self.children_before
            if self.process and self.process.poll() is None:
                left.add(self.process.pid)
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left - {self.process and self.process.pid}:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.005)
        for rank in self.ranks.values():
            rank.ended = True

    def close(self):
        for source in list(self.sources):
            self.drop(source)
        for rank in self.ranks.values():
            rank.close()
        self.selector.close()
        if self.process:
            os.close(self.mpiexec_output)
            self.listener.close()
            if self.socket_folder:
                shutil.rmtree(self.socket_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.output.close()

    # -- the report --

    def report(self):
        """Says how the job ended, if not well; returns the exit status."""
        if isinstance(self.reason, signal.Signals):
            self.output.say(f"the job was stopped by {signal_name(self.reason)}")
            return 128 + self.reason
        if self.reason == "timeout":
            for number in sorted(self.ranks):
                self.show_last_words(self.ranks[number])
            self.output.say(
                f"the job did not end within {self.timeout:g} s and was stopped; "
                "where each rank was stands above"
            )
            return TIMEOUT_STATUS
        failures = [rank.failure for rank in self.ranks.values() if rank.failure]
        if self.reason != "mpiexec" and not failures and self.status:
            failures = self.abort_failure()
        if failures:
            return self.report_failure(failures)
        if not self.complaint:
            return 0
        if not self.verbose:
            self.output.show_text(self.mpiexec_said)
        self.output.say(self.complaint)
        return exit_status(self.status) if self.status else 1

    def report_failure(self, failures):
        first = min(failures, key=lambda failure: failure.time)
        before = self.stopped_at or first.time
        also = [f.rank for f in failures if f is not first and f.time <= before]
        self.show_last_words(self.ranks[first.rank])
        self.output.say(failure_sentence(first, self.plan.size, also))
        return exit_status(first.status)

    def show_last_words(self, rank):
        if text := cleaned(rank.last_words(), CHILD):
            self.output.last_words(rank.rank, text)

    def abort_failure(self):
        """The Failure of the rank that called MPI_Abort, as a list; empty if none said so."""
        said = {number: self.output.tail(number) for number in self.ranks}
        number, status = aborted_by(said, self.mpiexec_said) or (-1, 0)
        if number not in self.ranks:
            return []
        return [Failure(number, self.ranks[number].host, time.monotonic(), status)]

    def mpiexec_end(self):
        name = os.path.basename(self.plan.argv[0])
        assert self.status is not None
        if self.status < 0:
            return f"{name} was killed by {signal_name(-self.status)}"
        return f"{name} ended with exit status {self.status}"
