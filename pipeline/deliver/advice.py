"""What helps most after a verdict, by what the report shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtq.numbers import format_count
from trtq.pipeline.deliver.report import Report, WeightsReport
from trtq.records import NO_REPAIR_TRIED

_FEW_SAMPLES = 16
"""On fewer, the largest values of a tensor are mostly not seen yet."""
_NAME_OR_NUMBER = re.compile(r"'[^']*'|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_OF_FOUR_BITS = ("--weight-method", "--block-size", "--double-quant", "--quantize-sensitive", "--weights-for")
"""Options that weights of 8 bits do not have."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do next.

    Attributes:
        text: Why, in a few words.
        options: That are added to the command of the build, in the place of those of the same names, but for
            those that may be repeated.
        drops: Options of the command that must go, each with its values.
        command: Another command; empty: that of the build.
    """

    text: str
    options: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def advise(report: Report) -> Advice | None:
    """Returns what helps most; None if nothing is to be done, or trtq knows of nothing."""
    if report.verdict == "fail":
        return _find_cause(report) or _advise_search(report)
    if report.verdict == "unverified":
        return _advise_proof(report)
    return _explain_floats(report) if report.is_mostly_float else None


def group_reasons(reasons: Sequence[str]) -> list[str]:
    """Returns the first of reasons that differ in names and numbers alone, with how many more there are."""
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(_NAME_OR_NUMBER.sub("#", reason).partition("; worst samples")[0], []).append(reason)
    return [
        first if not others else f"{first} (and {len(others)} more like it)"
        for first, *others in alike.values()
    ]


def _find_cause(report: Report) -> Advice | None:
    """Returns what to do about a cause that the report names, or that the layers are not."""
    told = " ".join(report.reasons)
    if "accuracy" not in report.failed_gates:
        return Advice("measures the time of each layer", command=("trtq", "bench", report.output, "--layers"))
    if "quantization is not the cause" in told:
        return Advice("FP16 alone is just as bad", ("--high-precision", "fp32"), drops=("--fp16",))
    if "the repairs that round again" in told:
        return Advice("shows how the file is repaired", command=("trtq", "lint", report.model))
    if report.precision == "fp16":
        return Advice("keeps the layers in FP32 where FP16 loses too much", ("--keep-fp32", "REGEX"))
    if report.weights is not None and not report.is_quantized:
        return _advise_weights(report.weights)
    if report.engine.quantization == "implicit":
        return Advice("repairs and --auto need Q/DQ in the model", ("--quantization", "explicit"))
    return None


def _advise_weights(weights: WeightsReport) -> Advice | None:
    if weights.format == "int4" and weights.method not in ("gptq", "awq") and not weights.also:
        return Advice("GPTQ rounds using the data of --calib-data", ("--weight-method", "gptq"))
    if weights.format not in ("int4", "nf4"):
        return None
    return Advice("more bits per weight", ("--weights", "int8"), drops=_OF_FOUR_BITS)


def _advise_search(report: Report) -> Advice | None:
    """Returns the next step in finding ranges, repairs and layers; None where nothing was calibrated."""
    seen = report.calibration
    if seen is None or not report.is_quantized:
        return None
    if seen.samples < _FEW_SAMPLES:
        found = f"calibrated on {format_count(seen.samples, 'sample')} only; use a few hundred"
        return Advice(found, ("--calib-data", "MORE_DATA"), drops=("--calib-samples",))
    was_tried = any(note.startswith(NO_REPAIR_TRIED) for note in report.notes)
    if report.repairs is None and not was_tried:
        tried = ("--repair", "auto", "--effort", "balanced")
        return Advice("tries repairs and other calibration methods", tried, drops=("--repair",))
    if report.auto is None:
        return Advice("keeps layers in float until the gate passes", ("--auto",))
    of = (report.output,) if report.engine.layers_quantized else (report.model, "--calib-data", seen.data)
    return Advice("measures the accuracy cost of each layer", command=("trtq", "sensitivity", *of))


def _advise_proof(report: Report) -> Advice | None:
    """Returns what would make a verdict of what nothing proves."""
    told = " ".join(report.reasons)
    if "compared with itself" in told:
        return Advice("compares with the float model", ("--reference", "FLOAT.onnx"))
    if "no layer is quantized" in told:
        return _explain_floats(report)
    if report.calibration is not None and report.calibration.random:
        return None  # the reason says it, and an option more would contradict --random-data
    if report.evaluated_samples <= 1 and "cannot run" not in told:
        return Advice("gives data to compare on", ("--eval-data", "DATA"))
    return None


def _explain_floats(report: Report) -> Advice:
    return Advice("shows why layers stay in float", command=("trtq", "inspect", report.model, "--placement"))
