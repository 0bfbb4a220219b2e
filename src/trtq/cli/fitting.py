"""A table that leaves columns out where a terminal is too narrow for it, rather than cutting names."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table

_LEAST_FIRST, _LEAST_OTHER = 16, 12
"""Columns that names and other texts get at least, if they are that long; longer ones are folded."""
_PADDING = 3


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
            replace(column, min_width=self._find_least(column) - _PADDING, _index=index)
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
