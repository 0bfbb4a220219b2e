"""What is known of a model beyond its ONNX file: read from `model.toml` beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from trtq.errors import UsageError
from trtq.models.address import is_address, show_address, strip_local
from trtq.models.option import setting
from trtq.models.preprocess import Preprocess

METRICS = ("top-1", "top-5")
AUTO = "auto"
REPAIRS = ("equalize", "smooth", "shift", "rotate", "bias", "weights")
"""What can be done to a model so that quantizing costs it less; see `trtq.pipeline.judge.repairs`."""
INSERTING_REPAIRS = ("smooth", "shift")
"""Repairs that put operators into the graph."""
SLOW_REPAIRS = ("adaround",)
"""Repairs that "auto" leaves out in INT8: they take longer than all others together, and seldom pay."""
NAMED_REPAIRS = ("pad",)
"""Repairs that are tried only where they are named: they cost run time."""
WeightGranularity = Literal["per-channel", "per-tensor"]
Activations = Literal["symmetric", "asymmetric", "per-token"]
PER_TOKEN: Activations = "per-token"
Effort = Literal["quick", "balanced", "thorough"]
Device = Literal["cpu", "cuda"]
MOST_SPEEDUP = 1000.0
Shape = tuple[int, ...]
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Data: TypeAlias = str | Iterable[Any] | Callable[[], Iterable[Any]]
else:
    Data = str  # in files and on the command line
"""Data by its path or URL; in Python also what yields it."""


def _refuse_empty(section: object, *names: str) -> None:
    """Refuses an empty path, which would be that of the current folder."""
    for name in names:
        if getattr(section, name) == "":
            raise UsageError(f"{name} is empty; give a value or leave it out")


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """The shapes of one input in one optimization profile, batch included; min <= opt <= max on each axis."""

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
class InputSpec:
    """The shapes of one input for which the engine is built.

    Attributes:
        min: The smallest of the first optimization profile.
        opt: The usual one of it, for which kernels are chosen.
        max: The largest of it.
        profiles: The shapes in further optimization profiles.
    """

    min: Shape
    opt: Shape
    max: Shape
    profiles: tuple[ProfileSpec, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        self.first  # noqa: B018 - which checks the shapes
        if any(len(item.min) != len(self.min) for item in self.profiles):
            ranks = ", ".join(str(len(item.min)) for item in self.all)
            raise UsageError(f"the profiles of an input must have the same rank; got {ranks}")

    @property
    def first(self) -> ProfileSpec:
        """The first profile."""
        return ProfileSpec(self.min, self.opt, self.max)

    @property
    def all(self) -> tuple[ProfileSpec, ...]:
        """All profiles, the first first."""
        return (self.first, *self.profiles)

    @property
    def hull(self) -> InputSpec:
        """The smallest and the largest sizes of any profile, axis by axis."""
        axes = range(len(self.min))
        low = tuple(min(item.min[axis] for item in self.all) for axis in axes)
        return InputSpec(low, self.opt, tuple(max(item.max[axis] for item in self.all) for axis in axes))


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """Which data calibrates the model, and how ranges are estimated from it.

    Attributes:
        data: Path or URL (such as s3://bucket/calibration.npz) of the calibration data: an .npz or .npy file
            with the samples on the first axis, a folder of .npz files (one batch each), a folder of images,
            tar shards, Parquet files, a saved Hugging Face dataset, videos, script.py:function, or a .json
            file of inputs saved by Polygraphy.
        method: Calibration method. auto tries all of them on held-out calibration data and uses the best.
            cross-entropy applies to the inputs of a Softmax; other tensors then use entropy.
        parameters: Of the method, by the fields of its class; what is not given has its default.
        samples: Use only the first N samples, rounded up to whole batches. None: all.
        batch_size: Samples in a calibration batch.
        device: Where the float model runs during calibration.
        memory_bytes: Memory for the observed tensors, such as 512M or 4G. If they need more, calibration
            reads the data several times. The model itself comes on top. None: half of the free memory.
    """

    data: Data | None = setting(None, "--calib-data", metavar="DATA")
    method: str = setting(AUTO, "--calib-method")
    parameters: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = setting(None, "--calib-samples")
    batch_size: int = setting(8, "--calib-batch-size")
    device: Device = setting("cpu", "--calib-device")
    memory_bytes: int | None = setting(None, "--calib-memory", metavar="SIZE")

    def __post_init__(self) -> None:
        _refuse_empty(self, "data")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"calibration samples must be at least 1, got {self.samples}")
        if self.batch_size < 1:
            raise UsageError(f"calibration batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, slots=True)
class QuantizationSpec:
    """How the model is quantized, apart from the ranges.

    Attributes:
        repair: Repairs to try: auto (all), none, or any of equalize, smooth, shift, rotate, bias, weights
            (repeatable, or separated by commas). A repair is applied only if it helps on held-out calibration
            data. adaround is slow: in INT8 you must name it, as in auto,adaround; in FP8 auto includes it.
            pad lets shift center what is padded with zeros too, and must be named: it pads in a kernel of
            its own.
        weight_granularity: One scale per output channel of an INT8 weight, or a single scale, which costs
            accuracy and is for tools that do not support per-channel scales.
        activations: asymmetric adds zero points, which are finer if most values have the same sign. Only the
            backend onnxruntime supports them, and needs them for fast INT8. auto is asymmetric for
            onnxruntime, otherwise symmetric. per-token computes one scale per row of a MatMul or Gemm input
            at run time; these layers need no calibration.
        effort: How thoroughly methods and repairs are tried on held-out data. quick: not at all. balanced:
            all on a few samples, the best on up to 64; unlikely ones are dropped early. thorough: the best
            three on all samples, which takes up to three times as long.
    """

    repair: tuple[str, ...] = setting((AUTO,), metavar="NAMES")
    weight_granularity: WeightGranularity = setting("per-channel")
    activations: Activations | Literal["auto"] = setting(AUTO)
    effort: Effort = setting("balanced")

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("effort", self.effort, get_args(Effort)),
            ("weight_granularity", self.weight_granularity, get_args(WeightGranularity)),
            ("activations", self.activations, (AUTO, *get_args(Activations))),
        ):
            if value not in choices:
                wanted = " or ".join((", ".join(choices[:-1]), choices[-1]))
                raise UsageError(f"{name} must be {wanted}, got {value!r}")
        added = (*SLOW_REPAIRS, *NAMED_REPAIRS)
        words = (AUTO, "none", *REPAIRS, *added)
        if unknown := [word for word in self.repair if word not in words]:
            raise UsageError(f"there is no repair {unknown[0]!r}; use {', '.join(words)}")
        quick = {*self.repair} - {*added}
        is_mixed = len(quick) > 1 and not quick.isdisjoint((AUTO, "none"))
        if not self.repair or is_mixed or ("none" in self.repair and len(self.repair) > 1):
            raise UsageError(
                f"repair is {AUTO} alone, none alone, or some of {', '.join(REPAIRS)}; "
                f"{', '.join(added)} can be added to {AUTO} or these; got "
                f"{', '.join(self.repair) or 'nothing'}"
            )

    @property
    def kind_of_ranges(self) -> Activations:
        """How activations are quantized; where nobody chose, as every backend takes it."""
        return "symmetric" if self.activations == "auto" else self.activations

    @property
    def repairs(self) -> tuple[str, ...]:
        """The repairs that may be made."""
        names = (REPAIRS if word == AUTO else (word,) for word in self.repair if word != "none")
        return tuple(repair for group in names for repair in group)


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """Which data the quantized model is compared on, and the class of each sample.

    Attributes:
        data: Data to compare on. None: the calibration data.
        labels: One class index per sample: the name of an array in --eval-data, or a .npy file.
        output: The output with the class scores; required if the model has several outputs.
        samples: Compare only this many samples, rounded up to whole batches. None: all with labels, otherwise
            128.
        reference: Float ONNX model to compare with, if the model already has Q/DQ. None: the model itself.
    """

    data: Data | None = setting(None, "--eval-data", metavar="DATA")
    labels: str | None = setting(None, metavar="NAME|FILE.npy")
    output: str | None = setting(None, "--eval-output", metavar="NAME")
    samples: int | None = setting(None, "--eval-samples")
    reference: str | None = setting(None, metavar="FILE.onnx")

    def __post_init__(self) -> None:
        _refuse_empty(self, "data", "labels", "reference")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"evaluation samples must be at least 1, got {self.samples}")


@dataclass(frozen=True, slots=True)
class AccuracySpec:
    """The gate: how much accuracy the quantized model may lose, and how fast it must be.

    Attributes:
        min_cosine: Gate: lowest cosine similarity allowed for any output.
        max_drop: Gate: largest drop of the metric allowed, in percentage points.
        metric: Gate: top-1, top-5, or script.py:function. The function is called once with (outputs, labels)
            of all samples, concatenated on the first axis; labels is None if there are none. It returns 0 to
            1, higher is better.
        min_speedup: Gate: required speed-up over the float model or engine on this machine, such as 1.05,
            beyond measurement noise. None: speed is not checked.
    """

    min_cosine: float = setting(0.99)
    max_drop: float = setting(1.0)
    metric: str = setting("top-1", metavar="NAME|SCRIPT:FUNCTION")
    min_speedup: float | None = setting(None)

    def __post_init__(self) -> None:
        if not -1 <= self.min_cosine <= 1:
            raise UsageError(f"min_cosine must be between -1 and 1, got {self.min_cosine}")
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max_drop must be between 0 and 100 points, got {self.max_drop}")
        if self.min_speedup is not None and not 0 < self.min_speedup <= MOST_SPEEDUP:
            raise UsageError(
                f"min_speedup is a ratio above 0 and at most {MOST_SPEEDUP:g}, such as 1.05, got "
                f"{self.min_speedup}"
            )
        if self.metric not in METRICS and self.script is None:
            raise UsageError(
                f"metric must be {', '.join(METRICS)} or script.py:function, got {self.metric!r}"
            )

    @property
    def script(self) -> tuple[Path, str] | None:
        """The script and the function of a metric of the user's own; None for a built-in one."""
        script, _, function = self.metric.rpartition(":")
        return (Path(script), function) if names_script(self.metric) else None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Which layers keep a higher precision: regular expressions searched in node names.

    Attributes:
        skip: Do not quantize nodes whose names match (repeatable; adds to model.toml).
        keep_fp32: Keep nodes whose names match in FP32 (repeatable; adds to model.toml).
        force: Quantize nodes whose names match even if a rule says that INT8 does not pay (repeatable; adds
            to model.toml).
    """

    skip: tuple[str, ...] = setting((), metavar="REGEX")
    keep_fp32: tuple[str, ...] = setting((), metavar="REGEX")
    force: tuple[str, ...] = setting((), metavar="REGEX")

    def __post_init__(self) -> None:
        for pattern in (*self.skip, *self.keep_fp32, *self.force):
            if not pattern:
                raise UsageError("'' matches every node; write '.*' to mean that")
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """Libraries with operators that neither ONNX nor TensorRT has. Their code runs when they are loaded.

    Attributes:
        plugins: TensorRT plugin library, to build and run the engine (repeatable).
        ort_custom_ops: ONNX Runtime custom operator library, to calibrate and compare (repeatable).
    """

    plugins: tuple[str, ...] = setting((), metavar="LIB.so")
    ort_custom_ops: tuple[str, ...] = setting((), metavar="LIB.so")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The settings of a model: profiles, preprocessing, data, layers kept in float, tolerances.

    Attributes:
        inputs: The profile of each dynamic input.
        preprocess: How images are preprocessed.
        calibration: The data, and how ranges are estimated from it.
        quantization: How the model is quantized, apart from the ranges.
        evaluation: What the result is compared on.
        accuracy: The gate.
        layers: Which layers keep a higher precision, or do not.
        operators: Libraries with operators that the model needs.
        file: The settings file that was read; None: no file.
    """

    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    quantization: QuantizationSpec = field(default_factory=QuantizationSpec)
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    accuracy: AccuracySpec = field(default_factory=AccuracySpec)
    layers: LayerSpec = field(default_factory=LayerSpec)
    operators: OperatorSpec = field(default_factory=OperatorSpec)
    file: str | None = field(default=None, compare=False)

    @property
    def scripts(self) -> Mapping[str, str]:
        """The code that is run for these settings, by the key that names it: `[accuracy] metric`."""
        named = {
            "[calibration] data": self.calibration.data,
            "[evaluation] data": self.evaluation.data,
            "[accuracy] metric": self.accuracy.metric,
        }
        libraries = {
            "[operators] plugins": ", ".join(self.operators.plugins),
            "[operators] ort_custom_ops": ", ".join(self.operators.ort_custom_ops),
        }
        scripts = {key: text for key, text in named.items() if isinstance(text, str) and names_script(text)}
        return scripts | {key: text for key, text in libraries.items() if text}

    @property
    def sources(self) -> tuple[str | None, ...]:
        """What is read here for these settings: their file, the data, labels in a file, and the metric."""
        labels = self.evaluation.labels
        is_file = labels is not None and labels.endswith(".npy")
        data = map(find_path, (self.calibration.data, self.evaluation.data))
        files = (self.file, *data, labels if is_file else None)
        return (*files, self.accuracy.metric if self.accuracy.script is not None else None)

    @property
    def shown(self) -> ModelSpec:
        """The settings as they may be written: no credentials, and data of Python as the name of its type."""
        calibration, evaluation = self.calibration, self.evaluation
        return replace(
            self,
            calibration=replace(calibration, data=_show_data(calibration.data)),
            evaluation=replace(evaluation, data=_show_data(evaluation.data)),
        )


def find_path(data: Data | None) -> str | None:
    """Returns the path of data on this machine; None of data elsewhere, or in Python."""
    return strip_local(data) if isinstance(data, str) and not is_address(data) else None


def _show_data(data: Data | None) -> str | None:
    if data is None or isinstance(data, str):
        return data and show_address(data)
    return f"{name_object(data)} in Python"


def name_object(value: object) -> str:
    """Returns the name of a function, or of a value's type."""
    return str(getattr(value, "__name__", "") if callable(value) else "") or type(value).__name__


def names_script(text: str) -> bool:
    """Returns whether this is `script.py:function`."""
    script, _, function = text.rpartition(":")
    return script.endswith(".py") and function != ""
