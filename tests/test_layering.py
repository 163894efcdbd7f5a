"""Who may import whom: the packages in one direction, the modules of disttorch in one order."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("launcher", "collectives", "disttorch")
LARGEST_FILE = 600  # lines
ARRAY_LIBRARIES = {"numpy", "cupy", "cupyx", "cupy_backends", "ml_dtypes"}

# Lowest first. A module may import, when it is loaded, from its own layer and from those above it
# in this table; an import inside a function happens later and may point anywhere in disttorch.
LAYERS = (
    ("backend",),
    ("tensor",),
    ("autograd", "return_types"),
    ("ops",),
    ("printing", "interop", "random", "special", "fft", "linalg",
     "legacy_types", "storage", "testing", "version", "futures"),
    ("amp",),
    ("cpu", "cuda", "backends", "settings", "compiler", "jit", "absent_devices"),
    ("accelerator",),
    ("nn", "distributions"),
    ("optim",),
    ("serialization",),
    ("utils",),
    ("func", "profiler", "debug", "multiprocessing"),
    ("distributed",),
    ("",),  # disttorch/__init__.py gathers them all
    ("as_torch", "models"),
    ("_torch_name", "__main__"),
)


class Import(NamedTuple):
    """One import statement: who, of what (absolute, dotted), where, and at load time or later."""

    path: Path
    module: str
    line: int
    nested: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the module that a ``from`` import names, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    base = parts[: len(parts) - node.level]
    return ".".join([*base, node.module] if node.module else base)


def imports_of(path: Path, source: str | None = None) -> Iterator[Import]:
    """Yield every import of a file. ``if TYPE_CHECKING:`` blocks never run, so they count later."""

    def visit(node: ast.AST, nested: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, alias.name, node.lineno, nested)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            for alias in node.names:  # the name may be a module: keep it
                yield Import(path, f"{base}.{alias.name}", node.lineno, nested)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield Import(path, str(argument.value), node.lineno, nested)
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            yield from visit(child, nested or deferred)

    text = path.read_text(encoding="utf-8") if source is None else source
    yield from visit(ast.parse(text), nested=False)


def files(package: str) -> list[Path]:
    """Return the Python files of a package, which must not be empty."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no files: the test would look at nothing"
    return found


def imports(package: str) -> list[Import]:
    return [entry for path in files(package) for entry in imports_of(path)]


def top(module: str) -> str:
    return module.split(".")[0]


def layer_of(module: str, names: set[str]) -> int | None:
    """Return the layer of a dotted name inside disttorch, None for one the table leaves out."""
    parts = module.split(".")
    part = parts[1] if len(parts) > 1 and parts[1] in names else ""
    for index, layer in enumerate(LAYERS):
        if part in layer:
            return index
    return None


def complain(found: list[str]) -> None:
    assert not found, "\n".join(found)


def test_launcher_imports_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"launcher"}
    complain([str(entry) for entry in imports("launcher") if top(entry.module) not in allowed])


def test_collectives_never_imports_disttorch() -> None:
    complain([str(entry) for entry in imports("collectives") if top(entry.module) == "disttorch"])


def test_nothing_imports_launcher() -> None:
    found = [*imports("collectives"), *imports("disttorch"), *imports("examples")]
    complain([str(entry) for entry in found if top(entry.module) == "launcher"])


def test_mpi4py_is_imported_in_one_file() -> None:
    users = {
        entry.path for package in PACKAGES for entry in imports(package)
        if top(entry.module) == "mpi4py"
    }
    assert len(users) == 1, sorted(map(str, users))
    assert next(iter(users)).is_relative_to(ROOT / "collectives")


def test_array_libraries_are_imported_in_backend_only() -> None:
    backend = ROOT / "disttorch" / "backend"
    complain(
        [
            str(entry)
            for entry in imports("disttorch")
            if top(entry.module) in ARRAY_LIBRARIES and not entry.path.is_relative_to(backend)
        ]
    )


def test_only_distributed_imports_collectives() -> None:
    distributed = ROOT / "disttorch" / "distributed"
    complain(
        [
            str(entry)
            for entry in imports("disttorch")
            if top(entry.module) == "collectives" and not entry.path.is_relative_to(distributed)
        ]
    )


def test_disttorch_has_only_layers_of_the_table() -> None:
    named = {name for layer in LAYERS for name in layer}
    present = set()
    for path in files("disttorch"):
        part = path.relative_to(ROOT / "disttorch").parts[0]
        present.add("" if part == "__init__.py" else part.removesuffix(".py"))
    assert present <= named, f"give these a layer: {sorted(present - named)}"
    assert named <= present, f"these are gone: {sorted(named - present)}"


def test_disttorch_imports_downwards() -> None:
    names = {name for layer in LAYERS for name in layer if name}
    found = []
    for entry in imports("disttorch"):
        if entry.nested or top(entry.module) != "disttorch":
            continue
        inside = ".".join(entry.path.relative_to(ROOT).with_suffix("").parts)
        mine, other = layer_of(inside, names), layer_of(entry.module, names)
        if mine is not None and other is not None and other > mine:
            found.append(f"{entry}, which is above it")
    complain(found)


def test_examples_use_the_public_api_only() -> None:
    found = []
    for entry in imports("examples"):
        private = any(part.startswith("_") for part in entry.module.split(".")[1:])
        below = entry.module.split(".")[:2] in (["disttorch", "backend"], ["disttorch", "ops"])
        if top(entry.module) in {"collectives", *ARRAY_LIBRARIES} or (
            top(entry.module) == "disttorch" and (private or below)
        ):
            found.append(str(entry))
    complain(found)


def test_no_file_is_too_long_to_read() -> None:
    found = []
    for package in (*PACKAGES, "examples"):
        for path in files(package):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LARGEST_FILE:
                found.append(f"{path.relative_to(ROOT)} has {lines} lines; split it")
    complain(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("disttorch/nn/linear.py", "from .. import ops", ("disttorch.ops", False)),
        ("disttorch/nn/__init__.py", "from .linear import Linear",
         ("disttorch.nn.linear.Linear", False)),
        ("disttorch/tensor.py", "def f():\n    import numpy.linalg", ("numpy.linalg", True)),
        ("disttorch/tensor.py", "import importlib\nimportlib.import_module('cupy')",
         ("cupy", False)),
        ("disttorch/tensor.py", "if TYPE_CHECKING:\n    from . import ops",
         ("disttorch.ops", True)),
    ],
)
def test_imports_are_seen(path: str, source: str, expected: tuple[str, bool]) -> None:
    seen = [(entry.module, entry.nested) for entry in imports_of(ROOT / path, source)]
    assert expected in seen
