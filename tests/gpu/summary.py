"""The table of a run of tests/gpu_check.sh, from its folder; exits with 1 if something failed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    counts = [s.strip("= ") for s in lines if re.search(r"\d+ (passed|failed|skipped|error)", s)]
    pace = [re.sub(r".*loss", "loss", s) for s in lines if "tokens/s" in s]
    return (counts or pace or lines or [""])[-1][:90]


def main() -> None:
    folder = Path(sys.argv[1])
    steps = []
    for line in (folder / "summary.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        words = "facts.json" if name == "facts" else last_words(folder / f"{name}.log")
        steps.append({"step": name, "status": int(status), "seconds": int(seconds), "says": words})
    facts = folder / "facts.json"
    found = json.loads(facts.read_text()) if facts.exists() else {}
    (folder / "summary.json").write_text(json.dumps({"steps": steps, "facts": found}, indent=1) + "\n")
    machine = found.get("machine", {})
    for text in (folder / "gpu.txt", folder / "compiled" / "gpu.txt"):
        if text.exists():
            print(text.read_text())
    print(machine.get("gpu", machine) if isinstance(machine, dict) else machine)
    for step in steps:
        state = "ok" if step["status"] == 0 else f"failed ({step['status']})"
        print(f"{step['step']:18} {state:14} {step['seconds']:4} s  {step['says']}")
    sys.exit(any(step["status"] for step in steps))


if __name__ == "__main__":
    main()
