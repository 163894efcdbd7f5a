"""How much of the GPU's code the tests without a GPU run: ``make gpu-coverage``.

    python tests/gpu_coverage.py [--out FOLDER] [--only WORD ...]

Runs the tests of GPU code under the stand-in for CuPy, those of the stand-in, of the kernels through the
host shim, of cuBLAS's glue and of NCCL with a library in its place, and prints lines and branches of the
Python (coverage.py) and lines and functions of the CUDA C (gcov), by file. What a driver, a compiler for
GPUs or a second GPU would be needed for stays uncovered.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CSRC = ROOT / "disttorch/backend/gpu/csrc"
MEASURED = ("disttorch/backend/gpu/*", "disttorch/backend/cupy_backend.py",
            "disttorch/backend/gpu_runtime.py", "disttorch/backend/side_streams.py", "disttorch/cuda/*",
            "collectives/nccl/*", "collectives/device.py")
OF_ITSELF = ("test_cuda_host", "test_cublas", "test_cudnn_*", "test_gemm", "test_nccl",
             "test_standin_rules", "test_*_kernels")
SETTINGS = """[run]
branch = True
parallel = True
data_file = {out}/python/data
patch = subprocess
include =
    {files}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for data and reports (default: a new one)")
    parser.add_argument("--only", nargs="*", default=[], help="only test files whose names have these")
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp(prefix="gpu-coverage-"))).resolve()
    for part in ("python", "cuda", "logs"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for old in (*(out / "python").glob("data*"), *(out / "cuda").glob("*.gcda")):
        old.unlink()
    failed = run_tests(out, options.only)
    rows = [*python_rows(out), *cuda_rows(out / "cuda")]
    show(rows)
    (out / "coverage.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{out}/coverage.json; logs of the tests in {out}/logs")
    if failed:
        raise SystemExit(f"tests failed, so figures may be too small: {' '.join(failed)}")


# ---- running ---------------------------------------------------------------------------------------


def run_tests(out: Path, only: list[str]) -> list[str]:
    """Run all test files, as many at once as there are processors; the names of those that failed."""
    sys.path.insert(0, str(HERE))
    from test_standin import FILES

    settings = out / "python/settings"
    files = "\n    ".join(str(ROOT / pattern) for pattern in MEASURED)
    settings.write_text(SETTINGS.format(out=out, files=files))
    jobs = [(f"gpu/{name}", ["-p", "cupy_standin.plugin"]) for name in FILES]
    jobs += [(path.stem, []) for word in OF_ITSELF for path in sorted(HERE.glob(f"{word}.py"))]
    jobs = [job for job in jobs if not only or any(word in job[0] for word in only)]

    def run(job) -> int:
        name, extra = job
        environment = dict(os.environ, DISTTORCH_HOST_COVERAGE=str(out / "cuda"))
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(HERE), str(HERE / "gpu"), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest",
                   "-p", "no:cacheprovider", "--tb=short", *extra, str(HERE / f"{name}.py")]
        with open(out / "logs" / f"{Path(name).name}.log", "w") as log:
            return subprocess.run(command, cwd=ROOT, env=environment, stdout=log,
                                  stderr=subprocess.STDOUT).returncode

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        codes = list(pool.map(run, jobs))
    return [name for (name, _), code in zip(jobs, codes) if code]


# ---- Python ----------------------------------------------------------------------------------------


def python_rows(out: Path) -> list[dict]:
    """A row for each measured file, also for those that no test imports."""
    coverage = [sys.executable, "-m", "coverage"]
    settings, report = f"--rcfile={out}/python/settings", out / "python/report.json"
    subprocess.run([*coverage, "combine", settings, "--quiet"], cwd=ROOT, check=True)
    subprocess.run([*coverage, "json", settings, "--quiet", "-o", str(report)], cwd=ROOT, check=True)
    rows = []
    for name, file in sorted(json.loads(report.read_text())["files"].items()):
        s = file["summary"]
        rows.append({
            "file": name, "lines": s["num_statements"], "run": s["covered_lines"],
            "parts": s["num_branches"], "parts_run": s["covered_branches"],
            "missing": file["missing_lines"]})
    return rows


# ---- CUDA C ----------------------------------------------------------------------------------------


def origins(family: str) -> list[tuple[str, int]]:
    """(file, line) of each line of a family's text, in which includes are replaced by their text."""
    seen: set[str] = set()

    def lines_of(name: str):
        for number, line in enumerate((CSRC / name).read_text().splitlines(), 1):
            included = re.fullmatch(r'#include "(\w+\.cuh)"', line)
            if included is None:
                yield name, number
            elif included[1] not in seen:
                seen.add(included[1])
                yield from lines_of(included[1])

    return list(lines_of(f"{family}.cu"))


def cuda_rows(folder: Path) -> list[dict]:
    """A row for each source: a line counts as run if it was in one of the variants."""
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    functions: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for notes in sorted(folder.glob("*.gcno")):
        if not notes.with_suffix(".gcda").exists():
            continue
        done = subprocess.run(["gcov", "--json-format", "--stdout", str(notes)], cwd=folder,
                              capture_output=True, text=True, check=True)
        for file in (f for text in done.stdout.splitlines() for f in json.loads(text)["files"]):
            family = Path(file["file"]).stem
            if not (CSRC / f"{family}.cu").exists():
                continue
            places = origins(family)
            for line in file["lines"]:
                if line["line_number"] <= len(places):
                    name, number = places[line["line_number"] - 1]
                    lines[name][number] += line["count"]
            for function in file["functions"]:
                if function["start_line"] <= len(places):
                    name, number = places[function["start_line"] - 1]
                    functions[name][f"{_plain(function['demangled_name'])}:{number}"] += (
                        function["execution_count"])
    rows = []
    for name in sorted(lines):
        found, called = lines[name], functions[name]
        rows.append({
            "file": f"csrc/{name}", "lines": len(found), "run": sum(n > 0 for n in found.values()),
            "parts": len(called), "parts_run": sum(n > 0 for n in called.values()),
            "missing": sorted(n for n, count in found.items() if not count)})
    return rows


def _plain(name: str) -> str:
    """A function's name without its arguments: those of a template are several."""
    return re.sub(r"<.*|\(.*", "", name).split(" ")[-1]


# ---- the table -------------------------------------------------------------------------------------


def show(rows: list[dict]) -> None:
    """Lines run of lines, branches (CUDA C: functions) run of all, by file and in sum."""

    def text(name, group) -> str:
        cells = [sum(row[key] for row in group) for key in ("run", "lines", "parts_run", "parts")]
        shares = [100 * a / b if b else 100.0 for a, b in (cells[:2], cells[2:])]
        return (f"{name:52}{cells[0]:>7}/{cells[1]:<6}{shares[0]:5.1f} %"
                f"{cells[2]:>9}/{cells[3]:<6}{shares[1]:5.1f} %")

    python = [row for row in rows if not row["file"].startswith("csrc/")]
    for words, part, group in (("Python", "branches", python),
                               ("CUDA C", "functions", [row for row in rows if row not in python])):
        print(f"\n{words:52}{'lines':>14}{'':7}{part:>16}")
        for row in group:
            print(text(row["file"], [row]))
        print(text("in sum", group))


if __name__ == "__main__":
    main()
