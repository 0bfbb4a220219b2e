"""The settings of a model as a file to begin with: what its inputs, its family and its folder show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtq.errors import DataError, UsageError
from trtq.files import read_file, refuse_damage
from trtq.models.families import (
    ARRAY_FAMILIES,
    FAMILIES,
    TEXT_FAMILIES,
    describe_family,
    describe_processor,
    list_batches,
)
from trtq.models.inputs import ModuleInput
from trtq.models.preprocess import SUFFIXES, Preprocess
from trtq.models.signature import TensorSpec
from trtq.models.spec import CalibrationSpec, Data, EvaluationSpec, InputSpec, ModelSpec, find_path
from trtq.models.toml import format_commented
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.pictures import find_top

ARRAYS = "arrays"
"""What is no family: a model that takes arrays as they are."""
PRESETS = (*FAMILIES, ARRAYS)
_WITHOUT_PICTURES = (ARRAYS, *ARRAY_FAMILIES, *TEXT_FAMILIES)
_CALIBRATION = ("calibration", "calib", "calibration_data", "calib_data", "images", "train")
_EVALUATION = ("evaluation", "eval", "evaluation_data", "validation", "val", "test")
_PROCESSOR = "preprocessor_config.json"
_TIMES = ("timestep", "timesteps", "time_step", "time_steps")
_PICTURE_TYPES = ("float16", "float32", "bfloat16", "uint8")
_SECTIONS = {
    "calibration": "The data that the ranges come from: a few hundred samples as the model will see them.",
    "evaluation": "What is compared with the float model; without it, the calibration data.",
    "accuracy": "The gate: if it fails, trtq build exits with code 3.",
    "layers": "Which layers keep a higher precision: regular expressions searched in node names.",
    "quantization": "How the model is quantized.",
}
_PICTURES = "How image files become the input. Wrong numbers silently ruin the accuracy."


@dataclass(frozen=True, slots=True)
class ModelHints:
    """What a model and its folder show.

    Attributes:
        graph: The model.
        preset: The family that it seems to be of, a name of `PRESETS`.
        reason: Why.
        calibration: Data beside the model, as a path; None: none was found.
        evaluation: The same to compare on.
        labels: The array of `evaluation` that holds a class index for each sample.
        processor: The file that says how pictures are prepared.
    """

    graph: Graph
    preset: str
    reason: str
    calibration: str | None = None
    evaluation: str | None = None
    labels: str | None = None
    processor: Path | None = None

    def with_evaluation(self, data: str | None) -> ModelHints:
        """Returns the hints with other data to compare on, and the labels that are in it."""
        names = [item.name for item in self.graph.inputs]
        return replace(self, evaluation=data, labels=_find_labels(Path(data), names) if data else None)


@dataclass(frozen=True, slots=True)
class InitialSettings:
    """Settings to begin with.

    Attributes:
        spec: The settings; their paths are as seen from the folder of their file.
        text: The same with comments, which `read_spec` reads.
        preset: The family, a name of `PRESETS`.
        reason: Why it is that.
    """

    spec: ModelSpec
    text: str
    preset: str
    reason: str

    @property
    def has_pictures(self) -> bool:
        """Whether the model takes pictures."""
        return self.preset not in _WITHOUT_PICTURES


def init(
    model: Path | str,
    *,
    preset: str | None = None,
    spec: ModelSpec | None = None,
    preprocess: Mapping[str, Any] | None = None,
    hints: ModelHints | None = None,
    folder: Path | str | None = None,
) -> InitialSettings:
    """Returns the settings of a model to begin with, as the text of its model.toml with comments.

    Args:
        model: The ONNX file.
        preset: The family: imagenet, yolo, encoder (bert), clip, vit, unit (0..1), pixels (0..255), diffusion
            or arrays. None: what the model seems to be.
        spec: What is known already, in the place of what is guessed.
        preprocess: Fields of `Preprocess`, in the place of those of the preset.
        hints: What the model and its folder show; None: that is looked for.
        folder: Where the file will lie, to which its paths are relative; None: beside the model.

    Raises:
        ModelError: The file is missing or no valid ONNX model.
        UsageError: There is no such preset, or the model has no input for it.
    """
    hints = hints or find_hints(model)
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}; use {', '.join(PRESETS)}")
    name, known = preset or hints.preset, spec or ModelSpec()
    found = _describe(hints, name)
    steps = known.preprocess if known.preprocess != ModelSpec().preprocess else found.preprocess
    merged = replace(
        known,
        inputs={**found.inputs, **known.inputs},
        preprocess=replace(steps, **(preprocess or {})),
        calibration=_add_data(known.calibration, hints),
        evaluation=_add_labels(known.evaluation, hints),
        layers=known.layers if known.layers != ModelSpec().layers else found.layers,
    )
    merged = _relate(merged, Path(model).parent if folder is None else Path(folder))
    reason = "as it was asked" if preset is not None else hints.reason
    return InitialSettings(merged, _format(merged, hints, name, reason), name, reason)


def find_hints(model: Path | str) -> ModelHints:
    """Returns what a model and its folder show of its settings.

    Raises:
        ModelError: The file is missing or no valid ONNX model.
    """
    graph = load(Path(model), min_opset=1)
    folder, processor = Path(model).parent, Path(model).parent / _PROCESSOR
    preset, reason = _guess(graph)
    names = [item.name for item in graph.inputs]
    return ModelHints(
        graph,
        preset,
        reason,
        _find_data(folder, _CALIBRATION, names),
        processor=processor if find_picture(graph.inputs) is not None and processor.is_file() else None,
    ).with_evaluation(_find_data(folder, _EVALUATION, names))


def find_picture(inputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Returns the input that takes pictures: the first with four axes, of which one has 1 or 3 channels."""
    for item in inputs:
        is_picture = len(item.shape) == 4 and item.dtype in _PICTURE_TYPES
        if is_picture and {item.shape[1], item.shape[3]} & {1, 3}:
            return item
    return None


def _guess(graph: Graph) -> tuple[str, str]:
    """Returns the preset that a model seems to want, and why."""
    picture, text = find_picture(graph.inputs), graph.path.stem.lower()
    if time := next((item.name for item in graph.inputs if item.name in _TIMES), None):
        return "diffusion", f"its input {time!r} is a time step"
    if picture is None:
        tokens = [item.name for item in graph.inputs if item.name.endswith(("_ids", "_mask"))]
        is_text = bool(tokens) and all(item.dtype.startswith("int") for item in graph.inputs)
        return (
            ("bert", f"its inputs are {', '.join(tokens)}") if is_text else (ARRAYS, "no input takes images")
        )
    if (top := find_top(graph.model)) is not None:
        return ("pixels" if top > 1 else "unit"), f"it normalizes values up to {top:g} itself"
    outputs = [item.name for item in graph.outputs]
    if picture.name == "images" or "yolo" in text:
        return "yolo", f"its input is {picture.name!r} of {graph.path.name}"
    if "clip" in text or "image_embeds" in outputs:
        return "clip", f"its outputs are {', '.join(outputs)} of {graph.path.name}"
    if "vit" in text:
        return "vit", f"its name is {graph.path.name}"
    return "imagenet", f"{picture.name!r} takes images, but their kind is unknown: check the numbers"


def _describe(hints: ModelHints, preset: str) -> ModelSpec:
    """Returns the settings of a preset for the inputs of the model."""
    inputs, picture = hints.graph.inputs, find_picture(hints.graph.inputs)
    if preset in (ARRAYS, *ARRAY_FAMILIES):
        spec = ModelSpec() if preset == ARRAYS else describe_family(preset, ())
        return replace(spec, inputs=dict(_list_profiles(inputs)))
    if preset in TEXT_FAMILIES:
        usual = describe_family(preset, ()).inputs["input_ids"]
        matrices = [item for item in inputs if len(item.shape) == 2 and item.is_dynamic]
        return ModelSpec(inputs={item.name: _fit(usual, item) for item in matrices})
    if picture is None:
        shapes = ", ".join(map(str, inputs))
        raise UsageError(
            f"the preset {preset} is for images, and no input of {hints.graph.path} takes them: "
            f"{shapes}; use --preset {ARRAYS}"
        )
    return _describe_pictures(hints, preset, picture)


def _describe_pictures(hints: ModelHints, preset: str, picture: TensorSpec) -> ModelSpec:
    """Returns the settings of a preset with the layout, the size and the channels of the model."""
    is_last = picture.shape[1] not in (1, 3)
    dims = (picture.shape[0], picture.shape[3], *picture.shape[1:3]) if is_last else picture.shape
    shown = tuple(dim if isinstance(dim, int) else "N" for dim in dims)
    spec = describe_family(preset, [ModuleInput(picture.name, shown)])
    steps = spec.preprocess if hints.processor is None else _read_processor(hints.processor)
    layout, channels = "NHWC" if is_last else "NCHW", "L" if dims[1] == 1 else steps.channels
    profiles = dict(_list_profiles(hints.graph.inputs))
    return replace(spec, inputs=profiles, preprocess=replace(steps, layout=layout, channels=channels))


def _read_processor(path: Path) -> Preprocess:
    with refuse_damage(UsageError, f"{path} cannot be read; move it away, or fix it"):
        return describe_processor(json.loads(read_file(path)))


def _list_profiles(inputs: Sequence[TensorSpec]) -> Iterator[tuple[str, InputSpec]]:
    """Yields the profile of each input whose first axis alone is open: batches."""
    for item in inputs:
        rest = item.shape[1:]
        if item.is_dynamic and all(isinstance(dim, int) for dim in rest):
            yield item.name, list_batches(tuple(dim for dim in rest if isinstance(dim, int)))


def _fit(usual: InputSpec, item: TensorSpec) -> InputSpec:
    """Returns the profile with the sizes that an input fixes."""
    shapes = (usual.min, usual.opt, usual.max)
    return InputSpec(
        *(
            tuple(dim if isinstance(dim, int) else size for dim, size in zip(item.shape, shape, strict=True))
            for shape in shapes
        )
    )


def _find_data(folder: Path, names: Sequence[str], inputs: Sequence[str]) -> str | None:
    """Returns the first file or folder of these names that holds data for a model."""
    for name in names:
        if (path := folder / f"{name}.npz").is_file() and {*_list_arrays(path)} >= {*inputs}:
            return str(path)
        if (path := folder / name).is_dir():
            suffixes = {item.suffix.lower() for item in path.iterdir()}
            if suffixes & {*SUFFIXES, ".npz"}:
                return str(path)
    return None


def _find_labels(path: Path, inputs: Sequence[str]) -> str | None:
    """Returns the array beside the inputs that holds one whole number for each sample."""
    for name, (shape, kind) in _list_arrays(path).items() if path.suffix == ".npz" else ():
        if name not in inputs and len(shape) == 1 and kind in "iu":
            return name
    return None


def _list_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shapes and kinds of the arrays of an .npz; none of a file that is damaged."""
    try:
        with refuse_damage(DataError, str(path)), np.load(path, allow_pickle=False) as arrays:
            return {name: (arrays[name].shape, arrays[name].dtype.kind) for name in arrays.files}
    except DataError:
        return {}


def _add_data(known: CalibrationSpec, hints: ModelHints) -> CalibrationSpec:
    return known if known.data is not None else replace(known, data=hints.calibration)


def _add_labels(known: EvaluationSpec, hints: ModelHints) -> EvaluationSpec:
    if known.data is not None:
        return known
    return replace(known, data=hints.evaluation, labels=known.labels or hints.labels)


def _relate(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Returns the settings with their paths as seen from a folder."""
    calibration, evaluation = spec.calibration, spec.evaluation
    labels = evaluation.labels
    if labels is not None and labels.endswith(".npy"):
        labels = os.path.relpath(labels, folder)
    return replace(
        spec,
        calibration=replace(calibration, data=_relate_data(calibration.data, folder)),
        evaluation=replace(evaluation, data=_relate_data(evaluation.data, folder), labels=labels),
    )


def _relate_data(data: Data | None, folder: Path) -> Data | None:
    """Returns a path as seen from a folder, and data elsewhere or in Python as it is."""
    path = find_path(data)
    return data if path is None else os.path.relpath(path, folder)


def _format(spec: ModelSpec, hints: ModelHints, preset: str, reason: str) -> str:
    """Returns the text: the inputs, and the sections with what each key means."""
    path = hints.graph.path
    head = [
        f"Settings of {path.name}, to begin with: trtq build {path.name} --int8",
        f"Preset: {preset} ({reason}).",
        *(f"Input: {item}" for item in hints.graph.inputs),
        *([f"Pictures: as {_PROCESSOR} says."] if hints.processor is not None else []),
        "What is commented out is the default. Options on the command line win over this file.",
    ]
    pictures = {} if preset in _WITHOUT_PICTURES else {"preprocess": _PICTURES}
    return format_commented(spec, pictures | _SECTIONS, *map(_one_line, head))


def _one_line(text: str) -> str:
    """Returns a text that stays a comment: names come from files."""
    return " ".join(text.split()).encode("unicode_escape").decode() if not text.isprintable() else text
