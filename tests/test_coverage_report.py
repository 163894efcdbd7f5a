"""The report on covered names tells what is there, what is missing, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

from disttorch.utils.coverage import REASONS, group_of, reason, report, resolves

NAMES = Path(__file__).resolve().parent.parent / "benchmarks" / "torch_names.json"
# Namespaces whose musts are all there
COMPLETE = {"torch.optim", "torch.backends", "torch.linalg", "torch.func", "torch.random",
            "torch.testing", "torch.compiler", "torch.jit", "torch.accelerator", "torch.storage",
            "torch.mps", "torch.mtia", "torch.xpu"}


def test_resolves():
    for name in ("torch.nn.Linear", "Tensor.view", "torch.cuda.is_available",
                 "torch.utils.checkpoint.checkpoint",
                 "torch.backends.cudnn.benchmark"):
        assert resolves(name)
    for name in ("torch.no_such", "Tensor.no_such", "torch.nn.no_such.deeper", "torch.no_such.x"):
        assert not resolves(name)


def test_report_counts_and_lists():
    text, missing = report({"torch.zeros": 5, "torch.no_such": 3, "torch.nor_this": 1,
                            "torch.fx.GraphModule": 1, "Tensor.sum": 1})
    assert missing == ["torch.no_such"]
    assert "1/2 50%" in text and "2/5 40%" in text
    order = [text.index(w) for w in ("torch.nor_this", "left out", "torch.fx.GraphModule")]
    assert order == sorted(order)
    assert group_of("torch.nn.functional.relu") == "torch.nn" and group_of("torch.zeros") == "torch"


def test_reasons_are_not_stale():
    here = [name for name in REASONS if resolves(name)]
    assert not here, f"these exist now: {here}"
    assert reason("torch.fx.Graph.nodes") and reason("torch.zeros") is None


def test_musts_of_complete_namespaces():
    names = json.loads(NAMES.read_text())["names"]
    musts = [n for n, count in names.items() if group_of(n) in COMPLETE and count >= 2]
    gone = [n for n in musts if not reason(n) and not resolves(n)]
    assert musts
    assert not gone
