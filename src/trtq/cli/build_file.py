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
from trtq.cli.build_kinds import KEY, MachineKind, find_kinds, name_output, read_kinds
from trtq.cli.options import Given
from trtq.cli.sizes import parse_bytes
from trtq.errors import TrtqError, UsageError, quote
from trtq.files import is_file, resolve_name
from trtq.models.address import resolve_address
from trtq.pipeline.build.delivery import choose_places
from trtq.pipeline.build_all import CommandJob
from trtq.pipeline.deliver.manifest import NAME as MANIFEST
from trtq.pipeline.engine.backends import BACKENDS

_OURS = ("model", "name", "memory", KEY)
"""Keys of a build that are not options of `trtq build`."""
_ITS_OWN = ("model", "name", "output")
"""Keys that no two builds can share."""
_NOT_HERE = (
    "json", "quiet", "verbose", "help", "dry-run", "summary", "junit", "share-ranges", "earlier",
    "take-shared",
)  # fmt: skip
_SEPARATOR = " | "
"""Between the things that are wrong with a file, which are told at once and in one line."""
_BASE_BYTES, _CALIBRATION_BYTES, _PER_WEIGHT_BYTE = 500 << 20, 1 << 30, 8
"""What a build takes: the libraries, calibration, and copies of the model (float, FP16, INT8, the builder's).
Measured on eight models of 0.6 to 97 MB: 0.44 to 1.63 GB, every one less than this."""


@dataclass(frozen=True, slots=True)
class BuildEntry:
    """A build of the file, on one kind of machine.

    Attributes:
        number: Its place in the file, from 1 on.
        name: To show.
        model: The ONNX file.
        output: The folder.
        job: The command.
        kind: Of machine; empty: any.
        is_one_of_several: Whether the build is for other kinds too.
        sign_key: The private key that signs the folder.
    """

    number: int
    name: str
    model: Path
    output: Path
    job: CommandJob
    kind: str = ""
    is_one_of_several: bool = False
    sign_key: Path | None = None

    @property
    def title(self) -> str:
        """The name, and the kind if it has one."""
        return self.job.name


def read_builds(
    path: Path, sign_key: Path | None = None, *, is_elsewhere: bool = False
) -> tuple[BuildEntry, ...]:
    """Returns the builds that a file names, checked as far as they can be without loading a model.

    Paths are relative to the file's folder. What stands in `[defaults]` holds for every build that does not
    say otherwise, and what stands in `[kind.NAME]` for every build on machines of this kind. A build for
    several kinds is as many builds here.

    Args:
        path: The file.
        sign_key: Signs every folder, whatever the file says.
        is_elsewhere: Whether they run on other machines, of which it is not known which builders they have.

    Raises:
        UsageError: No such file, no TOML, no build, or anything in it that cannot be: all of it is told.
    """
    table = read_toml(path, "builds")
    defaults, builds = table.get("defaults", {}), table.get("build", [])
    problems = [
        f"unknown section {name!r}; the sections are [defaults], [kind.NAME] and [[build]]"
        for name in table
        if name not in ("defaults", "build", "kind")
    ]
    kinds, wrong = read_kinds(table.get("kind", {}))
    problems += wrong
    are_tables = isinstance(builds, list) and all(isinstance(build, dict) for build in builds)
    if not are_tables or not isinstance(defaults, dict):
        problems.append("[defaults] is a section, and every [[build]] is one, with two brackets")
        defaults, builds = {}, []
    elif not builds:
        problems.append("there is no [[build]]")
    problems += [f"[defaults]: {text}" for text in _find_misplaced(defaults, *_ITS_OWN)]
    for name, kind in kinds.items():
        problems += [f"[kind.{name}]: {text}" for text in _find_misplaced(kind.options, *_ITS_OWN, KEY)]
    shared = {key: value for key, value in defaults.items() if key not in _ITS_OWN}
    always = {} if sign_key is None else {"sign-key": str(sign_key.absolute())}
    entries: list[BuildEntry] = []
    for number, build in enumerate(builds, 1):
        try:
            problems_of_own = list(_find_unknown(build))
            tables = _Tables(shared, build, always, kinds, is_elsewhere)
            entries += _list_entries(path.parent, number, tables, problems_of_own)
        except UsageError as error:
            place = f"build {number} ({build.get('model', '?')})"
            problems += [f"{place}: {line}" for line in str(error).split(_SEPARATOR)]
    problems += _find_doubles(entries)
    if problems:
        raise UsageError(f"{path} cannot be built: {_SEPARATOR.join(problems)}")
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class _Tables:
    """What says how one build is made, the later winning: defaults, its kind, itself, the command line."""

    defaults: Mapping[str, Any]
    own: Mapping[str, Any]
    always: Mapping[str, Any]
    kinds: Mapping[str, MachineKind]
    is_elsewhere: bool

    def join(self, kind: MachineKind | None) -> dict[str, Any]:
        """Returns all of it for one kind of machine."""
        options = {} if kind is None else kind.options
        return {**self.defaults, **options, **self.own, **self.always}


def _list_entries(folder: Path, number: int, tables: _Tables, problems: Sequence[str]) -> list[BuildEntry]:
    """Returns a build, once for each kind of machine; raises UsageError with everything that is wrong."""
    asked = tables.join(None).get(KEY)
    if asked is None:
        return [_entry(folder, number, tables, None, problems)]
    try:
        kinds = find_kinds(asked, tables.kinds)
    except UsageError as error:
        raise UsageError(_SEPARATOR.join([*problems, str(error)])) from error
    several = len(kinds) > 1
    return [_entry(folder, number, tables, kind, problems, is_one_of_several=several) for kind in kinds]


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


def _find_misplaced(table: Mapping[str, Any], *own: str) -> Iterator[str]:
    """Yields a sentence for each key that is unknown, or is one of a build's own."""
    yield from _find_unknown(table)
    yield from (f"{key} belongs in a [[build]]" for key in own if key in table)


def _entry(
    folder: Path,
    number: int,
    tables: _Tables,
    kind: MachineKind | None,
    known_problems: Sequence[str],
    *,
    is_one_of_several: bool = False,
) -> BuildEntry:
    """Returns a build on one kind of machine, or raises UsageError with everything that is wrong."""
    problems, table = list(known_problems), tables.join(kind)
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
    output: Path = ctx.params["output"] or resolve_name(model).with_suffix(".trtq")
    stem = output.stem
    if is_one_of_several and kind is not None:
        output = name_output(output, kind.name)
        arguments = [word for word in arguments if not word.startswith("--output=")]
        arguments.append(f"--output={output}")
    place = (choose_places(output).folder or output).absolute()
    name, kind_name = str(table.get("name", stem)), "" if kind is None else kind.name
    may_be_tensorrt = tables.is_elsewhere or not BACKENDS["tensorrt"].why_not()
    job = CommandJob(
        ("build", *arguments, "--json", "--quiet"),
        memory,
        needs_gpu=target.backend == "tensorrt" or (target.backend == "auto" and may_be_tensorrt),
        uses_gpu=target.backend != "onnxruntime",
        name=f"{name} on {kind_name}" if kind_name else name,
        resources=() if kind is None else kind.resources,
        result=place / MANIFEST,
    )
    return BuildEntry(number, name, model, place, job, kind_name, is_one_of_several, ctx.params["sign_key"])


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
    if key in ("calib-data", "eval-data"):
        return resolve_address(text, folder.absolute())
    is_path = isinstance(option.type, click.Path) or key == "reference"
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
            yield f"{both} have the same output {entry.output}; give each its own output"
