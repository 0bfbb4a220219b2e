"""Models of old opsets: whatever changed its meaning since then still computes what the file says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load


def _floats(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


_RNG = np.random.default_rng(3)
_X = _RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)


def _save(path: Path, text: str, opset: int, weights: dict[str, Any] | None = None) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["": {opset}]> g {text}')
    arrays = {name: np.asarray(array) for name, array in (weights or {}).items()}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    path.write_bytes(proto.SerializeToString())
    return path


def _run(model: ir.Model | Path, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return run(open_session(model, optimize=False), ["y"], feed)[0]


def _raise(tmp_path: Path, text: str, opset: int, weights: dict[str, Any] | None = None) -> ir.Model:
    return load(_save(tmp_path / "m.onnx", text, opset, weights), min_opset=19).model


_IMAGE = "(float[N,3,H,W] x) => (float[N,3,K,M] y)"
_SAME = {
    "Upsample 7 nearest": (7, _IMAGE + " { y = Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(x) }", {}),
    "Upsample 7 linear": (
        7,
        _IMAGE + ' { y = Upsample<mode = "linear", scales = [1.0, 1.0, 2.0, 3.0]>(x) }',
        {},
    ),
    "Upsample 9 linear": (
        9,
        _IMAGE + ' { y = Upsample<mode = "linear">(x, s) }',
        {"s": _floats([1, 1, 2, 2.5])},
    ),
    "Resize 10 nearest, growing": (10, _IMAGE + " { y = Resize(x, s) }", {"s": _floats([1, 1, 1.7, 2.3])}),
    "Resize 10 nearest, shrinking": (
        10,
        _IMAGE + " { y = Resize(x, s) }",
        {"s": _floats([1, 1, 0.6, 0.7])},
    ),
    "Resize 10 nearest, both": (10, _IMAGE + " { y = Resize(x, s) }", {"s": _floats([1, 1, 0.6, 2.3])}),
    "Resize 10 linear, both": (
        10,
        _IMAGE + ' { y = Resize<mode = "linear">(x, s) }',
        {"s": _floats([1, 1, 0.6, 2.3])},
    ),
    "Resize 11 to a size": (
        11,
        _IMAGE + ' { y = Resize<mode = "linear">(x, r, e, n) }',
        {"r": np.zeros(0, np.float32), "e": np.zeros(0, np.float32), "n": np.array([2, 3, 7, 6])},
    ),
    "Softmax 1": (7, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Softmax<axis = 1>(x) }", {}),
    "Softmax 11": (11, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Softmax<axis = -2>(x) }", {}),
    "Softmax of any rank": (
        11,
        "(float[N,3,4,5] x, int64[R] n) => (float y) { r = Reshape(x, n) y = Softmax(r) }",
        {},
    ),
    "LogSoftmax 1 by default": (7, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = LogSoftmax(x) }", {}),
    "Hardmax 1": (7, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Hardmax<axis = 2>(x) }", {}),
    "Hardmax 11": (11, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Hardmax<axis = 1>(x) }", {}),
    "Pad 2": (
        7,
        _IMAGE + " { y = Pad<pads = [0, 0, 1, 2, 0, 0, 2, 1], value = -7.5>(x) }",
        {},
    ),
    "Pad 10": (
        10,
        _IMAGE + ' { y = Pad<mode = "edge", pads = [0, 0, 1, 2, 0, 0, 2, 1]>(x) }',
        {},
    ),
    "Clip 6": (7, "(float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Clip<max = 0.5>(x) }", {}),
    "TopK 1": (7, "(float[N,3,4,5] x) => (float[N,3,4,2] y) { y, i = TopK<k = 2>(x) }", {}),
    "Scatter 9": (
        9,
        "(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Scatter<axis = 3>(x, i, u) }",
        {"i": np.array([[[[3]]]]), "u": _floats([[[[9]]]])},
    ),
    "GroupNormalization 18": (
        18,
        "(float[N,6,4] x) => (float[N,6,4] y) { y = GroupNormalization<num_groups = 2>(x, s, b) }",
        {"s": _floats([1, 2]), "b": _floats([3, 4])},
    ),
    "GridSample 16": (
        16,
        "(float[N,3,4,5] x, float[N,2,2,2] g) => (float[N,3,2,2] y) { y = GridSample(x, g) }",
        {},
    ),
    "RoiAlign 10": (
        10,
        """(float[1,3,4,5] x) => (float[1,3,2,2] y) {
            y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(x, r, i)
        }""",
        {"r": _floats([[0.3, 0.2, 3.1, 2.7]]), "i": np.array([0])},
    ),
    "sums over all axes": (
        7,
        "(float[N,3,4,5] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }",
        {},
    ),
    "a Resize in a body": (
        10,
        """(float[N,3,H,W] x, bool c) => (float[N,3,K,M] y) {
            y = If(c) <
                then_branch = a () => (float[N,3,K,M] t) { t = Resize<mode = "linear">(x, s) },
                else_branch = b () => (float[N,3,K,M] e) { e = Resize(x, s) }
            >
        }""",
        {"s": _floats([1, 1, 2, 2])},
    ),
    "a Softmax in a body": (
        11,
        """(float[2,3,4,5] x, bool c) => (float[2,3,4,5] y) {
            y = If(c) <
                then_branch = a () => (float[2,3,4,5] t) { t = Softmax(x) },
                else_branch = b () => (float[2,3,4,5] e) { n = Neg(x) e = Hardmax(n) }
            >
        }""",
        {},
    ),
}
_FEEDS: dict[str, NDArray[Any]] = {
    "n": np.array([2, 3, 20]),
    "g": _RNG.uniform(-1, 1, (2, 2, 2, 2)).astype(np.float32),
}


@pytest.mark.parametrize("min_opset", [13, 19, 21])
@pytest.mark.parametrize(("opset", "text", "weights"), _SAME.values(), ids=_SAME)
def test_what_changed_its_meaning_computes_the_same(
    tmp_path: Path, opset: int, text: str, weights: dict[str, Any], min_opset: int
) -> None:
    path = _save(tmp_path / "m.onnx", text, opset, weights)
    graph = load(path, min_opset=min_opset)
    assert graph.opset == (21 if opset == 18 else max(opset, min_opset))
    assert not any(node.op_type in ("Upsample", "Scatter") for node in graph.model.graph.all_nodes())
    by_name = _FEEDS | {
        "x": _X[:1] if "[1,3" in text else _X.reshape(2, 6, 10)[..., :4] if ",6," in text else _X
    }
    for condition in (True, False):
        feed = {item.name: by_name.get(item.name, np.array(condition)) for item in graph.inputs}
        np.testing.assert_array_equal(_run(graph.model, feed), _run(path, feed))


def test_a_nearest_sample_lies_below_where_an_image_grows(tmp_path: Path) -> None:
    text = _IMAGE + " { y = Upsample(x, s) }"
    model = _raise(tmp_path, text, 9, {"s": _floats([1, 1, 1, 2.5])})
    row = _run(model, {"x": np.broadcast_to(_floats([0, 1, 2, 3]), (1, 3, 1, 4))})[0, 0, 0]
    np.testing.assert_array_equal(row, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3])  # the floor of i / 2.5


def test_a_linear_sample_begins_at_the_corner(tmp_path: Path) -> None:
    text = _IMAGE + ' { y = Upsample<mode = "linear">(x, s) }'
    model = _raise(tmp_path, text, 9, {"s": _floats([1, 1, 1, 2])})
    row = _run(model, {"x": np.broadcast_to(_floats([0, 1, 2, 3]), (1, 3, 1, 4))})[0, 0, 0]
    np.testing.assert_array_equal(row, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])


def test_a_softmax_over_one_axis_needs_no_other_shape(tmp_path: Path) -> None:
    model = _raise(tmp_path, "(float[N,9,1,1] x) => (float[N,9,1,1] y) { y = Softmax<axis = 1>(x) }", 7)
    assert [(node.op_type, node.attributes["axis"].value) for node in model.graph] == [("Softmax", 1)]


def test_names_stay_when_an_opset_is_raised(tmp_path: Path) -> None:
    text = """(float[N,3,4,5] x) => (float[N,3,4,5] y) {
        [up] u = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(x) [pad] p = Pad<pads = [0,0,0,0,0,0,0,0]>(u)
        [soft] z = Softmax(p) y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(z)
    }"""
    model = _raise(tmp_path, text, 7)
    made = {str(node.name): str(node.outputs[0].name) for node in model.graph}
    assert {"up": "u", "pad": "p", "soft": "z_flat"}.items() <= made.items()
    assert "z" in made.values()


def _broadcast(op_type: str, attributes: str = "", shape: str = "3") -> str:
    dtype = "bool" if op_type in ("Less", "Equal") else "float"
    text = f"(float[2,3,4,5] x, float[{shape}] b) => ({dtype}[2,3,4,5] y)"
    return f"{text} {{ y = {op_type}<broadcast = 1{attributes}>(x, b) }}"


@pytest.mark.parametrize(
    ("op_type", "ufunc"),
    [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide), ("Less", np.less)],
)
def test_operands_of_opset_6_lie_along_their_axis(tmp_path: Path, op_type: str, ufunc: Any) -> None:
    model = _raise(tmp_path, _broadcast(op_type, ", axis = 1"), 6)
    b = _floats([0.1, 0.2, 0.4])
    np.testing.assert_array_equal(_run(model, {"x": _X, "b": b}), ufunc(_X, b.reshape(3, 1, 1)))


@pytest.mark.parametrize(
    ("attributes", "shape", "dims"),
    [
        ("", "5", (5,)),
        (", axis = 1", "3,4", (3, 4, 1)),
        (", axis = -2", "4", (4, 1)),
        (", axis = 3", "5", (5,)),
    ],
)
def test_operands_of_opset_6_have_any_rank(
    tmp_path: Path, attributes: str, shape: str, dims: Sequence[int]
) -> None:
    model = _raise(tmp_path, _broadcast("Add", attributes, shape), 6)
    b = _RNG.standard_normal([int(size) for size in shape.split(",")]).astype(np.float32)
    np.testing.assert_array_equal(_run(model, {"x": _X, "b": b}), _X + b.reshape(dims))


def test_a_bias_of_opset_6_is_a_constant_with_the_dims_that_it_needs(tmp_path: Path) -> None:
    text = "(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Add<broadcast = 1, axis = 1>(x, b) }"
    model = _raise(tmp_path, text, 6, {"b": _floats([1, 2, 3])})
    assert [node.op_type for node in model.graph] == ["Add"]
    np.testing.assert_array_equal(_run(model, {"x": _X}), _X + _floats([1, 2, 3]).reshape(3, 1, 1))


def test_a_whole_model_of_opset_6_is_raised(tmp_path: Path) -> None:
    text = """(float[N,3,4,5] x) => (float[N,2] y) {
        n = BatchNormalization<is_test = 1, consumed_inputs = [0,0,0,1,1]>(x, s, b, m, v)
        r = PRelu(n, s) d = Dropout<is_test = 1>(r) h = Cast<to = 1>(d)
        f = Reshape(h, sizes) y = Gemm<broadcast = 1, transB = 1>(f, w, k)
    }"""
    factors = {name: _RNG.uniform(0.5, 2, 3).astype(np.float32) for name in "sbmv"}
    w, k = _RNG.standard_normal((2, 60)).astype(np.float32), _floats([1, -1])
    text = text.replace(", consumed_inputs = [0,0,0,1,1]", "")
    model = _raise(tmp_path, text, 6, {**factors, "w": w, "k": k, "sizes": np.array([0, -1])})
    s, b, m, v = (factors[name].reshape(3, 1, 1).astype(np.float64) for name in "sbmv")
    n = (_X - m) / np.sqrt(v + 1e-5) * s + b
    want = np.where(n < 0, n * s, n).reshape(2, -1) @ w.T + k
    np.testing.assert_allclose(_run(model, {"x": _X}), want, rtol=1e-5, atol=1e-5)


def test_a_file_of_opset_6_is_looked_at_as_it_is(tmp_path: Path) -> None:
    text = """(float[2,3,4,5] x) => (float[2,3,4,5] y) {
        c = Add<broadcast = 1, axis = 0>(p, b) y = Add<broadcast = 1, axis = 1>(x, c)
    }"""
    ones = {"p": np.ones((3, 4), np.float32), "b": np.ones(3, np.float32)}
    graph = load(_save(tmp_path / "m.onnx", text, 6, ones), min_opset=1)
    assert (graph.opset, len(graph.model.graph)) == (6, 2)
    raised = load(tmp_path / "m.onnx", min_opset=13)
    np.testing.assert_array_equal(_run(raised.model, {"x": _X}), _X + 2)


def test_attributes_of_the_first_opsets_are_read(tmp_path: Path) -> None:
    text = """(float[2,3,4,5] x) => (float[2,24] y) {
        p = Pad<paddings = [0,0,0,0,0,0,0,1], value = 9.0>(x)
        s = Slice<axes = [3], starts = [2], ends = [6]>(p) c = Concat(s, s)
        f = Reshape<shape = [2, 96]>(c) t, u = Split<axis = 1, split = [24, 72]>(f)
        k = Cast<to = "FLOAT">(t) y = Relu<consumed_inputs = [0]>(k)
    }"""
    model = _raise(tmp_path, text, 1)
    padded = np.pad(_X, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=9)
    sliced = padded[..., 2:6]
    want = np.concatenate([sliced, sliced], 1).reshape(2, 96)[:, :24]
    np.testing.assert_array_equal(_run(model, {"x": _X}), np.maximum(want, 0))


def test_a_model_of_opset_6_is_built_and_judged_by_what_was_raised(tmp_path: Path) -> None:
    text = """(float[N,3,8,8] x) => (float[N,16,8,8] y) {
        [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w) [bias] a = Add<broadcast = 1, axis = 1>(c, b)
        [act] r = Relu(a) [last] y = Conv<pads = [1, 1, 1, 1]>(r, v)
    }"""
    shapes = {"w": (16, 3, 3, 3), "b": (16,), "v": (16, 16, 3, 3)}
    weights = {name: _floats(_RNG.standard_normal(shape)) for name, shape in shapes.items()}
    path = _save(tmp_path / "m.onnx", text, 6, weights)
    np.savez(tmp_path / "x.npz", x=_floats(_RNG.standard_normal((16, 3, 8, 8))))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(tmp_path / "x.npz")))
    report = build(path, spec=spec, target=Target(backend="onnxruntime"))
    found = {item.candidate: item for item in report.comparison if item.reference == "fp32"}
    assert report.verdict == "pass"
    assert found["int8"].cosine > 0.999
    told = f"the loaded model is not compared with {path} itself, and is the reference of every comparison"
    assert any(warning.startswith(told) for warning in report.warnings)


@pytest.mark.parametrize(
    ("opset", "text", "words"),
    [
        (
            6,
            "(float[N,3] x) => (float[N,3] y) { y = ConstantFill<shape = [1, 3]>(x) }",
            r"\(ConstantFill\) cannot be brought from opset 6 to 7: ONNX has no such operator there; export",
        ),
        (
            7,
            """(float[2,3,4] x, float[3,4] s) => (float[2,3,4] y) {
                y = BatchNormalization<spatial = 0>(x, s, s, s, s)
            }""",
            r"cannot be brought from opset 8 to 9: the attribute 'spatial' is not there; export the model",
        ),
        (
            8,
            """(float[1,2,3] i, float[1,5,3] x) => (float[1,2,3] y, float[1,5,3] z) {
                y, z = Scan<num_scan_inputs = 1, body = b (float[3] s, float[3] e) =>
                    (float[3] t, float[3] u) { t = Add(s, e) u = Identity(t) }>(, i, x)
            }""",
            r"\(Scan\) cannot be brought from opset 8 to 9: it scans a batch of sequences, which must be one",
        ),
        (
            18,
            """(float[N,C,4] x, float[2] s) => (float[N,C,4] y) {
                y = GroupNormalization<num_groups = 2>(x, s, s)
            }""",
            r"its scale for each group cannot be spread over the channels; export the model with opset 21",
        ),
    ],
)
def test_what_cannot_be_raised_is_one_clear_line(tmp_path: Path, opset: int, text: str, words: str) -> None:
    path = _save(tmp_path / "m.onnx", text, opset)
    with pytest.raises(ModelError, match=words):
        load(path, min_opset=21)


def test_a_function_of_an_older_opset_is_inlined(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2,3,4,5] x) => (float[2,3,4,5] y) { y = local.F(x) }
        <domain: "local", opset_import: ["": 13]> F (a) => (b) { b = Softmax<axis = 1>(a) }
    """)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    np.testing.assert_array_equal(_run(load(path, min_opset=19).model, {"x": _X}), _run(path, {"x": _X}))
