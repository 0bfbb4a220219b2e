"""Tests of the rules for FP8, FP4 and INT4, and of lint against the real builder on their graphs."""

from __future__ import annotations

import importlib
import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import load_as_it_is

_BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"
_COUNT, _SEED = 40, 7


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator of the benchmark's graphs."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    return importlib.import_module("format_patterns")


@pytest.mark.parametrize(
    ("ways", "target", "found"),
    [
        ({}, "8.9", []),
        ({}, "8.6", [("target", "refused", "build for 8.9 or newer, or quantize to int8")]),
        ({"activation": "none", "weight": "int4"}, "7.5", [
            ("target", "refused", "build for 8.0 or newer, or quantize to int8")]),
        ({"weight": "int8"}, "8.9", [("mixed-types", "refused", "quantize both operands to the same type")]),
        ({"weight": "int4"}, "8.9", [
            ("mixed-types", "refused",
             "put Q/DQ of float8e4m3fn by output channel after the DequantizeLinear of the int4 weight")]),
        ({"weight": "w4a8"}, "8.9", []),
        ({"activation": "int8", "weight": "w4a8"}, "8.9", []),
        ({"op": "conv", "scale": "[1]"}, "8.9", [
            ("activation-scale", "float", "write scales of activations as 0-d tensors")]),
        ({"granularity": "input axis"}, "8.9", [
            ("weight-axis", "float", "quantize the weight along axis 1")]),
        ({"op": "conv_transpose"}, "8.9", [("no-kernel", "float", "leave it out of quantization")]),
        ({"activation": "e5m2", "weight": "e5m2"}, "8.9", [
            ("codes-type", "refused", "quantize again to float8 e4m3")]),
        ({"activation": "mxfp8", "weight": "float"}, "8.9", [
            ("no-kernel", "refused", "quantize to float8 e4m3, with one scale per tensor")]),
        ({"activation": "none", "weight": "uint4"}, "8.9", [
            ("codes-type", "refused", "quantize again to int4, symmetric")]),
        ({"activation": "none", "weight": "int4", "zero": "3"}, "8.9", [
            ("zero-point", "refused", "quantize again, with symmetric ranges")]),
        ({"activation": "none", "weight": "int4", "cast": "yes"}, "8.9", [
            ("scale-type", "float", "write scales in the type that the layer computes in")]),
        ({"activation": "none", "weight": "int4", "block": 64}, "8.9", [
            ("blocks", "float", "quantize it in blocks of 16 to 128 along K")]),
        ({"activation": "none", "weight": "int4", "length": 40}, "8.9", [
            ("blocks", "wrong", "choose a block size that divides the axis, or leave the layer float")]),
        ({"activation": "none", "weight": "fp8", "op": "conv"}, "8.9", [
            ("half-quantized", "float",
             "quantize its activation too, right before the layer, or leave both float")]),
        ({"activation": "none", "weight": "w4a8"}, "8.9", [
            ("half-quantized", "float",
             "quantize its activation too, or leave the second QuantizeLinear out")]),
        ({"activation": "nvfp4", "weight": "nvfp4"}, "12.0", []),
        ({"activation": "nvfp4", "weight": "nvfp4", "op": "matmul_4d"}, "12.0", [
            ("blocks", "refused", "put a Reshape to 2 dims before it, and one after it")]),
        ({"activation": "nvfp4", "weight": "nvfp4", "block_axis": "N"}, "12.0", [
            ("blocks", "float", "quantize the weight in blocks along the summed axis")]),
        ({"activation": "fp8", "weight": "nvfp4"}, "12.0", [
            ("mixed-types", "float",
             "quantize the activation by TRT_FP4DynamicQuantize and the weight with two-level scales "
             "(NVFP4)")]),
        ({"activation": "none", "weight": "nvfp4"}, "12.0", [
            ("no-kernel", "float",
             "store the weight in INT4, or quantize the activation by TRT_FP4DynamicQuantize")]),
    ],
)  # fmt: skip
def test_a_rule_says_what_is_wrong_and_what_to_take_instead(
    ways: dict[str, Any], target: str, found: list[tuple[str, str, str]], patterns: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(patterns.graph_of(patterns.Pattern(**ways)).SerializeToString())
    findings = lint(load_as_it_is(path), (target,))
    assert list(dict.fromkeys((item.rule, item.effect, item.advice) for item in findings)) == found


def test_k_that_is_no_multiple_of_16_is_refused_in_nvfp4(patterns: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    pattern = patterns.Pattern(activation="nvfp4", weight="nvfp4", length=40)
    path.write_bytes(patterns.graph_of(pattern).SerializeToString())
    finding = next(item for item in lint(load_as_it_is(path)) if item.op_type == "TRT_FP4DynamicQuantize")
    assert (finding.rule, finding.effect) == ("blocks", "refused")
    assert finding.reason == "it quantizes 40 numbers a row in blocks of 16, which leaves a part of one"


def test_lint_says_what_the_builder_does(patterns: ModuleType) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    benchmark, generator = importlib.import_module("lint_formats"), random.Random(_SEED)
    chosen = benchmark.take(benchmark.singles(), _COUNT // 2, generator)
    chosen += benchmark.mixes(_COUNT // 2, generator)
    graphs = {item: model for item in chosen if (model := benchmark.valid_graph(item)) is not None}
    judged = benchmark.judge(graphs)
    assert judged["disagreements"] == []
    assert {"refused", "fp8", "int4-weights", "nvfp4"} <= judged["built as"].keys()
