"""What the gates say, as test cases: none is better than the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtq.cli.markdown import write_report
from trtq.cli.verdicts import list_build_cases, list_pair_cases
from trtq.models.spec import AccuracySpec
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import Verdict
from trtq.pipeline.judge.speed import SpeedVerdict
from trtq.records import OutputComparison

GATE = AccuracySpec(min_cosine=0.9)


def compared(cosine: float) -> OutputComparison:
    return OutputComparison("int8", "fp32", "y", cosine, 30.0, 1.0, cosine, None, 0, ())


def built(verdict: str, reasons: tuple[str, ...], speed: str = "") -> Report:
    kept = read_report(Path(__file__).parents[1] / "data" / "kept" / "report-2.json")
    judged = SpeedVerdict(speed, ("slow",), 1.0, "int8", "fp32", 1.0) if speed else None  # type: ignore[arg-type]
    return replace(
        kept, verdict=verdict, reasons=reasons, comparison=(compared(0.99),), accuracy={}, speed=judged
    )


@pytest.mark.parametrize(
    ("report", "outcome"),
    [
        (built("pass", ()), "pass"),
        (built("unverified", ("random",)), "unverified"),
        (built("unverified", ("random",), "pass"), "unverified"),
        (built("unverified", ("random", "slow"), "unverified"), "unverified"),
        (built("unverified", ("slow",), "unverified"), "pass"),
        (built("fail", ("slow",), "fail"), "unverified"),  # the report does not tell what hides behind it
        (built("fail", ("bad", "slow"), "fail"), "pass"),
    ],
)
def test_a_cosine_that_proves_nothing_is_unverified(report: Report, outcome: str) -> None:
    first, *_, last = list_build_cases(report, GATE)
    assert (first.name, first.outcome) == ("cosine of output 'y' to fp32", outcome)
    assert last.outcome == report.verdict


def test_the_metric_of_the_engine_is_shown_where_none_of_its_outputs_could_be_compared() -> None:
    report = replace(built("pass", ()), accuracy={"fp32": 0.9, "int8": 0.1, "engine": 0.9})
    *_, metric, _ = list_build_cases(report, GATE)
    assert metric.outcome == "pass"
    assert metric.text.startswith("90.00% against 90.00%")


def test_the_title_of_a_pass_tells_if_most_of_the_work_is_float() -> None:
    for share, title in ((0.9, "### PASS: "), (0.1, "### PASS, MOSTLY FLOAT: "), (None, "### PASS: ")):
        report = replace(built("pass", ()), quantized_macs=share)
        assert write_report(report, []).startswith(title)


@pytest.mark.parametrize("cosine", [0.99, 0.1])
def test_a_pair_that_proves_nothing_is_unverified(cosine: float) -> None:
    cases = list_pair_cases(Comparison((compared(cosine),)), Verdict("unverified", ("one sample",)), GATE)
    assert [case.outcome for case in cases] == ["unverified"] * 2
