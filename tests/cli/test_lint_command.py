"""`trtq lint` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import Result
from command_line import trtq

from trtq.models.demo import write_demo


def lint(*arguments: object) -> Result:
    return trtq("lint", *arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A MatMul with a quantized bias, an activation around zero point 3 and a bound of a Clip in codes."""
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[8,16] x) => (float[8,32] y) {
          [quantize] q = QuantizeLinear (x, s, z)
          [dequantize] d = DequantizeLinear (q, s, z)
          [weight] dw = DequantizeLinear <axis = 1> (w, sw, zw)
          [bias] b = DequantizeLinear (c, s)
          [layer] h = Gemm (d, dw, b)
          [bound] a = DequantizeLinear (c0, s, z0)
          [clip] y = Clip (h, a)
        }""")
    constants = {
        "s": np.float32(0.05), "z": np.int8(3), "z0": np.int8(0), "w": np.ones((16, 32), np.int8),
        "sw": np.full(32, 0.01, np.float32), "zw": np.zeros(32, np.int8), "c": np.ones(32, np.int32),
        "c0": np.int8(0),
    }  # fmt: skip
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, tmp_path / "q.onnx")
    return tmp_path / "q.onnx"


def test_every_finding_has_its_node_reason_and_repair(model: Path) -> None:
    result = lint(model)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "refused  zero-point  2 nodes",
        "  quantize (QuantizeLinear): it has the zero point 3; TensorRT takes symmetric quantization only",
        "  dequantize (DequantizeLinear): it has the zero point 3; "
        "TensorRT takes symmetric quantization only",
        "  trtq build --requantize: int8 values with zero point 0 and the scale 0.05157",
        "refused  int32  1 node",
        "  bias (DequantizeLinear): it dequantizes int32 (a quantized bias), which TensorRT refuses",
        "  trtq build repairs it exactly: a float constant of the same values",
        "refused  quantized-bound  1 node",
        "  clip (Clip): its input 'a' is a dequantized constant, which TensorRT refuses here",
        "  trtq build repairs it exactly: float constants of the same values",
        "0 of 1 quantized layers run in INT8 as it is; 4 refused",
    ]
    assert result.stderr == (
        f"error: TensorRT does not take {model}; 2 findings without an exact repair, "
        "zero-point of node 'quantize' first\n"
    )


def test_json_tells_the_same(model: Path) -> None:
    told = json.loads(lint(model, "--json").stdout)
    assert (told["layers_quantized"], told["layers_realized"], told["is_quantized"]) == (
        {"int8": 1},
        {},
        True,
    )
    kinds = [(item["finding"]["rule"], item["finding"]["node"], item["repair"]) for item in told["items"]]
    assert kinds == [
        ("zero-point", "quantize", "requantize"),
        ("zero-point", "dequantize", "requantize"),
        ("int32", "bias", "exact"),
        ("quantized-bound", "clip", "exact"),
    ]


def test_a_float_model_has_nothing_to_check(tmp_path: Path) -> None:
    write_demo(tmp_path)
    result = lint(tmp_path / "model.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'model.onnx'} holds no Q/DQ: nothing to check\n"


def test_what_is_repaired_exactly_is_no_failure_and_verbose_names_every_node(tmp_path: Path) -> None:
    pairs = "".join(
        f"[q{i}] a{i} = QuantizeLinear (x, s, z) [d{i}] b{i} = DequantizeLinear (a{i}, s, z) "
        for i in range(4)
    )
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g (float[4] x) => (float[4] y) {{ {pairs}'
        " c = Add (b0, b1) e = Add (b2, b3) y = Add (c, e) }"
    )
    for name, array in (("s", np.float32(0.1)), ("z", np.uint8(128))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, tmp_path / "q.onnx")
    short, verbose = lint(tmp_path / "q.onnx"), lint(tmp_path / "q.onnx", "-v")
    assert (short.exit_code, verbose.exit_code) == (0, 0)
    assert "  and 5 more (-v lists them)" in short.stdout.splitlines()
    assert all(f"  {kind}{i} (" in verbose.stdout for kind in "qd" for i in range(4))


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"")
    result = lint(tmp_path / "no.onnx")
    assert result.exit_code == 2
    assert "is empty; export the model again" in result.stderr


@pytest.mark.parametrize("written", ["8.6", "86", "sm_86"])
def test_a_compute_capability_is_read_as_by_the_other_commands(written: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        g (float[4,4] x) => (float[4,4] y) {
            q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)
        }""")
    model.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, (), [0.1]))
    model.graph.initializer.append(onnx.helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, (), [0]))
    onnx.save(model, path := tmp_path / "m.onnx")
    assert trtq("lint", path, "--compute-capability", "8.9").exit_code == 0
    result = trtq("lint", path, "--compute-capability", written)
    assert result.exit_code == 2
    assert "float8e4m3fn, which compute capability 8.6 does not have" in result.stdout
    result = trtq("lint", path, "--compute-capability", "ampere")
    told = "error: 'ampere' is not a compute capability; write 8.9, 89 or sm_89\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", told)
