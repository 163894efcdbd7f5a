"""The tables and the picture of benchmarks/ddp.py."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._ddp_common import CASES, DISTURBED, volume

Row = dict[str, Any]
TARGET = 0.85  # of torch's step time


def figures(samples: dict) -> list[Row]:
    """One row per library, model, number of ranks and mode."""
    rows = []
    for (library, model, ranks, mode), found in samples.items():
        rounds, counted, calm = found["rounds"], *undisturbed(found["samples"])
        seconds = [each for one in counted for each in one["seconds"]]
        row = {
            "model": model, "ranks": ranks, "mode": mode, "library": library,
            "batch_per_rank": rounds[-1]["batch"],
            "ms": statistics.median(seconds) * 1e3,
            "least_ms": min(each for one in found["samples"] for each in one["seconds"]) * 1e3,
            "cpu_ms": statistics.median(one["cpu"] for one in found["samples"]) * 1e3,
            "steps": len(seconds),
            "samples": len(counted),
            "left_out": len(found["samples"]) - len(counted),
            "calm": calm,
            "sent_bytes": statistics.median(one["sent"] for one in counted),
            "theory_bytes": volume(mode, rounds[-1]["parameters"], ranks),
            "comm_ms": _median(rounds, "comm_ms"),
            "overlap": _median(rounds, "overlap"),
        }  # fmt: skip
        rows.append(row)
    for row in rows:
        row["ratio"] = _ratio(row, find(rows, row, library="torch"), "ms")
        row["cpu_ratio"] = _ratio(row, find(rows, row, library="torch"), "cpu_ms")
        row["over_alone"] = _above(row, find(rows, row, ranks=1, mode="alone"))
        row["over_beside"] = _above(row, find(rows, row, mode="alone"))
    return rows


def undisturbed(samples: list[dict]) -> tuple[list[dict], bool]:
    """The samples that count, and whether nobody disturbed them: else the least disturbed third."""
    calm = [one for one in samples if one["others"] <= DISTURBED]
    if len(calm) >= 3:
        return calm, True
    return sorted(samples, key=lambda one: one["others"])[: max(3, len(samples) // 3)], False


def find(rows: list[Row], like: Row, **other: Any) -> Row | None:
    """The row of the same model, ranks, mode and library as `like`, but for what is given."""
    keys = {key: like[key] for key in ("model", "ranks", "mode", "library")} | other
    return next((row for row in rows if all(row[key] == value for key, value in keys.items())), None)


def _median(rounds: list[dict], name: str) -> float | None:
    values = [one[name] for one in rounds if name in one]
    return statistics.median(values) if values else None


def _ratio(row: Row, other: Row | None, of: str) -> float | None:
    return None if other is None or row["library"] == "torch" else row[of] / other[of]


def _above(row: Row, base: Row | None) -> float | None:
    if base is None or row is base or row["batch_per_rank"] != base["batch_per_rank"]:
        return None
    return row["ms"] / base["ms"] - 1


# ---- text --------------------------------------------------------------------------------------------


def table(rows: list[Row], versions: dict[str, str], load: tuple[float, float]) -> str:
    """The text that is printed and saved."""
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{os.cpu_count()} cores (load before {load[0]:.1f}, after {load[1]:.1f}), float32, one thread "
        f"a rank; {names}",
        "ms: median step of the slowest rank (the fastest step in brackets); cpu: time of a rank's",
        "threads, which other programs change less; over alone, beside: ms above a step of one process,",
        "of as many without reduction; sent: MB per step and rank, counted, and the least; overlap:",
        "share of the reduction's time before the last gradient",
    ]
    if not all(row["calm"] for row in rows):
        lines.append("*: other programs used the cores meanwhile; the least disturbed samples count")
    if "torch" not in versions:
        lines.append("torch: not measured")
    for ranks in sorted({row["ranks"] for row in rows}):
        lines += ["", f"{ranks} rank{'s' * (ranks > 1)}, the batch per rank as in the title"]
        lines.append(_columns("model", "mode", "library", HEADS))
        for row in rows:
            if row["ranks"] == ranks and not row["mode"].endswith("strong"):
                lines.append(_line(row))
    lines += ["", *scaling(rows), "", *verdict(rows)]
    return "\n".join(lines) + "\n"


HEADS = (
    "ms", "(least)", "/ torch", "cpu ms", "/ torch", "over alone", "beside", "sent", "least", "overlap",
)  # fmt: skip


def _columns(model: str, mode: str, library: str, cells: Sequence[str]) -> str:
    widths = (9, 10, 9, 9, 9, 12, 9, 8, 8, 9)
    return f"{model:30s}{mode:>6s}  {library:16s}" + "".join(
        f"{cell:>{width}s}" for cell, width in zip(cells, widths, strict=True)
    )


def _line(row: Row) -> str:
    def cell(value: float | None, form: str, shown: bool = True) -> str:
        return "-" if value is None or not shown else format(value, form)

    several = row["ranks"] > 1
    cells = (
        _ms(row), f"({row['least_ms']:.2f})", cell(row["ratio"], ".2f"),
        f"{row['cpu_ms']:.2f}", cell(row["cpu_ratio"], ".2f"),
        cell(row["over_alone"], "+.0%", several), cell(row["over_beside"], "+.0%"),
        cell(row["sent_bytes"] / 1e6, ".2f", several), cell(row["theory_bytes"] / 1e6, ".2f", several),
        cell(row["overlap"], ".0%"),
    )  # fmt: skip
    return _columns(CASES[row["model"]].title, row["mode"], row["library"], cells)


def _ms(row: Row) -> str:
    return f"{row['ms']:.2f}" + (" " if row["calm"] else "*")


def scaling(rows: list[Row]) -> list[str]:
    """t(1)/t(n) where the batch per rank stays (weak) and where the whole batch does (strong)."""
    lines = ["scaling of DDP: weak, efficiency t(1)/t(n) | strong, speed-up t(1)/t(n)"]
    worlds = sorted({row["ranks"] for row in rows} - {1})
    lines.append(f"{'model':30s}{'library':16s}" + "".join(f"{f'{n} ranks':>20s}" for n in worlds))
    for base in rows:
        if base["ranks"] != 1 or base["mode"] != "alone":
            continue
        cells = []
        for n in worlds:
            weak, strong = (find(rows, base, ranks=n, mode=mode) for mode in ("ddp", "ddp strong"))
            pair = [f"{base['ms'] / row['ms']:.2f}" if row else "-" for row in (weak, strong)]
            cells.append(f"{pair[0] + ' | ' + pair[1]:>20s}")
        lines.append(f"{CASES[base['model']].title:30s}{base['library']:16s}" + "".join(cells))
    return lines


def verdict(rows: list[Row]) -> list[str]:
    """Which figures reach the target."""
    compared = [row for row in rows if row["ratio"] and row["mode"] in ("ddp", "fsdp")]
    if not compared:
        return []
    missed = [
        f"{row['model']} {row['mode']} at {row['ranks']} ({row['ratio']:.2f})"
        for row in compared
        if row["ratio"] > TARGET
    ]
    return [
        f"step time at most {TARGET} of torch's: {len(compared) - len(missed)} of {len(compared)}"
        + (f"; not {', '.join(missed)}" if missed else "")
    ]


# ---- files -------------------------------------------------------------------------------------------


def save(rows: list[Row], text: str, name: Path) -> None:
    """Write `name`.txt, .csv and .png."""
    name.parent.mkdir(exist_ok=True)
    name.with_suffix(".txt").write_text(text)
    with open(name.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    plot(rows, name.with_suffix(".png"))


def plot(rows: list[Row], file: Path) -> None:
    """A column per model: step times; weak and strong scaling."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    most = max(row["ranks"] for row in rows)
    figure, panels = pyplot.subplots(
        3, len(models), figsize=(1 + 3.6 * len(models), 9), squeeze=False, layout="constrained"
    )
    for column, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model]
        _bars(panels[0][column], mine, libraries, most)
        panels[0][column].set_title(CASES[model].title, fontsize=10)
        _scaling(panels[1][column], mine, libraries, "ddp", "weak: samples per second")
        _scaling(panels[2][column], mine, libraries, "ddp strong", "strong: samples per second")
    panels[0][0].legend(fontsize=8)
    panels[1][0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _bars(panel: Any, rows: list[Row], libraries: list[str], ranks: int) -> None:
    modes = [mode for mode in ("alone", "ddp", "fsdp") if any(row["mode"] == mode for row in rows)]
    width = 0.8 / len(libraries)
    for k, library in enumerate(libraries):
        found = {
            row["mode"]: row["ms"]
            for row in rows
            if row["library"] == library and row["ranks"] == ranks
        }
        places = [i + k * width for i in range(len(modes))]
        panel.bar(places, [found.get(mode, 0) for mode in modes], width, label=library)
    panel.set_xticks([i + (len(libraries) - 1) * width / 2 for i in range(len(modes))], modes)
    panel.set_ylabel(f"ms per step, {ranks} ranks")
    panel.grid(alpha=0.3, axis="y")


def _scaling(panel: Any, rows: list[Row], libraries: list[str], mode: str, label: str) -> None:
    for library in libraries:
        points = sorted(
            (row["ranks"], row["ranks"] * row["batch_per_rank"] / row["ms"] * 1e3)
            for row in rows
            if row["library"] == library and (row["mode"] == mode or row["ranks"] == 1)
            and (row["mode"] in (mode, "alone"))
        )  # fmt: skip
        if points:
            (line,) = panel.plot(*zip(*points), marker="o", label=library)
            ideal = [(n, n * points[0][1]) for n, _ in points]
            panel.plot(*zip(*ideal), color=line.get_color(), linestyle=":", alpha=0.6)
    panel.set(xlabel="ranks (dotted: ideal)", ylabel=label, ylim=(0, None))
    panel.set_xticks(sorted({row["ranks"] for row in rows}))
    panel.grid(alpha=0.3)
