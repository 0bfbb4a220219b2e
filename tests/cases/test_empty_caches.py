"""A cache that holds nothing yet is an input like others; so is one whose length is 0 in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import trtq
from trtq.errors import DataError
from trtq.models.session import open_session, run

_TEXT = """<ir_version: 9, opset_import: ["": 19]>
    decoder (float[B,S,32] x, float[B,{},32] past) => (float[B,S,32] y, float[B,T,32] present) {{
        [key] k = MatMul(x, w)
        [keys] present = Concat<axis = 1>(past, k)
        [turn] t = Transpose<perm = [0, 2, 1]>(present)
        [scores] s = MatMul(x, t)
        [softmax] a = Softmax(s)
        [mix] m = MatMul(a, present)
        [out] y = MatMul(m, v)
    }}"""
_RNG = np.random.default_rng(3)


def _save(folder: Path, length: str, past: tuple[int, ...]) -> trtq.ModelSpec:
    """Writes the model, with a past of a length, and 16 samples with the shape of one past."""
    proto = onnx.parser.parse_model(_TEXT.format(length))
    for name in ("w", "v"):
        weight = (_RNG.standard_normal((32, 32)) / 6).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(proto, folder / "m.onnx")
    x = _RNG.standard_normal((16, 5, 32)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, past=np.zeros((16, *past), np.float32))
    return trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(folder / "d.npz")))


@pytest.mark.parametrize("length", ["P", "0"])
def test_an_empty_cache_is_calibrated_and_compared(tmp_path: Path, length: str) -> None:
    spec = _save(tmp_path, length, (0, 32))
    target = trtq.Target(backend="onnxruntime")
    report = trtq.build(tmp_path / "m.onnx", spec=spec, target=target, output=tmp_path / "o")
    assert report.verdict == "pass"
    assert (report.engine.layers_quantized, report.engine.num_realized) == (4, 4)
    session = open_session(tmp_path / "o" / "model.int8.onnx", optimize=False)
    size = 3 if length == "P" else 0
    feed = {"x": np.ones((1, 1, 32), np.float32), "past": np.ones((1, size, 32), np.float32)}
    (present,) = run(session, ["present"], feed)
    assert present.shape == (1, size + 1, 32)


def test_a_size_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    spec = _save(tmp_path, "4", (0, 32))
    with pytest.raises(
        DataError, match=r"input 'past' of .* has shape \(8, 0, 32\), the model expects \(B, 4, 32\)"
    ):
        trtq.calibrate(tmp_path / "m.onnx", spec=spec)


def test_an_output_without_values_is_no_evidence(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        g (float[B,S,32] x, float[B,P,32] past) => (float[B,S,32] y, float[B,P,32] z) {
            [one] y = MatMul(x, w) [two] z = MatMul(past, w) }""")
    weight = (_RNG.standard_normal((32, 32)) / 6).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    for length, verdict in ((0, "unverified"), (3, "pass")):
        x, past = (_RNG.standard_normal((16, size, 32)).astype(np.float32) for size in (5, length))
        np.savez(tmp_path / "d.npz", x=x, past=past)
        spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(tmp_path / "d.npz")))
        target = trtq.Target(backend="onnxruntime")
        report = trtq.build(tmp_path / "m.onnx", spec=spec, target=target, output=tmp_path / str(length))
        assert report.verdict == verdict
