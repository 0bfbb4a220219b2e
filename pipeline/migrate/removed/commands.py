"""Finds the flags of trtexec and Polygraphy that TensorRT no longer takes: in scripts and in their strings.

Lines are taken apart by patterns, not by a shell's grammar: a command reaches from the tool's name, or a
variable named after it (`$TRTEXEC`), to the next `;`, `|`, `&&` or the end of the line. A line that ends in a
backslash goes on, as does one that is followed by lines that begin with a flag (an item of a YAML list, say).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trtq.pipeline.migrate.removed.names import POLYGRAPHY, TRTEXEC, Removed
from trtq.pipeline.migrate.removed.scopes import read_dotted


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A use of something that TensorRT removed.

    Attributes:
        line: From 1.
        column: From 1.
        removed: What is used.
        guarded: It runs only on a TensorRT that has it.
    """

    line: int
    column: int
    removed: Removed
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    flags: Mapping[str, Removed]

    def calls(self, text: str) -> Iterator[int]:
        """Yields where the text calls the tool: the place after its name."""
        pattern = (
            rf"(?:^|(?<=[\s/\\\"'`=(\[@,])){self.name}(?:\.exe)?(?=$|[\s\"'`,)\]\\])"
            rf"|\$[({{]?\w*{self.name}\w*[)}}]?"
            rf"|(?<=\{{)[\w.]*{self.name}\w*(?=\}})"  # a variable in an f-string
        )
        for found in re.finditer(pattern, text, re.IGNORECASE):
            yield found.end()


_TOOLS = (_Tool("trtexec", TRTEXEC), _Tool("polygraphy", POLYGRAPHY))
_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
_END_OF_COMMAND = re.compile(r"&&|;|\||\s&\s")
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
_BEGINS_WITH_FLAG = re.compile(r"\s*(?:-\s+)?[\"'\[]*--[A-Za-z]")
_DEFINES_OPTIONS = frozenset({"add_argument", "add_option", "argument", "option"})

_Piece = tuple[int, int, str]
"""A part of a command on one line: the line and the column, from 1, and the text."""


def search_text(lines: list[str]) -> list[Use]:
    """Returns the uses in a shell script, a Makefile, a Dockerfile or a YAML file."""
    found = (use for pieces in _logical_lines(lines) for use in _in_command(pieces))
    return list(dict.fromkeys(found))


def search_statements(tree: ast.Module, lines: list[str]) -> list[Use]:
    """Returns the uses in the strings of a Python script: of each statement that names the tool.

    A variable that holds a command makes a statement of every statement that it is used in.
    """
    found: dict[Use, None] = {}
    for tool in _TOOLS:
        for unit in _commands(tree.body, tool, set()):
            for node in _strings(unit):
                found.update(dict.fromkeys(_in_string(node, lines, tool)))
    return list(found)


def _logical_lines(lines: list[str], first: int = 1, column: int = 1) -> Iterator[list[_Piece]]:
    pieces: list[_Piece] = []
    goes_on = False
    for number, whole in enumerate(lines, first):
        text = _COMMENT.sub("", whole)
        if goes_on and not text.strip():  # a comment between the lines of a command
            continue
        if pieces and not goes_on and not (_BEGINS_WITH_FLAG.match(text) and _calls_a_tool(pieces)):
            yield pieces
            pieces = []
        pieces.append((number, column if number == first else 1, text))
        goes_on = text.rstrip().endswith("\\")
    yield pieces


def _calls_a_tool(pieces: list[_Piece]) -> bool:
    return any(True for _, _, text in pieces for tool in _TOOLS for _ in tool.calls(text))


def _in_command(pieces: list[_Piece], tools: Iterable[_Tool] = _TOOLS) -> Iterator[Use]:
    """Yields the uses in one logical line, which calls tools or does not."""
    text = "\n".join(piece for _, _, piece in pieces)
    for tool in tools:
        for start in tool.calls(text):
            end = _END_OF_COMMAND.search(text, start)
            command = text[start : end.start() if end else len(text)]
            for flag in _FLAG.finditer(command):
                if flag.group() in tool.flags:
                    yield Use(*_place(pieces, start + flag.start()), tool.flags[flag.group()])


def _place(pieces: list[_Piece], offset: int) -> tuple[int, int]:
    for line, column, text in pieces:
        if offset <= len(text):
            return line, column + offset
        offset -= len(text) + 1
    raise AssertionError("the offset lies in the text of the pieces")


def _commands(body: Iterable[ast.AST], tool: _Tool, holders: set[str]) -> Iterator[ast.AST]:
    """Yields the statements, and heads of compound ones, that name the tool or a variable with its command.

    Args:
        body: Statements.
        tool: The tool.
        holders: The variables that hold one of its commands; what is assigned here is added.
    """
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _commands(node.body, tool, set(holders))
            continue
        inner = [child for child in ast.iter_child_nodes(node) if _has_statements(child)]
        head = (
            [child for child in ast.iter_child_nodes(node) if not _has_statements(child)] if inner else [node]
        )
        for unit in head:
            if _is_prose(unit):
                continue
            if _names_tool(unit, tool, holders):
                yield unit
                holders.update(_targets(unit))
            elif not isinstance(unit, ast.AugAssign):
                holders.difference_update(_targets(unit))
        yield from _commands(inner, tool, holders)


def _has_statements(node: ast.AST) -> bool:
    return isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case))


def _is_prose(node: ast.AST) -> bool:
    """Returns whether it is a docstring, an error message, or defines an option of the script's own."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    value = node.value if isinstance(node, ast.Expr) else node
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Attribute) and value.func.attr in _DEFINES_OPTIONS
    return isinstance(value, ast.Constant)


def _names_tool(unit: ast.AST, tool: _Tool, holders: set[str]) -> bool:
    for node in ast.walk(unit):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if tool.name in name.lower() or (read_dotted(node) in holders and not _is_reset(node, unit)):
                return True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and any(tool.calls(node.value)):
            return True
    return False


def _is_reset(node: ast.AST, unit: ast.AST) -> bool:
    return isinstance(unit, ast.Assign) and node in unit.targets


def _targets(unit: ast.AST) -> Iterator[str]:
    targets = unit.targets if isinstance(unit, ast.Assign) else []
    if isinstance(unit, (ast.AnnAssign, ast.AugAssign)):
        targets = [unit.target]
    for target in targets:
        if name := read_dotted(target):
            yield name


def _strings(unit: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    if isinstance(unit, ast.JoinedStr) or (isinstance(unit, ast.Constant) and isinstance(unit.value, str)):
        yield unit
        return
    for child in ast.iter_child_nodes(unit):
        yield from _strings(child)


def _in_string(node: ast.Constant | ast.JoinedStr, lines: list[str], tool: _Tool) -> Iterator[Use]:
    last = node.end_lineno or node.lineno
    region = lines[node.lineno - 1 : last]
    start = len(lines[node.lineno - 1].encode()[: node.col_offset].decode(errors="replace"))
    end = len(lines[last - 1].encode()[: node.end_col_offset].decode(errors="replace"))
    region[-1] = region[-1][:end]
    region[0] = region[0][start:]
    pieces = [
        (number, start + 1 if number == node.lineno else 1, text)
        for number, text in enumerate(region, node.lineno)
    ]
    if any(tool.calls("\n".join(region))):
        script = any("\n" in str(getattr(part, "value", "")) for part in ast.walk(node))
        whole = _logical_lines(region, node.lineno, start + 1) if script else [pieces]
        for command in whole:
            yield from _in_command(command, (tool,))
        return
    for line, column, text in pieces:
        for flag in _FLAG.finditer(text):
            if flag.group() in tool.flags:
                yield Use(line, column + flag.start(), tool.flags[flag.group()])
