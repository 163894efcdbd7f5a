"""The stub files: up to date, valid, and telling type checkers what they should."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import disttorch
from disttorch.tensor import Tensor

ROOT = Path(disttorch.__file__).resolve().parent
STUBS = sorted(ROOT.rglob("*.pyi"))

CORRECT = """\
import disttorch as torch
import disttorch.nn.functional as F
from disttorch import Tensor, nn

x = torch.randn(3, 4, dtype=torch.float32, requires_grad=True)
y: Tensor = (2 * x + x.clamp(min=0) - 1).sum(dim=1, keepdim=True)
y = torch.add(x, 1, alpha=2).mean(axis=0).add_(3)
y = torch.where(x > 0, x, torch.zeros_like(x)) @ torch.eye(4).T
y = torch.cat([x, torch.maximum(x, y)], dim=0).relu_().view(-1, 2)
best = x.max(dim=1)
values, indices = torch.sort(x, descending=True)
y = best.values + values[:, 0] + x.max() + torch.linalg.norm(x)
rows: int = x.shape[0] + x.size(1) + sum(x.size())
same: bool = torch.allclose(x, x, rtol=1e-3)
Q, R = torch.linalg.qr(x)
U = torch.linalg.svd(x).U
with torch.no_grad():
    x.grad = None
    x.mul_(0.9)
model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
loss = F.cross_entropy(model(x), torch.tensor([0, 1, 1]))
loss.backward(retain_graph=True)
kind: torch.dtype = x.to(torch.float64).dtype
text: str = x.type()
"""
# one line each that must be refused, and the kind of refusal
WRONG = {
    "torch.sum(x, dimm=1)": "call-overload|call-arg",
    "x.sum(keep=True)": "call-arg",
    "torch.add(x)": "call-arg",
    "x.relu_(1, 2)": "call-arg",
    "x.no_such_method()": "attr-defined",
    "torch.no_such_function(x)": "attr-defined",
    "torch.cat(3)": "arg-type",
    "torch.exp(x).values": "attr-defined",
    "torch.sort(x).vals": "attr-defined",
    "torch.zeros_like(x, dtype='float32')": "arg-type",
    "size: str = x.dim()": "assignment",
}


def test_there_are_stubs_of_all_attached_names():
    names = {str(p.relative_to(ROOT)) for p in STUBS}
    assert names >= {"__init__.pyi", "tensor.pyi", "ops/__init__.pyi", "return_types.pyi",
                     "linalg.pyi", "fft.pyi", "special.pyi"}


def test_stubs_are_what_the_generator_writes_now():
    """In a process of its own: what else a test session has loaded does not count."""
    done = subprocess.run(
        [sys.executable, "-m", "disttorch.utils.make_stubs", "--check"],
        capture_output=True, text=True, cwd=ROOT.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", STUBS, ids=lambda p: str(p.relative_to(ROOT)))
def test_stub_is_valid_python_3_11(path):
    ast.parse(path.read_text(), feature_version=(3, 11))


def stubbed_names(tree) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names.update(a.asname for a in node.names if a.asname)
    return names


def test_every_public_name_is_in_its_stub():
    tree = ast.parse((ROOT / "tensor.pyi").read_text())
    tensor = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Tensor")
    public = {n for n in vars(Tensor) if not n.startswith("_")}
    assert public - stubbed_names(tensor) == set()
    top = stubbed_names(ast.parse((ROOT / "__init__.pyi").read_text()))
    assert set(disttorch.ops.PUBLIC) - top == set()
    assert {"Tensor", "float32", "nn", "no_grad", "Generator", "FloatTensor", "save"} <= top


def definitions(path: Path) -> dict:
    """Functions by name in a stub, without those that have overloads."""
    return {n.name: n for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.FunctionDef) and not n.decorator_list}


def test_stub_parameters_are_those_of_the_functions():
    """Every parameter that a stub names is one that the function takes by that name."""
    checked = 0
    for name, node in definitions(ROOT / "ops" / "__init__.pyi").items():
        function = getattr(disttorch.ops, name)
        op = getattr(function, "op", None)
        parameters = inspect.signature(function).parameters
        if op is None and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue  # takes names that it does not list
        real = op.params if op else list(parameters)
        stubbed = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert set(stubbed) <= {"out", "axis", "keepdims", *real}, name
        assert [p for p in stubbed if p in real] == [p for p in real if p in stubbed], name
        checked += 1
    assert checked > 300


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """A function that checks a script and returns mypy's lines."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    folder = tmp_path_factory.mktemp("mypy")

    def check(text: str) -> list[str]:
        script = folder / "script.py"
        script.write_text(text)
        options = ["--config-file", "", "--follow-imports", "silent", "--ignore-missing-imports",
                   "--cache-dir", str(folder / "cache")]
        command = [sys.executable, "-m", "mypy", *options, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "error:" in line]

    return check


def test_correct_script_passes_mypy(mypy):
    assert mypy(CORRECT) == []


def test_wrong_lines_are_refused_by_mypy(mypy):
    """One run for all: each wrong line has its error, and no other line has one."""
    start = len(CORRECT.splitlines()) + 1
    errors = mypy(CORRECT + "\n".join(WRONG) + "\n")
    by_line = {int(e.split(":")[1]): e for e in errors}
    for at, (line, kinds) in enumerate(WRONG.items(), start):
        assert at in by_line, f"accepted: {line}"
        assert any(f"[{k}]" in by_line[at] for k in kinds.split("|")), by_line[at]
    assert len(by_line) == len(WRONG)
