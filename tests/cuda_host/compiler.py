"""CUDA C to a shared library, by g++; kept by content in a folder for temporary files.

With DISTTORCH_HOST_COVERAGE=FOLDER the libraries lie there and count the lines that they run, for gcov
(see ``gpu_coverage``).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O1", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden",
          "-fno-strict-aliasing", "-fwrapv", "-w", "-fsanitize=alignment,bounds",
          "-fsanitize-undefined-trap-on-error", "-DDISTTORCH_HOST=1")
COVERAGE = "DISTTORCH_HOST_COVERAGE"
_KERNEL = re.compile(r"__global__\s+(?:__launch_bounds__\s*\((?P<before>[^;{]*?)\)\s*)?void\s+"
                     r"(?:__launch_bounds__\s*\((?P<after>[^;{]*?)\)\s*)?(?P<name>\w+)\s*\(")


def available() -> bool:
    """Whether there are a compiler and a processor that this works with."""
    return shutil.which("g++") is not None and platform.machine() == "x86_64"


def folder() -> Path:
    """Where the compiled libraries are kept."""
    if counted := os.environ.get(COVERAGE):
        return Path(counted)
    path = Path(tempfile.gettempdir()) / f"disttorch-cuda-host-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _run(command: list[str], text: str, name: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ could not compile {name}: {done.stderr.strip()[:4000]}")
    return done.stdout


def _kernels(text: str, defines: list[str], name: str) -> dict[str, str]:
    """The names of a source's kernels, macros expanded, and the most threads of their blocks (as C)."""
    plain = _run(["g++", "-E", "-P", "-x", "c++", *defines, "-DDISTTORCH_HOST=1", "-"], text, name)
    found = {}
    for match in _KERNEL.finditer(plain):
        if not plain[: match.start()].rstrip().endswith(">"):  # a template has no name to be found by
            bounds = match["before"] or match["after"] or "1024"
            found.setdefault(match["name"], _first_argument(bounds))
    return found


def _first_argument(text: str) -> str:
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            return text[:i]
    return text


def _wrappers(kernels: dict[str, str]) -> str:
    rows = ",\n".join(
        f'    {{"{name}", host::Call<&{name}>::run, host::Call<&{name}>::tell, (int)({bound})}}'
        for name, bound in kernels.items())
    return f"""
#line 1 "wrappers"
namespace host {{
struct Row {{ const char* name; void (*run)(void**); int (*tell)(char*, size_t); int threads; }};
static const Row rows[] = {{\n{rows}\n}};
}}
#define HOST_EXPORT extern "C" __attribute__((visibility("default")))
HOST_EXPORT int host_describe(int i, char* out, size_t room) {{
    if (i >= (int)(sizeof host::rows / sizeof *host::rows)) return -1;
    int used = snprintf(out, room, "%s %d %zu ", host::rows[i].name, host::rows[i].threads,
                        host::static_shared().size - sizeof host::anchor);
    return used + host::rows[i].tell(out + used, room - used);
}}
HOST_EXPORT int host_launch(int i, const unsigned* grid, const unsigned* block, size_t shared,
                            void** args, int order, char* message, size_t room, uint64_t* address) {{
    return host::launch(host::rows[i].name, host::rows[i].run, grid, block, shared, args, order, message,
                        room, address);
}}
"""


@functools.cache
def _precompiled(shim: str) -> Path:
    """The shim as a header, compiled once for all sources: reading it is half of their time."""
    key = hashlib.sha256("\0".join((shim, *_FLAGS)).encode()).hexdigest()[:24]
    header = folder() / f"shim-{key}.hpp"
    made = header.with_name(f"{header.name}.gch")
    if not made.exists():
        command = ["g++", *(f for f in _FLAGS if f != "-shared"), "-x", "c++-header", str(header), "-o"]
        for path, write in ((header, lambda p: p.write_text(shim)),
                            (made, lambda p: _run([*command, str(p)], "", header.name))):
            with tempfile.NamedTemporaryFile(dir=folder(), suffix=".tmp", delete=False) as file:
                built = Path(file.name)
            write(built)
            built.replace(path)
    return header


def compile_source(text: str, options: tuple[str, ...], name: str) -> Path:
    """The shared library of a source.

    Raises:
        RuntimeError: with the compiler's words.
    """
    shim = "".join((_HERE / part).read_text() for part in ("fibers.hpp", "intrinsics.hpp", "launch.hpp"))
    defines = [o for o in options if o.startswith("-D")]
    parts = (shim, text, _wrappers({}), *_FLAGS, *defines, platform.node())
    key = hashlib.sha256("\0".join(parts).encode())
    path = folder() / f"{Path(name).stem}-{key.hexdigest()[:24]}.so"
    if not path.exists():
        kernels = _kernels(text, defines, name)
        if not kernels:
            raise RuntimeError(f"{name} has no __global__ function")
        header = _precompiled(shim)
        whole = f'#include "{header.name}"\n#line 1 "{name}"\n{text}\n{_wrappers(kernels)}'
        if COVERAGE in os.environ:
            return _counting(path, [*_FLAGS, *defines, "-I", str(header.parent)], whole, name)
        with tempfile.NamedTemporaryFile(dir=folder(), suffix=".tmp", delete=False) as file:
            built = Path(file.name)
        try:
            place = ["-I", str(header.parent), "-x", "c++", "-", "-o", str(built)]
            _run(["g++", *_FLAGS, *defines, *place], whole, name)
            built.replace(path)
        finally:
            built.unlink(missing_ok=True)
    return path


def _counting(path: Path, flags: list[str], whole: str, name: str) -> Path:
    """The library with counters, beside its notes for gcov. Counts are put where the object file lay, so
    that is compiled under its own name, by one process at a time."""
    made = path.with_suffix(".o")
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compiled = [f for f in flags if f != "-shared"]
            _run(["g++", "--coverage", *compiled, "-x", "c++", "-c", "-", "-o", str(made)], whole, name)
            built = path.with_suffix(".tmp")
            _run(["g++", "--coverage", *_FLAGS, str(made), "-o", str(built)], "", name)
            built.replace(path)
    return path
