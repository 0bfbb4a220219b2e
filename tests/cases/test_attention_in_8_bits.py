"""Attention in INT8 and FP8: where the real builder fuses it, tried by what it costs, and read back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trtq.calibrators.ranges import read_ranges
from trtq.models.spec import AccuracySpec, CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.calibrate import calibrate
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph import attention
from trtq.pipeline.quantize import quantize

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
BLOCK = """g (float[N,{length},64] x) => (float[N,{length},64] y) {{
    [q] q = MatMul (x, wq) qh = Reshape (q, heads) qt = Transpose <perm = [0, 2, 1, 3]> (qh)
    [k] k = MatMul (x, wk) kh = Reshape (k, heads) kt = Transpose <perm = [0, 2, 3, 1]> (kh)
    [v] v = MatMul (x, wv) vh = Reshape (v, heads) vt = Transpose <perm = [0, 2, 1, 3]> (vh)
    [scores] s = MatMul (qt, kt) m = Mul (s, scale) p = Softmax <axis = -1> (m)
    [context] c = MatMul (p, vt) ct = Transpose <perm = [0, 2, 1, 3]> (c) cj = Reshape (ct, joined)
    [proj] o = MatMul (cj, wo) r = Add (x, o) [last] y = MatMul (r, wl) }}"""
BOTH = {"scores", "context"}


@pytest.fixture
def block(path_of: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, ModelSpec]]:
    """Writes attention with a projection and a layer behind, and 64 samples; `share` scales what it adds."""

    def write(length: int | str = 32, share: float = 1.0, method: str = "minmax") -> tuple[Path, ModelSpec]:
        rng = np.random.default_rng(7)
        weights: dict[str, Any] = {
            f"w{name}": rng.standard_normal((64, 64)).astype(np.float32) / 8 for name in "qkvol"
        }
        weights["wo"] *= np.float32(share)
        shapes = {"heads": np.array([0, 0, 2, 32]), "joined": np.array([0, 0, 64])}
        model = path_of(BLOCK.format(length=length), **weights, **shapes, scale=np.float32(32**-0.5))
        x = rng.standard_normal((64, 32 if isinstance(length, str) else length, 64)).astype(np.float32)
        np.savez(tmp_path / "x.npz", x=x)
        calibration = CalibrationSpec(str(tmp_path / "x.npz"), method=method)
        return model, ModelSpec(calibration=calibration, quantization=QuantizationSpec(("bias",)))

    return write


def _build(model: Path, spec: ModelSpec, precision: Precision = "int8", length: int = 32) -> Report:
    shapes = GivenShapes(*({"x": (batch, length, 64)} for batch in (1, 8, 8)))
    target = Target(precision, backend="tensorrt-rtx", compute_capabilities=("8.9",), shapes=shapes)
    return build(model, spec=spec, target=target, output=model.parent / f"{precision}.trtq")


def _tried(report: Report) -> dict[str, bool]:
    assert report.repairs is not None
    return {item.name: item.applied for item in report.repairs.tried}


@needs_rtx
def test_fp8_attention_is_fused_and_counted(block: Callable[..., tuple[Path, ModelSpec]]) -> None:
    report = _build(*block(), precision="fp8")
    assert (report.engine.num_realized, report.engine.layers_quantized) == (7, 7)
    assert not BOTH & {item.name for item in report.kept_float}


@needs_rtx
def test_projections_run_in_fp8_beside_the_float_attention_of_open_sequences(
    block: Callable[..., tuple[Path, ModelSpec]],
) -> None:
    report = _build(*block("L"), precision="fp8")
    assert (report.engine.num_realized, report.engine.layers_quantized) == (5, 5)
    reasons = {item.name: item.reason for item in report.kept_float}
    reason = "attention: TensorRT fuses it in FP8 only with a fixed number of keys, 32 or more"
    assert reasons == dict.fromkeys(BOTH, reason)


@needs_rtx
def test_int8_attention_is_fused_where_it_costs_next_to_nothing(
    block: Callable[..., tuple[Path, ModelSpec]],
) -> None:
    model, spec = block(share=0.01)  # so that most of the error is of the last layer
    report = _build(model, spec)
    assert _tried(report)["INT8 attention"]
    assert (report.engine.num_realized, report.engine.layers_quantized) == (7, 7)
    assert {*read_ranges(Path(report.output) / "ranges.json").attention} == BOTH
    assert _build(model, spec).reused == ("everything",)


@needs_rtx
def test_int8_attention_that_costs_accuracy_stays_float(
    block: Callable[..., tuple[Path, ModelSpec]],
) -> None:
    report = _build(*block())
    assert not _tried(report)["INT8 attention"]
    assert (report.engine.num_realized, report.engine.layers_quantized) == (5, 5)
    assert {item.name for item in report.kept_float} == BOTH


@needs_rtx
def test_attention_that_the_builder_does_not_fuse_is_built_again_in_float(
    block: Callable[..., tuple[Path, ModelSpec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_FEWEST_KEYS_FP8", 1)  # the rule says less than it knows
    report = _build(*block(16), precision="fp8", length=16)
    reason = "no-kernel: the builder did not fuse this attention in fp8: several kernels"
    assert {item.name: item.reason for item in report.kept_float} == dict.fromkeys(BOTH, reason)
    assert (report.engine.num_realized, report.engine.layers_quantized) == (5, 5)
    assert any("scores" in note for note in report.notes)


def test_what_calibration_has_tried_is_quantized(block: Callable[..., tuple[Path, ModelSpec]]) -> None:
    model, spec = block(share=0.01)
    ranges = calibrate(model, spec=spec)
    assert {*ranges.attention} == BOTH
    path = quantize(model, ranges, model.parent / "q.onnx", spec=spec)
    made = onnx.load(path).graph.node
    scores = next(node for node in made if node.name == "scores")
    makers = {output: node.op_type for node in made for output in node.output}
    assert [makers[name] for name in scores.input] == ["DequantizeLinear"] * 2


def test_nothing_is_tried_without_data_held_back(block: Callable[..., tuple[Path, ModelSpec]]) -> None:
    model, spec = block(share=0.01)
    assert calibrate(model, spec=spec, random_data=True).attention == ()


@needs_rtx
@pytest.mark.parametrize("min_cosine", [0.9999, 0.99995])
def test_a_search_gives_both_products_of_attention_one_format(
    block: Callable[..., tuple[Path, ModelSpec]], min_cosine: float
) -> None:
    """INT8 is tried and dropped here; FP8 fuses, so that the products start in it and are raised together."""
    model, spec = block(share=1.0)
    spec = replace(spec, accuracy=AccuracySpec(min_cosine=min_cosine))
    shapes = GivenShapes(*({"x": (batch, 32, 64)} for batch in (1, 8, 8)))
    formats = ("int8", "fp8", "fp16")
    target = Target(
        backend="tensorrt-rtx",
        compute_capabilities=("8.9",),
        shapes=shapes,
        formats=formats,
        high_precision="fp32",
    )
    report = build(model, spec=spec, target=target, output=model.parent / "mixed.trtq")
    assert report.auto is not None
    assert report.auto.layers, report.auto.outcome
    chosen = {report.auto.layers.get(name, "fp16") for name in BOTH}
    assert len(chosen) == 1
    assert report.engine.fallbacks == ()
    assert report.engine.num_realized == len(report.auto.layers)
    if chosen == {"fp16"}:
        assert {*BOTH} <= {item.name for item in report.kept_float}
