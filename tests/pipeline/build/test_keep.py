"""Layers without an INT8 kernel are given back to float, so that all that has Q/DQ runs in INT8."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_builds import spec_of

from trtq.calibrators.ranges import read_ranges
from trtq.models.spec import EvaluationSpec
from trtq.pipeline import build as pipeline_build
from trtq.pipeline.build import beside, build
from trtq.pipeline.build.keep import keep_layers
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.calibrate import calibrate
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.progress import Silent

RTX = Target(backend="tensorrt-rtx")
_PACKED = """
net (float[N, 8, 32] x) => (float[N, 8, 32] y) {
  [embed] e = MatMul (x, w1)
  [packed] p = MatMul (e, w2)
  [parted] q1, k1, v1 = Split <axis = -1, num_outputs = 3> (p)
  [qh] q2 = Reshape (q1, heads) [q] q3 = Transpose <perm = [0, 2, 1, 3]> (q2) [bent] q4 = Tanh (q3)
  [kh] k2 = Reshape (k1, heads) [k] k3 = Transpose <perm = [0, 2, 1, 3]> (k2)
  [vh] v2 = Reshape (v1, heads) [v] v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
  [kt] k4 = Transpose <perm = [0, 1, 3, 2]> (k3)
  [scores] s = MatMul (q4, k4)
  [soft] a = Softmax <axis = -1> (s)
  [mixed] m = MatMul (a, v3)
  [back] b = Transpose <perm = [0, 2, 1, 3]> (m)
  [flat] f = Reshape (b, flat)
  [out] y = MatMul (f, w1)
}"""
"""Queries, keys and values of one product, which TensorRT takes apart; trtq does not look behind a Tanh."""


@pytest.fixture
def packed(path_of: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"w1": rng.standard_normal((32, 32)) / 6, "w2": rng.standard_normal((32, 96)) / 6}
    path = path_of(
        _PACKED,
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        heads=np.asarray([0, 8, 4, 8], np.int64),
        flat=np.asarray([0, 8, 32], np.int64),
    )
    np.savez(path.parent / "data.npz", x=rng.standard_normal((16, 8, 32)).astype(np.float32))
    return path


def marked(report: Report) -> set[str]:
    graph = load(Path(report.output) / "model.int8.onnx", min_opset=19)
    return {layer.name for layer in find_quantized_layers(graph.model)}


def test_what_has_qdq_runs_in_int8(packed: Path) -> None:
    report = build(packed, spec=spec_of(packed), target=RTX)
    assert report.engine.fallbacks == ()
    assert report.engine.num_realized == report.engine.layers_quantized == len(marked(report))
    kept = {node.name: node.reason for node in report.kept_float}
    assert "packed" not in marked(report)
    assert re.fullmatch(r"no-kernel: the builder ran it as [\w/]+ despite its Q/DQ", kept["packed"])
    assert "built in float, as the builder has no INT8 kernel for it: packed" in report.notes


@pytest.mark.parametrize("is_run", [False, True])
def test_what_is_built_twice_is_compared_as_it_is_built_last(
    packed: Path, monkeypatch: pytest.MonkeyPatch, is_run: bool
) -> None:
    order = list[str]()
    for place, name in ((pipeline_build, "compare_job"), (beside, "compare_job"), (TensorRtRtx, "build")):
        monkeypatch.setattr(place, name, _noting(order, name, getattr(place, name)))
    monkeypatch.setattr(TensorRtRtx, "is_judged_by_engine", is_run)
    report = build(packed, spec=spec_of(packed), target=RTX)
    assert order.count("build") == 2
    assert order.count("compare_job") == (1 if is_run else 2)
    assert not is_run or order[-1] == "compare_job"
    assert {item.candidate for item in report.comparison} == {"int8", "fp16"}
    assert report.evaluated_samples == 16


def _noting(order: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **others: Any) -> Any:
        order.append(name)
        return call(*args, **others)

    return noted


def test_a_model_without_any_int8_kernel_is_warned_of(packed: Path) -> None:
    report = build(packed, spec=spec_of(packed, skip=("^embed$", "^out$")), target=RTX)
    assert report.engine.layers_quantized == 0
    assert "no layer of this model has an INT8 kernel here: nothing runs in INT8" in report.warnings
    assert report.verdict == "unverified"


def test_a_layer_that_is_forced_stays(packed: Path) -> None:
    report = build(packed, spec=spec_of(packed, force=("^packed$",)), target=RTX)
    assert [item.node for item in report.engine.fallbacks] == ["packed"]
    assert "packed" in marked(report)


def test_an_engine_that_is_used_again_stands_beside_the_model_it_was_built_from(packed: Path) -> None:
    spec = spec_of(packed)
    first = build(packed, spec=spec, target=RTX)
    before = (Path(first.output) / "model.int8.onnx").read_bytes()
    other = replace(spec, evaluation=EvaluationSpec(samples=8))
    second = build(packed, spec=other, target=RTX)
    assert set(second.reused) == {"ranges", "engine"}
    assert (Path(second.output) / "model.int8.onnx").read_bytes() == before
    assert {node.name for node in second.kept_float} == {node.name for node in first.kept_float}
    assert read_ranges(Path(second.output) / "ranges.json").method


def test_layers_keep_the_reason_for_which_they_were_given_back_first(packed: Path) -> None:
    spec = spec_of(packed)
    ranges = calibrate(packed, spec=spec, target=RTX)
    job = prepare(packed, spec, RTX, None, False, Silent())
    job = keep_layers(
        keep_layers(job, ranges, {"packed": "no-kernel: first"}), ranges, {"out": "no-kernel: second"}
    )
    reasons = {node.name: node.reason for node in job.placement.kept}
    assert (reasons["packed"], reasons["out"]) == ("no-kernel: first", "no-kernel: second")
    assert [layer.name for layer in job.placement.layers] == ["embed"]
