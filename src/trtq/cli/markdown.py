"""Results as Markdown, for the summary of a job of CI or a comment on a change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.cli.escape import escape
from trtq.numbers import format_bytes, format_count, format_seconds
from trtq.pipeline.judge.score import format_score, name_metric

if TYPE_CHECKING:
    from trtq.cli.junit import Case
    from trtq.pipeline.bench.benchmark import Benchmark
    from trtq.pipeline.deliver.report import Report
    from trtq.pipeline.deliver.side_by_side import PairRow
    from trtq.pipeline.judge.compare import Comparison

_SPECIAL = re.compile(r"[\\`*_|<>\[\]~#]")
_MOST_ROWS = 20


def write_title(outcome: str, title: str, lines: Iterable[str] = ()) -> str:
    """Returns a heading with the outcome, and lines below it."""
    return "".join((f"### {outcome.upper()}: {quote(title)}\n\n", *(f"{quote(line)}\n\n" for line in lines)))


def write_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """Returns a table; the last `numbers` columns are numbers. Of many rows the first alone."""
    if not rows:
        return ""
    marks = ["---:" if index >= len(headers) - numbers else "---" for index in range(len(headers))]
    shown = [list(map(quote, row)) for row in rows[:_MOST_ROWS]]
    lines = [f"| {' | '.join(cells)} |" for cells in ([*map(quote, headers)], marks, *shown)]
    more = f"\nand {len(rows) - _MOST_ROWS} more\n" if len(rows) > _MOST_ROWS else ""
    return "\n".join(lines) + f"\n{more}\n"


def quote(text: str) -> str:
    """Returns a text that Markdown shows as it is, in one line: names come from files."""
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", escape(" ".join(text.split())))


def write_cases(cases: Sequence[Case]) -> str:
    """Returns a table of what was judged."""
    return write_table(
        ("gate", "", "measured"), [(item.name, item.outcome.upper(), item.text) for item in cases]
    )


def write_report(report: Report, cases: Sequence[Case]) -> str:
    """Returns the summary of a build."""
    title = f"{Path(report.model).name} in {report.precision.upper()} by {report.backend}"
    rows = [
        *_list_scores(report.accuracy, report.metric),
        ("quantized layers", report.engine.coverage or "none"),
        *(
            []
            if report.quantized_macs is None
            else [("MACs in 8 bits or fewer", f"{report.quantized_macs:.1%}")]
        ),
        *((name, format_bytes(count)) for name, count in report.sizes_bytes.items()),
        *([("time", format_seconds(sum(report.timings_s.values())))] if report.timings_s else []),
        *([("used again", ", ".join(report.reused))] if report.reused else []),
        *(("warning", text) for text in report.warnings),
    ]
    tables = (write_cases(cases), write_table(("", ""), rows))
    is_less = report.verdict == "pass" and report.is_mostly_float
    outcome = "pass, mostly float" if is_less else report.verdict
    return write_title(outcome, title, report.reasons) + "".join(tables)


def write_comparison(title: str, verdict: str, comparison: Comparison, cases: Sequence[Case]) -> str:
    """Returns the summary of a comparison of two models."""
    line = f"on {format_count(comparison.num_samples, 'sample')} of {comparison.data}"
    scores = write_table(("", ""), _list_scores(comparison.accuracy, comparison.metric))
    return write_title(verdict, title, [line]) + write_cases(cases) + scores


def write_benchmark(title: str, result: Benchmark, cases: Sequence[Case]) -> str:
    """Returns the summary of a measurement."""
    outcome = next(
        (word for word in ("fail", "unverified", "pass") if word in {c.outcome for c in cases}), "measured"
    )
    rows = [
        (
            item.name,
            item.runtime,
            f"{item.latency.p50_ms:.3f}",
            f"{item.latency.p99_ms:.3f}",
            f"{item.samples_per_s:,.0f}",
            "1" if item.speedup is None else f"{item.speedup:.2f}x of {item.against}",
        )
        for item in result.measured
    ]
    headers = ("model", "runs in", "p50 ms", "p99 ms", "a second", "speed")
    skipped = [f"not measured: {item.name}: {item.reason}" for item in result.skipped]
    lines = [result.machine.gpu or result.machine.cpu, *skipped, *result.warnings]
    return write_title(outcome, title, lines) + write_table(headers, rows, numbers=4) + write_cases(cases)


def write_pair(names: tuple[str, str], rows: Sequence[PairRow]) -> str:
    """Returns two builds side by side."""
    cells = [(row.name, row.first, row.second, row.change) for row in rows]
    table = write_table(("", *names, "change"), cells, numbers=1)
    return write_title(rows[0].second, f"{names[1]} beside {names[0]}") + table


def _list_scores(scores: Mapping[str, float], metric: str) -> list[tuple[str, str]]:
    name = name_metric(metric)
    return [(f"{name} of {model}", format_score(score, metric)) for model, score in scores.items()]
