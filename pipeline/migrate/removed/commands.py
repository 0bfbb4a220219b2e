"""Finds the flags of trtexec and Polygraphy that TensorRT no longer takes: in scripts and in their strings.

Text is read by patterns, not by a shell's grammar: a command reaches from the tool's name, or a variable
named after it (`$TRTEXEC`), to the next `;`, `|`, `&&` or the end of the line. A line that ends in a
backslash goes on, as does one that is followed by lines that begin with a flag (an item of a YAML list, say).
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from trtq.pipeline.migrate.removed.names import REMOVED, Removed

TOOLS = ("trtexec", "polygraphy")

_CALL = (
    r"(?:(?:^|(?<=[\s/\\\"'`=(\[@,])){0}(?:\.exe)?(?=$|[\s\"'`,)\]\\])"
    r"|\$[({{]?\w*{0}\w*[)}}]?"
    r"|(?<=\{{)[\w.]*{0}\w*(?=\}}))"  # a variable in an f-string
)
_REST = (
    r"((?:\\[ \t]*\n(?:[ \t]*\n)*"  # a backslash, and comments between the lines
    r"|\n(?=[ \t]*(?:-[ \t]+)?[\"'\[]*--[A-Za-z])"  # the next line begins with a flag
    r"|(?!&&|\s&\s)[^\n;|])*)"
)
_CALLS = {tool: re.compile(_CALL.format(tool), re.IGNORECASE | re.MULTILINE) for tool in TOOLS}
_COMMANDS = {tool: re.compile(call.pattern + _REST, call.flags) for tool, call in _CALLS.items()}
_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)


Placed = ast.expr | ast.alias | ast.keyword
"""What has a place in the text."""


@dataclass(frozen=True, slots=True)
class Use:
    """A use of something that TensorRT removed, by line and column (in characters) from 1.

    It is guarded if it runs only on a TensorRT that has what is used.
    """

    line: int
    column: int
    removed: Removed
    guarded: bool = False


class Source:
    """The text of a file, and where its lines begin, as Python counts them."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\r\n?", "\n", text)
        self.lines = self.text.split("\n")
        self._starts = list(accumulate((len(line) + 1 for line in self.lines), initial=0))

    def place(self, offset: int) -> tuple[int, int]:
        """Returns the line and the column of a character, from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def span(self, node: Placed) -> tuple[int, int]:
        """Returns where the text of a node begins and ends, in characters."""
        last, end = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return self._offset(node.lineno, node.col_offset), self._offset(last, end)

    def _offset(self, line: int, num_bytes: int) -> int:
        before = self.lines[line - 1].encode()[:num_bytes]
        return self._starts[line - 1] + len(before.decode(errors="replace"))


def search_text(source: Source) -> list[Use]:
    """Returns the uses in a shell script, a Makefile, a Dockerfile or a YAML file."""
    text = _blank_comments(source.text)
    return [use for tool in TOOLS for use in _search_commands(text, 0, tool, source)]


def search_string(node: ast.Constant | ast.JoinedStr, tool: str, source: Source) -> Iterator[Use]:
    """Yields the uses in a string of Python: in its commands, or anywhere in it if it holds no command."""
    start, end = source.span(node)
    text = _blank_comments(source.text[start:end])
    if not calls_tool(text, tool):
        yield from _search_flags(text, start, tool, source)
        return
    if not any("\n" in str(getattr(part, "value", "")) for part in ast.walk(node)):  # one line in pieces
        text = text.replace("\n", " ")
    yield from _search_commands(text, start, tool, source)


def calls_tool(text: str, tool: str) -> bool:
    """Returns whether a text names the program where a command begins."""
    return _CALLS[tool].search(text) is not None


def _blank_comments(text: str) -> str:
    return _COMMENT.sub(lambda comment: " " * len(comment[0]), text)


def _search_commands(text: str, start: int, tool: str, source: Source) -> Iterator[Use]:
    for command in _COMMANDS[tool].finditer(text):
        yield from _search_flags(command[1], start + command.start(1), tool, source)


def _search_flags(text: str, start: int, tool: str, source: Source) -> Iterator[Use]:
    for flag in _FLAG.finditer(text):
        if removed := REMOVED.get(f"{tool} {flag[0]}"):
            yield Use(*source.place(start + flag.start()), removed)
