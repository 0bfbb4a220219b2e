"""Tests of the report's way to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.errors import ArtifactError
from trtq.kept import Fallback, KeptFp32, KeptNode
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.report import (
    SCHEMA_VERSION,
    CalibrationReport,
    EngineReport,
    Report,
    describe_coverage,
    read_report,
    to_json,
)
from trtq.records import OutputComparison, WorstSample

_OUTPUT = OutputComparison(
    "int8", "fp32", "logits", 0.9991, 27.5, 0.5, 0.1, 0.99, 0, (WorstSample(0.9, 7), WorstSample(0.95, 1))
)
_REPORT = Report(
    schema_version=SCHEMA_VERSION,
    verdict="pass",
    reasons=("none", "größe"),
    model="model.onnx",
    output="model.trtq",
    backend="tensorrt-rtx 1.7.1",
    precision="int8",
    high_precision="fp16",
    calibration=CalibrationReport("entropy", "calibration.npz", 512, 1.25, 1 << 30, False),
    engine=EngineReport(
        "model.engine",
        1 << 20,
        11,
        {"int8": 10},
        (Fallback("up", "ConvTranspose", "Half", "no kernel"),),
        {"image": InputSpec((1, 3), (2, 3), (4, 3)), "scalar": InputSpec((), (), ())},
        ("8.9",),
        ("WARNING: one",),
    ),
    comparison=(_OUTPUT,),
    evaluated_samples=600,
    evaluation_data="evaluation.npz",
    accuracy={"fp32": 0.98, "int8": 0.975},
    kept_float=(KeptNode("lstm", "LSTM", "stays float"),),
    kept_fp32=(KeptFp32("exp", "too large"),),
    notes=("a note",),
    warnings=("a warning",),
    reused=("ranges",),
    timings_s={"calibrate": 1.25},
)


def _read(report: Report, folder: Path) -> Report:
    (folder / "report.json").write_bytes(to_json(report))
    return read_report(folder / "report.json")


def test_a_report_survives_being_written_and_read(tmp_path: Path) -> None:
    assert _read(_REPORT, tmp_path) == _REPORT


def test_what_may_be_absent_survives(tmp_path: Path) -> None:
    report = replace(
        _REPORT,
        calibration=None,
        comparison=(replace(_OUTPUT, top1_agreement=None, worst=()),),
        engine=replace(_REPORT.engine, fallbacks=(), profiles={}, targets=(), warnings=()),
        accuracy={},
        reused=(),
        timings_s={},
    )
    assert _read(report, tmp_path) == report


def test_nan_survives_as_null(tmp_path: Path) -> None:
    nan = math.nan
    broken = replace(
        _OUTPUT, cosine=nan, sqnr_db=nan, max_abs=nan, mean_abs=nan, nonfinite=3, worst=(WorstSample(nan, 2),)
    )
    (read,) = _read(replace(_REPORT, comparison=(broken,)), tmp_path).comparison
    assert repr(read) == repr(broken)
    document = json.loads((tmp_path / "report.json").read_bytes())
    assert document["comparison"][0]["cosine"] is None
    assert document["comparison"][0]["worst"] == [{"cosine": None, "sample": 2, "name": ""}]


@pytest.mark.parametrize(
    "output",
    [
        replace(_OUTPUT, cosine=1.0, sqnr_db=math.inf, max_abs=0.0, mean_abs=0.0),
        replace(_OUTPUT, cosine=0.0, sqnr_db=-math.inf),
    ],
)
def test_an_infinite_ratio_of_signal_to_noise_survives(output: OutputComparison, tmp_path: Path) -> None:
    report = replace(_REPORT, comparison=(output,))
    assert b"Infinity" not in to_json(report)
    assert _read(report, tmp_path) == report


_texts = st.text(st.characters(codec="utf-8"))


@settings(deadline=None, max_examples=60)
@given(_texts, st.dictionaries(_texts, st.floats(0, 1)), st.lists(st.tuples(_texts, _texts)))
def test_any_names_and_numbers_survive(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    accuracy: dict[str, float],
    kept: list[tuple[str, str]],
) -> None:
    report = replace(
        _REPORT, model=text, accuracy=accuracy, kept_fp32=tuple(KeptFp32(*item) for item in kept)
    )
    assert _read(report, tmp_path_factory.getbasetemp()) == report


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for name in outer:
            document = document[name]
        document[last] = value

    return change


def test_a_report_is_found_by_its_folder_or_file_as_text_too(tmp_path: Path) -> None:
    _read(_REPORT, tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "report.json", str(tmp_path / "report.json")):
        assert read_report(path) == _REPORT
    with pytest.raises(ArtifactError, match=r"^cannot read the report .*none/report\.json: No such file"):
        read_report(tmp_path / "none" / "report.json")


@pytest.mark.parametrize(
    ("realized", "others", "told"),
    [
        ({}, {}, ""),
        ({"fp8": 2}, {}, "2 of 2 quantized layers run in FP8"),
        ({"int8": 3}, {"int8": 1, "fp8": 2}, "3 of 4 quantized layers run in INT8, 0 of 2 in FP8"),
        ({"int4-weights": 1}, {}, "1 of 1 quantized layers run with INT4 weights"),
        ({"int8 x int4": 1}, {}, "1 of 1 quantized layers run in INT8 x INT4"),
    ],
)
def test_coverage_is_told_by_format(realized: dict[str, int], others: dict[str, int], told: str) -> None:
    assert describe_coverage(realized, others) == told


def test_a_report_of_the_first_schema_counts_int8() -> None:
    kept = Path(__file__).parents[2] / "data" / "kept" / "report-1-rtx.json"
    before, report = json.loads(kept.read_bytes()), read_report(kept)
    assert report.engine.layers_realized == {"int8": before["engine"]["layers_int8"]}
    assert (report.schema_version, report.quantized_macs) == (SCHEMA_VERSION, before["int8_macs"])


def test_a_report_of_the_first_schema_has_the_shares_of_its_search(tmp_path: Path) -> None:
    document = json.loads((Path(__file__).parents[2] / "data" / "kept" / "report-1-rtx.json").read_bytes())
    document["auto"] = {"outcome": "the gate passes", "int8_macs": 0.5, "int8_macs_before": 0.9}
    (tmp_path / "report.json").write_text(json.dumps(document))
    auto = read_report(tmp_path).auto
    assert auto is not None
    assert (auto.quantized_macs, auto.quantized_macs_before) == (0.5, 0.9)
