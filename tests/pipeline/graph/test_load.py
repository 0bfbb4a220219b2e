"""Tests of loading: a loaded model computes what its file does, and what was changed is told."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.graph.load import Graph, load, raise_opset

RELU = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"


def _op_types(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


def test_an_operator_of_onnx_runtime_is_let_through(tmp_path: Path) -> None:
    header = '<ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(
        header + "g (float[N,3] x) => (float[N,3] y) { t = com.microsoft.Gelu(x) y = Relu(t) }"
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert _op_types(load(tmp_path / "m.onnx", min_opset=19)) == ["Gelu", "Relu"]


def test_constant_nodes_become_initializers(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of("""g (float[N,3] x) => (float[N,2] y) {
        w = Constant<value = float[3,2] {1, -2, 3, 0.5, 5, -6}>()
        two = Constant<value_float = 2.0>()
        i = Constant<value_ints = [1, 0]>()
        m = MatMul(x, w)
        s = Mul(m, two)
        y = Gather<axis = 1>(s, i)
    }""")
    graph = load(path, min_opset=13)
    assert _op_types(graph) == ["MatMul", "Mul", "Gather"]
    assert set(graph.model.graph.initializers) == {"w", "two", "i"}
    assert "turned 3 Constant nodes into initializers" in graph.notes
    assert_equal_outputs(path, graph.model)


def test_a_constant_that_is_an_output_stays(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of("""g (float[N,2] x) => (float[2] k, float[N,2] y) {
        k = Constant<value = float[2] {1, 2}>()
        y = Add(x, k)
    }""")
    graph = load(path, min_opset=13)
    assert graph.notes == ()
    assert_equal_outputs(path, graph.model)


def test_functions_are_inlined(tmp_path: Path, assert_equal_outputs: Callable[..., None]) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 19, "ours": 1]>
        g (float[N,3] x) => (float[N,3] y) { t = ours.Twice(x) y = ours.Twice(t) }
        <domain: "ours", opset_import: ["": 19]> Twice (a) => (b) { r = Relu(a) b = Add(a, r) }
    """)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = load(path, min_opset=13)
    assert _op_types(graph) == ["Relu", "Add", "Relu", "Add"]
    assert len({node.name for node in graph.model.graph}) == 4
    assert "inlined the model's own functions" in graph.notes
    assert_equal_outputs(path, graph.model)


def test_weights_that_are_listed_as_inputs_are_no_inputs(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    text = "g (float[N,3] x, float[3,2] w) => (float[N,2] y) { y = MatMul(x, w) }"
    path = path_of(text, opset=8, ir_version=3, w=random_array(3, 2))
    graph = load(path, min_opset=13)
    assert [item.name for item in graph.inputs] == ["x"]
    assert "removed weights from the graph inputs" in graph.notes
    assert_equal_outputs(path, graph.model)


def test_identities_go_and_names_of_outputs_stay(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of(
        """g (float[N,3] x, bool c) => (float[N,3] a, float[N,3] b, float[N,3] d, float[3] e, float[N,3] f) {
            a = Identity(x)
            b = Relu(x)
            d = Identity(b)
            e = Identity(w)
            s = Sigmoid(x)
            i = Identity(s)
            j = Identity(i)
            f = Identity(j)
        }""",
        w=random_array(3),
    )
    graph = load(path, min_opset=13)
    assert sorted(_op_types(graph)) == ["Identity", "Identity", "Identity", "Relu", "Sigmoid"]
    assert_equal_outputs(path, graph.model)


def test_an_identity_in_a_body_stays(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of("""g (float[N,3] x, bool c) => (float[N,3] y) {
        r = Relu(x)
        y = If(c) <
            then_branch = a () => (float[N,3] t) { t = Identity(r) },
            else_branch = b () => (float[N,3] e) { e = Neg(r) }
        >
    }""")
    graph = load(path, min_opset=13)
    for branch in (True, False):
        assert_equal_outputs(path, graph.model, feed={"c": np.array(branch)})


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("?,3,?,?", ("x_dim0", 3, "x_dim2", "x_dim3")),
        ("N,3,None,None", ("N", 3, "x_dim2", "x_dim3")),
        ("-1,3,8,8", ("x_dim0", 3, 8, 8)),
        (",3,8,8", ("x_dim0", 3, 8, 8)),
        ("D,3,D,8", ("x_dim0", 3, "x_dim2", 8)),
        ("N,3,H,W", ("N", 3, "H", "W")),
    ],
)
def test_dims_without_a_name_of_their_own_get_one(
    path_of: Callable[..., Path], shape: str, wanted: tuple[int | str, ...]
) -> None:
    path = path_of("g (float[A,B,C,D] x) => (float[A,B,C,D] y) { y = Relu(x) }")
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim, text in zip(value.type.tensor_type.shape.dim, shape.split(","), strict=True):
            dim.Clear()
            if re.fullmatch(r"-?\d+", text):
                dim.dim_value = int(text)
            elif text:
                dim.dim_param = text
    path.write_bytes(proto.SerializeToString())
    graph = load(path, min_opset=13)
    assert graph.inputs[0].shape == wanted
    assert graph.outputs[0].shape == wanted
    parted = "input 'x': parted dims that shared a name or had none"
    assert (parted in graph.notes) == (shape != "N,3,H,W")


def test_the_same_mark_in_two_inputs_means_two_sizes(
    path_of: Callable[..., Path], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    path = path_of("g (float[A,3] p, float[3,A] q) => (float[A,A] y) { y = MatMul(p, q) }")
    path.write_bytes(path.read_bytes().replace(b"\x12\x01A", b"\x12\x01?"))
    graph = load(path, min_opset=13)
    assert [item.shape for item in graph.inputs] == [("p_dim0", 3), (3, "q_dim1")]
    assert graph.outputs[0].shape == ("p_dim0", "q_dim1")
    assert outputs_of(graph.model, p_dim0=4, q_dim1=7)[0].shape == (4, 7)


def test_stale_shapes_in_the_file_are_not_believed(
    path_of: Callable[..., Path], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    path = path_of("""g (float[N,3] x) => (float[1,3] y) <float[1,3] r> {
        r = Relu(x)
        s = Shape(r)
        z = ConstantOfShape(s)
        y = Add(r, z)
    }""")
    graph = load(path, min_opset=13)
    assert graph.outputs[0].shape == ("N", 3)
    assert outputs_of(graph.model, N=5)[0].shape == (5, 3)


def test_what_the_file_says_of_an_output_stays_where_onnx_knows_nothing(
    graph_of: Callable[..., Graph],
) -> None:
    graph = graph_of("g (float[N,4] x, int64[2] s) => (float[P,8] y) { y = Reshape(x, s) }")
    assert graph.outputs[0].shape == ("P", 8)
    graph = graph_of("g (float[N,4] x, int64[K] s) => (float[P,8] y) { r = Reshape(x, s) y = Identity(r) }")
    assert graph.outputs[0].shape == ("P", 8)
    graph = graph_of("g (float[N] x) => (int64[1,found] y) { y = NonZero(x) }")
    assert graph.outputs[0].shape == (1, "found")


def test_bodies_with_the_same_names_keep_their_own_types(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("""g (float[N,3] x, bool c) => (float[N,3] y) {
        y = If(c) <
            then_branch = a () => (float[N,3] t) { s = Cast<to = 7>(x) t = Cast<to = 1>(s) },
            else_branch = b () => (float[N,3] e) { s = Relu(x) e = Relu(s) }
        >
    }""")
    types = [(node.op_type, node.outputs[0].dtype) for node in graph.model.graph.all_nodes()]
    assert ("Cast", ir.DataType.INT64) in types
    assert [dtype for op_type, dtype in types if op_type == "Relu"] == [ir.DataType.FLOAT] * 2


def test_a_graph_with_a_circle(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => (float[N] y) { y = Add(x, b) a = Neg(y) b = Relu(a) }")
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*topologically sorted"):
        load(path, min_opset=13)


def test_unnamed_nodes_get_unique_names_by_their_type(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("g (float[N] x) => (float[N] y) { a = Relu(x) b = Relu(a) c = Neg(b) [Neg] y = Neg(c) }")
    names = [str(node.name) for node in graph.model.graph]
    assert names[:3] == ["Relu", "Relu_1", "Neg"]
    assert len(set(names)) == 4


def test_outputs_that_nobody_takes_stay_without_a_name(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of(
        'g (float[S,1,3] x) => (float[1,1,4] h) { "", h = LSTM<hidden_size = 4>(x, w, r) }',
        w=random_array(1, 16, 3),
        r=random_array(1, 16, 4),
    )
    graph = load(path, min_opset=13)
    assert [value.name for value in graph.model.graph.node(0).outputs] == ["", "h"]
    assert_equal_outputs(path, graph.model)


def test_weights_inside_bodies_are_reported(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of(
        """g (float[N,3] x, bool c) => (float[N,2] y) {
            [outer] r = MatMul(x, v)
            y = If(c) <
                then_branch = a () => (float[N,2] t) { [inner] t = MatMul(r, w) },
                else_branch = b () => (float[N,2] e) { [other] e = Gemm(r, w) }
            >
        }""",
        w=random_array(3, 2),
        v=random_array(3, 3),
    )
    graph = load(path, min_opset=13)
    assert sorted(node.name for node in graph.unseen) == ["inner", "other"]
    assert any(
        re.match("inside If/Loop bodies lie 2 nodes with weights, not quantized: ", note)
        for note in graph.notes
    )
    for branch in (True, False):
        assert_equal_outputs(path, graph.model, feed={"c": np.array(branch)})


def test_many_weights_inside_bodies_are_reported_briefly(graph_of: Callable[..., Graph]) -> None:
    layers = " ".join(f"[layer{i}] t{i + 1} = MatMul(t{i}, w)" for i in range(6))
    graph = graph_of(
        f"""g (float[N,3] x, bool c) => (float[N,3] y) {{
            y = If(c) <
                then_branch = a () => (float[N,3] t6) {{ t0 = Relu(x) {layers} }},
                else_branch = b () => (float[N,3] e) {{ e = Relu(x) }}
            >
        }}""",
        w=random_array(3, 3),
    )
    assert len(graph.unseen) == 6
    assert graph.notes[-1].endswith(": layer0, layer1, layer2, layer3 ...")


def test_a_model_with_fp16_weights_and_types_loads(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of(
        """g (float16[N,3,6,6] x) => (float16[N,4,6,6] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization(c, s, b, m, v)
            y = Relu(n)
        }""",
        w=random_array(4, 3, 3, 3).astype(np.float16),
        s=random_array(4).astype(np.float16),
        b=random_array(4).astype(np.float16),
        m=random_array(4).astype(np.float16),
        v=(random_array(4) ** 2 + 1).astype(np.float16),
    )
    graph = load(path, min_opset=19)
    assert _op_types(graph) == ["Conv", "Relu"]
    assert graph.inputs[0].dtype == "float16"
    assert_equal_outputs(path, graph.model, rtol=1e-2, atol=1e-2)


def test_an_old_model_is_raised_and_stays_the_same(
    path_of: Callable[..., Path], assert_equal_outputs: Callable[..., None]
) -> None:
    path = path_of(
        """g (float[N,3,8,8] x, float[4,3,3,3] w, float[4] s) => (float[N,4,6,6] y) {
            c = Conv(x, w)
            n = BatchNormalization(c, s, s, s, s)
            d = Dropout(n)
            y = Clip<min = 0.0, max = 6.0>(d)
        }""",
        opset=9,
        ir_version=3,
        w=random_array(4, 3, 3, 3),
        s=abs(random_array(4)),
    )
    graph = load(path, min_opset=19)
    assert graph.opset == 19
    assert "raised the opset from 9 to 19" in graph.notes
    assert graph.model.ir_version >= 9
    assert_equal_outputs(path, graph.model)


def test_a_newer_opset_stays(graph_of: Callable[..., Graph]) -> None:
    assert graph_of(RELU, opset=21, ir_version=10).opset == 21
    assert graph_of(RELU, opset=21, ir_version=10).notes == ()


def test_the_signature_is_that_of_the_file(graph_of: Callable[..., Graph], tmp_path: Path) -> None:
    graph = graph_of("g (float[N,3] x, int64[N] i) => (float[N,3] y, int64[N] j) { y = Relu(x) j = Neg(i) }")
    assert [str(item) for item in graph.inputs] == ["x float32 (N, 3)", "i int64 (N)"]
    assert [str(item) for item in graph.outputs] == ["y float32 (N, 3)", "j int64 (N)"]
    assert graph.path.parent == tmp_path


def test_a_loaded_model_passes_the_checker(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) y = Add(c, b) }",
        opset=11,
        ir_version=6,
        w=random_array(4, 3, 3, 3),
        b=random_array(4, 1, 1),
    )
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)


def _real_models() -> list[Path]:
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "models").glob("*.onnx"))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="rapidocr-onnxruntime has no release for Python 3.13")
@pytest.mark.parametrize("part", ["det", "rec", "cls"])
def test_a_real_model_computes_what_its_file_does(
    outputs_of: Callable[..., list[NDArray[Any]]], part: str
) -> None:
    path = next(path for path in _real_models() if f"_{part}_" in path.name)
    graph = load(path, min_opset=19)
    assert graph.opset == 19
    assert any("Constant nodes into initializers" in note for note in graph.notes)
    size = {"det": (1, 3, 64, 96), "rec": (2, 3, 48, 80), "cls": (2, 3, 48, 192)}[part]
    feed = {graph.inputs[0].name: np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)}
    for want, have in zip(outputs_of(path, feed=feed), outputs_of(graph.model, feed=feed), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_a_graph_that_is_raised_later_is_one_to_check(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("net (float[2] x) => (float[2] y) { y = Relu (x) }", min_opset=13)
    assert not graph.is_rewritten
    assert raise_opset(graph, graph.opset) is graph
    raised = raise_opset(graph, 21)
    assert (raised.opset, raised.is_rewritten) == (21, True)
