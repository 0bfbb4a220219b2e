"""A DequantizeLinear with another scale than its QuantizeLinear is told, and built as the file says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtq
from trtq.pipeline.graph.load import load_as_it_is
from trtq.pipeline.graph.repair import repair

_MADE, _READ, _WEIGHT = (np.float32(value) for value in (0.0123457, 0.0456789, 0.0371913))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        g (float[8,64] x) => (float[8,64] y) {
            q = QuantizeLinear (x, made, z) [dq] d = DequantizeLinear (q, read, z)
            [weight] dw = DequantizeLinear (w, weight_scale, z) [layer] y = MatMul (d, dw)
        }""")
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (64, 64)).astype(np.int8)
    scales = {"made": _MADE, "read": _READ, "weight_scale": _WEIGHT}
    for name, value in {**scales, "z": np.int8(0), "w": codes}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_build_warns_of_it(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    trtq.build(model, backend="onnxruntime", random_data=True)
    told = (
        "node 'dq' (DequantizeLinear): 'QuantizeLinear' quantizes with the scale 0.0123457, and it "
        "dequantizes with 0.0456789; TensorRT computes exactly that; give both nodes the same parameters"
    )
    assert [record.message for record in caplog.records if "dq" in record.message] == [told]


def test_the_builder_keeps_both_scales(model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    (item,) = trtq.lint(model).items
    assert (item.finding.rule, item.finding.effect, item.repair) == ("pair", "suspect", "none")
    trtq.build(model, backend="tensorrt-rtx", random_data=True, output=tmp_path / "o")
    plan = (tmp_path / "o" / "model.engine").read_bytes()
    assert (1 / _MADE).tobytes() in plan  # which quantizes
    assert (_READ * _WEIGHT).tobytes() in plan  # the factor of the product
    assert (_MADE * _WEIGHT).tobytes() not in plan


def test_nobody_chooses_between_the_two(model: Path) -> None:
    proto = onnx.load(model)
    for name, value in (("made", np.linspace(0.1, 0.2, 64)), ("read", np.linspace(0.2, 0.1, 64))):
        (scale,) = (item for item in proto.graph.initializer if item.name == name)
        scale.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    zeros = numpy_helper.from_array(np.zeros(64, np.int8), "zeros")
    proto.graph.initializer.append(zeros)
    for node in proto.graph.node[:2]:
        node.input[2] = "zeros"
    axes = (0, 1)
    for node, axis in zip(proto.graph.node[:2], axes, strict=True):
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 64
    onnx.save(proto, model)
    assert repair(load_as_it_is(model), requantize=True).changes == ()
