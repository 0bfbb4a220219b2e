"""Files that ONNX Runtime and TensorRT take, and that trtq takes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.onnx_file import read_model
from trtq.pipeline.judge.compare import compare_models

_X = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)


def _graph(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')


def _outputs(proto: onnx.ModelProto, path: Path, x: NDArray[Any] = _X) -> tuple[NDArray[Any], NDArray[Any]]:
    """Saves a model; returns what the file computes and what the loaded graph does."""
    onnx.save(proto, path)
    model = load(path, min_opset=19).model
    names = [str(value.name) for value in model.graph.outputs]
    return run(open_session(path, optimize=False), names, {"x": x})[0], run(
        open_session(model, optimize=False), names, {"x": x}
    )[0]


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(b) b = Add(a, x) a = Neg(x) }")
    theirs, ours = _outputs(proto, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours, theirs)
    assert [node.op_type for node in read_model(tmp_path / "m.onnx").graph] == ["Neg", "Add", "Relu"]


def test_nodes_are_sorted_by_what_bodies_read(tmp_path: Path) -> None:
    proto = _graph("""g (float[2,4] x, bool c) => (float[2,4] y) {
        y = If (c) <then_branch = t () => (float[2,4] p) { p = Relu(q) q = Neg(a) },
                    else_branch = e () => (float[2,4] r) { r = Abs(a) }>
        a = Add(x, x)
    }""")
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx", min_opset=13).model
    y = run(open_session(model, optimize=False), ["y"], {"x": _X, "c": np.array(True)})[0]
    np.testing.assert_array_equal(y, np.maximum(-2 * _X, 0))


def test_an_output_needs_no_shape(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "m.onnx")
    assert str(load(tmp_path / "m.onnx", min_opset=13).outputs[0]) == "y float32 (N, 4)"


def test_weights_of_an_old_ir_need_not_be_inputs(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    proto.ir_version = 3
    theirs, ours = _outputs(proto, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours, theirs)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx").ir_version == 3


def test_a_weight_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")] * 2
    proto.graph.initializer.extend(weights)
    theirs, ours = _outputs(proto, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours, theirs)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="w initializer name is not unique"):
        read_model(tmp_path / "m.onnx")


def test_the_domain_of_a_node_need_not_be_imported(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = com.microsoft.Gelu(x) }")
    theirs, ours = _outputs(proto, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours, theirs)
    assert read_model(tmp_path / "m.onnx").opset_imports["com.microsoft"] == 1


def test_a_graph_needs_no_name(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    proto.graph.name = ""
    onnx.save(proto, tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx", min_opset=13).model.graph.name == "graph"


def _sparse(places: NDArray[np.int64], dims: tuple[int, ...] = (4, 4)) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places), dims)


@pytest.mark.parametrize("places", [[1, 6, 15], [[0, 1], [1, 2], [3, 3]]])
@pytest.mark.parametrize("is_constant", [False, True])
def test_sparse_weights_become_dense(tmp_path: Path, places: list[Any], is_constant: bool) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    sparse = _sparse(np.array(places, np.int64))
    if is_constant:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    else:
        proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, tmp_path / "m.onnx")
    dense = load(tmp_path / "m.onnx", min_opset=13).model.graph.initializers["w"].const_value
    want = np.zeros((4, 4), np.float32)
    want[[0, 1, 3], [1, 2, 3]] = 1, 2, 3
    assert dense is not None
    np.testing.assert_array_equal(dense.numpy(), want)


@pytest.mark.parametrize(
    ("places", "dims", "words"),
    [
        ([1, 6, 16], (4, 4), r"'w' have indices that do not fit the dims \[4, 4\]"),
        ([1, 6], (4, 4), r"'w' have indices that do not fit the dims \[4, 4\]"),
        ([1, 6, 15], (1 << 20, 1 << 20), r"'w' have the dims .*, which are too large to be made dense"),
    ],
)
def test_sparse_weights_that_contradict_themselves(
    tmp_path: Path, places: list[int], dims: tuple[int, ...], words: str
) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    proto.graph.sparse_initializer.append(_sparse(np.array(places, np.int64), dims))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "m.onnx", min_opset=13)


def test_sparse_weights_in_another_file(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    sparse = _sparse(np.array([1, 6, 15]))
    sparse.values.data_location = TensorProto.EXTERNAL
    proto.graph.sparse_initializer.append(sparse)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="the sparse weights of 'w' lie in another file; save the model"):
        load(tmp_path / "m.onnx", min_opset=13)


def test_group_normalization_has_the_shape_of_its_input(tmp_path: Path) -> None:
    proto = _graph("""g (float[N,4,5] x) => (float[N,4,5] y) {
        n = GroupNormalization<num_groups = 2>(x, s, b)
        y = Relu(n)
    }""")
    factors = np.ones(4, np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(factors, name) for name in "sb")
    proto.opset_import[0].version = 21
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=19)
    norm = graph.model.graph[0]
    assert (norm.op_type, len(norm.inputs), norm.attributes["num_groups"].value) == (
        "GroupNormalization",
        3,
        2,
    )
    assert str(norm.outputs[0].shape) == "[N,4,5]"


def test_group_normalization_of_opset_18_is_built(tmp_path: Path) -> None:
    proto = _graph("""g (float[2,6,4] x) => (float[2,6,4] y) {
        y = GroupNormalization<num_groups = 2>(x, s, b)
    }""")
    factors = np.array([1, 3], np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(factors, name) for name in "sb")
    proto.opset_import[0].version = 18
    x = np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)
    theirs, ours = _outputs(proto, tmp_path / "m.onnx", x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    report = build(
        tmp_path / "m.onnx", target=Target(precision="fp16", backend="onnxruntime"), output=tmp_path / "o"
    )
    assert "raised the opset from 18 to 21" in report.notes
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: setattr(t, "raw_data", t.raw_data + b"abcd"), r"'w' have 68 bytes; the dims \[4, 4\] of"),
        (lambda t: setattr(t, "data_type", 99), "'w' have the unknown element type 99; export the model"),
        (lambda t: setattr(t, "data_type", 0), "'w' have the unknown element type 0; export the model"),
        (lambda t: t.dims.__setitem__(0, -1), r"'w' have the dims \[-1, 4\]; export the model"),
        (lambda t: (t.ClearField("raw_data"), t.float_data.extend([1, 2])), "'w' have 2 values; the dims"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, change: Any, words: str) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    change(proto.graph.initializer[0])
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=f"m.onnx: the weights of {words}"):
        load(tmp_path / "m.onnx", min_opset=13)


@pytest.mark.parametrize("opset", [26, 27, 28])
def test_a_newer_opset_is_lowered(tmp_path: Path, opset: int) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { a = Celu(x) y = Relu(a) }")
    proto.opset_import[0].version = opset
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=13)
    assert graph.opset == 25
    assert f"lowered the opset from {opset} to 25" in graph.notes


def test_a_newer_operator_keeps_its_opset(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (int32[N,4] y) { y = BitCast<to = 6>(x) }")
    proto.opset_import[0].version = 26
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=13)
    assert graph.opset == 26
    told = (
        "the opset stays 26: node 'BitCast' (BitCast) cannot be brought from opset 26 to 25: ONNX has no such"
    )
    assert any(note.startswith(told) for note in graph.notes)


@pytest.mark.parametrize("imports", [("ai.onnx",), ("", "ai.onnx")])
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_standard_domain_has_two_names(tmp_path: Path, imports: tuple[str, ...], domain: str) -> None:
    proto = _graph("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }")
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(name, 13) for name in imports)
    proto.graph.node[0].domain = domain
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=19)
    assert "raised the opset from 13 to 19" in graph.notes
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    y = run(open_session(graph.model, optimize=False), ["y"], {"x": x})[0]
    np.testing.assert_allclose(y, np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-5)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    proto = _graph("nameofg (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"nameofg", b"\xf6ameofg"))
    with pytest.raises(ModelError, match=r"m.onnx is not a valid ONNX model: .*can't decode byte 0xf6"):
        load(tmp_path / "m.onnx", min_opset=13)


def test_a_model_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise ir.serde.SerdeError("while writing") from TypeError("no such dim")

    onnx.save(_graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    monkeypatch.setattr(ir.serde, "serialize_model", fail)
    with pytest.raises(ModelError, match="the model cannot be written as ONNX: no such dim"):
        load(tmp_path / "m.onnx", min_opset=13)


def test_nodes_that_share_a_name(tmp_path: Path) -> None:
    proto = _graph("g (float[N,4] x) => (float[N,4] y) { [n] a = Neg(x) [n] b = Relu(a) [n] y = Abs(b) }")
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"two nodes with same node name \(n\)"):
        open_session(tmp_path / "m.onnx", optimize=False)
    batches = Batches(lambda: iter([Feed({"x": _X}, "x", len(_X))]), "x", len(_X))
    models = dict.fromkeys(("other", "fp32"), tmp_path / "m.onnx")
    (item,) = compare_models(models, [("other", "fp32")], batches).outputs
    assert item.max_abs == 0
    assert [node.name for node in load(tmp_path / "m.onnx", min_opset=19).model.graph] == ["n", "n_1", "n_2"]


def test_an_output_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    proto = _graph(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] z, float[N,4] y) { y = Relu(x) z = Neg(x) }"
    )
    _outputs(proto, tmp_path / "m.onnx")
    assert [item.name for item in load(tmp_path / "m.onnx", min_opset=13).outputs] == ["y", "z"]


def test_an_input_that_is_an_output_too_is_no_engines(tmp_path: Path) -> None:
    onnx.save(_graph("g (float[2,4] x) => (float[2,4] x, float[2,4] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="output 'x' is an input of the model too, and the tensors of an"):
        build(tmp_path / "m.onnx", random_data=True, output=tmp_path / "o")
