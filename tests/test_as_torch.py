"""``python -m disttorch script.py``: scripts written for torch, run by a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-m", "disttorch", *arguments], capture_output=True,
                          text=True, cwd=cwd, env=env, timeout=100, check=False)


def script(folder, text, name="job.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_one_module_under_two_names(tmp_path):
    path = script(tmp_path, """
import sys
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim
import torch.backends.cudnn as cudnn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.checkpoint import checkpoint
from torch.autograd import Function
import disttorch
assert torch is disttorch and nn is disttorch.nn and F is disttorch.nn.functional
assert sys.modules["torch.nn.functional"] is F and isinstance(nn.Linear(1, 1), disttorch.nn.Module)
assert disttorch.__spec__.name == "disttorch" and disttorch.nn.__spec__.name == "disttorch.nn"
model = nn.Linear(2, 1)
data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)
step = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in data:
    step.zero_grad()
    F.mse_loss(checkpoint(model, x, use_reentrant=False), y).backward()
    step.step()
print("done", __name__, sys.argv[1:], __file__, sys.path[0])
""")
    got = run(path, "--lr", "3", cwd=tmp_path)
    assert got.returncode == 0, got.stderr
    assert got.stdout.split("done ")[1].strip() == (
        f"__main__ ['--lr', '3'] {path} {os.path.realpath(tmp_path)}"
    )


def test_neighbouring_modules_and_pickles_of_main(tmp_path):
    script(tmp_path, "import torch\ndef double(t): return t * 2\n", "helper.py")
    path = script(tmp_path, """
import pickle, torch
from helper import double
class Box:
    def __init__(self): self.t = double(torch.ones(2))
print(pickle.loads(pickle.dumps(Box())).t.tolist())
""")
    got = run(path, cwd="/")
    assert got.returncode == 0, got.stderr
    assert got.stdout.strip() == "[2.0, 2.0]"


def test_names_we_lack(tmp_path):
    path = script(tmp_path, """
import torch
for code in ("torch.no_such", "import torch.no_such", "from torch import no_such",
             "from torch.nn import NoSuch", "import torch.nn.no_such"):
    try:
        exec(code)
    except (AttributeError, ImportError) as error:
        print(type(error).__name__, "disttorch" in str(error))
    else:
        print("no error from", code)
""")
    got = run(path, cwd=tmp_path)
    assert got.returncode == 0, got.stderr
    assert got.stdout.split("\n")[:-1] == [
        "AttributeError True", "ModuleNotFoundError True", "ImportError True", "ImportError True",
        "ModuleNotFoundError True"]


def test_tracebacks_and_exit_codes_as_python_gives_them(tmp_path):
    for text, code in (("def f():\n    raise ValueError('boom')\nf()\n", 1),
                       ("import sys\nsys.exit(7)\n", 7), ("raise SystemExit('bye')\n", 1),
                       ("x = (\n", 1), ("print('fine')\n", 0)):
        path = script(tmp_path, text)
        ours = run(path, cwd=tmp_path)
        plain = subprocess.run([sys.executable, path], capture_output=True, text=True,
                               cwd=tmp_path, timeout=60, check=False)
        assert ours.returncode == plain.returncode == code
        assert ours.stdout == plain.stdout
        assert ours.stderr == plain.stderr


def test_modules_code_and_usage(tmp_path):
    script(tmp_path, "import sys, torch\nprint(torch.ones(1).item(), sys.argv[1:])\n", "mod.py")
    assert run("-m", "mod", "a", cwd=tmp_path).stdout == "1.0 ['a']\n"
    assert run("-c", "import torch, sys; print(torch.ones(2).sum().item(), sys.argv)", "b",
               cwd=tmp_path).stdout == "2.0 ['-c', 'b']\n"
    missing = run("nowhere.py", cwd=tmp_path)
    assert missing.returncode == 2 and "can't open file" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run(cwd=tmp_path).returncode == 2
    assert run("--what", cwd=tmp_path).returncode == 2
    assert run("--help", cwd=tmp_path).returncode == 0


def test_processes_started_by_the_script_have_torch_too(tmp_path):
    path = script(tmp_path, """
import multiprocessing, subprocess, sys
import torch
def work(n):
    return torch.ones(n).sum().item()
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [2, 3]))
    code = "import torch, disttorch; from torch import nn; print(torch is disttorch)"
    subprocess.run([sys.executable, "-c", code], check=True)
""")
    got = run(path, cwd=tmp_path, PYTHONUNBUFFERED="1")
    assert got.returncode == 0, got.stderr
    assert got.stdout == "[2.0, 3.0]\nTrue\n"
