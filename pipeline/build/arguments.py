"""What a caller in Python gives for a build, as the model's file, its settings and the target."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.arrays import pack_arrays
from trtq.calibrators.batches import refuse_endless
from trtq.calibrators.data.python import copy_array
from trtq.errors import DataError, UsageError
from trtq.files import move_atomically, refuse_damage, write_atomically
from trtq.models.option import Kind, list_kinds, list_options
from trtq.models.preprocess import Preprocess
from trtq.models.session import save
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    LayerSpec,
    ModelSpec,
    OperatorSpec,
    ProfileSpec,
    QuantizationSpec,
    Shape,
)
from trtq.pipeline.build.delivery import choose_places
from trtq.pipeline.calibrate.data import find_spec
from trtq.pipeline.engine.asked import Formats
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.profiles import parse_profile, parse_shapes
from trtq.pipeline.engine.target import Target
from trtq.temporary import open_temporary_folder

_SECTIONS: Mapping[type, str] = {
    Preprocess: "preprocess",
    CalibrationSpec: "calibration",
    QuantizationSpec: "quantization",
    EvaluationSpec: "evaluation",
    AccuracySpec: "accuracy",
    LayerSpec: "layers",
    OperatorSpec: "operators",
}
"""The settings that are sections of a model's, by the fields of `ModelSpec`."""
_OTHERS = (Formats, Target, BuilderOptions)
_SHAPES = {"min_shapes": "min", "opt_shapes": "opt", "max_shapes": "max", "profile": "profiles"}
_FEEDS = "an iterable of data must yield dicts of arrays, all with the same names"
_Changes = dict[type, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BuildArguments:
    """A model's file, its settings (None: those beside it), and the target."""

    model: Path
    spec: ModelSpec | None
    target: Target


def gather_arguments(
    model: Path | str | onnx.ModelProto | ir.Model,
    data: Any,
    output: Path | str | None,
    spec: ModelSpec | None,
    target: Target | None,
    options: Mapping[str, Any],
) -> BuildArguments:
    """Returns what a build is made of.

    A model or data that is in memory alone is saved beside the output, as `NAME.given.onnx` and
    `NAME.given.npz`, so that the build can be repeated and judged from the shell.

    Args:
        model: The file, or the model itself.
        data: What calibrates it; None: what the settings name.
        output: As of `build`.
        spec: The settings; None: those beside the model.
        target: What is built; None: INT8.
        options: The options of `trtq build`, their dashes as underscores.

    Raises:
        UsageError: There is no such option, its value is none, or a model in memory has no output.
        DataError: The data is of no kind that is taken here.
    """
    changes, shapes = _sort_options(options)
    is_path = isinstance(model, Path | str)
    path = Path(model) if isinstance(model, Path | str) else _save_model(model, output)
    if data is not None:
        given = data if _is_read_again(data) else _save_data(data, path if is_path else None, output)
        changes.setdefault(CalibrationSpec, {})["data"] = given
    if spec is None and (not is_path or any(section in changes for section in _SECTIONS)):
        spec = find_spec(path) if is_path else ModelSpec()
    if spec is not None:
        spec = _change_spec(spec, changes)
    return BuildArguments(path, spec, _change_target(target or Target(), changes, shapes))


@cache
def _list_keywords() -> dict[str, tuple[type, str, Kind]]:
    """Returns the class, the field and the kind of each keyword."""
    found = {}
    for settings in (*_SECTIONS, *_OTHERS):
        kinds = list_kinds(settings)
        for name, option in list_options(settings).items():
            found[option.name[2:].replace("-", "_")] = (settings, name, kinds[name])
    return found


def _list_parameters() -> dict[str, list[str]]:
    """Returns the methods that have each parameter."""
    owners: dict[str, list[str]] = {}
    for method, kind in METHODS.items():
        for name in list_options(kind):
            owners.setdefault(name, []).append(method)
    return owners


def _sort_options(options: Mapping[str, Any]) -> tuple[_Changes, dict[str, Any]]:
    """Returns the values of fields by their classes, and the shapes of profiles."""
    changes, shapes, known, parameters = _Changes(), dict[str, Any](), _list_keywords(), _list_parameters()
    for name, value in options.items():
        if name in _SHAPES:
            shapes[_SHAPES[name]] = _read_shapes(value) if name != "profile" else _read_profiles(value)
        elif name in parameters:
            changes.setdefault(CalibrationSpec, {}).setdefault("parameters", {})[name] = value
            if "calib_method" not in options:
                changes[CalibrationSpec]["method"] = parameters[name][0]
        elif name in known:
            settings, field, kind = known[name]
            splits = isinstance(value, str) and settings not in (LayerSpec, OperatorSpec)  # may hold commas
            changes.setdefault(settings, {})[field] = _convert(name, value, kind, splits=splits)
        else:
            near = get_close_matches(name, [*known, *_SHAPES, *parameters], 3)
            meant = f"did you mean {' or '.join(near)}?" if near else "use those of `trtq build --help`"
            raise UsageError(f"build has no option {name!r}; {meant}")
    return changes, shapes


def _read_shapes(value: str | Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    if isinstance(value, str):
        return dict(parse_shapes(value))
    with refuse_damage(
        UsageError, f"shapes are a dict of sizes by input, or name:1x3x224x224, got {value!r}"
    ):
        return {name: tuple(int(size) for size in shape) for name, shape in value.items()}


def _read_profiles(value: str | Sequence[str]) -> tuple[dict[str, ProfileSpec], ...]:
    return tuple(map(parse_profile, [value] if isinstance(value, str) else value))


def _convert(name: str, value: Any, kind: Kind, *, splits: bool) -> Any:
    """Returns the value of a field: a tuple where it takes several, for which one text will do."""
    if kind.is_list:
        return _convert_list(name, value, kind, splits=splits)
    numbers = (int, float) if kind.type is float else (kind.type,)
    wanted = (str, Path, int) if kind.type in (str, Path) else numbers
    if value is None:
        return None
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind.type is not bool):
        raise UsageError(f"{name} takes {kind.type.__name__}, got {reprlib.repr(value)}")
    if kind.choices and value not in kind.choices:
        raise UsageError(f"{name} takes {', '.join(kind.choices)}, got {value!r}")
    if kind.type is Path:
        return Path(str(value))
    return str(value) if kind.type is str else value


def _convert_list(name: str, value: Any, kind: Kind, *, splits: bool) -> tuple[Any, ...]:
    is_several = isinstance(value, Iterable) and not isinstance(value, str)
    values = value.split(",") if splits else list(value) if is_several else [value]
    if kind.type is str:
        if not all(isinstance(text, str | Path) for text in values):
            raise UsageError(f"{name} takes texts, or one, got {reprlib.repr(value)}")
        return tuple(map(str, values))
    try:
        return tuple(map(kind.type, values))
    except (TypeError, ValueError):
        raise UsageError(f"{name} takes numbers, got {values!r}") from None


def _change_spec(spec: ModelSpec, changes: _Changes) -> ModelSpec:
    """Returns the settings with what is given in their places; patterns of layers are added."""
    sections = {}
    for settings, name in _SECTIONS.items():
        given, own = dict(changes.get(settings, {})), getattr(spec, name)
        if settings is LayerSpec:
            given = {field: (*getattr(own, field), *patterns) for field, patterns in given.items()}
        if "parameters" in given:
            given["parameters"] = {**own.parameters, **given["parameters"]}
        sections[name] = replace(own, **given)
    return replace(spec, **sections)


def _change_target(target: Target, changes: _Changes, shapes: Mapping[str, Any]) -> Target:
    """Returns the target with what is given in its places."""
    formats = Formats(**changes.get(Formats, {}))
    if Formats in changes:
        weights = formats.choose_weights()
        target = replace(target, precision=formats.choose_precision(), weights=weights)
        if weights is not None and formats.fp16:
            target = replace(target, high_precision="fp16")
    return replace(
        target,
        **changes.get(Target, {}),
        options=replace(target.options, **changes.get(BuilderOptions, {})),
        shapes=replace(target.shapes, **shapes) if shapes else target.shapes,
    )


def _save_model(model: onnx.ModelProto | ir.Model, output: Path | str | None) -> Path:
    """Returns the file of a model that is in memory, which is written."""
    if not isinstance(model, onnx.ModelProto | ir.Model):
        raise UsageError(
            f"a model is the path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model, got "
            f"{type(model).__name__}"
        )
    if output is None:
        raise UsageError(
            "a model in memory needs an output, such as output='model.trtq': it is saved next to that "
            "as model.given.onnx"
        )
    path = _place(output, ".given.onnx")
    if isinstance(model, onnx.ModelProto):
        with refuse_damage(UsageError, "the model cannot be written as one file; save it, and give its path"):
            content = model.SerializeToString(deterministic=True)
        write_atomically(path, content)
        return path
    with open_temporary_folder(path) as stage:  # weights of a large model get a second file
        save(model, stage / path.name)
        move_atomically(stage, path.parent)
    return path


def _place(beside: Path | str, suffix: str) -> Path:
    """Returns the file beside an output or a model that keeps what was in memory alone."""
    folder = choose_places(beside).folder
    assert folder is not None
    name = folder.stem if folder.suffix in (".trtq", ".onnx") else folder.name
    return folder.with_name(f"{name}{suffix}")


def _is_read_again(data: Any) -> bool:
    """Whether data is code that yields the samples at every pass, as a DataLoader does."""
    is_held = isinstance(data, str | Path | Mapping | list | tuple | Iterator) or hasattr(data, "__array__")
    return callable(data) or (isinstance(data, Iterable) and not is_held)


def _save_data(data: Any, model: Path | None, output: Path | str | None) -> str:
    """Returns the source of data; arrays are written to a file."""
    if isinstance(data, str | Path):
        return str(data)
    beside = output if output is not None else model
    assert beside is not None
    path = _place(beside, ".given.npz")
    arrays = _join(data)
    if isinstance(arrays, np.ndarray):
        path, buffer = path.with_suffix(".npy"), io.BytesIO()
        np.save(buffer, arrays)
        write_atomically(path, buffer.getvalue())
    else:
        write_atomically(path, pack_arrays(arrays))
    return str(path)


def _join(data: Any) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Returns the arrays of all samples: one without a name, or by input."""
    if isinstance(data, Mapping):
        return _copy(data)
    if hasattr(data, "__array__"):
        return copy_array(data, "the data")
    if not isinstance(data, Iterable):
        raise DataError(
            f"data is a path, an array, a dict of arrays or an iterable of dicts, got {type(data).__name__}"
        )
    feeds = list[dict[str, NDArray[Any]]]()
    for feed in refuse_endless(data, "the iterable of data", "cut it with itertools.islice"):
        if not isinstance(feed, Mapping) or (feeds and {*map(str, feed)} != {*feeds[0]}):
            raise DataError(f"{_FEEDS}, item {len(feeds)} is {_describe(feed)}")
        feeds.append(_copy(feed))  # it may reuse its own
    if not feeds:
        raise DataError(f"{_FEEDS}, at least one")
    return {name: _concatenate(name, [feed[name] for feed in feeds]) for name in feeds[0]}


def _describe(feed: object) -> str:
    return f"a dict of {', '.join(map(str, feed))}" if isinstance(feed, Mapping) else type(feed).__name__


def _copy(feed: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
    return {str(name): copy_array(value, f"{str(name)!r} of the data") for name, value in feed.items()}


def _concatenate(name: str, arrays: list[NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise DataError(
            f"the arrays {name!r} of the data cannot be joined along their first axis ({error}); save each "
            f"feed as an .npz, and give the folder"
        ) from error
