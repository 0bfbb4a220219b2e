"""`trtq.toml`: several builds in one file, with the options of `trtq build` as keys."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trtq.calibrators.settings import read_toml
from trtq.cli import targets
from trtq.cli.build import command as build_command
from trtq.cli.options import Given
from trtq.cli.sizes import parse_bytes
from trtq.errors import TrtqError, UsageError, quote
from trtq.files import is_file
from trtq.pipeline.build.delivery import choose_places
from trtq.pipeline.build_all import CommandJob
from trtq.pipeline.engine.backends import BACKENDS

_OURS = ("model", "name", "memory")
"""Keys of a build that are not options of `trtq build`."""
_ITS_OWN = ("model", "name", "output")
"""Keys that no two builds can share."""
_NOT_HERE = ("json", "quiet", "verbose", "help", "dry-run", "summary", "junit")
_SEPARATOR = " | "
"""Between the things that are wrong with a file, which are told at once and in one line."""
_BASE_BYTES, _CALIBRATION_BYTES, _PER_WEIGHT_BYTE = 500 << 20, 1 << 30, 8
"""What a build takes: the libraries, calibration, and copies of the model (float, FP16, INT8, the builder's).
Measured on eight models of 0.6 to 97 MB: 0.44 to 1.63 GB, every one less than this."""


@dataclass(frozen=True, slots=True)
class BuildEntry:
    """A build of the file: its place there, from 1 on, a name to show, the model, the folder, the command."""

    number: int
    name: str
    model: Path
    output: Path
    job: CommandJob


def read_builds(path: Path) -> tuple[BuildEntry, ...]:
    """Returns the builds that a file names, checked as far as they can be without loading a model.

    Paths are relative to the file's folder. What stands in `[defaults]` holds for every build that does not
    say otherwise.

    Raises:
        UsageError: No such file, no TOML, no build, or anything in it that cannot be: all of it is told.
    """
    table = read_toml(path, "builds")
    defaults, builds = table.get("defaults", {}), table.get("build", [])
    problems = [
        f"unknown section {name!r}; the sections are [defaults] and [[build]]"
        for name in table
        if name not in ("defaults", "build")
    ]
    tables = isinstance(builds, list) and all(isinstance(build, dict) for build in builds)
    if not tables or not isinstance(defaults, dict):
        problems.append("[defaults] is a section, and every [[build]] is one, with two brackets")
        defaults, builds = {}, []
    elif not builds:
        problems.append("there is no [[build]]")
    misplaced = (f"{key} belongs into a [[build]]" for key in _ITS_OWN if key in defaults)
    problems += [f"[defaults]: {text}" for text in (*_find_unknown(defaults), *misplaced)]
    shared = {key: value for key, value in defaults.items() if key not in _ITS_OWN}
    entries: list[BuildEntry] = []
    for number, build in enumerate(builds, 1):
        try:
            entries.append(_entry(path.parent, number, {**shared, **build}, build))
        except UsageError as error:
            place = f"build {number} ({build.get('model', '?')})"
            problems += [f"{place}: {line}" for line in str(error).split(_SEPARATOR)]
    problems += _find_doubles(entries)
    if problems:
        raise UsageError(f"{path} cannot be built: {_SEPARATOR.join(problems)}")
    return tuple(entries)


def _options() -> dict[str, click.Option]:
    """Returns the options of `trtq build` by the names that stand in a file."""
    options = [parameter for parameter in build_command.params if isinstance(parameter, click.Option)]
    names = {next(name for name in item.opts if name.startswith("--"))[2:]: item for item in options}
    return {name: item for name, item in names.items() if name not in _NOT_HERE}


def _find_unknown(table: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each unknown key."""
    known = [*_OURS, *_options()]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; is it {near[0]}?" if near else "; the keys are the options of trtq build, without --"
            yield f"unknown key {key!r}{hint}"


def _entry(folder: Path, number: int, table: Mapping[str, Any], own: Mapping[str, Any]) -> BuildEntry:
    """Returns a build, or raises UsageError with everything that is wrong."""
    problems = list(_find_unknown(own))
    model = folder / str(table.get("model", ""))
    if "model" not in table:
        problems.append("model is missing; give the path of an ONNX file")
    elif not is_file(model):
        problems.append(f"there is no model {model}")
    arguments, known = [str(model)], _options()
    for key, value in table.items():
        try:
            arguments += _arguments(folder, key, known[key], value) if key in known else []
        except UsageError as error:
            problems.append(str(error))
    try:
        ctx = _parse(arguments)
        given = ctx.ensure_object(Given)
        given.read_spec(model)
        target = targets.read_target(given)
        memory = parse_bytes(str(table["memory"])) if "memory" in table else _estimate(model)
    except TrtqError as error:
        problems.append(str(error))
    if problems:
        raise UsageError(_SEPARATOR.join(problems))
    output = (choose_places(ctx.params["output"]).folder or model.with_suffix(".trtq")).absolute()
    name = str(table.get("name", output.stem))
    is_auto = target.backend == "auto"
    needs_gpu = target.backend == "tensorrt" or (is_auto and not BACKENDS["tensorrt"].why_not())
    job = CommandJob(("build", *arguments, "--json", "--quiet"), memory, needs_gpu)
    return BuildEntry(number, name, model, output, job)


def _arguments(folder: Path, key: str, option: click.Option, value: object) -> list[str]:
    """Returns an option as on the command line; paths become independent of the current folder."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{key} must be true or false, got {value!r}")
        return [f"--{key}"] if value else []
    if isinstance(value, list) and not option.multiple:
        raise UsageError(f"{key} has one value, got {value!r}")
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool | dict | list) for item in values):
        wanted = "texts" if option.multiple else "a text or a number"
        raise UsageError(f"{key} must be {wanted}, got {value!r}")
    return [f"--{key}={_absolute(folder, key, option, str(item))}" for item in values]


def _absolute(folder: Path, key: str, option: click.Option, text: str) -> str:
    is_path = isinstance(option.type, click.Path) or key in ("calib-data", "eval-data")
    is_path = is_path or (key == "labels" and text.endswith(".npy"))
    is_path = is_path or (key == "metric" and ".py:" in text)
    return str(folder.absolute() / text) if is_path else text


def _parse(arguments: Sequence[str]) -> click.Context:
    """Returns what `trtq build` makes of the arguments."""
    try:
        return build_command.make_context("trtq build", list(arguments))
    except click.UsageError as error:
        raise UsageError(error.format_message()) from error
    except (OSError, ValueError) as error:  # of a path that no system takes
        raise UsageError(quote(error)) from error


def _estimate(model: Path) -> int:
    """Returns an estimate of the bytes that building a model needs, by the size of its files."""
    files = [path for path in model.parent.glob(f"{glob.escape(model.name)}*") if path.is_file()]
    return _BASE_BYTES + _CALIBRATION_BYTES + _PER_WEIGHT_BYTE * sum(path.stat().st_size for path in files)


def _find_doubles(entries: Sequence[BuildEntry]) -> Iterator[str]:
    """Yields a sentence for each two builds that have the same output."""
    seen: dict[Path, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.output.resolve(), entry.number)
        if first != entry.number:
            both = f"builds {first} and {entry.number}"
            yield f"{both} have the same output {entry.output}; give one an output of its own"
