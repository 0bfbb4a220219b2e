"""A model whose layers compute in float64 is quantized in float32: no engine computes in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtq
from trtq.pipeline.graph.load import load

_GRAPH = """<ir_version: 8, opset_import: ["": 17]>
    g (double[N,32] x) => (double[N,32] y) {
        [fc] a = MatMul(x, w) far = Add(a, offset) y = Sub(far, offset)
    }"""


def _write(path: Path, offset: float) -> Path:
    proto = onnx.parser.parse_model(_GRAPH)
    weight = np.random.default_rng(5).standard_normal((32, 32))
    for name, array in (("w", weight), ("offset", np.array(offset))):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def _build(tmp_path: Path, offset: float) -> trtq.Report:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(6).standard_normal((32, 32)))
    return trtq.build(
        _write(tmp_path / "m.onnx", offset), str(tmp_path / "x.npz"), output=tmp_path / "o",
        backend="onnxruntime", calib_method="minmax", repair=("none",),
    )  # fmt: skip


def test_a_layer_in_float64_is_quantized_in_float32(tmp_path: Path) -> None:
    report = _build(tmp_path, 0.0)
    assert (report.verdict, report.engine.layers_quantized, report.warnings) == ("pass", 1, ())
    assert any("computes in float32 what the file has in float64" in note for note in report.notes)


def test_what_float32_does_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(trtq.ModelError, match=r"gives something else than in .* computes in float32 what"):
        _build(tmp_path, 1e9)


def test_a_model_without_such_a_layer_stays_as_it_is(tmp_path: Path) -> None:
    text = "g (double[N] x) => (double[N] y) { y = Celu(x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx", min_opset=17).inputs[0].dtype == "float64"
