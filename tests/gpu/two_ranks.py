"""Ranks that share one GPU, each a process: what `test_two_ranks_on_gpu.py` starts.

Runs the conformance suite on arrays in GPU memory and prints one JSON line on rank 0.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import collectives_conformance as conformance  # noqa: E402
import cupy  # noqa: E402
import numpy as np  # noqa: E402
from gpu import device_arrays  # noqa: E402

import collectives  # noqa: E402
from collectives import nccl  # noqa: E402
from collectives.nccl import cuda_ipc  # noqa: E402


def seconds_of(group, array, times):
    group.all_reduce(array)
    cupy.cuda.Device().synchronize()
    group.barrier()
    began = time.perf_counter()
    for _ in range(times):
        group.all_reduce(array)
    cupy.cuda.Device().synchronize()
    return (time.perf_counter() - began) / times


def main() -> None:
    if "--no-ipc" in sys.argv:
        cuda_ipc.connect = lambda control: None
    world = collectives.world()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        group = nccl.connect(world)
    device_arrays.install()
    conformance.SIZES = {0: ["contiguous"], 1: ["contiguous"], 105: ["contiguous", "transposed"],
                         20001: ["contiguous"]}
    found: dict = {"ranks": world.size, "notices": [str(w.message) for w in seen],
                   "shared": group.shared, "cases": 0, "failures": [], "ms_per_all_reduce": {}}
    for call in conformance.CALLS:
        count, failures, _ = conformance.check_call(group, call)
        found["cases"] += count
        found["failures"] += failures[:5]
    for mib in (0.001, 1, 16, 64):
        array = cupy.ones(int(mib * (1 << 18)), np.float32)
        found["ms_per_all_reduce"][mib] = 1e3 * seconds_of(group, array, 5)
    everyone = world.all_gather_object(found["failures"])
    group.close()
    if world.rank == 0:
        found["failures"] = [text for each in everyone for text in each]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
