"""How the parameters of one unit lie in the flat buffers of its collectives.

A buffer for n ranks has n sections of equal length. Section r holds rank r's part of each parameter,
one after the other, each padded to the length of the longest part:

    | a0 b0 c0 . | a1 b1 c1 . | a2 . b2 . |        (. is padding, or what `extra` asks for)

so one call moves all parameters, and the parts themselves need no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...backend import namespace_of


class Layout:
    """Places of parameters in a flat buffer.

    Args:
        rows_and_widths: of each parameter: how many rows are cut, elements of one row.
        n: ranks. extra: elements at the end of each section for other uses.

    Attributes:
        section: elements of one section; total: of all.
    """

    def __init__(self, rows_and_widths: Sequence[tuple[int, int]], n: int, extra: int = 0) -> None:
        self.n, self.extra = n, extra
        self.sizes = list(rows_and_widths)
        self.per_rank = [-(-rows // n) for rows, _ in self.sizes]
        self.begins, at = [], 0
        for (_, width), per in zip(self.sizes, self.per_rank):
            self.begins.append(at)
            at += per * width
        self.section = at + extra
        self.total = self.section * n

    def own_rows(self, i: int, rank: int) -> tuple[int, int]:
        """(how many rows of parameter i are rank's, the first one)."""
        rows, per = self.sizes[i][0], self.per_rank[i]
        begin = min(per * rank, rows)
        return min(per, rows - begin), begin

    def put_section(self, flat: Any, i: int, part: Any, convert: Any) -> None:
        """Write a rank's part of parameter i (cut dim in front) into a section."""
        width, begin = self.sizes[i][1], self.begins[i]
        count = part.shape[0] * width
        flat[begin : begin + count] = convert(part).reshape(-1)
        flat[begin + count : begin + self.per_rank[i] * width] = 0

    def take_section(self, flat: Any, i: int, rank: int, tail: tuple) -> Any:
        """A view of rank's part of parameter i in its section; `tail`: shape of a row."""
        count, _ = self.own_rows(i, rank)
        begin = self.begins[i]
        return flat[begin : begin + count * self.sizes[i][1]].reshape((count, *tail))

    def put_whole(self, flat: Any, i: int, whole: Any) -> None:
        """Write a whole parameter (cut dim in front) into all sections."""
        (rows, width), begin, per = self.sizes[i], self.begins[i], self.per_rank[i]
        sections = flat.reshape(self.n, self.section)
        if per * self.n == rows:
            sections[:, begin : begin + per * width] = whole.reshape(self.n, per * width)
            return
        for rank in range(self.n):
            count, first = self.own_rows(i, rank)
            used = begin + count * width
            sections[rank, begin:used] = whole[first : first + count].reshape(-1)
            sections[rank, used : begin + per * width] = 0

    def take_whole(self, flat: Any, i: int, tail: tuple) -> Any:
        """A new array of a whole parameter (cut dim in front) from all sections."""
        (rows, width), begin, per = self.sizes[i], self.begins[i], self.per_rank[i]
        sections = flat.reshape(self.n, self.section)
        out = namespace_of(flat).empty((rows, *tail), flat.dtype)
        if per * self.n == rows:
            out.reshape(self.n, per * width)[...] = sections[:, begin : begin + per * width]
            return out
        for rank in range(self.n):
            count, first = self.own_rows(i, rank)
            out[first : first + count] = (
                sections[rank, begin : begin + count * width].reshape((count, *tail))
            )
        return out


__all__ = ["Layout"]
