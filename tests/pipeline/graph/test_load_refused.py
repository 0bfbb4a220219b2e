"""Tests of files and graphs that are refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.graph.load import load


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the model .*gone\.onnx: No such file or directory"):
        load(tmp_path / "gone.onnx", min_opset=13)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder; give the \.onnx file in it"):
        load(tmp_path, min_opset=13)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelError, match=r"m\.onnx is empty; export the model again"):
        load(tmp_path / "m.onnx", min_opset=13)


@pytest.mark.parametrize("content", [b"hello world, this is a text file", b"\x89PNG\r\n\x1a\n", b"{}\n"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx is not an ONNX model, or is cut short: "):
        load(tmp_path / "m.onnx", min_opset=13)


def test_a_file_that_is_cut_short(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[4] x) => (float[4] y) { y = Add(x, w) }", w=_random(4))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"is not an ONNX model, or is cut short: "):
        load(path, min_opset=13)


def test_protobuf_without_a_graph(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx.ModelProto(ir_version=9).SerializeToString())
    with pytest.raises(ModelError, match="is not an ONNX model: it holds no graph"):
        load(tmp_path / "m.onnx", min_opset=13)


def test_a_graph_without_outputs(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => () { y = Relu(x) }")
    with pytest.raises(ModelError, match="the graph has no outputs, so there is nothing to build"):
        load(path, min_opset=13)


def test_an_unknown_operator(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => (float[N] y) { y = Frobnicate(x) }")
    with pytest.raises(ModelError, match="is not a valid ONNX model: No Op registered for Frobnicate"):
        load(path, min_opset=13)


def test_a_graph_that_reads_what_nobody_writes(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => (float[N] y) { y = Add(x, nothing) }")
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nothing"):
        load(path, min_opset=13)


@pytest.mark.parametrize("where", ["top", "body", "function"])
def test_an_operator_of_a_foreign_domain(tmp_path: Path, where: str) -> None:
    header = '<ir_version: 9, opset_import: ["": 19, "ours": 1, "acme": 1]>'
    text = {
        "top": "g (float[N] x, bool c) => (float[N] y) { y = acme.Frob(x) }",
        "body": "g (float[N] x, bool c) => (float[N] y) { y = If(c) <then_branch = a () => (float[N] t)"
        " { t = acme.Frob(x) }, else_branch = b () => (float[N] e) { e = Relu(x) }> }",
        "function": "g (float[N] x, bool c) => (float[N] y) { y = ours.Frobs(x) }"
        ' <domain: "ours", opset_import: ["": 19, "acme": 1]> Frobs (a) => (b) { b = acme.Frob(a) }',
    }[where]
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(header + text).SerializeToString())
    with pytest.raises(ModelError, match=r"node '.*' is acme::Frob, which is not a standard ONNX operator"):
        load(path, min_opset=13)


def test_inputs_of_strings(path_of: Callable[..., Path]) -> None:
    path = path_of("g (string[N] x) => (int64[R] y) { y = Shape(x) }")
    with pytest.raises(ModelError, match="input 'x' is a tensor of strings, which TensorRT cannot take"):
        load(path, min_opset=13)


@pytest.mark.parametrize("kind", ["seq(float[N])", "seq(float[])", "seq(map(int64, float[N]))"])
def test_inputs_that_are_no_tensors(path_of: Callable[..., Path], kind: str) -> None:
    path = path_of(f"g ({kind} x, int64 i) => (float[N] y) {{ y = SequenceAt(x, i) }}")
    with pytest.raises(ModelError, match=r"input 'x' is .*; trtq and TensorRT take tensors only"):
        load(path, min_opset=13)


def test_inputs_without_a_rank(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="is not a valid ONNX model: Field 'shape' of 'type' is required"):
        load(path, min_opset=13)


def test_shapes_that_contradict_each_other(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N,3] x) => (float[N,5] y) { y = MatMul(x, w) }", w=_random(4, 5))
    with pytest.raises(
        ModelError, match=r"the shapes of the model do not fit together: .*MatMul.*Incompatible"
    ):
        load(path, min_opset=13)


def test_an_opset_that_cannot_be_raised(path_of: Callable[..., Path]) -> None:
    text = "g (float[2,3] x, float[3] b) => (float[2,3] y) { r = ConstantFill(x) y = Add<broadcast=1>(r, b) }"
    path = path_of(text, opset=6, ir_version=3)
    match = r"node 'ConstantFill' \(ConstantFill\) cannot be brought from opset 6 to 7: ONNX has no such op"
    with pytest.raises(ModelError, match=match):
        load(path, min_opset=19)
