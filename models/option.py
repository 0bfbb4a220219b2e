"""Settings that say how they are given on the command line: fields of dataclasses with an option each."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is given on the command line.

    Attributes:
        help: What it does, in a sentence or two.
        name: Such as "--calib-data".
        metavar: What stands for the value in the help; empty: its type.
        is_hidden: Whether `--help` leaves it out.
    """

    help: str
    name: str = ""
    metavar: str = ""
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """What the value of a setting is: an `int`, `float`, `str` or `bool`, one of `choices`, or a list."""

    type: type
    choices: tuple[str, ...] = ()
    is_list: bool = False


def setting(default: Any, text: str, name: str = "", *, metavar: str = "", is_hidden: bool = False) -> Any:
    """Returns the field of a dataclass that has an option; it is named after the field if `name` is empty."""
    return field(default=default, metadata={_KEY: Option(text, name, metavar, is_hidden)})


def list_options(settings: type) -> dict[str, Option]:
    """Returns the options of a dataclass by field, in their order."""
    found = {item.name: item.metadata[_KEY] for item in fields(settings) if _KEY in item.metadata}
    return {
        name: replace(option, name=option.name or f"--{name.replace('_', '-')}")
        for name, option in found.items()
    }


def list_kinds(settings: type) -> dict[str, Kind]:
    """Returns what the values of the fields of a dataclass are."""
    hints = get_type_hints(settings)
    return {item.name: _find_kind(hints[item.name]) for item in fields(settings)}


def _find_kind(hint: Any) -> Kind:
    parts = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    if get_origin(hint) is Literal:
        return Kind(str, tuple(parts))
    if get_origin(hint) is tuple:
        return replace(_find_kind(parts[0]), is_list=True)
    return _find_kind(parts[0]) if parts else Kind(hint)
