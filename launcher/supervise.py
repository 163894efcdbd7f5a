"""One job from start to end: an event loop over the ranks' links, their output and our signals.

A job ends well when all ranks end with status 0. Otherwise a *stop* begins: a rank failed, a
signal came, the time is up, mpiexec broke down, or the launchers of other nodes ask for it. A stop
asks every living rank to end (by SIGINT if that came, else by SIGTERM), kills those that have not
after the grace period, and only then lets the watchers end, because mpiexec kills everyone at once
when it sees one fail.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import time

from launcher.child import (
    PR_SET_CHILD_SUBREAPER,
    SOCKET_VARIABLE,
    children_of,
    prctl,
)
from launcher.links import RankLink, listen, same_user
from launcher.loop import Loop
from launcher.output import CHUNK
from launcher.plan import CHILD
from launcher.report import (
    NO_RANK,
    Failure,
    before_stop,
    cleaned,
    flight_sentence,
    how_ended,
    rank_list,
    signal_name,
)
from launcher.starters import Starters
from launcher.verdict import verdict_on

KILL_SECONDS = 0.5  # between SIGKILL to the ranks, and to all that is left
DUMP_SECONDS = 0.3  # for the ranks to write their stacks or flight records
LOST_SECONDS = 1.0  # for mpiexec to end the job when a watcher was killed
CONSEQUENCE_SECONDS = 0.5  # for the cause to be heard of, after what it caused
VERDICT_SECONDS = 3.0  # for the launchers of other nodes, after their ranks' time to end
MOST_WORDS = 1 << 15  # bytes of one rank's last words that other nodes get
MOST_FAILED = 8  # ranks whose last words they get


class Job:
    """Runs a Plan; `run` returns the exit status.

    `output`: an Output. `timeout`: seconds until the job is ended, or None. `grace`: seconds that
    ranks may take to end once asked to. `verbose`: show the plan's notes and mpiexec's own output.
    `nodes`: the Head or Member that ties us to the launchers of other nodes, or None. `flight_dir`:
    where ranks leave flight records, or None.
    """

    def __init__(
        self, plan, output, *, timeout=None, grace=3.0, verbose=False, nodes=None, flight_dir=None
    ):
        self.plan, self.output, self.verbose = plan, output, verbose
        self.timeout, self.grace, self.flight_dir = timeout, grace, flight_dir
        self.loop = Loop(self.on_signal)
        self.after = self.loop.after
        self.nodes = nodes
        self.ranks = {}
        self.sources = set()
        self.starters = None  # until the ranks may start
        self.status = None  # exit status of the starters, once all have ended
        self.starters_said = b""
        self.listener: socket.socket | None = None  # for the ranks' watchers
        self.socket_folder = None
        self.failures = []
        self.well = set()  # ranks that ended with status 0 before the stop, on all nodes we know of
        self.stopped_at = None
        self.reason = None  # of the stop: "failure", "timeout", "mpiexec", "nodes" or a signal
        self.where = ""  # the node on which that arose, where there are several; the time allowed
        self.complaint = ""
        self.verdict = None  # once all has ended

    def run(self):
        self.children_before = set(children_of(os.getpid()))
        self.began = time.time()
        # Orphans of the job become our children, so that none can hide.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            with self.loop.own_signals():
                self.start()
                while not self.over():
                    self.loop.turn()
                self.kill_everything()
                self.drain()
                self.verdict = self.nodes.agree() if self.nodes else verdict_on(self)
                return self.report(self.verdict)
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
        if self.nodes:
            self.nodes.attach(self)
            self.nodes.open()  # it starts the ranks when all nodes are there
        else:
            self.start_ranks()

    def start_ranks(self):
        self.listener, address, self.socket_folder = listen()
        self.loop.watch(self.listener, self.welcome)
        self.starters_output, written = os.pipe()
        self.loop.watch(self.starters_output, self.read_starters)
        if self.nodes:
            self.nodes.put_address(self.plan.env)
        self.starters = Starters(self.plan, written)
        try:
            self.starters.start({SOCKET_VARIABLE: address})
        finally:
            os.close(written)
        if self.timeout:
            self.after(self.timeout, self.time_is_up)

    def over(self):
        """Whether all that we started, and all ranks, have ended."""
        if self.starters is None:
            return self.reason is not None
        if self.status is None:
            ended = self.starters.ended()
            if self.plan.via == "spawn":
                self.look_for_unstarted(ended)
            if len(ended) < len(self.starters.processes):
                return False
            self.status = next((status for status in ended.values() if status), 0)
            # What the ranks said before mpiexec ended waits in the sockets: it tells who failed.
            while self.loop.turn(0):
                pass
            if self.plan.via == "mpi":
                self.mpiexec_ended()
        return all(rank.ended for rank in self.ranks.values())

    def look_for_unstarted(self, ended):
        """A front that ended before its watcher said hello: its rank never began."""
        if any(rank not in self.ranks for rank in ended) and not self.reason:
            while self.loop.turn(0):  # the hello may be waiting
                pass
        for rank in () if self.reason else sorted(set(ended) - set(self.ranks)):
            what = f"could not be started: its process {how_ended(ended[rank])}"
            now = time.monotonic()
            self.failed(Failure(rank, self.host(), now, ended[rank] or 1, what=what))

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

    # -- ranks and their output --

    def welcome(self):
        """A watcher connected: lends it the rank's files, unless the job is ending."""
        assert self.listener
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
            self.loop.watch(source.fd, lambda source=source: self.pump(source))
        self.loop.watch(link, lambda: self.hear(rank))

    def hear(self, rank):
        known = rank.failure
        if not rank.hear():
            self.loop.unwatch(rank.link)
            rank.link.close()
        if rank.lost and self.plan.via == "mpi":
            self.after(LOST_SECONDS, self.rank_was_lost)
        elif rank.lost and rank.failure is None:
            what = "was lost: the process that watched it was killed"
            rank.failure = Failure(rank.rank, rank.host, time.monotonic(), -signal.SIGKILL, what=what)
        if rank.well and not self.reason:
            self.well.add(rank.rank)
        if rank.failure and not known:
            rank.failure.host = self.host(rank.host)
            self.failed(rank.failure)
        self.let_go()

    def host(self, name=""):
        """`name` (default: this host's) as messages have it: with the node, if there are several."""
        return (name or socket.gethostname()) + (f" (node {self.plan.node})" if self.nodes else "")

    def failed(self, failure):
        """Takes in a Failure, here or on another node, which ends the job."""
        self.failures.append(failure)
        if self.nodes and (not self.reason or failure.time <= self.stopped_at):
            self.nodes.tell_failure(failure)
        if failure.consequence:
            self.after(CONSEQUENCE_SECONDS, lambda: self.stop("failure"))
        else:
            self.stop("failure")

    def pump(self, source):
        if not source.read():
            self.drop(source)

    def drop(self, source):
        self.sources.discard(source)
        self.loop.unwatch(source.fd)
        source.close()

    def read_starters(self):
        data = os.read(self.starters_output, CHUNK)
        if not data:
            self.loop.unwatch(self.starters_output)
        elif self.verbose:
            self.output.show_text(data)
        self.starters_said = (self.starters_said + data)[-CHUNK:]

    def drain(self):
        """Shows what is left in the pipes."""
        for source in list(self.sources):
            while source in self.sources and select.select([source.fd], [], [], 0)[0]:
                self.pump(source)
        while (
            self.starters
            and self.loop.watches(self.starters_output)
            and select.select([self.starters_output], [], [], 0)[0]
        ):
            self.read_starters()
        for source in list(self.sources):
            self.drop(source)

    # -- ending --

    def on_signal(self, signum):
        if self.reason:
            self.kill_ranks()
            if self.nodes:
                self.nodes.tell_kill()
            return
        if self.starters:
            self.output.say(
                f"{signal_name(signum)}: the ranks may end by themselves within {self.grace:g} s; "
                "once more kills them"
            )
        self.stop(signal.Signals(signum), f" on {self.nodes.name}" if self.nodes else "")

    def time_is_up(self):
        where = f" on {self.nodes.name}" if self.nodes else ""
        self.stop("timeout", f" within {self.timeout:g} s{where}")

    def ask_where(self):
        """Has the ranks write their stacks if the time is up, and their flight records if asked for.

        A rank that has collectives writes its record at SIGUSR2; that would end others.
        """
        for rank in self.ranks.values():
            if self.reason == "timeout" and self.plan.mode != "program":  # see child.py
                rank.send_signal(signal.SIGQUIT)
            if self.flight_dir and not rank.failure:
                rank.send_signal(signal.SIGUSR2, if_caught=True)

    def rank_was_lost(self):
        """A front or watcher was killed and mpiexec, which should end the job for that, did not."""
        if not self.reason and self.status is None:
            lost = rank_list(rank.rank for rank in self.ranks.values() if rank.lost)
            name = os.path.basename(self.plan.argv[0])
            self.complaint = f"{name} lost {lost}: a process between them was killed"
            self.stop("mpiexec")

    def stop(self, reason, where=""):
        """Begins to end the job, unless that has begun."""
        if self.reason:
            return
        self.reason, self.where, self.stopped_at = reason, where, time.monotonic()
        if self.nodes:
            self.nodes.tell_stop(reason, where)
            self.nodes.expect_end(self.grace + KILL_SECONDS + VERDICT_SECONDS)
        if reason == "timeout" or self.flight_dir:
            self.ask_where()
            self.after(DUMP_SECONDS, self.ask_to_end)
        else:
            self.ask_to_end()

    def ask_to_end(self):
        # Of the signals that may come, MPI libraries catch SIGHUP and do nothing about it.
        signum = signal.SIGINT if self.reason == signal.SIGINT else signal.SIGTERM
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
                self.loop.unwatch(rank.link)
                rank.link.close()

    def kill_ranks(self):
        for rank in self.ranks.values():
            rank.send_signal(signal.SIGKILL)
        self.after(KILL_SECONDS, self.kill_everything)
        if self.nodes:
            self.nodes.expect_end(KILL_SECONDS + VERDICT_SECONDS)

    def kill_everything(self):
        """Kills what is left of the job, and waits for it to be gone.

        The children of a killed child become ours, so that the next round finds them.
        """
        patience = time.monotonic() + 2.0  # a process in uninterruptible sleep cannot be ended
        ours = self.starters.pids() if self.starters else set()
        while time.monotonic() < patience:
            left = set(children_of(os.getpid())) - self.children_before - ours
            left |= self.starters.running() if self.starters else set()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left - ours:
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
        if self.nodes:
            self.nodes.close()
        self.loop.close()
        if self.listener:
            os.close(self.starters_output)
            self.listener.close()
            if self.socket_folder:
                shutil.rmtree(self.socket_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.output.close()

    def agreed(self):
        """Whether the verdict is known to be the same on all nodes."""
        return self.nodes is None or self.nodes.agreed

    # -- the report --

    def words(self, rank):
        """What `rank` said last, on whatever node it is."""
        if rank in self.ranks:
            return cleaned(self.ranks[rank].last_words(), CHILD)
        if 0 <= rank - self.plan.first < self.plan.local_size and not self.verbose:
            return self.starters_said  # it never began
        return self.nodes.words.get(rank, b"") if self.nodes else b""

    def words_of_failed_ranks(self):
        failed = [f.rank for f in before_stop(self.failures, self.stopped_at) if f.rank != NO_RANK]
        return {rank: self.words(rank)[-MOST_WORDS:] for rank in failed[:MOST_FAILED]}

    def report(self, verdict):
        """Says how the job ended, if not well; returns the exit status."""
        if self.reason == "timeout":
            for number in sorted(self.ranks):
                self.show_last_words(number, self.words(number))
        self.show_last_words(verdict.rank, verdict.text)
        if verdict.sentence:
            self.output.say(verdict.sentence)
        if verdict.status and self.flight_dir:
            if sentence := flight_sentence(self.flight_dir, self.began):
                self.output.say(sentence)
        return verdict.status

    def show_last_words(self, rank, text):
        if rank == NO_RANK:
            self.output.show_text(text)
        elif text:
            self.output.last_words(rank, text)

    def mpiexec_end(self):
        return f"{os.path.basename(self.plan.argv[0])} {how_ended(self.status)}"
