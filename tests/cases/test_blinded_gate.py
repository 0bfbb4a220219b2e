"""What is loud and right does not hide what is dead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import trtq

_LEAST = float(np.finfo(np.float32).min)


def _build(folder: Path, mask: float, arrays: dict[str, NDArray[np.float32]], *, dead: bool) -> trtq.Report:
    """Builds a net whose logits get a mask: as an input, or every eighth; INT8 kills them if `dead`."""
    rng = np.random.default_rng(7)
    w0, w1 = ((rng.standard_normal((32, 32)) / 6).astype(np.float32) for _ in range(2))
    if dead:
        w0[:, 3] *= 3000
        w1[3] /= 3000
    fixed = np.zeros(32, np.float32)
    fixed[::8] = mask
    weights: dict[str, NDArray[np.float32]] = {"w0": w0, "w1": w1, "fixed": fixed}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="fc0"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["l"], name="fc1"),
        helper.make_node("Add", ["l", "mask" if "mask" in arrays else "fixed"], ["y"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 32])
        for name in (*arrays, "y")
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [values[name] for name in arrays],
        [values["y"]],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", **arrays)  # type: ignore[arg-type]
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(method="minmax", data=str(folder / "x.npz")),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    target = trtq.Target(backend="onnxruntime")
    return trtq.build(folder / "net.onnx", spec=spec, target=target, output=folder / "out")


def _feeds(scale: float = 1.0) -> NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    x[0] *= scale
    return x


@pytest.mark.parametrize("mask", [-1e9, -1e4, -65504.0, _LEAST, 1e9])
@pytest.mark.parametrize("dead", [False, True])
def test_constant_masks_beside_logits(mask: float, dead: bool, tmp_path: Path) -> None:
    report = _build(tmp_path, mask, {"x": _feeds()}, dead=dead)
    (found,) = (item for item in report.comparison if (item.candidate, item.reference) == ("int8", "fp32"))
    assert found.apart == 4 * 64
    assert report.verdict == ("fail" if dead else "pass")


@pytest.mark.parametrize("dead", [False, True])
def test_masks_that_differ_from_sample_to_sample(dead: bool, tmp_path: Path) -> None:
    mask = np.where(np.random.default_rng(2).random((64, 32)) < 0.5, -1e9, 0).astype(np.float32)
    assert _build(tmp_path, 0.0, {"x": _feeds(), "mask": mask}, dead=dead).verdict == (
        "fail" if dead else "pass"
    )


def test_one_sample_that_is_a_thousand_times_louder(tmp_path: Path) -> None:
    report = _build(tmp_path, 0.0, {"x": _feeds(1000.0)}, dead=False)
    assert report.verdict == "fail"
    assert any(" as a whole, but 0." in reason for reason in report.reasons)
    assert report.comparison[0].cosine > 0.99
    assert 0 not in [worst.sample for worst in report.comparison[0].worst]
