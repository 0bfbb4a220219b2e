"""What the gates say, one test case for each thing that they look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from trtq.cli.junit import Case
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import list_checks
from trtq.pipeline.judge.speed import describe_speed

if TYPE_CHECKING:
    from trtq.models.spec import AccuracySpec
    from trtq.pipeline.deliver.report import Report
    from trtq.pipeline.judge.gate import Verdict
    from trtq.pipeline.judge.speed import SpeedVerdict


def list_build_cases(report: Report, gate: AccuracySpec) -> list[Case]:
    """Returns a case for each output and reference, the metric and the speed of a build, and the verdict."""
    judged = report.comparison[0].candidate if report.comparison else report.precision
    seen = Comparison(report.comparison, report.accuracy, metric=report.metric)
    cases = [Case(item.name, item.outcome, item.found) for item in list_checks(seen, gate, judged)]
    cases += list_speed_cases([report.speed] if report.speed is not None else [])
    return [*_doubt(cases, report.verdict), Case("verdict", report.verdict, "; ".join(report.reasons))]


def list_pair_cases(comparison: Comparison, verdict: Verdict, gate: AccuracySpec) -> list[Case]:
    """Returns a case for each output and the metric of a comparison, and the verdict."""
    cases = [Case(item.name, item.outcome, item.found) for item in list_checks(comparison, gate)]
    return [*_doubt(cases, verdict.outcome), Case("verdict", verdict.outcome, "; ".join(verdict.reasons))]


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


def _doubt(cases: Iterable[Case], verdict: str) -> Iterator[Case]:
    """Yields the cases; where nothing is proved, as with random data, nothing is refuted either."""
    for case in cases:
        is_open = verdict == "unverified" and case.outcome == "fail"
        yield Case(case.name, "unverified", case.text) if is_open else case
