"""Tests of what Python and notebooks show of a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from small_builds import spec_of

from trtq.pipeline.build import build
from trtq.pipeline.build.dry import plan_build
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.target import Target

CPU = Target(backend="onnxruntime")


def test_a_report_is_one_line_in_python_and_a_table_in_a_notebook(small: Path) -> None:
    report = build(small, spec=spec_of(small, "minmax"), target=CPU)
    text = repr(report)
    assert text.startswith(f"<Report PASS: {small} in INT8 by onnxruntime ")
    assert text.endswith(f" run in INT8: {report.output}>")
    shown = _html(replace(report, verdict="fail", reasons=("a < b",)))
    assert shown.startswith("<p><b>FAIL</b> ")
    assert "<li>a &lt; b</li>" in shown
    assert shown.count("<tr>") == 1 + len(report.comparison)
    assert "<ul>" not in _html(report)
    assert "<table>" not in _html(replace(report, comparison=()))


def _html(report: Report) -> str:
    return report._repr_html_()


def test_a_plan_is_one_line_in_python_and_a_table_in_a_notebook(small: Path) -> None:
    plan = plan_build(small, spec=spec_of(small, "minmax"), target=CPU)
    assert repr(plan).startswith(f"<BuildPlan {small} in INT8 by onnxruntime ")
    assert repr(plan).endswith(" in int8>")
    shown = plan._repr_html_()
    assert f"<tr><td>output</td><td>{plan.output}</td></tr>" in shown
    assert "<td>engine_file</td>" not in shown
