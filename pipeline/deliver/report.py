"""What a build has to tell, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtq.json import FileKind, Measured
from trtq.kept import Fallback, KeptFp32, KeptNode
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.names import REPORT
from trtq.records import LogitsComparison, OutputComparison, Repairs

SCHEMA_VERSION = 1
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
    """What was built. `path` is relative to the folder; `targets` is empty for the backend's default.

    `quantization` is "explicit" (Q/DQ in the model) or "implicit" (by TensorRT itself), and
    `quantization_reason` says why.
    """

    path: str
    bytes: int
    layers_quantized: int
    layers_int8: int
    fallbacks: tuple[Fallback, ...]
    profiles: Mapping[str, InputSpec]
    targets: tuple[str, ...]
    warnings: tuple[str, ...]
    quantization: str = "explicit"
    quantization_reason: str = ""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What weight-only quantization did.

    Attributes:
        format: "int8", "fp8", "int4" or "nf4".
        method: "rtn", "mse", "gptq" or "awq".
        block_size: Elements to a scale, the largest that a weight has; None for INT8.
        num_weights: How many weights are stored in fewer bits.
        bytes_float: Their size before, in FP32.
        bytes_quantized: Their size now, with all scales.
        bits_per_weight: The same for one element.
        gain: What that is good for on the backend.
        smallest_block: The smallest block of a weight; None for INT8.
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


@dataclass(frozen=True, slots=True)
class KeptByAuto:
    """A layer that `--auto` kept out of INT8.

    `macs` is its share of all multiply-accumulates, `sqnr_db` that of the outputs with it alone in INT8.
    """

    name: str
    macs: Measured
    sqnr_db: Measured


@dataclass(frozen=True, slots=True)
class AutoReport:
    """What `--auto` found.

    Attributes:
        outcome: In a sentence.
        kept: The layers that are kept out of INT8, most harmful for their cost first.
        skip: The patterns for `--skip` that reproduce it.
        int8_macs: The share of all multiply-accumulates that is in INT8; those in the bodies of If, Loop and
            Scan are not counted.
        int8_macs_before: The same without `--auto`.
        times_judged: How often a choice was judged on the data that was held back.
        evaluation_passes: What it cost, in runs of one model over the evaluation data.
        method: The calibration method that was taken instead of the one that was asked for; empty: none.
    """

    outcome: str
    kept: tuple[KeptByAuto, ...] = ()
    skip: tuple[str, ...] = ()
    int8_macs: float | None = None
    int8_macs_before: float | None = None
    times_judged: int = 0
    evaluation_passes: float = 0.0
    method: str = ""


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
        precision: "int8", "fp16" or, for float activations, such as "int4-weights".
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
        timings_s: Seconds by stage.
        weights: What was done to the weights alone; None if nothing was.
        logits: Perplexity and divergence, where outputs are logits of a language model.
        metric: The metric's name: "top-1", "top-5" or `script.py:function`.
        top5: The share of answers among the best five by model; empty unless `metric` is "top-1" of more than
            ten classes.
        auto: What `--auto` found; None if it was not asked for.
        sizes_bytes: Of the model that was given, as "model", and of the models and the engine by file name.
        repairs: What was tried so that quantizing costs less, and what it gained; None if nothing was.
        given: Layers that came quantized and were kept as they are, and what of each did.
        int8_macs: The share of the multiply-accumulates that the engine does in INT8, 0 to 1; None if nothing
            tells. Those in the bodies of If, Loop and Scan are not counted.
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
    int8_macs: float | None = None

    @property
    def is_mostly_float(self) -> bool:
        """Whether INT8 was asked for, and does less than half of the model's work."""
        return self.int8_macs is not None and self.int8_macs < LITTLE


FILE = FileKind(Report, "report", "trtq build", version=SCHEMA_VERSION, has_null=True)


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
