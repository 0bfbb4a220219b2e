"""The console of rich, with the control characters of names written out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from trtq.cli.escape import escape


class EscapingConsole(Console):
    """A console that prints `\\x1b` for ESC, and so on; its own colors stay.

    Strings are escaped before they are measured, whatever else is printed right before it is laid out.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns the text of a string, escaped."""
        return super().render_str(escape(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields the pieces of what is printed, escaped."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(escape(piece.text), piece.style)
