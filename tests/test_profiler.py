"""The profiler: what it records, its tables and files, its schedule, and that it leaves no trace."""

from __future__ import annotations

import gzip
import json
import threading
import time

import pytest

import disttorch as torch
from disttorch import nn
from disttorch.ops import observe
from disttorch.ops.core import REGISTRY
from disttorch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

CPU = [ProfilerActivity.CPU]


def counts(prof, **options) -> dict:
    return {e.key: e.count for e in prof.key_averages(**options)}


def test_operations_and_backward_nodes_are_counted():
    x = torch.randn(3, 4, requires_grad=True)
    with profile(activities=CPU) as prof:
        y = (x * 2 + x).exp()  # elementwise operations take short paths when nobody watches
        y.sum().backward()
    found = counts(prof)
    assert (found["mul"], found["add"], found["exp"]) == (1, 1, 1)
    assert (found["MulBackward0"], found["ExpBackward0"], found["SumBackward0"]) == (1, 1, 1)


def test_results_are_the_same_and_the_engine_is_left_as_it_was():
    before = {name: op.forward for name, op in REGISTRY.items()}
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)

    def gradients():
        model.zero_grad()
        model(x).square().mean().backward()
        return [p.grad.tolist() for p in model.parameters()]

    plain = gradients()
    with profile(activities=CPU) as prof:
        watched = gradients()
    assert watched == plain == gradients()
    recorded = len(prof.events())
    _ = x + x
    assert len(prof.events()) == recorded > 0
    assert all(op.forward is before[name] for name, op in REGISTRY.items())
    assert observe._observers == () and observe._replaced == []


def test_an_error_inside_ends_the_recording_and_keeps_what_was_there():
    prof = profile(activities=CPU)
    with pytest.raises(RuntimeError, match="size of tensor"), prof:
        torch.ones(2) + torch.ones(3)
    assert counts(prof)["add"] == 1 and observe._observers == ()


def test_ranges_contain_what_ran_inside():
    @record_function("decorated")
    def work(x):
        return x.exp()

    with profile(activities=CPU) as prof, record_function("outer"):
        with record_function("inner"):
            torch.ones(2).exp()
        work(torch.ones(2))
    events = {e.name: e for e in prof.events() if e.is_user_annotation}
    assert events["inner"].cpu_parent is events["outer"] is events["decorated"].cpu_parent
    assert [c.name for c in events["decorated"].cpu_children] == ["exp"]
    assert events["outer"].cpu_time_total >= events["inner"].cpu_time_total
    inside = sum(c.cpu_time_total for c in events["outer"].cpu_children)
    assert events["outer"].self_cpu_time_total == pytest.approx(
        events["outer"].cpu_time_total - inside
    )


def test_times_cover_what_happens():
    with profile(activities=CPU) as prof, record_function("sleep"):
        time.sleep(0.02)
    (event,) = prof.events()
    assert event.cpu_time_total >= 20_000  # microseconds; a sleep is never shorter


def test_optimizer_steps_are_ranges():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    with profile(activities=CPU) as prof:
        optimizer.step()
    optimizer.step()
    assert counts(prof)["Optimizer.step#SGD.step"] == 1


def test_shapes_memory_flops_and_stacks():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with profile(activities=CPU, record_shapes=True, profile_memory=True, with_flops=True,
                 with_stack=True) as prof:
        product = a @ b
        product.view(15)
    events = {e.name: e for e in prof.events()}
    matmul = events["matmul"]
    assert matmul.input_shapes == [[3, 4], [4, 5]]
    assert matmul.cpu_memory_usage == 15 * 4 and events["view"].cpu_memory_usage == 0
    assert matmul.flops == 2 * 3 * 4 * 5
    assert "test_profiler.py" in matmul.stack[0] and "test_shapes" in matmul.stack[0]


def test_averages_group_by_shape_and_sort(tmp_path):
    with profile(activities=CPU, record_shapes=True) as prof:
        for n in (2, 2, 3):
            torch.ones(n).exp()
    assert counts(prof)["exp"] == 3
    by_shape = [e for e in prof.key_averages(group_by_input_shape=True) if e.key == "exp"]
    assert sorted((e.count, e.input_shapes) for e in by_shape) == [(1, [[3]]), (2, [[2]])]
    average = next(e for e in prof.key_averages() if e.key == "exp")
    total = sum(e.cpu_time_total for e in prof.events() if e.name == "exp")
    assert average.cpu_time_total == pytest.approx(total)
    assert average.cpu_time == pytest.approx(total / 3)


def test_table_has_rows_in_order_and_the_total():
    with profile(activities=CPU) as prof:
        torch.randn(300, 300) @ torch.randn(300, 300)
        torch.ones(1).exp()
    table = prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=2, header="Run 1")
    lines = table.splitlines()
    assert lines[0] == "Run 1" and lines[2].split()[:1] == ["Name"]
    assert "# of Calls" in lines[2] and lines[-1].startswith("Self CPU time total: ")
    assert len(lines) == 4 + 2 + 2  # header, rule, titles, rule; rows; rule, total
    times = [e.self_cpu_time_total for e in prof.key_averages()]
    assert prof.key_averages().self_cpu_time_total == pytest.approx(sum(times))
    with pytest.raises(AttributeError, match="nothing"):
        prof.key_averages().table(sort_by="nothing")


def test_chrome_trace(tmp_path):
    with profile(activities=CPU, record_shapes=True) as prof, record_function("range"):
        torch.ones(2, 3).exp()
    prof.add_metadata("who", "me")
    prof.add_metadata_json("config", '{"lr": 0.1}')
    for name, reading in (("t.json", open), ("t.json.gz", gzip.open)):
        prof.export_chrome_trace(tmp_path / name)
        with reading(tmp_path / name, "rt") as file:
            trace = json.load(file)
        assert trace["who"] == "me" and trace["config"] == {"lr": 0.1}
        events = {e["name"]: e for e in trace["traceEvents"] if e["ph"] == "X"}
        inner, outer = events["exp"], events["range"]
        assert inner["args"]["Input Dims"] == [[2, 3]] and inner["cat"] == "cpu_op"
        assert outer["ts"] <= inner["ts"]
        assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
        assert 0 <= inner["ts"] < 60e6  # from the start of the recording


def test_stacks_for_flame_graphs(tmp_path):
    with profile(activities=CPU, with_stack=True) as prof:
        torch.randn(400, 400) @ torch.randn(400, 400)
    prof.export_stacks(tmp_path / "stacks")
    line = (tmp_path / "stacks").read_text().splitlines()[-1]
    stack, value = line.rsplit(" ", 1)
    assert int(value) > 0 and "test_profiler.py" in stack.split(";")[-1]
    with profile(activities=CPU) as without:
        torch.ones(1).exp()
    with pytest.raises(ValueError, match="with_stack=True"):
        without.export_stacks(tmp_path / "none")


def test_schedule_actions():
    plan = schedule(skip_first=1, wait=1, warmup=1, active=2, repeat=2)
    N, W, R, S = ProfilerAction  # in the order of their values
    assert [plan(i) for i in range(11)] == [N, N, W, R, S, N, W, R, S, N, N]
    with pytest.raises(ValueError, match="active at least 1"):
        schedule(wait=1, warmup=1, active=0)
    with pytest.warns(UserWarning, match="warmup"):
        schedule(wait=0, warmup=0, active=1)


def test_schedule_records_the_active_steps_of_each_cycle():
    ready = []

    def keep(prof):
        steps = [e.name for e in prof.events() if e.name.startswith("ProfilerStep")]
        ready.append((prof.step_num, steps, counts(prof)["exp"]))

    plan = schedule(wait=1, warmup=1, active=2, repeat=2)
    with profile(activities=CPU, schedule=plan, on_trace_ready=keep) as prof:
        for _ in range(10):
            torch.ones(1).exp()
            prof.step()
    assert ready == [
        (4, ["ProfilerStep#2", "ProfilerStep#3"], 2), (8, ["ProfilerStep#6", "ProfilerStep#7"], 2)
    ]


def test_tensorboard_handler_writes_a_file_per_cycle(tmp_path):
    handler = torch.profiler.tensorboard_trace_handler(str(tmp_path / "log"), "worker", True)
    with profile(activities=CPU, on_trace_ready=handler):
        torch.ones(1).exp()
    (path,) = (tmp_path / "log").iterdir()
    assert path.name.startswith("worker.") and path.name.endswith(".pt.trace.json.gz")


def test_other_threads_are_recorded_under_their_own_number():
    def work():
        torch.ones(3).exp()

    with profile(activities=CPU) as prof:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch.ones(3).exp()
    assert len({e.thread for e in prof.events() if e.name == "exp"}) == 2


def test_two_profilers_at_once():
    with profile(activities=CPU) as outer:
        torch.ones(1).exp()
        with profile(activities=CPU) as inner:
            torch.ones(1).exp()
    assert (counts(outer)["exp"], counts(inner)["exp"]) == (2, 1)


def test_inside_autocast():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), profile(activities=CPU) as prof:
        assert (a @ a).dtype == torch.bfloat16
    assert counts(prof)["to_copy"] == 2
    with profile(activities=CPU):  # the end of a region must not end the watching
        with torch.autocast("cpu"):
            pass
        with profile(activities=CPU) as prof:
            _ = a + a
    assert counts(prof)["add"] == 1 and (a @ a).dtype == torch.float32


def test_choice_of_activities():
    assert ProfilerActivity.CPU in torch.profiler.supported_activities()
    with pytest.raises(ValueError, match="activities"):
        profile(activities=[])
    with pytest.raises(ValueError, match="activities"):
        profile(activities=["cpu"])
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])


def test_results_before_the_end_are_an_error():
    prof = profile(activities=CPU)
    with pytest.raises(AssertionError, match="no finished recording"):
        prof.key_averages()


def test_older_interface():
    older = torch.autograd.profiler
    with older.profile(record_shapes=True) as prof, older.record_function("mine"):
        torch.ones(2).exp()
    assert {"mine", "exp"} <= {e.key for e in prof.key_averages()}
    assert "exp" in prof.table() and prof.total_average().count == len(prof.function_events)
    with torch.autograd.profiler.profile(enabled=False) as off:
        torch.ones(2).exp()
    assert off.function_events is None
    with pytest.raises(RuntimeError, match="didn't finish"):
        off.key_averages()
    with pytest.raises(RuntimeError, match="reentrant"), off:
        pass
