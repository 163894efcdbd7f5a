"""The CUDA C files of ``csrc/``: one family of kernels a file, read and completed as text.

A file is written once for all element types: ``ELEMENT`` is what lies in memory,
``Acc<ELEMENT>::type`` what is computed with, and it is compiled once for each set of such names that is
given values (long names: NVRTC's own text uses short ones). Includes of other files of ``csrc/`` are
replaced by their text, so that a compiler needs no search path, no header of CUDA's, and its cache sees
every change.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "csrc"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)

# C names of the dtypes, as common.cuh defines them
C_TYPES = {
    "bool": "bool", "uint8": "u8", "int8": "i8", "uint16": "u16", "int16": "i16", "uint32": "u32",
    "int32": "i32", "uint64": "u64", "int64": "i64", "float16": "half_t", "bfloat16": "bf16_t",
    "float32": "float", "float64": "double",
}  # fmt: skip


def families() -> list[str]:
    """The names of all families of kernels."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


@functools.cache
def text(family: str) -> str:
    """The source of a family, its includes put in (each once)."""
    seen: set[str] = set()

    def put_in(found: re.Match) -> str:
        name = found[1]
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(put_in, (FOLDER / name).read_text())

    return _INCLUDE.sub(put_in, (FOLDER / f"{family}.cu").read_text())


def options(values: tuple[tuple[str, object], ...]) -> tuple[str, ...]:
    """The compiler's options: names given values; a dtype's name becomes its C type."""
    return ("-std=c++17", *(f"-D{name}={C_TYPES.get(str(value), value)}" for name, value in values))


@functools.cache
def variants(family: str) -> tuple[tuple[tuple[str, object], ...], ...]:
    """The sets of values that a family is compiled with, as lines of its source say:

        // variants: ELEMENT=float,bf16_t CAUSAL=0,1

    All combinations of one line; several lines add up. Values are dtypes' names or C.
    """
    found = []
    for line in re.findall(r"^// variants: (.*)$", text(family), re.MULTILINE):
        sets: list[tuple] = [()]
        for part in line.split():
            name, values = part.split("=")
            sets = [(*s, (name, value)) for s in sets for value in values.split(",")]
        found += sets
    return tuple(found) or ((),)
