"""Inputs that are the same in every sample: a speaker, a camera, a time step, a blank picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtq


def _write_conditioned_net(path: Path) -> Path:
    """Writes a net of the inputs x and cond, which meet behind two layers and one."""
    rng = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array((rng.standard_normal((64, 64)) / 8).astype(np.float32), name)
        for name in ("w0", "w1", "w2", "w3")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="fx"),
        helper.make_node("MatMul", ["cond", "w1"], ["c"], name="fc"),
        helper.make_node("Relu", ["c"], ["cr"]),
        helper.make_node("MatMul", ["cr", "w3"], ["c2"], name="fc2"),
        helper.make_node("Add", ["a", "c2"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="fo"),
    ]
    x, cond, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 64]) for name in ("x", "cond", "y")
    )
    graph = helper.make_graph(nodes, "net", [x, cond], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("value", ["a vector", "nearly a vector", "zeros"])
def test_a_default_build_with_one_value_of_an_input_has_finite_weights(value: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cond = np.tile(rng.standard_normal(64).astype(np.float32), (64, 1)) * (value != "zeros")
    if value == "nearly a vector":  # what another order of the same sums leaves
        cond *= 1 + 1e-6 * rng.standard_normal(cond.shape).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 64)).astype(np.float32), cond=cond)
    model = _write_conditioned_net(tmp_path / "net.onnx")
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")))
    report = trtq.build(model, spec=spec, target=trtq.Target(backend="onnxruntime"), output=tmp_path / "out")
    assert report.verdict == ("unverified" if value == "zeros" else "pass")
    for weight in onnx.load(tmp_path / "out" / "model.int8.onnx").graph.initializer:
        assert np.isfinite(numpy_helper.to_array(weight).astype(np.float64)).all(), weight.name
