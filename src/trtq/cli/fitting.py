"""A table for narrow terminals: it leaves columns out, and breaks long names where their parts end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_LEAST_FIRST, _LEAST_OTHER = 16, 12
"""Columns that names and other texts get at least, if they are that long."""
_PADDING = 3
_PART, _WORD = re.compile(r"[^./:]*[./:]+|[^./:]+"), re.compile(r"[^_]*_+|[^_]+")
"""A part of a name, such as that of a module or a file, with what ends it, and a word of that."""


class FittingTable(Table):
    """A table whose expendable columns are left out, one by one, until the rest has room.

    Attributes:
        drops: Their headers, in this order.
    """

    drops: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table with the columns that fit."""
        fitting, columns, left_out = copy(self), list(self.columns), []
        for header in self.drops:
            if sum(map(self._find_least, columns)) < options.max_width:
                break
            columns = [column for column in columns if column.header != header]
            left_out.append(header)
        fitting.columns = [
            replace(
                column,
                min_width=self._find_least(column) - _PADDING,
                _index=index,
                _cells=[cell if column.no_wrap else _fold(cell) for cell in column.cells],
            )
            for index, column in enumerate(columns)
        ]
        if named := ", ".join(filter(None, left_out)):
            told = f"a wider terminal also shows {named}"
            fitting.caption = f"{self.caption}; {told}" if self.caption else told
        yield from Table.__rich_console__(fitting, console, options)

    def _find_least(self, column: Column) -> int:
        """Returns the characters that a column needs: numbers whole, of texts a part."""
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        least = _LEAST_FIRST if column is self.columns[0] else _LEAST_OTHER
        return _PADDING + (longest if column.no_wrap else min(longest, least))


def _fold(cell: RenderableType) -> RenderableType:
    """Returns a cell that is folded to fit its column: a name, which has no spaces, as such."""
    return _Name(cell) if isinstance(cell, str) and " " not in cell else cell


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that is folded behind its parts, so that it can be read; nothing of it is left out."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the name in as many lines as it takes."""
        whole = console.render_str(self.text, markup=False, highlight=False)
        yield Text("\n".join(_break(whole.plain, options.max_width)), overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Returns what it needs at least, and what a single line takes."""
        whole = console.render_str(self.text, markup=False, highlight=False).cell_len
        return Measurement(min(whole, _LEAST_OTHER), whole).with_maximum(options.max_width)


def _break(name: str, width: int) -> Iterator[str]:
    """Yields the lines of a name, each with as many parts as fit; those that do not are cut."""
    line, parts = "", _PART.findall(name)
    words = ([part] if cell_len(part) <= width else _WORD.findall(part) for part in parts)
    for part in chain.from_iterable(words):
        if cell_len(line + part) > width:
            *lines, line = [line, *chop_cells(part, width)] if line else chop_cells(part, width)
            yield from lines
        else:
            line += part
    yield line
