"""What a build has to tell, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtq.json import FileKind, Measured
from trtq.kept import Fallback, KeptFp32, KeptNode
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.names import ENGINE, FLOAT, REPORT
from trtq.pipeline.deliver.notebook import verdict_to_html
from trtq.pipeline.judge.speed import SpeedVerdict
from trtq.records import LogitsComparison, OutputComparison, Repairs

SCHEMA_VERSION = 2
LITTLE = 0.5
"""Below this share of the multiply-accumulates in INT8, a build is no plain success."""


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How the ranges were found. `seconds` and `peak_rss_bytes` are those of the run that calibrated.

    `seconds` is None where TensorRT calibrated: that is part of the build.
    """

    method: str
    data: str
    samples: int
    seconds: float | None
    peak_rss_bytes: int
    random: bool


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was built.

    Attributes:
        path: Relative to the folder.
        bytes: Of that file.
        layers_quantized: How many layers are asked to run on codes.
        layers_realized: How many of them run as asked, by what they are asked: "int8", "fp8", "nvfp4",
            "int4-weights" (float activations), "int8 x int4" (activation by weight).
        fallbacks: The others.
        targets: Compute capabilities; empty for the backend's default.
        quantization: "explicit" (Q/DQ in the model) or "implicit" (by TensorRT itself).
        quantization_reason: Why so.
    """

    path: str
    bytes: int
    layers_quantized: int
    layers_realized: Mapping[str, int]
    fallbacks: tuple[Fallback, ...]
    profiles: Mapping[str, InputSpec]
    targets: tuple[str, ...]
    warnings: tuple[str, ...]
    quantization: str = "explicit"
    quantization_reason: str = ""

    @property
    def num_realized(self) -> int:
        """How many layers run as asked."""
        return sum(self.layers_realized.values())

    @property
    def discarded(self) -> tuple[Fallback, ...]:
        """The layers that an engine computes in another format than asked, as its builder says.

        Not those whose weights alone are in few bits: TensorRT stores them so, whatever it computes in.
        """
        told = (item for item in self.fallbacks if item.runs_as not in ("none", "unknown"))
        is_engine = self.path == ENGINE
        return tuple(item for item in told if is_engine and not item.asked.endswith("-weights"))

    @property
    def coverage(self) -> str:
        """How many layers run as asked, in words: "5 of 6 quantized layers run in INT8"."""
        return describe_coverage(self.layers_realized, Counter(item.asked for item in self.fallbacks))


def describe_coverage(realized: Mapping[str, int], others: Mapping[str, int]) -> str:
    """Returns how many layers run as asked, in words; empty if there are none.

    Args:
        realized: How many run as asked, by what they are asked.
        others: How many do not.
    """
    asked = Counter(realized) + Counter(others)
    parts = [
        (f"{realized.get(name, 0)} of {count}", format_asked(name)) for name, count in asked.most_common()
    ]
    if not parts:
        return ""
    (share, name), *more = parts
    return ", ".join([f"{share} quantized layers run {name}", *(" ".join(part) for part in more)])


def format_asked(name: str) -> str:
    """Returns what layers are asked for as people say it: "in INT8", "with INT4 weights"."""
    form, is_weight, _ = name.partition("-weights")
    words = " x ".join(part.upper() for part in form.split(" x "))
    return f"with {words} weights" if is_weight else f"in {words}"


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What weight-only quantization did.

    Attributes:
        format: "int8", "fp8", "int4" or "nf4": what was asked for, where a weight is stored so.
        method: "rtn", "mse", "gptq" or "awq".
        block_size: Elements to a scale, the largest that a weight has; None for INT8.
        num_weights: How many weights are stored in fewer bits.
        bytes_float: Their size before, in FP32.
        bytes_quantized: Their size now, with all scales.
        bits_per_weight: The same for one element.
        gain: What that is good for on the backend.
        smallest_block: The smallest block of a weight; None for INT8.
        also: The other formats that weights are stored in.
    """

    format: str
    method: str
    block_size: int | None
    num_weights: int
    bytes_float: int
    bytes_quantized: int
    bits_per_weight: float
    gain: str
    smallest_block: int | None = None
    also: tuple[str, ...] = ()

    @property
    def formats(self) -> str:
        """All formats: "int4", "int4, int8"."""
        return ", ".join([self.format, *self.also])


@dataclass(frozen=True, slots=True)
class KvCacheReport:
    """How the cache of a decoder is held in codes.

    Attributes:
        format: "int8" or "fp8".
        scales: By the inputs that hold what came before; each holds for the output that continues it too. A
            code times the scale is the number.
    """

    format: str
    scales: Mapping[str, Measured]


@dataclass(frozen=True, slots=True)
class KeptByAuto:
    """A layer that `--auto` kept float.

    `macs` is its share of all multiply-accumulates, `sqnr_db` that of the outputs with it alone in its
    cheapest format.
    """

    name: str
    macs: Measured
    sqnr_db: Measured


@dataclass(frozen=True, slots=True)
class AutoReport:
    """What `--auto` or `--formats` found.

    Attributes:
        outcome: In a sentence.
        kept: The layers that are kept float, most harmful for their cost first.
        skip: The patterns for `--skip` that reproduce it, where no layer has another format.
        quantized_macs: The share of all multiply-accumulates that is in formats of 8 bits or fewer; those in
            the bodies of If, Loop and Scan are not counted.
        quantized_macs_before: The same without `--auto`.
        times_judged: How often a choice was judged on the data that was held back.
        evaluation_passes: What it cost, in runs of one model over the evaluation data.
        method: The calibration method that was taken instead of the one that was asked for; empty: none.
        layers: The format of each quantized layer, where there are several.
        formats: The share of all multiply-accumulates by format; "fp16" is what is not quantized.
        cost: What the layers cost that could be chosen, as a share of the cost of all layers in FP16, by the
            table of what a GPU multiplies and reads (`formats/throughput.py`); None if it is not known.
        cost_before: The same with every layer in its cheapest format.
        cost_float: The same with every layer in FP16.
        option: What asked for it.
    """

    outcome: str
    kept: tuple[KeptByAuto, ...] = ()
    skip: tuple[str, ...] = ()
    quantized_macs: float | None = None
    quantized_macs_before: float | None = None
    times_judged: int = 0
    evaluation_passes: float = 0.0
    method: str = ""
    layers: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, Measured] = field(default_factory=dict)
    cost: float | None = None
    cost_before: float | None = None
    cost_float: float | None = None
    option: str = "--auto"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a build.

    Attributes:
        schema_version: Of the JSON form.
        verdict: "pass", "fail" or "unverified".
        reasons: Why, unless it passed.
        model: The file that was built.
        output: The folder that holds the result.
        backend: With its version, such as `tensorrt-rtx 1.7.1`.
        precision: "int8", "fp16" or, for float activations, such as "int4-weights"; of a model that came
            quantized what it came in, "fp8" or "quantized" for several formats.
        high_precision: What is not quantized computes in this.
        calibration: None if nothing was calibrated.
        engine: What was built.
        comparison: Every output of every pair of models.
        evaluated_samples: How many samples were compared.
        evaluation_data: The data that was compared on.
        accuracy: What the metric says of each model, such as the share of right answers, 0 to 1; empty
            without labels.
        kept_float: Layers with weights that are not quantized, and why.
        kept_fp32: Nodes that stay FP32 although the rest is FP16, and why.
        notes: What was changed or decided on the way.
        warnings: What the user should look at.
        reused: What was taken from an earlier build: nothing, "ranges", "engine" or "everything".
        timings_s: Seconds by stage, which add up: of an engine that is built while models are compared, only
            how much longer it took.
        weights: What was done to the weights alone; None if nothing was.
        logits: Perplexity and divergence, where outputs are logits of a language model.
        metric: The metric's name: "top-1", "top-5" or `script.py:function`.
        top5: The share of answers among the best five by model; empty unless `metric` is "top-1" of more than
            ten classes.
        auto: What `--auto` found; None if it was not asked for.
        sizes_bytes: Of the model that was given, as "model", and of the models and the engine by file name.
        repairs: What was tried so that quantizing costs less, and what it gained; None if nothing was.
        given: Layers that came quantized and were kept as they are, and what of each did.
        quantized_macs: The share of the multiply-accumulates that the engine does on codes of 8 bits or
            fewer, 0 to 1; None if nothing tells. Those in the bodies of If, Loop and Scan are not counted.
        speed: What the speed gate says; None if it was not asked (`--min-speedup`).
        kv_cache: The cache of a decoder, where it is held in codes (`--kv-cache`).
    """

    schema_version: int
    verdict: str
    reasons: tuple[str, ...]
    model: str
    output: str
    backend: str
    precision: str
    high_precision: str
    calibration: CalibrationReport | None
    engine: EngineReport
    comparison: tuple[OutputComparison, ...]
    evaluated_samples: int
    evaluation_data: str
    accuracy: Mapping[str, Measured]
    kept_float: tuple[KeptNode, ...]
    kept_fp32: tuple[KeptFp32, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    reused: tuple[str, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    weights: WeightsReport | None = None
    logits: tuple[LogitsComparison, ...] = ()
    metric: str = "top-1"
    top5: Mapping[str, Measured] = field(default_factory=dict)
    auto: AutoReport | None = None
    sizes_bytes: Mapping[str, int] = field(default_factory=dict)
    repairs: Repairs | None = None
    given: tuple[KeptNode, ...] = ()
    quantized_macs: float | None = None
    speed: SpeedVerdict | None = None
    kv_cache: KvCacheReport | None = None

    @property
    def failed_gates(self) -> str:
        """Which gates failed: "accuracy", "speed", "accuracy and speed"; empty if none did."""
        speed = self.speed.reasons if self.speed is not None and self.speed.verdict == "fail" else ()
        is_inexact = self.verdict == "fail" and len(self.reasons) > len(speed)
        return " and ".join((*(["accuracy"] if is_inexact else []), *(["speed"] if speed else [])))

    def __repr__(self) -> str:
        """Returns the verdict and what was built, in one line."""
        return f"<Report {self.verdict.upper()}: {self._describe()}>"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        return verdict_to_html(self.verdict, self._describe(), self.reasons, self.comparison)

    def _describe(self) -> str:
        covered = f", {self.engine.coverage}" if self.engine.coverage else ""
        return f"{self.model} in {self.precision.upper()} by {self.backend}{covered}: {self.output}"

    @property
    def is_quantized(self) -> bool:
        """Whether layers are asked to run on codes; not FP16, nor weights or a cache alone."""
        return self.precision != "fp16" and not self.precision.endswith(("-weights", "-cache"))

    @property
    def is_mostly_float(self) -> bool:
        """Whether codes were asked for, and do less than half of the model's work."""
        return self.quantized_macs is not None and self.quantized_macs < LITTLE

    @property
    def runs_in(self) -> str:
        """What the quantized layers compute in, in words: "in INT8", "in FP8 and INT8"."""
        realized = {name.partition(" x ")[0] for name in self.engine.layers_realized}
        formats = sorted(name.upper() for name in realized if not name.endswith("-weights"))
        asked = "8 bits or fewer" if self.precision == "quantized" else self.precision.upper()
        return f"in {' and '.join(formats or [asked])}"


def _upgrade(document: dict[str, Any], version: int) -> dict[str, Any]:
    """Returns a report of an older schema as one of today: the first knew INT8 alone."""
    engine = document.get("engine")
    if version > 1 or not isinstance(engine, dict) or "layers_int8" not in engine:
        return document
    count, auto = engine["layers_int8"], document.get("auto")
    renamed = {"schema_version": SCHEMA_VERSION, "quantized_macs": document.get("int8_macs")}
    if isinstance(auto, dict):
        shares = {f"quantized_macs{when}": auto.get(f"int8_macs{when}") for when in ("", "_before")}
        renamed["auto"] = {**auto, **shares}
    return {**document, **renamed, "engine": {**engine, "layers_realized": {"int8": count} if count else {}}}


FILE = FileKind(Report, "report", "trtq build", version=SCHEMA_VERSION, has_null=True, upgrade=_upgrade)


def to_json(report: Report) -> bytes:
    """Returns the report as JSON; numbers that are not finite become null."""
    return FILE.encode(report)


def read_report(path: Path | str) -> Report:
    """Returns the report of a build.

    Args:
        path: The build folder, or the file in it.

    Raises:
        ArtifactError: The file is missing, broken, incomplete or of a newer schema.
    """
    path = Path(path)
    return FILE.read(path / REPORT if path.is_dir() else path)


def find_model(report: Report, names: Collection[str]) -> str:
    """Returns the name of the ONNX file of a build that has the inputs and outputs of its engine.

    Args:
        report: Of the build.
        names: The files of the folder.
    """
    if report.engine.path != ENGINE:
        return report.engine.path
    known = (f"model.{report.precision}.onnx", FLOAT, "model.fp16.onnx")
    return next((name for name in known if name in names), "model.onnx")
