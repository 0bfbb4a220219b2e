"""Inputs and outputs that NumPy has no type for, and axes without an element: built, not refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

import trtq
from trtq.errors import DataError
from trtq.models.ports import has_foreign_ports, with_plain_ports
from trtq.models.session import open_session
from trtq.pipeline.graph.onnx_file import read_model

_QUICK = trtq.QuantizationSpec(repair=("none",))
_TARGET = trtq.Target(backend="onnxruntime")


def _write(path: Path, text: str, opset: int = 21) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    if any("w" in node.input for node in model.graph.node):
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["float8e4m3fn", "float8e5m2", "bfloat16", "int4", "uint4"])
def test_a_model_with_such_inputs_is_built_and_judged_by_nothing_made_up(tmp_path: Path, kind: str) -> None:
    path = _write(
        tmp_path / "m.onnx",
        f"g ({kind}[2,4] x) => (float[2,8] y) {{ f = Cast <to = 1> (x) y = MatMul (f, w) }}",
    )
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(method="minmax"), quantization=_QUICK)
    report = trtq.build(path, spec=spec, target=_TARGET, output=tmp_path / "m.trtq", random_data=True)
    assert report.verdict == "unverified"
    assert report.evaluated_samples > 0


def test_such_ports_are_exchanged_in_float32_with_the_same_values(tmp_path: Path) -> None:
    kinds = "float8e4m3fn[4] a, float8e4m3fn[4] b"
    model = read_model(
        _write(
            tmp_path / "m.onnx", f"g (float8e4m3fn[4] x) => ({kinds}) {{ a = Identity (x) b = Identity (a) }}"
        )
    )
    assert has_foreign_ports(model)
    session = open_session(model, optimize=False)
    given = np.array([0.5, -448, 0.001953125, 3.3], np.float32)
    for found in session.run(["a", "b"], {"x": given}):
        np.testing.assert_array_equal(found, np.array([0.5, -448, 0.001953125, 3.25], np.float32))
    assert has_foreign_ports(model)
    assert not has_foreign_ports(with_plain_ports(model))


def test_an_axis_behind_the_samples_may_be_empty_and_samples_may_not(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "m.onnx",
        "g (float[N,T,4] x, float[N,P,4] past) => (float[N,Q,8] y) { c = Concat <axis = 1> (past, x)"
        " y = MatMul (c, w) }",
    )
    rng = np.random.default_rng(0)
    (tmp_path / "d").mkdir()
    x, past = rng.standard_normal((2, 3, 4)).astype(np.float32), np.zeros((2, 0, 4), np.float32)
    np.savez(tmp_path / "d" / "0.npz", x=x, past=past)
    data = trtq.CalibrationSpec(data=str(tmp_path / "d"), method="minmax")
    spec = trtq.ModelSpec(calibration=data, quantization=_QUICK)
    report = trtq.build(path, spec=spec, target=_TARGET, output=tmp_path / "m.trtq")
    assert report.evaluated_samples == 2
    assert report.comparison[0].cosine > 0.99
    np.savez(tmp_path / "d" / "0.npz", x=x[:0], past=past[:0])
    with pytest.raises(DataError, match=r"input 'x' of .*0\.npz is empty: shape \(0, 3, 4\)"):
        trtq.build(path, spec=spec, target=_TARGET, output=tmp_path / "m.trtq")
