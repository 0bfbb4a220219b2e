"""The settings of a model, read from the `model.toml` beside it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from trtq.calibrators import list_choices
from trtq.errors import UsageError
from trtq.files import read_file, refuse_damage
from trtq.models.address import resolve_address
from trtq.models.option import list_kinds
from trtq.models.spec import CalibrationSpec, InputSpec, ModelSpec, ProfileSpec
from trtq.models.toml import check_table, create_settings, read_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST_PARTS = 200
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"""(?<![\w"'.-])(?:{_PART}[ \t]*\.[ \t]*){{{_MOST_PARTS}}}""", re.ASCII)
"""A key of so many parts that Python's parser, whose time grows with their square, may take minutes."""


def read_spec(path: Path | str) -> ModelSpec:
    """Returns the settings of a TOML file; the data it names is taken relative to the file's folder.

    Raises:
        UsageError: No such file, no TOML, an unknown section or key, a value of the wrong kind.
    """
    path = Path(path)
    table = read_toml(path, "settings")
    try:
        return replace(_make_absolute(_read_sections(table), path.parent), file=str(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Args:
        path: The file.
        what: What it holds, for the message: "settings".

    Raises:
        UsageError: There is no such file, it is no TOML, or it has a key of hundreds of parts or a NUL.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error
    with refuse_damage(UsageError, f"{path} is not valid TOML"):
        text = content.decode("utf-8-sig")  # Notepad writes a mark before it
        if _LONG_KEY.search(text):
            raise UsageError(f"{path} has a key of more than {_MOST_PARTS} parts; remove it")
        table = tomllib.loads(text)
        if _holds_nul(table):
            raise UsageError(f"{path} has the character \\u0000 in a text, which no name may have; remove it")
        return table


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nul, (*value, *value.values())))
    return (
        any(map(_holds_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value
    )


def _read_sections(table: Mapping[str, Any]) -> ModelSpec:
    kinds, sections = get_type_hints(ModelSpec), dict[str, Any]()
    del kinds["file"]  # which file it is, not what is in it
    for name, content in table.items():
        if name not in kinds:
            known = ", ".join(f"[{section}]" for section in kinds)
            raise UsageError(f"unknown section {name!r}; the sections are {known}")
        if not isinstance(content, dict):
            raise UsageError(f"[{name}] must be a section, got {content!r}")
        if name == "inputs":
            sections[name] = {key: _read_input(item, f"inputs.{key}") for key, item in content.items()}
        elif name == "calibration":
            sections[name] = _read_calibration(content)
        else:
            sections[name] = read_table(kinds[name], content, f"[{name}]")
    return ModelSpec(**sections)


def _read_input(table: object, where: str) -> InputSpec:
    """Returns the shapes of an input; without min, opt and max the first of its profiles is the first."""
    tables: Any = ()
    own = table
    if isinstance(table, dict):
        tables = table.get("profiles", ())
        own = {key: value for key, value in table.items() if key != "profiles"}
    tables = tables if isinstance(tables, list | tuple) else [tables]
    profiles = tuple(read_table(ProfileSpec, item, f"[[{where}.profiles]]") for item in tables)
    first, rest = (profiles[0], profiles[1:]) if profiles and not own else (None, profiles)
    first = first or read_table(ProfileSpec, own, f"[{where}]")
    shapes = {"min": first.min, "opt": first.opt, "max": first.max}
    return create_settings(InputSpec, {**shapes, "profiles": rest}, f"[{where}]")


def _read_calibration(table: Mapping[str, Any]) -> CalibrationSpec:
    """Returns the section, in which the parameters of methods are keys like the others."""
    where = "[calibration]"
    own = {name: kind for name, kind in list_kinds(CalibrationSpec).items() if name != "parameters"}
    methods = {method: list_kinds(method) for method in list_choices().values()}
    known = {name: kind for kinds in methods.values() for name, kind in kinds.items()}
    values = check_table(table, {**own, **known}, where)
    parameters = {name: values.pop(name) for name in known if name in values}
    for method, kinds in methods.items():
        create_settings(method, {name: parameters[name] for name in kinds if name in parameters}, where)
    return create_settings(CalibrationSpec, {**values, "parameters": parameters}, where)


def _make_absolute(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Returns the settings with their paths made independent of the current folder."""
    calibration, evaluation, accuracy = spec.calibration, spec.evaluation, spec.accuracy
    if isinstance(calibration.data, str):
        calibration = replace(calibration, data=resolve_address(calibration.data, folder))
    if isinstance(evaluation.data, str):
        evaluation = replace(evaluation, data=resolve_address(evaluation.data, folder))
    if evaluation.reference is not None:
        evaluation = replace(evaluation, reference=str(folder / evaluation.reference))
    if evaluation.labels is not None and evaluation.labels.endswith(".npy"):
        evaluation = replace(evaluation, labels=str(folder / evaluation.labels))
    if accuracy.script is not None:
        accuracy = replace(accuracy, metric=str(folder / accuracy.metric))
    plugins, custom_ops = (
        tuple(str(folder / path) for path in paths)
        for paths in (spec.operators.plugins, spec.operators.ort_custom_ops)
    )
    operators = replace(spec.operators, plugins=plugins, ort_custom_ops=custom_ops)
    return replace(
        spec, calibration=calibration, evaluation=evaluation, accuracy=accuracy, operators=operators
    )
