"""Kinds of machines in the file of `trtq build-all`: the key `on`, and the sections [kind.NAME]."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtq.errors import UsageError
from trtq.pipeline.deliver.names import ENGINE_SUFFIXES

KEY = "on"
_RESOURCES = "resources"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class MachineKind:
    """A kind of machine.

    Attributes:
        name: As `on` has it, and the names of folders.
        resources: Custom resources of Ray that such machines have, all of them.
        options: Of `trtq build`, for what is built there.
    """

    name: str
    resources: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def read_kinds(table: object) -> tuple[dict[str, MachineKind], list[str]]:
    """Returns the kinds that have sections, by name, and what is wrong with these."""
    if not isinstance(table, dict) or not all(isinstance(item, dict) for item in table.values()):
        return {}, ["a kind is a section [kind.NAME], with a name for `on`"]
    problems = [f"[kind.{name}]: {reason}" for name in table for reason in _find_wrong(name, table[name])]
    kinds = {name: _to_kind(name, item) for name, item in table.items()}
    return kinds, problems


def _find_wrong(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield "its name becomes a part of folders' names; use letters, digits, '.', '_' and '-'"
    resources = table.get(_RESOURCES, [name])
    if not isinstance(resources, list) or not resources or not all(_is_word(item) for item in resources):
        yield f"{_RESOURCES} must be a list of names of Ray's custom resources, got {resources!r}"


def _is_word(item: object) -> bool:
    return isinstance(item, str) and bool(item.strip())


def _to_kind(name: str, table: Mapping[str, Any]) -> MachineKind:
    found = table.get(_RESOURCES, [name])
    options = {key: value for key, value in table.items() if key != _RESOURCES}
    return MachineKind(name, tuple(map(str, found)) if isinstance(found, list) else (), options)


def find_kinds(value: object, known: Mapping[str, MachineKind]) -> tuple[MachineKind, ...]:
    """Returns the kinds that a build is for, by its key `on`; one without a section is its own resource.

    Raises:
        UsageError: The key has no names.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(item, str) for item in names):
        raise UsageError(f'{KEY} must be names of kinds of machines, such as ["nvidia-l4"], got {value!r}')
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise UsageError(
            f"{KEY}: {wrong[0]!r} is not a valid kind name; use letters, digits, '.', '_' and '-', and "
            "name other resources in a section [kind.NAME]"
        )
    if len({*names}) < len(names):
        raise UsageError(f"{KEY} names a kind twice: {', '.join(names)}")
    return tuple(known.get(name) or MachineKind(name, (name,)) for name in names)


def name_output(output: Path, kind: str) -> Path:
    """Returns where a build goes on one of several kinds: `a.trtq` becomes `a.KIND.trtq`."""
    suffix = output.suffix if output.suffix in ENGINE_SUFFIXES else ".trtq"
    stem = output.stem if output.suffix in (suffix, ".trtq") else output.name
    return output.with_name(f"{stem}.{kind}{suffix}")


def refuse_unknown_kinds(asked: Collection[str], known: Collection[str]) -> None:
    """Refuses kinds that no build is for.

    Raises:
        UsageError: There is one.
    """
    if unknown := [name for name in asked if name not in known]:
        listed = ", ".join(known) or "none"
        raise UsageError(f"--on {unknown[0]}: no build is for such a machine; the kinds are: {listed}")
