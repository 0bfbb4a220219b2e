"""What is known of a model beyond its ONNX file: read from `model.toml` beside it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from trtq.errors import UsageError
from trtq.models.preprocess import Preprocess

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

METRICS = ("top-1", "top-5")
AUTO = "auto"
"""Instead of a calibration method: the best of all on data held back, or entropy without such data."""
CROSS_ENTROPY = "cross-entropy"
"""Instead of a method of histograms: entropy, but by sampled rows what a softmax gets."""
REPAIRS = ("equalize", "smooth", "shift", "bias", "weights")
"""What can be done to a model so that quantizing costs it less; see `trtq.pipeline.judge.repairs`."""
SLOW_REPAIRS = ("adaround",)
"""Repairs that "auto" leaves out: they take longer than all others together, and seldom pay."""
WeightGranularity = Literal["per-channel", "per-tensor"]
Activations = Literal["symmetric", "asymmetric"]
Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The shapes of one input for which the engine is built: one optimization profile."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        ranks = {len(self.min), len(self.opt), len(self.max)}
        ordered = all(lo <= mid <= hi for lo, mid, hi in zip(self.min, self.opt, self.max, strict=False))
        if len(ranks) != 1 or not ordered or min((0, *self.min)) < 0:
            raise UsageError(
                f"profile shapes must have the same rank, no negative size, and min <= opt <= max in every "
                f"dimension; "
                f"got min {self.min}, opt {self.opt}, max {self.max}"
            )


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """Which data calibrates the model, and how ranges are estimated from it.

    The parameters below `memory_bytes` are those of the methods in `trtq.calibrators`; None: the default.
    The model runs on the device `cpu` or `cuda`; the observed tensors may take `memory_bytes` beside it
    (None: half of what is free), and where they do not fit at once there are several passes over the data.
    """

    data: str | None = None
    method: str = AUTO
    percentile: float = 99.99
    samples: int | None = None
    batch_size: int = 8
    device: str = "cpu"
    memory_bytes: int | None = None
    num_bins: int | None = None
    num_levels: int | None = None
    max_clipped: float | None = None
    num_candidates: int | None = None
    smallest: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be above 0 and at most 100, got {self.percentile}")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"calibration samples must be at least 1, got {self.samples}")
        if self.batch_size < 1:
            raise UsageError(f"calibration batch_size must be at least 1, got {self.batch_size}")

    @property
    def first_method(self) -> str:
        """The method of histograms: that "auto" starts from, and "cross-entropy" takes for the rest."""
        return "entropy" if self.method in (AUTO, CROSS_ENTROPY) else self.method


@dataclass(frozen=True, slots=True)
class QuantizationSpec:
    """How the model is quantized, beside the ranges.

    Attributes:
        repair: Which repairs may be made where they pay: "auto" (all of `REPAIRS`), "none", or some of
            `REPAIRS` and `SLOW_REPAIRS`; the latter may stand beside "auto".
        weight_granularity: Whether an INT8 weight has one scale for each output channel or one for all.
        activations: "asymmetric": with zero points, which ONNX Runtime takes and TensorRT does not.
    """

    repair: tuple[str, ...] = (AUTO,)
    weight_granularity: WeightGranularity = "per-channel"
    activations: Activations = "symmetric"

    def __post_init__(self) -> None:
        if self.weight_granularity not in get_args(WeightGranularity):
            raise UsageError(
                f"weight_granularity must be {' or '.join(get_args(WeightGranularity))}, "
                f"got {self.weight_granularity!r}"
            )
        if self.activations not in get_args(Activations):
            raise UsageError(
                f"activations must be {' or '.join(get_args(Activations))}, got {self.activations!r}"
            )
        words = (AUTO, "none", *REPAIRS, *SLOW_REPAIRS)
        if unknown := [word for word in self.repair if word not in words]:
            raise UsageError(f"there is no repair {unknown[0]!r}; take {', '.join(words)}")
        beside = {word for word in self.repair if word not in SLOW_REPAIRS}
        both = len(beside) > 1 and {AUTO, "none"} & beside
        if not self.repair or both or ("none" in self.repair and len(self.repair) > 1):
            raise UsageError(
                f"repair is {AUTO} alone, none alone, or some of {', '.join(REPAIRS)}; "
                f"{', '.join(SLOW_REPAIRS)} may stand beside {AUTO} or these; "
                f"got {', '.join(self.repair) or 'nothing'}"
            )

    @property
    def repairs(self) -> tuple[str, ...]:
        """The repairs that may be made."""
        if self.repair == ("none",):
            return ()
        found = (REPAIRS if word == AUTO else (word,) for word in self.repair)
        return tuple(repair for group in found for repair in group)


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """Which data the quantized model is compared on; the calibration data when none is named.

    `labels` names the array of an .npz, or a .npy file, with one class index a sample. `output` names the
    output that holds the class scores; needed only if the model has several.
    """

    data: str | None = None
    labels: str | None = None
    output: str | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"evaluation samples must be at least 1, got {self.samples}")


@dataclass(frozen=True, slots=True)
class AccuracySpec:
    """The gate: what the quantized model must keep.

    `max_drop` is in points of the metric, hundredths of its scale from 0 to 1. `metric` is "top-1" or
    "top-5", the share of samples whose class is the best or among the best five scores, or
    `script.py:function`: that is called as `function(outputs, labels)` with the arrays of all samples, joined
    along their first axis, and returns a number, the higher the better.
    """

    min_cosine: float = 0.99
    max_drop: float = 1.0
    metric: str = "top-1"

    def __post_init__(self) -> None:
        if not -1 <= self.min_cosine <= 1:
            raise UsageError(f"min_cosine must be between -1 and 1, got {self.min_cosine}")
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max_drop must be between 0 and 100 points, got {self.max_drop}")
        if self.metric not in METRICS and self.script is None:
            raise UsageError(
                f"metric must be {', '.join(METRICS)} or script.py:function, got {self.metric!r}"
            )

    @property
    def script(self) -> tuple[Path, str] | None:
        """The script and the function of a metric of the user's own; None for a built-in one."""
        script, _, function = self.metric.rpartition(":")
        return (Path(script), function) if script.endswith(".py") and function else None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Which layers keep a higher precision: regular expressions searched in node names.

    Attributes:
        skip: Not quantized.
        keep_fp32: Not quantized, and not FP16 either.
        force: Quantized although a rule of placement finds it not worth it.
    """

    skip: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    force: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.skip, *self.keep_fp32, *self.force):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model: profiles, preprocessing, data, kept layers, tolerances."""

    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    quantization: QuantizationSpec = field(default_factory=QuantizationSpec)
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    accuracy: AccuracySpec = field(default_factory=AccuracySpec)
    layers: LayerSpec = field(default_factory=LayerSpec)


def read_spec(path: Path) -> ModelSpec:
    """Returns the settings of a TOML file; the data it names is taken relative to the file's folder.

    Raises:
        UsageError: No such file, no TOML, an unknown section or key, a value of the wrong kind.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the settings {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    try:
        return _absolute(_spec_of(table), path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _spec_of(table: Mapping[str, Any]) -> ModelSpec:
    sections = {
        "preprocess": Preprocess,
        "calibration": CalibrationSpec,
        "quantization": QuantizationSpec,
        "evaluation": EvaluationSpec,
        "accuracy": AccuracySpec,
        "layers": LayerSpec,
    }
    values: dict[str, Any] = {}
    for name, content in table.items():
        if name != "inputs" and name not in sections:
            known = ", ".join(f"[{section}]" for section in ("inputs", *sections))
            raise UsageError(f"unknown section [{name}]; the sections are {known}")
        if not isinstance(content, dict):
            raise UsageError(f"[{name}] must be a section, got {content!r}")
        if name == "inputs":
            values[name] = {
                key: read_table(InputSpec, value, f"[inputs.{key}]") for key, value in content.items()
            }
        else:
            values[name] = read_table(sections[name], content, f"[{name}]")
    return ModelSpec(**values)


def read_table(cls: type[T], table: object, where: str) -> T:
    """Returns a settings dataclass from a TOML table; unknown keys and wrong kinds are errors."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} must be a section, got {table!r}")
    known = {item.name: str(item.type) for item in fields(cls)}  # type: ignore[arg-type]
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{where} has no key {key!r}; its keys are {', '.join(known)}")
        if not _fits(value, known[key]):
            raise UsageError(f"{where} {key} must be {_kind(known[key])}, got {value!r}")
    try:
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except TypeError as error:  # a key without a default is missing
        raise UsageError(f"{where} is incomplete: {error}; its keys are {', '.join(known)}") from error


def _fits(value: object, annotation: str) -> bool:
    if isinstance(value, bool):
        return False
    if annotation.startswith("tuple[str"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if annotation.startswith("tuple[float"):
        return isinstance(value, list) and all(type(item) in (int, float) for item in value)
    if annotation.startswith(("tuple[int", "Shape")):
        return isinstance(value, list) and all(type(item) is int for item in value)
    if annotation.startswith("float"):
        return isinstance(value, int | float)
    return isinstance(value, int if annotation.startswith("int") else str)


def _kind(annotation: str) -> str:
    kinds = {
        "tuple[str": "a list of strings",
        "tuple[float": "a list of numbers",
        "tuple[int": "a list of whole numbers",
        "Shape": "a list of whole numbers",
        "float": "a number",
        "int": "a whole number",
    }
    return next((kind for start, kind in kinds.items() if annotation.startswith(start)), "a string")


def _absolute(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Returns the settings with their paths made independent of the current folder."""
    calibration, evaluation = spec.calibration, spec.evaluation
    if calibration.data is not None:
        calibration = replace(calibration, data=str(folder / calibration.data))
    if evaluation.data is not None:
        evaluation = replace(evaluation, data=str(folder / evaluation.data))
    if evaluation.labels is not None and evaluation.labels.endswith(".npy"):
        evaluation = replace(evaluation, labels=str(folder / evaluation.labels))
    accuracy = spec.accuracy
    if accuracy.script is not None:
        accuracy = replace(accuracy, metric=str(folder / accuracy.metric))
    return replace(spec, calibration=calibration, evaluation=evaluation, accuracy=accuracy)
