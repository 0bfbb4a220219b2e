"""Tests of what is said to help most after a verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trtq.pipeline.deliver.advice import advise, group_reasons
from trtq.pipeline.deliver.report import AutoReport, CalibrationReport, EngineReport, Report, WeightsReport
from trtq.records import Repairs

CALIBRATED = CalibrationReport("mse", "data.npz", 512, 1.0, 0, False)
REPAIRED = Repairs("mse", (), 30.0, 30.0, 64, ())
INT4 = WeightsReport("int4", "mse", 64, 1, 4, 1, 4.5, "")
ENGINE = EngineReport("model.engine", 1, 1, {"int8": 1}, (), {}, (), ())
COSINE = ("output 'y' has cosine 0.9 to fp32, the gate requires 0.99",)


def report(verdict: str = "fail", reasons: tuple[str, ...] = COSINE, **given: Any) -> Report:
    """Returns the report of a build that tried everything but --auto."""
    known = {"calibration": CALIBRATED, "repairs": REPAIRED, "engine": ENGINE, "notes": (), **given}
    return Report(
        schema_version=2, verdict=verdict, reasons=reasons, model="m.onnx", output="m.trtq",
        backend="tensorrt-rtx 1", precision=known.pop("precision", "int8"), high_precision="fp16",
        comparison=(), evaluated_samples=known.pop("samples", 64), evaluation_data="", accuracy={},
        kept_float=(), kept_fp32=(), warnings=(), **known,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, ("--auto",)),
        ({"repairs": None}, ("--repair", "auto", "--effort", "balanced")),
        ({"repairs": None, "notes": ("no repair is tried: one batch",)}, ("--auto",)),
        ({"calibration": replace(CALIBRATED, samples=8)}, ("--calib-data", "MORE_DATA")),
        (
            {"reasons": (*COSINE, "FP16 alone ...: quantization is not the cause; keep")},
            ("--high-precision", "fp32"),
        ),
        ({"precision": "fp16", "calibration": None}, ("--keep-fp32", "REGEX")),
        ({"precision": "int4-weights", "weights": INT4}, ("--weight-method", "gptq")),
        ({"precision": "int4-weights", "weights": replace(INT4, method="gptq")}, ("--weights", "int8")),
        ({"precision": "int4-weights", "weights": replace(INT4, also=("int8",))}, ("--weights", "int8")),
        ({"engine": replace(ENGINE, quantization="implicit")}, ("--quantization", "explicit")),
        (
            {"verdict": "unverified", "reasons": ("the model ... was compared with itself",)},
            ("--reference", "FLOAT.onnx"),
        ),
        (
            {"verdict": "unverified", "reasons": ("nothing was compared",), "samples": 0},
            ("--eval-data", "DATA"),
        ),
    ],
)
def test_what_helps_most_is_an_option_of_the_same_command(
    given: dict[str, Any], options: tuple[str, ...]
) -> None:
    advice = advise(report(**given))
    assert advice is not None
    assert (advice.options, advice.command) == (options, ())
    assert advice.text


def test_what_eight_bits_do_not_take_is_dropped() -> None:
    advice = advise(report(precision="int4-weights", weights=replace(INT4, method="gptq")))
    assert advice is not None
    assert {"--weight-method", "--double-quant", "--weights-for"} < set(advice.drops)


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"auto": AutoReport("no choice holds")}, ("trtq", "sensitivity", "m.trtq")),
        (
            {"auto": AutoReport("all float"), "engine": replace(ENGINE, layers_quantized=0)},
            ("trtq", "sensitivity", "m.onnx", "--calib-data", "data.npz"),
        ),
        ({"verdict": "pass", "quantized_macs": 0.1}, ("trtq", "inspect", "m.onnx", "--placement")),
        (
            {"verdict": "unverified", "reasons": ("no layer is quantized: ...",)},
            ("trtq", "inspect", "m.onnx", "--placement"),
        ),
        ({"reasons": (*COSINE, "the repairs that round again may be the cause")}, ("trtq", "lint", "m.onnx")),
    ],
)
def test_what_helps_most_may_be_another_command(given: dict[str, Any], command: tuple[str, ...]) -> None:
    advice = advise(report(**given))
    assert advice is not None
    assert (advice.options, advice.command) == ((), command)


@pytest.mark.parametrize(
    "given",
    [
        {"verdict": "pass", "quantized_macs": 0.9},
        {"calibration": None},
        {"precision": "int8-weights", "weights": replace(INT4, format="int8")},
        {"verdict": "unverified", "calibration": replace(CALIBRATED, random=True), "samples": 0},
        {"verdict": "unverified", "reasons": ("only the outputs are the same",)},
        {"verdict": "unverified", "reasons": ("which ONNX Runtime cannot run: nothing",), "samples": 0},
    ],
)
def test_nothing_is_advised_where_nothing_is_known_to_help(given: dict[str, Any]) -> None:
    assert advise(report(**given)) is None


def test_reasons_that_differ_in_names_and_numbers_alone_are_counted() -> None:
    reasons = [
        f"output 'y{index}' has cosine 0.{index} to fp32; worst samples: {index}" for index in range(3)
    ]
    assert group_reasons([*reasons, "another"]) == [f"{reasons[0]} (and 2 more like it)", "another"]
    assert group_reasons(()) == []
