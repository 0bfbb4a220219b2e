"""Settings that are options of the command line: fields of dataclasses, with the docstring as their help."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from inspect import cleandoc
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is given on the command line.

    Attributes:
        name: Such as "--calib-data".
        metavar: What stands for the value in the help; empty: its type.
        is_hidden: Whether `--help` leaves it out.
        help: What it does: its text among the attributes in the docstring.
    """

    name: str
    metavar: str = ""
    is_hidden: bool = False
    help: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the value of a setting is: an `int`, `float`, `str` or `bool`, one of `choices`, or a list."""

    type: type
    choices: tuple[str, ...] = ()
    is_list: bool = False


def setting(default: Any, name: str = "", *, metavar: str = "", is_hidden: bool = False) -> Any:
    """Returns the field of a dataclass that has an option; it is named after the field if `name` is empty."""
    return field(default=default, metadata={_KEY: Option(name, metavar, is_hidden)})


def list_options(settings: type) -> dict[str, Option]:
    """Returns the options of a dataclass by field, in their order."""
    texts = _read_attributes(settings)
    found = {}
    for item in fields(settings):
        if _KEY in item.metadata:
            option: Option = item.metadata[_KEY]
            name = option.name or f"--{item.name.replace('_', '-')}"
            found[item.name] = replace(
                option, name=name, help=_add_default(texts.get(item.name, ""), item.default)
            )
    return found


def list_kinds(settings: type) -> dict[str, Kind]:
    """Returns what the values of the fields of a dataclass are."""
    hints = get_type_hints(settings)
    return {item.name: _find_kind(hints[item.name]) for item in fields(settings)}


def _read_attributes(settings: type) -> dict[str, str]:
    """Returns the texts of the attributes in the docstrings of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        section = cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"^    (?=\w+: )", section, flags=re.MULTILINE)[1:]:
            name, _, text = entry.partition(":")
            found[name] = " ".join(text.split())
    return found


def _add_default(text: str, default: object) -> str:
    """Returns the text with the default as click shows it; for none, the text says what holds then."""
    text, _, usual = text.partition(" None: ")
    if not usual and default not in (None, (), False, ""):
        usual = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text}  [default: {usual.removesuffix('.')}]" if usual else text


def _find_kind(hint: Any) -> Kind:
    parts = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    if get_origin(hint) is Literal:
        return Kind(str, tuple(parts))
    if get_origin(hint) is tuple:
        return replace(_find_kind(parts[0]), is_list=True)
    return _find_kind(parts[0]) if parts else Kind(hint)
