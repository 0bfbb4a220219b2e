"""Settings as the tables of a TOML file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from textwrap import wrap
from typing import Any, TypeVar

from trtq.errors import UsageError
from trtq.models.option import Kind, list_kinds, list_options
from trtq.models.spec import ModelSpec

T = TypeVar("T")
_WIDTH = 108
_TYPES: Mapping[type, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float), bool: (bool,)}
_WORDS = {str: "string", int: "whole number", float: "number", bool: "boolean"}


def read_table(settings: type[T], table: object, where: str) -> T:
    """Returns a settings dataclass from a TOML table; unknown keys and wrong kinds are errors."""
    kinds = list_kinds(settings)
    return create_settings(settings, check_table(table, kinds, where), where)


def check_table(table: object, kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """Returns the values of a TOML table, lists as tuples.

    Raises:
        UsageError: It is no table, or it has a key without a kind, or a value of another kind.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{where} must be a section, got {table!r}")
    for key, value in table.items():
        if key not in kinds:
            raise UsageError(f"{where} has no key {key!r}; its keys are {', '.join(kinds)}")
        if not _fits(value, kinds[key]):
            raise UsageError(f"{where} {key} must be {_name(kinds[key])}, got {value!r}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def create_settings(settings: type[T], values: Mapping[str, Any], where: str) -> T:
    """Returns a settings dataclass of these values.

    Raises:
        UsageError: A value is out of bounds, or one without a default is missing.
    """
    try:
        return settings(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except TypeError as error:
        known = ", ".join(list_kinds(settings))
        raise UsageError(f"{where} is incomplete: {error}; its keys are {known}") from error


def _fits(value: object, kind: Kind) -> bool:
    if isinstance(value, list) != kind.is_list:
        return False
    items = value if isinstance(value, list) else [value]
    return all(type(item) in _TYPES[kind.type] and _is_usual(item) for item in items)  # a bool is no number


def _is_usual(value: object) -> bool:
    """Returns whether a number is finite, and a whole one in TOML's range, 64 bits."""
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return not isinstance(value, float) or math.isfinite(value)


def _name(kind: Kind) -> str:
    return f"a list of {_WORDS[kind.type]}s" if kind.is_list else f"a {_WORDS[kind.type]}"


def format_spec(spec: ModelSpec) -> str:
    """Returns the text that `read_spec` reads as these settings; what is the default is left out."""
    spec = spec.shown
    sections = {f"inputs.{_quote(name)}": _values(item.first) for name, item in spec.inputs.items()}
    for item in fields(ModelSpec):
        if item.name not in ("inputs", "file"):
            settings = getattr(spec, item.name)
            usual = _values(type(settings)())
            values = {key: value for key, value in _values(settings).items() if value != usual.get(key)}
            sections |= {item.name: values} if values else {}
    further = {f"[inputs.{_quote(name)}.profiles]": item.profiles for name, item in spec.inputs.items()}
    tables = [
        *sections.items(),
        *((name, _values(item)) for name, items in further.items() for item in items),
    ]
    return "\n".join(text for name, values in tables for text in _lines(name, values))


def format_commented(spec: ModelSpec, sections: Mapping[str, str], *head: str) -> str:
    """Returns the text of some sections with every key explained; those with their default are comments.

    Args:
        spec: The settings.
        sections: By the fields of `ModelSpec`, what is said above each; "inputs" is always among the text.
        head: The lines above all, without their marks.
    """
    spec, lines = spec.shown, [f"# {line}" for line in head]
    for name, item in spec.inputs.items():
        lines += [
            "",
            "# The sizes of this input: the least, the usual and the most.",
            f"[inputs.{_quote(name)}]",
        ]
        lines += list(_lines("", _values(item.first)))[1:-1]
    for name, text in sections.items():
        lines += ["", *(f"# {line}" for line in wrap(text, _WIDTH)), f"[{name}]"]
        lines += _explain(getattr(spec, name))
    return "\n".join(lines) + "\n"


def _explain(settings: Any) -> Iterator[str]:
    """Yields each key of a section with what it means."""
    usual = _values(type(settings)())
    for name, option in list_options(type(settings)).items():
        value = getattr(settings, name)
        is_given = value != usual[name]
        yield from (f"# {line}" for line in wrap(f"{name}: {option.help}", _WIDTH))
        if is_given:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
        elif value is not None:
            yield f"# {name} = {json.dumps(value, ensure_ascii=False)}"


def _values(settings: Any) -> dict[str, Any]:
    """Returns the keys of a section with their values; parameters of a method are keys of their own."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    parameters = values.pop("parameters", {})
    return {**values, **parameters}


def _lines(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a section."""
    yield f"[{name}]"
    for key, value in values.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"  # TOML writes these as JSON does
    yield ""


def _quote(name: str) -> str:
    bare = name and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if bare else json.dumps(name, ensure_ascii=False)
