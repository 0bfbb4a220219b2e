"""What the gates say, one test case for each thing that they look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trtq.cli.junit import Case
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import is_settled, list_checks
from trtq.pipeline.judge.speed import describe_speed

if TYPE_CHECKING:
    from trtq.models.spec import AccuracySpec
    from trtq.pipeline.deliver.report import Report
    from trtq.pipeline.judge.gate import Check, Verdict
    from trtq.pipeline.judge.speed import SpeedVerdict


def list_build_cases(report: Report, gate: AccuracySpec) -> list[Case]:
    """Returns a case for each output and reference, the metric and the speed of a build, and the verdict."""
    ran = {*report.accuracy, *(item.candidate for item in report.comparison)}
    judged = "engine" if "engine" in ran else report.precision
    seen = Comparison(
        report.comparison, report.accuracy, metric=report.metric, is_settled=is_settled(report.reasons)
    )
    cases = _list_cases(list_checks(seen, gate, judged), _find_accuracy_verdict(report))
    cases += list_speed_cases([report.speed] if report.speed is not None else [])
    return [*cases, Case("verdict", report.verdict, "; ".join(report.reasons))]


def list_pair_cases(comparison: Comparison, verdict: Verdict, gate: AccuracySpec) -> list[Case]:
    """Returns a case for each output and the metric of a comparison, and the verdict."""
    cases = _list_cases(list_checks(comparison, gate), verdict.outcome)
    return [*cases, Case("verdict", verdict.outcome, "; ".join(verdict.reasons))]


def list_speed_cases(verdicts: Iterable[SpeedVerdict]) -> list[Case]:
    """Returns a case for each model or engine whose speed is judged."""
    return [
        Case(
            f"speed of {item.candidate}",
            item.verdict,
            item.reasons[0] if item.reasons else describe_speed(item),
        )
        for item in verdicts
    ]


def _list_cases(checks: Iterable[Check], verdict: str) -> list[Case]:
    """Returns the cases of accuracy; an unverified verdict, as with random data, proves and refutes none."""
    is_open = verdict == "unverified"
    return [Case(item.name, verdict if is_open else item.outcome, item.found) for item in checks]


def _find_accuracy_verdict(report: Report) -> str:
    """Returns what is known of the verdict on accuracy alone: that of a report is the worse, with speed."""
    if report.speed is None or report.speed.verdict != report.verdict:
        return report.verdict
    if {*report.reasons} - {*report.speed.reasons}:
        return report.verdict
    return "unverified" if report.verdict == "fail" else "pass"
