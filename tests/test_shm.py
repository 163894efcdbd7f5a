"""Shared-memory collectives between the processes of one node."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import shm_worker

from collectives.call import Call
from collectives.shm import NodeEngine, Segment, available, why_not
from collectives.shm import segment as segments
from collectives.shm.layout import Layout, slot_bytes_for

WORKER = os.path.join(os.path.dirname(__file__), "shm_worker.py")
pytestmark = pytest.mark.skipif(not available(), reason=why_not())


def ours():
    return {name for name in os.listdir("/dev/shm") if name.startswith("disttorch_")}


def run(scenario, size, *more, chunk=16 << 10, start=0):
    """Run a scenario of the worker on `size` processes; returns what each printed."""
    segment = Segment.create(NodeEngine.nbytes_for(size, chunk))
    for rank in range(size):
        post = Layout(size, chunk).post(rank)
        segment.memory[post : post + 4].view(np.uint32)[0] = start
    ranks = []
    try:
        for rank in range(size):
            command = [sys.executable, WORKER, scenario, segment.path, size, rank, chunk, *more]
            ranks.append(
                subprocess.Popen([str(word) for word in command], stdout=-1, stderr=-2, text=True)
            )
        printed = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
        segment.close()
    for rank, text in zip(ranks, printed):
        assert rank.returncode == 0, text
    return printed


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_call_gives_numpys_answer(size):
    run("conformance", size)


@pytest.fixture(scope="module")
def direct():
    """Skips where the system does not let processes read each other's memory."""
    if "False" in run("may_read", 2, "direct")[0]:
        pytest.skip("the system does not let ranks read each other's memory")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_reading_the_others_memory_gives_the_same_answers(size, direct):
    run("conformance", size, "direct")


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_at_different_pace_read_each_others_memory(size, direct):
    run("uneven_pace", size, "direct")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("way", ["slots", "direct"])
def test_what_was_moved_is_counted(size, way):
    run("volumes", size, way)


@pytest.mark.parametrize("why", ["switch", "refused", "another process", "nothing"])
def test_all_ranks_or_none_read_the_others_memory(why, direct):
    run("agreed", 3, "direct", why)


def test_memory_that_cannot_be_read_passes_through_slots(direct):
    run("unreadable", 3, "direct")


@pytest.mark.parametrize("name", ["all_reduce", "all_gather"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_dies_while_others_read_its_memory(size, name, direct):
    printed = run("dies", size, "direct", name)
    assert printed[0] == ""
    for text in printed[1:]:
        assert text.endswith("ranks [10] failed\n"), text


@pytest.mark.parametrize("size", [2, 3])
def test_an_array_that_is_taken_back_too_early_is_an_error(size, direct):
    first, *_, last = run("gives_up", size, "direct")
    assert f"ranks [{9 + size}] failed" in first
    assert "the memory of rank 10 was taken back before all had read it" in last


@pytest.mark.parametrize("why", ["refused", "too short"])
def test_an_array_that_cannot_be_read_after_all_is_an_error(why, direct):
    first, last = run("fails_to_read", 2, "direct", why)
    assert "ranks [11] failed" in first
    expected = {
        "refused": "the memory of rank 10 cannot be read by rank 11: ",
        "too short": "the memory of rank 10 offers 40000 bytes, and 80000 are needed",
    }
    assert expected[why] in last and "DISTTORCH_SHM_DIRECT=0" in last


def test_slots_smaller_than_a_small_call():
    run("conformance", 3, chunk=1024)


def test_the_usual_chunk():
    run("conformance", 2, chunk=slot_bytes_for(2))


def test_the_order_of_a_sum_matters_for_these_values():
    """Otherwise the test above would not see a sum in another order."""
    a, b, c, d = (shm_worker.values_of(rank, 1000, np.dtype(np.float32)) for rank in range(4))
    assert ((a + b) + (c + d)).tobytes() != (((a + b) + c) + d).tobytes()
    assert shm_worker.tree([a, b, c, d], np.add).tobytes() == ((a + b) + (c + d)).tobytes()


def test_meetings_and_notes_from_any_thread():
    run("primitives", 3)


@pytest.mark.parametrize("size", [2, 3])
def test_counters_wrap_around(size):
    run("wrap_around", size, start=(1 << 32) - 100)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_at_different_pace(size):
    run("uneven_pace", size)


@pytest.mark.parametrize("kind", ["name", "dtype", "size", "op", "root", "counts", "splits"])
def test_a_mismatch_ends_on_every_rank_with_the_same_sentence(kind):
    printed = run("mismatches", 3, kind)
    sentences = {text.split(": ", 1)[1] for text in printed}
    assert len(sentences) == 1, printed
    sentence = sentences.pop()
    if kind == "splits":
        assert "rank 10 sends 2 elements to rank 12, which expects 3" in sentence
        return
    assert "ranks of group 'tests' made different calls as call 2" in sentence
    assert "rank 12 differs from the others" in sentence
    assert "; rank 12: " in sentence and "ranks 10 and 11: " in sentence
    assert "at shm_worker.py:" in sentence
    expected = {
        "name": "broadcast(float32 [1000], root 0)",
        "dtype": "all_reduce(int32 [1000], SUM)",
        "size": "all_reduce(float32 [1000000], SUM)",
        "op": "all_reduce(float32 [1000], MAX)",
        "root": "reduce(float32 [1000], SUM, root 1)",
        "counts": "all_gather(float32 [10]) with parts of 11, 10, 10 at",
    }
    assert expected[kind] in sentence


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_does_not_come(size):
    printed = run("missing", size)
    assert printed[-1] == ""
    for text in printed[:-1]:
        assert text.endswith(f"ranks [{9 + size}] failed\n"), text


def test_nothing_is_left_behind():
    before = ours()
    segment = Segment.create(4096)
    assert ours() - before == {os.path.basename(segment.path)}
    assert os.stat(segment.path).st_mode & 0o777 == 0o600
    other = Segment.attach(segment.path, 4096)
    segment.unlink()
    assert ours() == before
    segment.memory[5] = 7
    assert other.memory[5] == 7  # the memory outlives its name
    other.close()
    segment.close()
    segment.close()
    assert ours() == before


def test_closing_with_views_left():
    segment = Segment.create(4096)
    view = segment.memory[:8]
    segment.close()
    view[...] = 3
    assert view.sum() == 24 and segment.memory.size == 0


def test_attach_refuses_another_size():
    segment = Segment.create(8192)
    try:
        with pytest.raises(OSError, match="expected are 4096"):
            Segment.attach(segment.path, 4096)
    finally:
        segment.close()


def test_no_room_is_an_error_and_no_signal(monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = ours()
    monkeypatch.setattr(segments.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"need 4096: enlarge it") as caught:
        Segment.create(4096)
    assert caught.value.errno == errno.ENOSPC
    assert ours() == before


def test_why_not(monkeypatch):
    monkeypatch.setattr(segments, "FOLDER", "/dev/no-such-folder")
    assert why_not() == "there is no /dev/no-such-folder" and not available()
    monkeypatch.setattr(segments.futex, "_NUMBER", 0)
    assert "may reorder stores" in why_not()


@pytest.mark.parametrize(("size", "slot"), [(1, 64), (2, 128), (3, 4096), (9, 1 << 20), (200, 64 * 200)])
def test_the_layout_does_not_overlap(size, slot):
    layout = Layout(size, slot)
    used = np.zeros(layout.nbytes, bool)
    areas = [(layout.counts, 2 * size * 2 * size * 8)]
    for rank in range(size):
        areas += [(layout.post(rank), 4), (layout.fingerprint(rank, 0), 16)]
        areas += [
            (layout.sleeper_row(rank), size),
            (layout.core_row(rank), 128),
            (layout.note(rank), 2048),
            (layout.windows + 128 * rank, 128),
        ]
        areas += [(layout.slot(rank, which), slot) for which in range(3)]
    for start, length in areas:
        assert not used[start : start + length].any() and start + length <= layout.nbytes
        used[start : start + length] = True
    assert all(layout.slot(rank, 0) % 64 == 0 for rank in range(size))


def test_a_rank_alone_checks_its_arguments():
    for slot in (100, 32):
        with pytest.raises(ValueError, match="multiple of 64"):
            NodeEngine.nbytes_for(1, slot)
    segment = Segment.create(4096)
    try:
        with pytest.raises(ValueError, match="the segment needs"):
            NodeEngine(segment, 0, 2, [0, 1], None)
    finally:
        segment.close()


def test_the_volume_is_counted():
    segment = Segment.create(NodeEngine.nbytes_for(1, 4096))
    engine = NodeEngine(segment, 0, 1, [0], None, chunk_bytes=4096)
    array = np.arange(5000.0)
    engine.all_reduce(Call("all_reduce"), array, np.add)
    engine.broadcast(Call("broadcast"), array, 0)
    assert (engine.sent, engine.received) == (array.nbytes, 0)
    assert np.array_equal(array, np.arange(5000.0))
    with pytest.raises(ValueError, match="at most 2046"):
        engine.publish(Call("publish"), b"x" * 2047)
    segment.close()


def test_two_groups_at_once_from_threads_of_one_process():
    engines = []
    for group in range(2):
        segment = Segment.create(NodeEngine.nbytes_for(2, 4096))
        segment.unlink()
        engines += [
            (group, NodeEngine(segment, rank, 2, [rank, 5], shm_worker.Watch(), chunk_bytes=4096))
            for rank in range(2)
        ]
    totals = []

    def work(group, engine):
        array = np.full(3000, float(engine.rank + 1 + group))
        for number in range(1, 31):
            call = Call("all_reduce", "float64", array.size, array.shape, "SUM")
            call.group, call.number = str(group), number
            engine.all_reduce(call, array, np.add)
            array /= 2
        totals.append((group, array.tolist()))

    threads = [threading.Thread(target=work, args=each) for each in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(totals) == [(group, [1.5 + group] * 3000) for group in (0, 0, 1, 1)]
