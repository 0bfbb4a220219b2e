from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from trtq.calibrators.batches import Batches, Feed
from trtq.models.session import open_session, run
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.exact import make_quantize_exact


def _pair(dtype: type[np.floating], scale: float) -> onnx.ModelProto:
    """Returns y = DequantizeLinear(QuantizeLinear(x)) in one precision, with x and y in FP32."""
    elem_type = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="in", to=elem_type),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("Cast", ["d"], ["y"], name="out", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [
            numpy_helper.from_array(np.array(scale, dtype), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_codes_are_rounded_half_to_even_whatever_the_runtime() -> None:
    exact = make_quantize_exact(ir.from_proto(_pair(np.float16, 0.05)))
    assert exact is not None
    x = np.linspace(-6, 6, 2001).astype(np.float16).astype(np.float32)
    found = run(open_session(exact, optimize=False), ["y"], {"x": x})[0]
    scale = np.float32(np.float16(0.05))
    wanted = (np.clip(np.rint(x / scale), -128, 127) * scale).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_a_model_without_fp16_pairs_is_left_as_it_is() -> None:
    assert make_quantize_exact(ir.from_proto(_pair(np.float32, 0.05))) is None


def test_the_given_model_is_not_changed() -> None:
    model = ir.from_proto(_pair(np.float16, 0.05))
    make_quantize_exact(model)
    assert [node.name for node in model.graph] == ["in", "q", "d", "out"]


def test_comparing_rounds_exactly(tmp_path: Path) -> None:
    files = {"fp32": tmp_path / "a.onnx", "int8": tmp_path / "b.onnx"}
    scale = float(np.float16(0.05))
    onnx.save(_pair(np.float32, scale), files["fp32"])
    onnx.save(_pair(np.float16, scale), files["int8"])
    x = np.linspace(-6, 6, 2001).astype(np.float16).astype(np.float32)
    feeds = Batches(lambda: iter([Feed({"x": x}, "x", len(x))]), "x", len(x))
    (found,) = compare_models(files, [("int8", "fp32")], feeds).outputs
    assert found.max_abs < 0.01  # truncated codes would be a whole step of 0.05 apart
