"""The text table of profiler events, in PyTorch's columns."""

from __future__ import annotations

from .events import as_time


def as_memory(count: int) -> str:
    """Bytes with a fitting unit."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _cut(text: str, width: int) -> str:
    return text if width < 0 or len(text) <= width else text[: width - 3] + "..."


def _share(part: float, total: float) -> str:
    return f"{100 * part / total if total else 0:.2f}%"


def _columns(rows, total, shows, name_width, shapes_width, source_width):
    """(title, function of a row, aligned left?) of each column to show."""
    yield "Name", lambda e: _cut(e.key, name_width), True
    yield "Self CPU %", lambda e: _share(e.self_cpu_time_total, total), False
    yield "Self CPU", lambda e: as_time(e.self_cpu_time_total), False
    yield "CPU total %", lambda e: _share(e.cpu_time_total, total), False
    yield "CPU total", lambda e: as_time(e.cpu_time_total), False
    yield "CPU time avg", lambda e: as_time(e.cpu_time), False
    if shows["device"]:
        yield "CUDA total", lambda e: as_time(e.device_time_total), False
        yield "CUDA time avg", lambda e: as_time(e.device_time_total / e.count), False
    if shows["memory"]:
        yield "CPU Mem", lambda e: as_memory(e.cpu_memory_usage), False
        if shows["device"]:
            yield "CUDA Mem", lambda e: as_memory(e.device_memory_usage), False
    yield "# of Calls", lambda e: str(e.count), False
    if any(e.input_shapes for e in rows):
        yield "Input Shapes", lambda e: _cut(str(e.input_shapes), shapes_width), True
    if any(e.stack for e in rows):
        yield "Source Location", lambda e: _cut("; ".join(e.stack), source_width), True
    if shows["flops"]:
        yield "Total MFLOPs", lambda e: f"{e.flops / 1e6:.3f}" if e.flops else "--", False


def build_table(rows, total, shows, header, name_width, shapes_width, source_width) -> str:
    """Lay the rows out under their titles, with the total time below."""
    columns = list(_columns(rows, total, shows, name_width, shapes_width, source_width))
    cells = [[title for title, _, _ in columns]]
    cells += [[text(row) for _, text, _ in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, (_, _, left) in zip(line, widths, columns)
        )
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    top = [header] if header else []
    return "\n".join(
        [*top, rule, lines[0], rule, *lines[1:], rule, f"Self CPU time total: {as_time(total)}", ""]
    )
