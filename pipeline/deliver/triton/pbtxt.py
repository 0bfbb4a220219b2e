"""Protobuf's text format, as far as Triton's `config.pbtxt` uses it: written, and read from other hands.

Source: the text format specification of Protocol Buffers (protobuf.dev). Extensions and the short forms of
`Any` are left out: Triton's configuration has none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from trtq.errors import ArtifactError

_TOKEN = re.compile(
    r"""(?P<skip> \s+ | \#[^\n]* )
      | (?P<text> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
      | (?P<word> [A-Za-z_]\w* )
      | (?P<number> [-+]? (?: 0[xX][0-9a-fA-F]+ | (?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]? ) )
      | (?P<mark> [{}<>\[\]:,;] )""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}
_MOST_DEEP = 100
"""Messages within messages, as protobuf itself takes them."""


class Word(str):
    """The name of an enumeration's value: it stands without quotes."""

    __slots__ = ()


Value: TypeAlias = "str | int | float | bool | Mapping[str, Value] | Sequence[Value]"
Message: TypeAlias = Mapping[str, Value]
Read: TypeAlias = "dict[str, list[str | int | float | bool | Read]]"
"""A message as it was read: every field is a list, as one that stands once may stand several times."""


def to_text(message: Message, indent: str = "") -> str:
    """Returns a message in the text format: a sequence is a repeated field, an empty one is left out."""
    lines = []
    for name, value in message.items():
        if isinstance(value, Mapping):
            lines.append(_block(name, value, indent))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if value and all(isinstance(item, Mapping) for item in value):
                lines.extend(_block(name, item, indent) for item in value if isinstance(item, Mapping))
            elif value:
                lines.append(f"{indent}{name}: [{', '.join(_scalar(item) for item in value)}]\n")
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _block(name: str, value: Message, indent: str) -> str:
    inner = to_text(value, indent + "  ")
    return f"{indent}{name} {{\n{inner}{indent}}}\n" if inner else f"{indent}{name} {{}}\n"


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def parse(text: str, where: str) -> Read:
    """Returns the message that a text holds.

    Args:
        text: In the text format.
        where: Its name, for messages.

    Raises:
        ArtifactError: It is not in the text format; the line is named.
    """
    tokens = _Tokens(text, where)
    message = _message(tokens, "", 0)
    tokens.take("")
    return message


class _Tokens:
    """The tokens of a text, one after another; the last one is empty."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._items: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            line = text.count("\n", 0, position) + 1
            if found is None:
                raise ArtifactError(f"{where}, line {line}: {text[position : position + 20]!r} is no pbtxt")
            if found.lastgroup != "skip":
                self._items.append((str(found.lastgroup), found[0], line))
            position = found.end()
        self._items.append(("end", "", text.count("\n") + 1))
        self._next = 0

    @property
    def kind(self) -> str:
        """The next token's kind: text, word, number, mark, end."""
        return self._items[self._next][0]

    @property
    def now(self) -> str:
        """The next token."""
        return self._items[self._next][1]

    def take(self, wanted: str | None = None) -> str:
        """Returns the next token and goes on; refuses another one than is wanted."""
        _, token, line = self._items[self._next]
        if wanted is not None and token != wanted:
            shown = repr(token) if token else "the end"
            raise ArtifactError(
                f"{self._where}, line {line}: expected {wanted!r}, found {shown}"
                if wanted
                else f"{self._where}, line {line}: {shown} closes nothing"
            )
        self._next += 1
        return token

    def refuse(self) -> ArtifactError:
        """Returns the error that the next token cannot stand here."""
        _, token, line = self._items[self._next]
        return ArtifactError(f"{self._where}, line {line}: {token!r} cannot stand here")


def _message(tokens: _Tokens, end: str, depth: int) -> Read:
    if depth > _MOST_DEEP:
        raise tokens.refuse()
    found: Read = {}
    while tokens.now != end and tokens.kind == "word":
        name = tokens.take()
        values = found.setdefault(name, [])
        if tokens.now == ":":
            tokens.take()
        elif tokens.now not in ("{", "<", "["):
            raise tokens.refuse()
        if tokens.now == "[":
            tokens.take()
            while tokens.now != "]":
                values.append(_value(tokens, depth))
                if tokens.now != "]":
                    tokens.take(",")
            tokens.take()
        else:
            values.append(_value(tokens, depth))
        if tokens.now in (",", ";"):
            tokens.take()
    return found


def _value(tokens: _Tokens, depth: int) -> str | int | float | bool | Read:
    kind, token = tokens.kind, tokens.now
    if token in _CLOSING:
        tokens.take()
        inner = _message(tokens, _CLOSING[token], depth + 1)
        tokens.take(_CLOSING[token])
        return inner
    if kind == "text":
        parts = []
        while tokens.kind == "text":  # strings that follow each other are one
            try:
                parts.append(str(ast.literal_eval(tokens.now)))
            except SyntaxError as error:  # an escape that is none
                raise tokens.refuse() from error
            tokens.take()
        return "".join(parts)
    if kind == "word":
        word = tokens.take()
        return word == "true" if word in ("true", "false") else Word(word)
    if kind == "number":
        return _number(tokens.take())
    raise tokens.refuse()


def _number(token: str) -> int | float:
    try:
        return int(token, 16) if "x" in token.lower() else int(token)
    except ValueError:
        return float(token.rstrip("fF"))
