"""What a GPU machine has and allows, as JSON: `python3 tests/gpu/facts.py [FILE]`.

Each fact is found by a process of its own with a time limit, so that a crash or a hang costs one
fact and not the rest. A fact that could not be found is a text beginning with "error:".
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT = 40  # seconds for one fact


# ---- facts of one process ------------------------------------------------------------------------


def machine():
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "gpu": properties["name"].decode(),
        "gpus": cupy.cuda.runtime.getDeviceCount(),
        "uuid": properties["uuid"].hex() if isinstance(properties["uuid"], bytes) else "",
        "pci_bus_id": cupy.cuda.Device(0).pci_bus_id,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


def versions():
    from importlib import metadata

    found = {}
    for name in (
        "numpy", "cupy-cuda13x", "torch", "mpi4py", "mpich", "nvidia-nccl-cu13", "nccl4py",
        "cuda-core", "cuda-pathfinder", "cuda-bindings", "ml_dtypes", "pytest", "pytest-xdist",
    ):  # fmt: skip
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def mpi():
    from mpi4py import MPI

    return {
        "library": MPI.Get_library_version().splitlines()[0].strip("\0 "),
        "mpiexec": shutil.which("mpiexec"),
        "threads": MPI.Query_thread() == MPI.THREAD_MULTIPLE,
    }


def cupy_nccl():
    from cupy.cuda import nccl

    return {"version": nccl.get_version(), "bfloat16": nccl.NCCL_BFLOAT16}


def nccl4py():
    from nccl.bindings import nccl

    return {"version": nccl.get_version()}


def nccl4py_one_rank():
    """A non-blocking communicator of one rank: made, used, aborted."""
    import cupy
    from nccl.bindings import nccl

    cupy.cuda.Device(0).use()
    config = nccl.Config()
    config.blocking = 0
    began = time.perf_counter()
    comm = nccl.comm_init_rank_config(1, nccl.get_unique_id(), 0, config)
    while int(nccl.comm_get_async_error(comm)) == 7:
        time.sleep(1e-4)
    made = time.perf_counter() - began
    array = cupy.arange(1024, dtype="f4")
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    nccl.all_reduce(array.data.ptr, array.data.ptr, 1024, 7, 0, comm, stream.ptr)
    state = int(nccl.comm_get_async_error(comm))
    stream.synchronize()
    right = bool((array == cupy.arange(1024)).all())
    import numpy as np

    scalar = np.array([3.0], np.float32)
    op = nccl.red_op_create_pre_mul_sum(scalar.ctypes.data, 7, 1, comm)
    nccl.all_reduce(array.data.ptr, array.data.ptr, 1024, 7, op, comm, stream.ptr)
    stream.synchronize()
    premul = float(array[2])
    nccl.red_op_destroy(op, comm)
    nccl.comm_abort(comm)
    return {"made_s": made, "after_call": state, "right": right, "premul_3x2": premul}


def op_microseconds():
    """CPU time to launch one small CuPy op, and memory speed of a copy."""
    import cupy

    a, out = cupy.ones((64, 64), "f4"), cupy.empty((64, 64), "f4")
    cupy.add(a, a, out=out)
    cupy.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(2000):
        cupy.add(a, a, out=out)
    launch = (time.perf_counter() - began) / 2000
    big = cupy.ones(1 << 28, "f4")
    other = cupy.empty_like(big)
    other[...] = big
    cupy.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(5):
        other[...] = big
    cupy.cuda.Device().synchronize()
    return {"add_launch_us": launch * 1e6,
            "copy_TB_s": 10 * big.nbytes / (time.perf_counter() - began) / 1e12}


def nccl_call_microseconds():
    """CPU time of a small all_reduce of one rank, and of its copy in the library alone."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    import cupy

    from collectives import nccl, single

    group, array = nccl.connect(single()), cupy.ones(256, "f4")
    found = {"binding": group._binding.name}
    lane = group._main
    raw = lambda: group._binding.all_reduce(  # noqa: E731
        lane.comm, array.data.ptr, array.data.ptr, 256, 7, 0, lane.address)
    for name, call in (("library", raw), ("group", lambda: group.all_reduce(array))):
        call()
        cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        for _ in range(500):
            call()
        found[name] = (time.perf_counter() - began) / 500 * 1e6
        cupy.cuda.Device().synchronize()
    return found


# ---- facts of two processes on one GPU -----------------------------------------------------------


def _wait_for(path: Path) -> bytes:
    end = time.monotonic() + LIMIT - 10
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path.name} never came")
        time.sleep(0.01)
    return path.read_bytes()


def _publish(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)


def rank_ipc(rank: int, folder: Path):
    """Rank 0 offers memory; rank 1 opens and reads it, writes to it."""
    import cupy

    runtime = cupy.cuda.runtime
    if rank == 0:
        array = cupy.arange(1 << 20, dtype="i4")
        cupy.cuda.Device().synchronize()
        _publish(folder / "handle", runtime.ipcGetMemHandle(array.data.ptr))
        _wait_for(folder / "read")
        cupy.cuda.Device().synchronize()
        return {"written_by_peer": int(array[7])}
    handle = _wait_for(folder / "handle")
    began = time.perf_counter()
    pointer = runtime.ipcOpenMemHandle(handle)
    opened = time.perf_counter() - began
    memory = cupy.cuda.UnownedMemory(pointer, 4 << 20, None)
    peer = cupy.ndarray(1 << 20, "i4", cupy.cuda.MemoryPointer(memory, 0))
    total = int(peer.sum())
    peer[7] = 1234
    cupy.cuda.Device().synchronize()
    _publish(folder / "read", b"x")
    return {"open_ms": opened * 1e3, "sum_right": total == sum(range(1 << 20)) % (1 << 64)}


def rank_nccl(rank: int, folder: Path):
    """A blocking communicator of two ranks on one GPU, through CuPy's binding."""
    import cupy
    from cupy.cuda import nccl

    if rank == 0:
        _publish(folder / "id", repr(nccl.get_unique_id()).encode())
    import ast

    comm = nccl.NcclCommunicator(2, ast.literal_eval(_wait_for(folder / "id").decode()), rank)
    array = cupy.full(1 << 20, rank + 1, "f4")
    comm.allReduce(array.data.ptr, array.data.ptr, 1 << 20, 7, 0, 0)
    cupy.cuda.Device().synchronize()
    value = float(array[5])
    began = time.perf_counter()
    for _ in range(20):
        comm.allReduce(array.data.ptr, array.data.ptr, 1 << 20, 7, 0, 0)
    cupy.cuda.Device().synchronize()
    return {"sum_1_2": value, "us_per_4MiB": (time.perf_counter() - began) / 20 * 1e6}


def _pair(name: str, **environment: str):
    """Run `rank_name` in two processes; what both found."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", name, str(rank), folder],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | environment,
            )
            for rank in range(2)
        ]  # fmt: skip
        found = []
        for process in ranks:
            try:
                out, err = process.communicate(timeout=LIMIT - 5)
            except subprocess.TimeoutExpired:
                for each in ranks:
                    each.kill()
                out, err = process.communicate()
                err += "\ntimed out"
            found.append(_answer(process.returncode, out, err))
        return found


def cuda_ipc_between_processes():
    return _pair("ipc")


def nccl_two_ranks_one_gpu():
    return _pair("nccl")


def nccl_two_ranks_one_gpu_multi_rank_enabled():
    return _pair("nccl", NCCL_MULTI_RANK_GPU_ENABLE="1")


# ---- running them --------------------------------------------------------------------------------

FACTS = [
    op_microseconds, nccl_call_microseconds, machine, versions, mpi, cupy_nccl, nccl4py,
    nccl4py_one_rank,
    cuda_ipc_between_processes, nccl_two_ranks_one_gpu, nccl_two_ranks_one_gpu_multi_rank_enabled,
]  # fmt: skip


def _answer(status: int, out: str, err: str):
    lines = out.strip().splitlines()
    if status == 0 and lines:
        return json.loads(lines[-1])
    return f"error: status {status}: " + ((out + err).strip().splitlines() or [""])[-1][-400:]


def find(name: str):
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        return _answer(done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        return f"error: no answer in {LIMIT} s"


def gather() -> dict:
    """All facts: those that measure time first and alone, the others side by side."""
    names = [fact.__name__ for fact in FACTS]
    found = {name: find(name) for name in names[:2]}
    with ThreadPoolExecutor(4) as pool:
        return found | dict(zip(names[2:], pool.map(find, names[2:])))


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(globals()[sys.argv[2]]()))
    elif sys.argv[1:2] == ["--rank"]:
        name, rank, folder = sys.argv[2:5]
        print(json.dumps(globals()[f"rank_{name}"](int(rank), Path(folder))))
    else:
        text = json.dumps(gather(), indent=1)
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
