"""What is started in each rank's place: a front, under it a watcher, under that the rank.

    launcher -- mpiexec -- (hydra_pmi_proxy) -- front -- watcher -- rank -- what the rank starts
    launcher -- front -- watcher -- rank -- what the rank starts                    (--via spawn)

The watcher forks the rank and stays its parent, because only a parent learns a process's exact exit
status, and because as *subreaper* it inherits what the rank leaves behind and can end it. Its one
link is a unix socket to the launcher: when that closes, for whatever reason (SIGKILL of the
launcher included), the watcher kills everything below it. The other links of the chain die by
PR_SET_PDEATHSIG. The front is there to be killed: when a rank fails or calls MPI_Abort, mpiexec
sends SIGKILL to the process groups that it started. The watcher, in a session of its own, outlives
that, cleans up and tells how its rank ended.

The rank runs the script in this interpreter, as `python script.py` would. An exception that leaves
the script must not reach interpreter shutdown: mpi4py finalizes MPI there, and MPI_Finalize waits
for ranks that may themselves wait for this one. So the rank reports, writes its traceback to the
file the launcher gave it, runs the atexit functions and leaves by `os._exit`.

This file is run by its path and imports nothing of the package, so that it works in any directory
and starts fast.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time
import types

SOCKET_VARIABLE = "DISTTORCH_RUN_SOCKET"
PLACE_VARIABLE = "DISTTORCH_RUN_PLACE"
# Processes that outlive their rank may end by themselves for this long (multiprocessing's resource
# tracker frees leaked shared memory then); afterwards they are killed.
LEFTOVER_SECONDS = 0.5
SEGMENTS = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.", "/dev/shm/disttorch_")
CONSEQUENCE = ("collectives.work", "RankFailedError")
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option, value):
    """Calls Linux's prctl; elsewhere there is none and the socket link alone must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def die_with_parent(parent, signum=signal.SIGKILL):
    """Has the kernel send `signum` to this process when its parent (process id `parent`) dies."""
    prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it died before the call above
        os._exit(128 + signum)


def children_of(parent):
    """Process ids whose parent is `parent` (Linux; an empty list elsewhere)."""
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                # "pid (command) state ppid ...": the command itself may hold spaces and ')'.
                if int(stat.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def unlink_shared_segments(pid):
    """Removes the names of the shared-memory files of MPICH and of collectives that `pid` has mapped.

    MPICH removes its own in MPI_Finalize, which a killed job never reaches; collectives once all
    ranks have found it. The mappings stay valid, and the names are private to this job.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
        for path in {line.split(maxsplit=5)[-1].strip() for line in maps}:
            if path.startswith(SEGMENTS) and not path.endswith("(deleted)"):
                with contextlib.suppress(OSError):
                    os.unlink(path)


# -- the watcher -----------------------------------------------------------------------------------


def place_from(env):
    """(rank, size, local rank, local size, node rank) as strings, as the launcher that started this
    process itself tells them, or the MPI in use."""
    if place := env.pop(PLACE_VARIABLE, None):
        return tuple(place.split())
    for names in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
         "OMPI_COMM_WORLD_LOCAL_SIZE", ""),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ""),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "", "SLURM_NODEID"),
    ):
        rank, size, local_rank, local_size, node = (env.get(name) for name in names)
        if rank is not None and size is not None:
            return rank, size, local_rank or rank, local_size or size, node or "0"
    sys.exit(
        "disttorch-run: mpiexec started this process without telling its rank (no PMI_RANK, "
        "OMPI_COMM_WORLD_RANK or SLURM_PROCID in its environment); choose another with --mpiexec"
    )


def rank_environment(place):
    """The variables, with torchrun's names, that tell a rank its place; its nodes are its groups,
    and all ranks have one role."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    env = dict(zip(names, place))
    same = {"GROUP_RANK": "NODE_RANK", "ROLE_RANK": "RANK", "ROLE_WORLD_SIZE": "WORLD_SIZE"}
    return env | {name: env[other] for name, other in same.items()}


def join_launcher(address, place):
    """Says hello to the launcher; returns the socket, its settings and the files it lends us."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect("\0" + address[1:] if address.startswith("@") else address)
        hello = f"hello {' '.join(place)} {socket.gethostname()}"
        link.send(hello.encode())
        message, files, _, _ = socket.recv_fds(link, 65536, 4)
    except OSError as error:
        sys.exit(f"disttorch-run: the launcher cannot be reached any more ({error})")
    if not message:  # the job is ending already
        sys.exit(1)
    words = message.decode().split()
    return link, dict(word.split("=", 1) for word in words[1:]), files


def main():
    mode, target, *arguments = sys.argv[1:]
    address = os.environ.pop(SOCKET_VARIABLE)
    place = place_from(os.environ)
    die_with_parent(os.getppid())
    front = os.getpid()
    if watcher := os.fork():
        os._exit(shell_status(os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1])))
    os.setsid()
    # SIGTERM, not SIGKILL: the watcher still has to end what is below it.
    die_with_parent(front, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    link, settings, files = join_launcher(address, place)
    os.environ.update(rank_environment(place))
    if "columns" in settings:
        os.environ["COLUMNS"] = settings["columns"]
    watcher = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(watcher)
        return Rank(link, files).run(mode, target, arguments)
    for file in files:
        os.close(file)
    os._exit(shell_status(Watcher(pid, front, link).run()))


def shell_status(code):
    """An exit code (negative: a signal) as a process can pass it on: 128 + N for signal N."""
    return code if code >= 0 else 128 - code


class Watcher:
    """Watches rank `pid` and obeys the launcher at the other end of `link`."""

    def __init__(self, pid, front, link):
        self.pid, self.front, self.link = pid, front, link
        self.alone = False  # the launcher is gone
        self.orphaned = False  # the front is gone

    def run(self):
        """Waits for the rank to end; returns its exit code (negative: a signal)."""
        self.wakeup, written = os.pipe()
        for end in (self.wakeup, written):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.on_sigterm())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while (status := reap(self.pid)) is None:
            self.turn()
        word = "stopped" if self.orphaned else "ended"
        with contextlib.suppress(OSError):
            self.link.send(f"{word} {time.monotonic()} {status}".encode())
        end_leftovers(0.0 if self.alone or self.orphaned else LEFTOVER_SECONDS)
        while status != 0 and not (self.alone or self.orphaned) and receive(self.link):
            # mpiexec kills every rank when the front fails: the launcher, which gives them time to
            # end by themselves, says when (by closing the link).
            pass
        return status

    def turn(self):
        sources = [self.wakeup] if self.alone else [self.wakeup, self.link]
        readable, _, _ = select.select(sources, [], [])
        if self.wakeup in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup, 4096)
        if self.link in readable:
            message = receive(self.link)
            self.alone = not message
            signum = int(message.split()[1]) if message else signal.SIGKILL
            if not message.endswith(" if caught") or catches(self.pid, signum):
                self.signal(signum)

    def on_sigterm(self):
        # mpiexec killed the front, as it would have killed the rank: at once. (A rank whose
        # MPI_Abort returns would otherwise go on, to fail again in MPI_Finalize.)
        self.orphaned = os.getppid() != self.front
        self.signal(signal.SIGKILL if self.orphaned else signal.SIGTERM)

    def signal(self, signum):
        if signum not in (signal.SIGQUIT, signal.SIGUSR2):  # which only ask for what it is doing
            unlink_shared_segments(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)


def receive(link):
    """One message from the launcher; empty when it is gone."""
    try:
        return link.recv(4096).decode()
    except OSError:
        return ""


def catches(pid, signum):
    """Whether process `pid` has a handler for `signum`, which would end it otherwise (Linux)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False


def reap(pid):
    """The exit code of rank `pid` (negative: a signal), None while it runs; reaps orphans too."""
    while True:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done == pid:
            return os.waitstatus_to_exitcode(status)
        if done == 0:
            return None


def end_leftovers(seconds):
    """Waits `seconds` for what the rank left behind, then kills it, what that left, and so on."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience + 2.0:  # a process in uninterruptible sleep cannot be ended
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if done == 0:
            if time.monotonic() > patience:
                for child in children_of(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            time.sleep(0.005)


# -- the rank --------------------------------------------------------------------------------------


class Rank:
    """The process that runs the user's script.

    `files` are descriptors opened by the launcher: stdin, stdout, stderr and the *last-words* file,
    which the launcher prints after all else.
    """

    def __init__(self, link, files):
        self.link = link
        self.pid = os.getpid()
        for target, file in enumerate(files[:3]):
            os.dup2(file, target)
            os.close(file)
        self.last_words = files[3]
        os.set_inheritable(self.last_words, False)

    def run(self, mode, target, arguments):
        if mode == "program":
            self.replace_by(target, arguments)
        # In a shell's background job they may be ignored; what the launcher sends must count.
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Lines, as on a terminal: a rank that is killed must not take its output with it.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        faulthandler.enable(self.last_words)
        faulthandler.register(signal.SIGQUIT, self.last_words, all_threads=True)
        try:
            run_script(target, arguments) if mode == "script" else run_module(target, arguments)
        except BaseException as error:
            status = exit_status(error)
            if status == 0 or os.getpid() != self.pid:  # or a child that the script forked
                raise
            self.fail(error, status)
        finally:
            self.link.close()

    def replace_by(self, program, arguments):
        try:
            os.execvp(program, [program, *arguments])
        except OSError as error:
            os.write(self.last_words, f"cannot run {program}: {error.strerror}\n".encode())
            os._exit(127)

    def fail(self, error, status):
        """Reports `error`, shows it, and leaves without finalizing MPI (see the file's top)."""
        with contextlib.suppress(OSError):
            word = "consequence" if is_consequence(error) else "cause"
            self.link.send(f"failing {time.monotonic()} {status} {word}".encode())
        unlink_shared_segments(self.pid)
        flush_streams()
        stderr = os.dup(2)
        os.dup2(self.last_words, 2)
        # The hook in force may be the user's, or one that ends in MPI_Abort: by now the launcher
        # knows enough for the process to go away in there.
        show(error)
        flush_streams()
        os.dup2(stderr, 2)
        atexit._run_exitfuncs()
        flush_streams()
        os._exit(status)


def run_script(path, arguments):
    """Does what `python path arguments...` does, in a fresh `__main__`."""
    main_module = types.ModuleType("__main__")
    main_module.__file__ = os.path.abspath(path)
    sys.modules["__main__"] = main_module
    sys.argv = [path, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    with open(path, "rb") as file:
        source = file.read()
    exec(compile(source, main_module.__file__, "exec", dont_inherit=True), main_module.__dict__)


def run_module(name, arguments):
    """Does what `python -m name arguments...` does."""
    import runpy

    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    sys.argv = ["-m", *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def is_consequence(error):
    """Whether `error` came of collectives.work.RankFailedError: another rank failed before this one.

    By its name, since this file imports nothing of the job's. An error raised from it, or while it
    was handled, is a consequence too.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = type(error).__mro__
        if any((k.__module__, k.__name__) == CONSEQUENCE for k in kinds):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(is_consequence, error.exceptions))
        error = error.__cause__ or error.__context__
    return False


def exit_status(error):
    """The status that Python would exit with."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return error.code & 0xFF if isinstance(error.code, int) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def show(error):
    """Writes to stderr what Python would: a SystemExit's message, or a traceback by excepthook."""
    if isinstance(error, SystemExit):
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        return
    error.__traceback__ = without_our_frames(error.__traceback__)
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:
        sys.__excepthook__(type(error), error, error.__traceback__)


def without_our_frames(trace):
    ours = (__file__, "<frozen runpy>")
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


def flush_streams():
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


if __name__ == "__main__":
    main()
