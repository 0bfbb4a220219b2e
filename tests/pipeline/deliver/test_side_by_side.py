"""Two builds beside each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from trtq.kept import Fallback, KeptNode
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.side_by_side import compare_layers, compare_reports, name_builds
from trtq.pipeline.judge.speed import judge_speed

KEPT = Path(__file__).resolve().parents[2] / "data" / "kept" / "report-2.json"


def test_what_is_the_same_has_no_change_and_what_differs_has_a_sign() -> None:
    first = read_report(KEPT)
    same = {row.name: row for row in compare_reports(first, first)}
    assert {row.change for row in same.values()} == {""}
    assert all(row.first == row.second for row in same.values())
    worse = replace(first.comparison[0], cosine=first.comparison[0].cosine - 0.25)
    second = replace(
        first,
        verdict="fail",
        comparison=(worse, *first.comparison[1:]),
        accuracy={name: score - 0.01 for name, score in first.accuracy.items()},
        sizes_bytes={name: 2 * count for name, count in first.sizes_bytes.items()},
        quantized_macs=0.5,
        speed=judge_speed([1.5] * 20, 1.0, "int8", "fp32"),
    )
    rows = {row.name: row for row in compare_reports(first, second)}
    assert (rows["verdict"].first, rows["verdict"].second) == (first.verdict, "fail")
    assert rows[f"cosine of {worse.name}"].change == "-0.25000"
    assert {row.change for name, row in rows.items() if name.startswith("accuracy of")} == {"-1.00 points"}
    assert {row.change for name, row in rows.items() if name.startswith("size of")} == {"+100.0%"}
    speed = rows["speed beside the float one"]
    assert (speed.first, speed.second, speed.change) == ("-", "1.50x", "")
    assert rows["MACs in 8 bits or fewer"].second == "50.0%"
    stopped = replace(second, evaluated_samples=first.evaluated_samples - 1)  # whose scores are of other data
    for row in compare_reports(first, stopped):
        assert not row.change or row.name.startswith("size of")


def test_what_one_build_does_not_have_is_missing_there() -> None:
    first = read_report(KEPT)
    bare = replace(first, accuracy={}, comparison=(), sizes_bytes={}, quantized_macs=None)
    rows = compare_reports(bare, first)
    assert all(row.first == "-" for row in rows if row.name.startswith(("accuracy", "cosine", "size")))
    broken = replace(first.comparison[0], cosine=math.nan)
    shown = compare_reports(first, replace(first, comparison=(broken,)))
    assert next(row.second for row in shown if row.name.startswith("cosine")) == "nan"


def test_what_was_judged_by_something_else_stands_in_a_row_of_its_own() -> None:
    first = read_report(KEPT)
    other = replace(first.comparison[0], reference="given")
    second = replace(
        first,
        metric="top-5",
        accuracy={"int8": 0.5},
        comparison=(other,),
        evaluation_data="b",
        evaluated_samples=1,
    )
    rows = {row.name: row for row in compare_reports(replace(first, accuracy={"int8": 0.25}), second)}
    assert (rows["accuracy of int8"].first, rows["accuracy of int8"].second) == ("25.00%", "-")
    assert (rows["top-5 accuracy of int8"].first, rows["top-5 accuracy of int8"].second) == ("-", "50.00%")
    assert rows[f"cosine of {other.name} to given"].first == "-"
    assert rows[f"cosine of {other.name} to {first.comparison[0].reference}"].second == "-"
    assert rows["compared on"].second == "1 sample of b"


def test_folders_of_one_name_are_told_apart_by_their_paths() -> None:
    assert name_builds(Path("a/m.trtq"), Path("b/n.trtq")) == ("m.trtq", "n.trtq")
    assert name_builds(Path("a/m.trtq"), Path("b/m.trtq")) == ("a/m.trtq", "b/m.trtq")


def test_layers_that_only_one_build_keeps_float_are_named() -> None:
    first = read_report(KEPT)
    kept, lost = KeptNode("new", "Conv", "why"), Fallback("late", "int8", "fp16", "why")
    engine = replace(first.engine, fallbacks=(*first.engine.fallbacks, lost))
    second = replace(first, kept_float=(kept,), engine=engine)
    old = sorted(node.name for node in first.kept_float)
    wanted = [("What stays float now", ["new"]), *([("What stays float no more", old)] if old else [])]
    assert compare_layers(first, second) == [*wanted, ("What does not run as asked now", ["late"])]
    assert compare_layers(first, first) == []
