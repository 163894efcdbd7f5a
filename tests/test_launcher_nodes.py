"""disttorch-run over several nodes: two launchers on two loopback addresses.

What ends the job on one node ends it on both, with the same sentence and status; who does not know
the secret is not let in; nothing survives.
"""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import time

import pytest
from launcher_jobs import LIMIT, Launcher, wait_for

from launcher.channel import Channel, ChannelError, RefusedError
from launcher.head import listener_at, own_address

SECRET = "DISTTORCH_JOB_SECRET"
HEAD, MEMBER = "127.0.0.1", "127.0.0.2"
KNOWN = {SECRET: "a secret known on both nodes"}
WAIT_FOREVER = """
import os, subprocess, time
rank = os.environ["RANK"]
subprocess.Popen(["sleep", "1000"], start_new_session=True)
with open(f"part{rank}", "w") as file: file.write(str(os.getpid()))
os.rename(f"part{rank}", f"up{rank}")
time.sleep(1000)
"""


def write(folder, name, text):
    (folder / name).write_text(text)
    return name


def free_ports():
    """A port that is free with the next one, for the ranks and for the launchers."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind((HEAD, 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind((HEAD, port + 1))
                return port


class Nodes:
    """Launchers of one job, started one by one."""

    def __init__(self, folder, *arguments, nnodes=2, ranks=2):
        self.folder, self.port = folder, free_ports()
        self.arguments = ["--nnodes", nnodes, "--master-addr", HEAD, "--master-port", self.port,
                          "--oversubscribe", "--grace", "0.5", "-n", ranks, *arguments]
        self.jobs = {}

    def start(self, node, *more, env=KNOWN, **settings):
        place = ["--node-rank", node, "--local-addr", MEMBER if node else HEAD]
        script = len(self.arguments) - 1 if self.arguments[-1].endswith(".py") else None
        arguments = [*place, *self.arguments[:script], *more, *self.arguments[script:]]
        job = Launcher(self.folder, *arguments, env=env, **settings)
        self.jobs[node] = job
        return job

    def finish(self):
        """Each node's (status, stdout, stderr lines); nothing of any may be left."""
        done = [self.jobs[node].finish() for node in sorted(self.jobs)]
        return [(status, out, err.splitlines()) for status, out, err in done]


def start_waiting(folder, *arguments, more=()):
    """A job of two nodes with two ranks each that all wait; and the ranks' process ids."""
    write(folder, "wait.py", WAIT_FOREVER)
    nodes = Nodes(folder, *arguments, "wait.py")
    nodes.start(1, *more)
    nodes.start(0)
    wait_for(folder, *(f"up{rank}" for rank in range(4)))
    return nodes, [int((folder / f"up{rank}").read_text()) for rank in range(4)]


def await_line(job, words):
    """Reads on until `job` has said a line with `words` on stderr, and returns it."""
    while words.encode() not in (line := job.process.stderr.readline()):
        assert line, f"{words} was never said"
    return line.decode()


def assert_same_end(ends, status, words):
    """All ended with `status` and the same sentence, a regular expression."""
    assert [end[0] for end in ends] == [status] * len(ends), ends
    sentences = {lines[-1] for _, _, lines in ends}
    assert len(sentences) == 1, sentences
    assert re.fullmatch(f"disttorch-run: {words}", sentences.pop()), ends


# -- a job that ends well --------------------------------------------------------------------------


def test_ranks_are_numbered_over_the_nodes_and_meet(tmp_path):
    write(
        tmp_path,
        "meet.py",
        """
import json, os, socket, sys, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(place) as server:
        links = [server.accept()[0] for _ in range(size - 1)]
        for link in links:
            link.sendall(b"go")
            link.close()
else:
    while True:
        try:
            with socket.create_connection(place) as link: assert link.recv(2) == b"go"
            break
        except ConnectionRefusedError: time.sleep(0.01)
json.dump(dict(os.environ), open(f"seen{rank}.json", "w"))
print("done", sys.stdin.read())
""",
    )
    nodes = Nodes(tmp_path, "--log-dir", "logs", "--local-ranks-filter", "1", "meet.py")
    nodes.start(1)
    nodes.start(0)
    assert nodes.finish() == [(0, "[rank 1] done \n", []), (0, "[rank 3] done \n", [])]
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(4)]
    for rank, env in enumerate(seen):
        node, local = divmod(rank, 2)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK",
                 "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DISTTORCH_NODE_ADDR", SECRET)
        values = [rank, 4, local, 2, node, node, 2, HEAD, nodes.port, (HEAD, MEMBER)[node],
                  KNOWN[SECRET]]
        assert [env[name] for name in names] == list(map(str, values))
    assert len({env["DISTTORCH_RUN_ID"] for env in seen}) == 1
    names = {f"rank{rank}.{stream}.log" for rank in range(4) for stream in ("stdout", "stderr")}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == names


def test_torchruns_spelling_and_a_node_that_is_done_long_before(tmp_path):
    write(tmp_path, "late.py", "import os, time\nif os.environ['RANK'] == '1': time.sleep(0.7)\n"
          "print(os.environ['RANK'], os.environ['TORCHELASTIC_RUN_ID'])")
    port = free_ports()
    arguments = ["--nnodes=2:2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv-id=run9",
                 f"--rdzv_endpoint={HEAD}:{port}", "--max_restarts=0", "--rdzv-conf=join_timeout=20"]
    (tmp_path / "secret").write_text(KNOWN[SECRET] + "\n")
    nodes = [Launcher(tmp_path, *arguments, f"--node_rank={node}", "--secret-file", "secret",
                      "late.py") for node in range(2)]
    assert [job.finish() for job in nodes] == [(0, f"[rank {n}] {n} run9\n", "") for n in (0, 1)]


def test_one_launcher_of_three(tmp_path):
    write(tmp_path, "ok.py", "import os; print(os.environ['RANK'])")
    nodes = Nodes(tmp_path, "ok.py", nnodes=3, ranks=1)
    for node in (2, 0, 1):
        nodes.start(node)
    assert nodes.finish() == [(0, f"[rank {node}] {node}\n", []) for node in range(3)]


# -- failures --------------------------------------------------------------------------------------

FAIL = """
import os, sys, time
rank, who, how = os.environ["RANK"], sys.argv[1], sys.argv[2]
open("up" + rank, "w").close()
while not all(os.path.exists(f"up{r}") for r in range(4)): time.sleep(0.01)
if rank == who:
    if how == "raise": raise ValueError("boom")
    if how == "exit": sys.exit(3)
    if how == "kill": os.kill(os.getpid(), 9)
if how == "late":
    from collectives.work import RankFailedError
    if rank != who: raise RankFailedError("another left")
    time.sleep(0.25)
    raise ValueError("boom")
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("rank", "how", "status", "words"),
    [
        (3, "raise", 1, r"rank 3 of 4 failed with exit status 1 on host \S+ \(node 1\); 3 other .*"),
        (0, "raise", 1, r"rank 0 of 4 failed with exit status 1 on host \S+ \(node 0\); 3 other .*"),
        (2, "exit", 3, r"rank 2 of 4 failed with exit status 3 on host \S+ \(node 1\); 3 other .*"),
        (1, "kill", 137, r"rank 1 of 4 was killed by SIGKILL .* \(node 0\); 3 other ranks were .*"),
        (2, "late", 1, r"rank 2 of 4 failed .* \(node 1\); ranks 0, 1 and 3 failed too"),
        (1, "late", 1, r"rank 1 of 4 failed .* \(node 0\); ranks 0, 2 and 3 failed too"),
    ],
)
def test_a_rank_that_fails_ends_the_job_on_all_nodes(tmp_path, rank, how, status, words):
    write(tmp_path, "fail.py", FAIL)
    nodes = Nodes(tmp_path)
    nodes.arguments += ["fail.py"]
    nodes.start(0, "fail.py", rank, how)
    nodes.start(1, "fail.py", rank, how)
    ends = nodes.finish()
    assert_same_end(ends, status, words)
    for _, out, lines in ends:  # its traceback, everywhere
        raised = "ValueError: boom" in lines[-2] if len(lines) > 1 else False
        assert raised == (how in ("raise", "late"))
        assert out == "" and all(line.startswith(f"[rank {rank}] ") for line in lines[:-1])


@pytest.mark.parametrize("how", ["well", "kill"])
def test_ranks_of_two_nodes_work_together(tmp_path, how):
    write(
        tmp_path,
        "work.py",
        """
import os, sys
import numpy as np
import collectives
group = collectives.world()
data = np.full(1000, group.rank + 1.0)
group.all_reduce(data)
assert (data == 10.0).all(), data
if sys.argv[1] == "kill" and group.rank == 2: os.kill(os.getpid(), 9)
group.barrier()
print("done")
""",
    )
    nodes = Nodes(tmp_path)
    nodes.arguments += ["work.py"]
    nodes.start(1, "work.py", how)
    nodes.start(0, "work.py", how)
    ends = nodes.finish()
    if how == "well":
        done = [(status, sorted(out.splitlines()), lines) for status, out, lines in ends]
        assert done == [(0, [f"[rank {r}] done" for r in ranks], []) for ranks in ((0, 1), (2, 3))]
    else:
        assert_same_end(ends, 137, r"rank 2 of 4 was killed by SIGKILL .* \(node 1\); .*")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_launcher_that_is_killed_ends_the_job_on_all_nodes(tmp_path, victim):
    nodes, _ = start_waiting(tmp_path)
    nodes.jobs[victim].process.kill()
    ends = nodes.finish()  # checks for survivors on both
    status, _, lines = ends[1 - victim]
    assert ends[victim][0] == -9
    assert status == 1
    name = f"node {victim} (on host|at) [^ ]+"
    words = "was lost: the connection to its launcher was closed; 2 other ranks were stopped"
    assert re.fullmatch(f"disttorch-run: {name} {words}", lines[-1])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_launcher_that_is_killed_when_its_ranks_had_ended(tmp_path, victim):
    write(
        tmp_path,
        "half.py",
        f"""
import os, time
open("up" + os.environ["RANK"], "w").close()
while os.environ["NODE_RANK"] != "{victim}" and not os.path.exists("go"): time.sleep(0.01)
print("done")
""",
    )
    nodes = Nodes(tmp_path, "-v", "half.py", ranks=1)
    nodes.start(1)
    nodes.start(0)
    wait_for(tmp_path, "up0", "up1")
    if victim == 1:
        await_line(nodes.jobs[0], "the ranks of node 1")
    while len(nodes.jobs[victim].pids()) > 1:
        time.sleep(0.01)
    nodes.jobs[victim].process.kill()
    nodes.jobs[victim].process.wait()
    write(tmp_path, "go", "")
    status, out, lines = nodes.finish()[1 - victim]
    if victim == 1:  # its ranks are well, and node 0 knows
        assert (status, out, lines) == (0, "[rank 0] done\n", []), "said more after that"
    else:  # of which nobody can tell how its ranks are
        assert status == 1 and "node 0 at 127.0.0.1 was lost" in lines[-1]


def test_a_launcher_that_falls_silent_is_lost(tmp_path):
    nodes, _ = start_waiting(tmp_path, "--heartbeat-timeout", "3")
    nodes.jobs[1].process.send_signal(signal.SIGSTOP)
    nodes.jobs[0].process.wait(LIMIT)
    nodes.jobs[1].process.send_signal(signal.SIGCONT)
    (status, _, lines), (other, _, others) = nodes.finish()
    assert (status, other) == (1, 1)
    assert re.search(r"node 1 on host \S+ was lost: .* was silent for \d+ s; 2 other", lines[-1])
    assert "node 0 at 127.0.0.1 was lost" in others[-1]


@pytest.mark.parametrize("which", ["rank", "watcher"])
def test_the_death_of_a_link_is_told_to_all_nodes(tmp_path, which):
    nodes, ranks = start_waiting(tmp_path)
    pid = ranks[2]
    if which == "watcher":
        with open(f"/proc/{pid}/stat") as stat:
            pid = int(stat.read().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    words = "was killed by SIGKILL .*" if which == "rank" else "was lost: the process that watched .*"
    assert_same_end(nodes.finish(), 137, rf"rank 2 of 4 {words} \(node 1\); 3 other ranks were .*")


@pytest.mark.parametrize("node", [0, 1])
def test_an_interrupt_on_one_node_stops_all(tmp_path, node):
    nodes, _ = start_waiting(tmp_path)
    nodes.jobs[node].process.send_signal(signal.SIGINT)
    words = rf"the job was stopped by SIGINT \(signal 2\) on node {node} on host \S+"
    assert_same_end(nodes.finish(), 130, words)


def test_the_second_interrupt_kills_on_all_nodes(tmp_path):
    write(
        tmp_path,
        "stubborn.py",
        """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: open("asked" + os.environ["RANK"], "w").close())
open("up" + os.environ["RANK"], "w").close()
while True: time.sleep(1)
""",
    )
    nodes = Nodes(tmp_path, "--grace", "1000", "stubborn.py", ranks=1)
    nodes.start(0)
    nodes.start(1)
    wait_for(tmp_path, "up0", "up1")
    nodes.jobs[1].process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "asked0", "asked1")
    nodes.jobs[1].process.send_signal(signal.SIGINT)
    assert_same_end(nodes.finish(), 130, "the job was stopped by SIGINT .* on node 1 .*")


def test_the_time_of_one_node_is_that_of_all_and_stacks_are_shown(tmp_path):
    nodes, _ = start_waiting(tmp_path, more=["--timeout", "1.5"])
    ends = nodes.finish()
    assert_same_end(ends, 124, r"the job did not end within 1.5 s on node 1 on host \S+ and was .*")
    for node, (_, _, lines) in enumerate(ends):
        for rank in (2 * node, 2 * node + 1):
            assert any(re.search(rf"^\[rank {rank}\]   File .*, line 7 in", line) for line in lines)


# -- nodes that do not come, or should not ---------------------------------------------------------


def test_missing_nodes_are_named(tmp_path):
    write(tmp_path, "ok.py", "print('was started')")
    nodes = Nodes(tmp_path, "--rdzv-timeout", "1.5", "ok.py", nnodes=3)
    nodes.start(0)
    nodes.start(2)
    ends = nodes.finish()
    assert [out for _, out, _ in ends] == ["", ""]
    assert_same_end(ends, 1, rf"node 1 of 3 did not join at {HEAD} port {nodes.port + 1} within "
                             "1.5 s; start disttorch-run there with --node-rank 1, .*")


def test_a_missing_node_0_is_named(tmp_path):
    write(tmp_path, "ok.py", "print('was started')")
    nodes = Nodes(tmp_path, "--rdzv-timeout", "1", "ok.py")
    nodes.start(1)
    ((status, out, lines),) = nodes.finish()
    assert (status, out, len(lines)) == (1, "", 1)
    assert re.search(rf"node 0's launcher could not be reached at {HEAD} port {nodes.port + 1} .*"
                     r"within 1 s \(Connection refused\); start .* --node-rank 0", lines[0])


def test_an_interrupt_while_waiting_for_nodes(tmp_path):
    write(tmp_path, "ok.py", "print('was started')")
    nodes = Nodes(tmp_path, "-v", "ok.py", nnodes=3)
    nodes.start(0)
    nodes.start(1)
    await_line(nodes.jobs[0], "node 1 on host")
    nodes.jobs[0].process.send_signal(signal.SIGINT)
    ends = nodes.finish()
    assert [out for _, out, _ in ends] == ["", ""]
    assert_same_end(ends, 130, r"the job was stopped by SIGINT \(signal 2\) on node 0 on host \S+")


def test_a_node_with_another_secret_is_refused_and_the_right_one_still_comes(tmp_path):
    write(tmp_path, "ok.py", "import os; print(os.environ['RANK'])")
    nodes = Nodes(tmp_path, "ok.py", ranks=1)
    head = nodes.start(0)
    stranger = nodes.start(1, env={SECRET: "not the secret of this job"})
    status, out, err = stranger.finish()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "was refused: the job's secret differs; give the same DISTTORCH_JOB_SECRET" in err
    assert "does not know the job's secret; it was dropped" in await_line(head, MEMBER)
    nodes.start(1)
    assert [(status, out) for status, out, _ in nodes.finish()] == [
        (0, "[rank 0] 0\n"), (0, "[rank 1] 1\n")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["-n", 2], "has --nproc-per-node 2, node 0 has 1; give the same number on all nodes"),
        (["--nnodes", 4], "has --nnodes 4, node 0 has 3"),
        (["--node-rank", 2], "--node-rank 2 is taken by host"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_and_told_why(tmp_path, change, words):
    write(tmp_path, "ok.py", "import os; print(os.environ['RANK'])")
    nodes = Nodes(tmp_path, "-v", "ok.py", nnodes=3, ranks=1)
    nodes.start(0)
    nodes.start(2)
    await_line(nodes.jobs[0], "node 2 on host")  # it is there before its double
    status, out, err = nodes.start(1, *change).finish()
    assert (status, out) == (1, "")
    assert words in err, err
    nodes.start(1)
    ends = nodes.finish()
    assert [(status, out) for status, out, _ in ends] == [
        (0, f"[rank {node}] {node}\n") for node in range(3)]
    assert any(words in line for line in ends[0][2])


def test_strangers_bytes_are_dropped(tmp_path):
    write(tmp_path, "ok.py", "import os; print(os.environ['RANK'])")
    nodes = Nodes(tmp_path, "ok.py", ranks=1)
    nodes.start(0)
    place = (HEAD, nodes.port + 1)
    links = []

    def connect():
        end = time.monotonic() + LIMIT
        while True:
            try:
                links.append(socket.create_connection(place, timeout=LIMIT))
                return links[-1]
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.01)

    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\0" * 1_000_000, b"\n" * 9,
                    b"\x80\x04" * 40 + b"\n", b"a" * 32 + b" " + b"\xff" * 64 + b"\n"):
        link = connect()
        assert link.recv(99).startswith(b"disttorch-run 1 ")
        with contextlib.suppress(OSError):
            link.sendall(garbage)
            while link.recv(9):  # until it is dropped
                pass
    for _ in range(100):  # more half-open connections than are kept
        connect()
    connect().sendall(b"slow")
    rude = connect()
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    rude.close()  # by a reset
    nodes.start(1)
    ends = nodes.finish()
    for link in links:
        link.close()
    assert [(status, out) for status, out, _ in ends] == [
        (0, "[rank 0] 0\n"), (0, "[rank 1] 1\n")]
    assert 1 <= len(ends[0][2]) <= 6 and all("was dropped" in line for line in ends[0][2])


def test_node_0_cannot_listen(tmp_path):
    write(tmp_path, "ok.py", "print('was started')")
    nodes = Nodes(tmp_path, "ok.py")
    with socket.create_server((HEAD, nodes.port + 1)):
        nodes.start(0)
        ((status, out, lines),) = nodes.finish()
    assert (status, out) == (1, "")
    assert "the port is in use; choose another --master-port on all nodes" in lines[-1]


def test_where_node_0_listens():
    (port,) = {free_ports() + 1}
    for address, bound in (
        (HEAD, HEAD),
        ("localhost", HEAD),
        ("192.0.2.1", ("0.0.0.0", "::")),  # of nobody here (RFC 5737): it may be translated
    ):
        with listener_at(address, port) as listener:
            assert listener.getsockname()[0] in bound
            assert own_address(listener) == ("" if "::" in bound else bound)
            with socket.socket() as knocks:
                listener.listen()
                knocks.connect((HEAD, port))
    with socket.create_server((HEAD, port)), pytest.raises(OSError, match="in use"):
        listener_at(HEAD, port)


def test_something_else_at_the_port_is_no_node_0(tmp_path):
    write(tmp_path, "ok.py", "print('was started')")
    nodes = Nodes(tmp_path, "--rdzv-timeout", "1.5", "ok.py")
    with socket.create_server((HEAD, nodes.port + 1)) as server:
        nodes.start(1)
        link, _ = server.accept()
        link.sendall(b"220 mail.example ESMTP ready\r\n")
        ((status, out, lines),) = nodes.finish()
        link.close()
    assert (status, out) == (1, "")
    assert "could not be reached" in lines[-1]


# -- the channel -----------------------------------------------------------------------------------


def channels(secret=b"x" * 16, other=b"x" * 16):
    ours, theirs = socket.socketpair()
    return Channel(ours, secret, head=True), Channel(theirs, other, head=False)


def shaken_hands():
    head, member = channels()
    assert [member.read(), head.read(), member.read()] == [[], [], []]
    assert head.known and member.known and head.key == member.key
    return head, member


def test_messages_pass_both_ways_after_the_handshake():
    head, member = shaken_hands()
    head.send(word="a", text="ü\n")
    head.send(word="b")
    assert member.read() == [{"word": "a", "text": "ü\n"}, {"word": "b"}]
    member.send(word="c" * 100_000)
    member.close()
    got = []
    with pytest.raises(ChannelError, match="was closed"):
        while True:
            got += head.read()
    assert got == [{"word": "c" * 100_000}]
    head.close()


def test_a_changed_repeated_or_mirrored_message_is_not_taken():
    for forge in (
        lambda sent: sent.replace(b"go", b"no"),
        lambda sent: sent + sent,
        lambda sent: b"x" * 64 + sent[64:],
    ):
        head, member = shaken_hands()
        sent = []
        head.send_line = lambda line, sent=sent: sent.append(line.encode() + b"\n")
        head.send(word="go")
        head.link.sendall(forge(sent[0]))
        with pytest.raises(ChannelError, match="does not come from the job"):
            member.read()
        head.close()
        member.close()
    head, member = shaken_hands()
    head.send_line = lambda line: head.received_mirror(line)
    head.received_mirror = lambda line: member.link.sendall(line.encode() + b"\n")
    head.send(word="go")  # comes back to its sender
    with pytest.raises(ChannelError, match="does not come from the job"):
        head.read()
    head.close()
    member.close()


def test_neither_side_believes_one_without_the_secret():
    head, member = channels(other=b"y" * 16)
    member.read()
    with pytest.raises(ChannelError, match="does not know"):
        head.read()
    with pytest.raises(RefusedError, match="the job's secret differs"):
        member.read()
    assert not head.known and not member.known
    head.close()
    member.close()
    # A head that accepts anyone, since it cannot tell.
    head, member = channels(other=b"y" * 16)
    member.read()
    head.link.recv(999)
    head.send_line("0" * 64)
    with pytest.raises(RefusedError, match="leads to one that does not know"):
        member.read()
    head.close()
    member.close()
