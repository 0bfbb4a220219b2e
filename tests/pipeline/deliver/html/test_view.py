"""Tests of what the page says."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, replace

import pytest

from trtq.kept import KeptFp32, KeptNode
from trtq.models.preprocess import Preprocess
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.html.page_data import Clip, LayerSummary, PageData
from trtq.pipeline.deliver.html.rows import list_cards, list_layer_rows
from trtq.pipeline.deliver.html.view import (
    Tile,
    fold_command,
    format_coverage,
    format_gate,
    format_search,
    list_commands,
    list_facts,
    list_kept,
    list_kernels,
    list_layers_by_format,
    list_preprocess,
    list_tiles,
    list_timings,
    sizes_of,
)
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import AutoReport, Report
from trtq.pipeline.judge.sensitivity import Distance, Effect, LayerSensitivity, Sensitivity

# Accuracy


def test_three_accuracies_are_told_against_the_first(report: Report) -> None:
    assert list_tiles(report) == (
        Tile("FP32", "98.00%", "the float model"),
        Tile("FP16", "98.00%", "the same as FP32"),
        Tile("INT8", "62.00%", "\N{MINUS SIGN}36.00 points against FP32"),
    )


def test_without_labels_the_nearness_to_fp32_is_told(report: Report) -> None:
    worse = replace(report.comparison[0], output="boxes", cosine=0.5, sqnr_db=1.0)
    tiles = list_tiles(replace(report, accuracy={}, comparison=(*report.comparison, worse)))
    assert tiles == (
        Tile("FP32", "reference", "the float model"),
        Tile("FP16", "1.00000", "cosine to FP32, SQNR 70.0 dB"),
        Tile("INT8", "0.50000", "cosine to FP32, SQNR 1.0 dB"),
    )


def test_a_broken_output_is_the_worst(report: Report) -> None:
    broken = replace(report.comparison[0], cosine=math.nan, sqnr_db=math.nan)
    tiles = list_tiles(replace(report, accuracy={}, comparison=(report.comparison[0], broken)))
    assert [tile.value for tile in tiles] == ["reference", "nan"]


def test_without_comparison_there_is_nothing(report: Report) -> None:
    assert list_tiles(replace(report, accuracy={}, comparison=())) == ()


def test_an_accuracy_without_a_float_model_stands_alone(report: Report) -> None:
    assert list_tiles(replace(report, accuracy={"int8": 0.5})) == (Tile("INT8", "50.00%", ""),)


def test_the_gate_is_told_as_far_as_it_judges(report: Report, manifest: Manifest) -> None:
    start = "The gate: every output has a cosine of at least 0.99"
    assert format_gate(report, manifest) == f"{start}, and the metric drops by at most 1 percentage points."
    assert format_gate(replace(report, accuracy={}), manifest) == f"{start}."
    assert format_gate(report, replace(manifest, settings={"model": 3})) == ""
    accuracy = {"min_cosine": 0.9999999, "max_drop": 1.0}
    strict = replace(manifest, settings={"model": {"accuracy": accuracy}})
    assert "a cosine of at least 0.9999999, and" in format_gate(report, strict)


# Where INT8 runs


def test_what_does_not_run_in_int8_is_grouped_by_reason(report: Report, manifest: Manifest) -> None:
    report = replace(
        report,
        kept_float=(*report.kept_float, KeptNode("a", "Conv", "gate"), KeptNode("b", "Conv", "gate")),
        kept_fp32=(KeptFp32("exp", "too large"),),
    )
    (fallen, (one,)), (never, (gates, lstm)), (fp32, (exp,)) = list_kept(report, manifest)
    assert (fallen, never, fp32) == ("Quantized, but not run as asked", "Not quantized", "Kept in FP32")
    assert (one.reason, one.nodes) == ("asked in INT8, runs as FP16: no kernel", (("layer 1", "Conv"),))
    assert (gates.reason, gates.nodes) == ("gate", (("a", "Conv"), ("b", "Conv")))
    assert lstm.nodes == (("lstm", "LSTM, runs as FP32"),)
    assert (exp.reason, exp.nodes) == ("too large", (("exp", ""),))


def test_layers_are_counted_by_what_became_of_them(report: Report, manifest: Manifest) -> None:
    assert [(item.text, item.name, item.length) for item in format_coverage(report)] == [
        ("2", "run in INT8", 50.0),
        ("1", "quantized, but not run as asked", 25.0),
        ("1", "not quantized", 25.0),
    ]
    assert list_kernels(manifest) == "1 INT8, 1 FP16, 1 FP32"
    none = replace(report.engine, layers_quantized=0, layers_realized={})
    assert format_coverage(replace(report, engine=none, kept_float=())) == ()


# Sizes, times, commands


def test_sizes_are_told_against_the_given_model(report: Report) -> None:
    rows = sizes_of(replace(report, sizes_bytes={"model": 1000, "a.onnx": 250, "a.engine": 2500}))
    assert [(row.name, row.text, row.length) for row in rows] == [
        ("model.onnx (given)", "1.0 kB", 40.0),
        ("a.onnx", "250 bytes (25%)", 10.0),
        ("a.engine", "2.5 kB (2.5 times)", 100.0),
    ]  # fmt: skip
    assert sizes_of(replace(report, sizes_bytes={})) == ()


def test_times_are_told_by_stage(report: Report) -> None:
    assert [(row.name, row.text) for row in list_timings(report)] == [
        ("calibrate", "1.2 s"),
        ("build", "20.0 s"),
    ]


def test_the_command_comes_first_and_a_failed_gate_offers_help(report: Report, manifest: Manifest) -> None:
    ours, theirs, offer = list_commands(report, manifest)
    assert (ours.title, ours.text) == ("The same build", "trtq build model.onnx --int8")
    assert theirs.text == "trtexec --onnx=model.int8.onnx"
    assert offer.text == "trtq build model.onnx --int8 --auto"
    assert len(list_commands(replace(report, verdict="pass"), manifest)) == 2
    assert len(list_commands(replace(report, auto=AutoReport("not needed")), manifest)) == 2


def test_what_a_search_found_is_told_with_the_layers_of_each_format(report: Report) -> None:
    assert list_layers_by_format(report) == ()
    found = AutoReport(
        "the gate passes",
        layers={"a": "int8", "b": "fp8", "c": "int8"},
        formats={"int8": 0.75, "fp8": 0.125, "fp16": 0.125},
        cost=0.5,
        cost_before=0.25,
    )
    groups = list_layers_by_format(replace(report, auto=found))
    assert [(group.reason, [name for name, _ in group.nodes]) for group in groups] == [
        ("in INT8, 75.0% of the multiply-accumulates", ["a", "c"]),
        ("in FP8, 12.5% of the multiply-accumulates", ["b"]),
    ]
    assert format_search(found).startswith("the gate passes. By the data sheets of the GPU (not measured) ")
    assert format_search(found).endswith("cost 50% of all layers in FP16; in their cheapest formats 25%.")
    assert format_search(AutoReport("not needed")) == "not needed"


def test_a_long_command_is_folded_and_stays_the_same() -> None:
    words = ["trtq", "build", "my model.onnx", "--int8", "--skip", "^/a b/", "--calib-data", "c" * 80]
    text = fold_command(shlex.join(words))
    assert text.splitlines()[1:3] == ["  --int8 \\", "  --skip '^/a b/' \\"]
    assert shlex.split(text.replace("\\\n", "")) == words  # as a shell reads it
    assert fold_command("trtq build 'x") == "trtq build 'x"
    assert fold_command(f"trtq '{'x' * 100}") == f"trtq '{'x' * 100}"


def test_only_what_was_changed_of_the_preparation_is_told(manifest: Manifest) -> None:
    settings = {"model": {"preprocess": asdict(Preprocess(channels="BGR", mean=(0.5,)))}}
    assert list_preprocess(replace(manifest, settings=settings)) == (
        '[preprocess]\nchannels = "BGR"\nmean = [0.5]'
    )
    assert list_preprocess(replace(manifest, settings={"model": {"preprocess": asdict(Preprocess())}})) == ""
    assert list_preprocess(manifest) == ""


def test_facts_are_those_that_there_are(report: Report) -> None:
    engine = replace(report.engine, targets=("8.9",), profiles={"x": InputSpec((1, 3), (2, 3), (4, 3))})
    assert list(list_facts(replace(report, engine=engine))) == [
        ("built with", "tensorrt-rtx 1.7.1"), ("compute capability", "8.9"), ("quantization", "explicit"),
        ("the rest is", "FP16"), ("calibrated", "512 samples, entropy()"),
        ("shapes of x", "1x3 / 2x3 / 4x3 (min / opt / max)"),
    ]  # fmt: skip
    assert "calibrated" not in dict(list_facts(replace(report, calibration=None)))
    float_engine = replace(report.engine, layers_quantized=0, layers_realized={})
    assert {"quantization", "the rest is"}.isdisjoint(
        dict(list_facts(replace(report, engine=float_engine, precision="fp16")))
    )
    assert dict(list_facts(replace(report, high_precision="as it is")))["the rest is"] == "as it is"


# Rows


def with_ratios(seen: PageData, *ratios: float | None) -> PageData:
    tensors = tuple(
        replace(tensor, used=replace(tensor.used, sqnr_db=ratio))
        for tensor, ratio in zip(seen.tensors, ratios, strict=True)
    )
    return replace(seen, tensors=tensors)


def test_layers_and_tensors_come_worst_first(seen: PageData, manifest: Manifest) -> None:
    seen = with_ratios(seen, None, 30.0, 12.0)
    rows = list_layer_rows(seen, manifest, None)
    assert [(row.name, row.runs_as, row.tensor) for row in rows] == [
        ("layer 2", "", 2), ("layer 1", "FP16", 1), ("layer 0", "INT8", 0),
    ]  # fmt: skip
    assert [[level.low for level in row.levels] for row in rows] == [
        [True, False],
        [False, False],
        [False, False],
    ]
    assert [card.tensor.name for card in list_cards(seen)] == ["last", "hidden", "image"]


def test_what_was_measured_comes_first_and_orders_the_layers(seen: PageData, manifest: Manifest) -> None:
    def layer(name: str, db: float) -> LayerSensitivity:
        effect = Effect({"y": Distance(1.0, db)})
        return LayerSensitivity(name, "Conv", 1, effect, effect)

    measured = Sensitivity("m", "d", 8, 3, layers=(layer("layer 0", 30.0), layer("layer 1", -math.inf)))
    rows = list_layer_rows(seen, manifest, measured)
    assert [row.name for row in rows] == ["layer 1", "layer 0", "layer 2"]
    assert [row.levels[0].db for row in rows[1:]] == [30.0, None]
    assert [len(row.levels) for row in rows] == [3, 3, 3]


def test_an_add_is_a_reader_but_no_layer_of_its_own(seen: PageData, manifest: Manifest) -> None:
    add = LayerSummary("sum", "Add", "residual-add", ("image", "elsewhere"), None)
    seen = replace(seen, layers=(*seen.layers, add, LayerSummary("odd", "Conv", "r", ("elsewhere",), None)))
    rows = {row.name: row for row in list_layer_rows(seen, manifest, None)}
    assert rows.keys() == {"layer 0", "layer 1", "layer 2", "odd"}
    assert (rows["odd"].tensor, rows["odd"].levels[0].db) == (None, None)
    (card,) = (card for card in list_cards(seen) if card.tensor.name == "image")
    assert card.readers == ("layer 0", "sum")


def test_the_method_that_is_used_is_marked_and_of_equals_the_one_asked_for(seen: PageData) -> None:
    assert seen.tensors[0].methods["minmax"].amax == pytest.approx(seen.tensors[0].used.amax, rel=1e-6)
    for asked, marked in (("entropy", "entropy"), ("", "minmax")):
        for card in list_cards(replace(seen, method=asked)):
            assert [row.name for row in card.rows if row.used] == [marked]


@pytest.mark.parametrize("amax", [0.123, 77.0])
def test_a_range_of_no_method_has_a_row_of_its_own(amax: float, seen: PageData) -> None:
    tensor = replace(seen.tensors[0], used=Clip(amax, 0.0, 1.0))
    (card,) = list_cards(replace(seen, tensors=(tensor,)))
    assert [(row.place, row.name, row.clip.amax) for row in card.rows if row.used] == [(-1, "used", amax)]
