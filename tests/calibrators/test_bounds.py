"""How large tensors can get: never below what ONNX Runtime computes, and close where that is possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.bounds import compile_bounds
from trtq.models.session import open_session

_RNG = np.random.default_rng(3)


def model_of(body: str, shape: str = "2,3,4,4", opset: int = 23, **weights: Any) -> ir.Model:
    """Returns a model that computes y of x."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> net (float[{shape}] x) => (float y) {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def weight(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32)


ONE = np.array([1], np.int64)
CASES = [
    pytest.param(
        model_of("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", w=weight(5, 3, 3, 3), b=weight(5)), id="Conv"
    ),
    pytest.param(model_of("y = Conv <group = 3> (x, w)", w=weight(6, 1, 3, 3)), id="Conv in groups"),
    pytest.param(
        model_of("y = ConvTranspose (x, w, b)", w=weight(3, 5, 3, 3), b=weight(5)), id="ConvTranspose"
    ),
    pytest.param(
        model_of("y = ConvTranspose <group = 3, strides = [1, 1]> (x, w)", w=weight(3, 2, 2, 2)),
        id="ConvTranspose in groups",
    ),
    pytest.param(model_of("y = MatMul (x, w)", w=weight(4, 6)), id="MatMul right"),
    pytest.param(model_of("y = MatMul (w, x)", w=weight(6, 4)), id="MatMul left"),
    pytest.param(model_of("y = MatMul (x, w)", w=weight(3, 4, 6)), id="MatMul of many"),
    pytest.param(model_of("y = MatMul (x, w)", w=weight(4)), id="MatMul with a vector"),
    pytest.param(model_of("y = MatMul (x, x)"), id="MatMul of two activations"),
    pytest.param(
        model_of("y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", "4,3", w=weight(3, 6), b=weight(6)),
        id="Gemm",
    ),
    pytest.param(model_of("y = Gemm <transB = 1> (x, w)", "4,3", w=weight(6, 3)), id="Gemm, transposed"),
    pytest.param(model_of("y = Mul (x, w)", w=weight(4)), id="Mul"),
    pytest.param(model_of("a = Mul (x, x) b = Sub (a, x) y = Add (b, w)", w=weight(4)), id="Add and Sub"),
    pytest.param(model_of("y = Div (x, w)", w=weight(4)), id="Div by constants"),
    pytest.param(model_of("y = Pow (x, two)", two=np.float32(2)), id="Pow"),
    pytest.param(model_of("y = Exp (x)"), id="Exp"),
    pytest.param(model_of("a = Abs (x) y = Sqrt (a)"), id="Sqrt"),
    pytest.param(model_of("a = Abs (x) y = Log (a)"), id="Log"),
    pytest.param(model_of("y = Softplus (x)"), id="Softplus"),
    pytest.param(model_of("y = Elu (x)"), id="Elu"),
    pytest.param(model_of("y = LeakyRelu <alpha = 3.0> (x)"), id="LeakyRelu"),
    pytest.param(model_of("y = PRelu (x, w)", w=4 * weight(4)), id="PRelu"),
    pytest.param(model_of("y = Gelu (x)"), id="Gelu"),
    pytest.param(model_of("y = Round (x)"), id="Round"),
    pytest.param(model_of("y = Clip (x, low, high)", low=np.float32(5), high=np.float32(6)), id="Clip above"),
    pytest.param(model_of("y = Clip (x, low, high)", low=np.float32(-1), high=np.float32(1)), id="Clip"),
    pytest.param(model_of("y = Clip (x, low)", low=np.float32(7)), id="Clip from below"),
    pytest.param(model_of("y = Concat <axis = 1> (x, w)", w=9 * weight(2, 1, 4, 4)), id="Concat"),
    pytest.param(model_of("y = Pad (x, p, c)", p=np.ones(8, np.int64), c=np.float32(9)), id="Pad"),
    pytest.param(model_of("y = ReduceSum (x, a)", a=np.array([1, 2])), id="ReduceSum"),
    pytest.param(model_of("y = ReduceSumSquare (x)"), id="ReduceSumSquare"),
    pytest.param(model_of("y = ReduceL2 <keepdims = 0> (x)"), id="ReduceL2"),
    pytest.param(model_of("y = ReduceL1 <axes = [1]> (x)", opset=17), id="ReduceL1 of old opsets"),
    pytest.param(model_of("y = CumSum (x, a)", a=ONE), id="CumSum"),
    pytest.param(
        model_of(
            "y = BatchNormalization (x, s, b, m, v)",
            s=weight(3),
            b=weight(3),
            m=weight(3),
            v=np.abs(weight(3)),
        ),
        id="BatchNormalization",
    ),
    pytest.param(
        model_of("y = LayerNormalization (x, s, b)", s=weight(4), b=weight(4)), id="LayerNormalization"
    ),
    pytest.param(
        model_of("y = LayerNormalization <axis = 1> (x, s)", s=weight(3, 4, 4)),
        id="LayerNormalization of more",
    ),
    pytest.param(
        model_of("y = InstanceNormalization (x, s, b)", s=weight(3), b=weight(3)), id="InstanceNormalization"
    ),
    pytest.param(
        model_of("y = GroupNormalization <num_groups = 3> (x, s, b)", s=weight(3), b=weight(3)),
        id="GroupNormalization",
    ),
    pytest.param(model_of("y = Softmax (x)"), id="Softmax"),
    pytest.param(
        model_of('y = Resize <mode = "cubic"> (x, , s)', s=np.array([1, 1, 1.7, 1.7], np.float32)),
        id="Resize, cubic",
    ),
    pytest.param(model_of("y = AveragePool <kernel_shape = [2, 2]> (x)"), id="AveragePool"),
]


_CODES = ((2, 0.05), (3, 0.05), (4, 1e-4), (5, 1e-4), (17, 0.01), (19, 0.001), (21, 1.0), (22, 1.0))
"""Types of codes, and scales with which they hold normal numbers."""
_PAIR = "q = QuantizeLinear <output_dtype = {}> (x, s) y = DequantizeLinear (q, s)"
_NORM = "c = Mul (x, x) m = ReduceMean <axes = [3]> (c) e = Add (m, eps) r = Sqrt (e) y = Div (x, r)"
_SHARP = 'y = Resize <mode = "cubic", cubic_coeff_a = -1.0, exclude_outside = 1> (x, , s)'
_WIDER = np.array([1, 1, 1.7, 1.7], np.float32)
MORE = {
    "Elu with a large alpha": model_of("y = Elu <alpha = 50.0> (x)"),
    "Clip from a computed end": model_of(
        "s = ReduceMax <keepdims = 0> (x) t = Mul (s, k) y = Clip (x, t)", k=np.float32(9)
    ),
    "MaxPool with holes": model_of("y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)"),
    "MaxPool with padding": model_of("y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)"),
    "Dropout": model_of("y = Dropout (x)"),
    "Pad before opset 11": model_of("y = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], value = 50.0> (x)", opset=9),
    "Resize with sharp edges": model_of(_SHARP, s=_WIDER),
    "a norm": model_of(_NORM, opset=17, eps=np.float32(1e-5)),
    "Range": model_of(
        "n = Shape (x) k = Gather (n, two) f = Cast <to = 1> (k) r = Range (zero, f, one) y = Mul (r, x)",
        two=np.int64(2),
        zero=np.float32(0),
        one=np.float32(1),
    ),
    "ConstantOfShape": model_of("n = Shape (x) y = ConstantOfShape <value = float[1] {-3.5}> (n)"),
    "Cast of a condition": model_of("p = Greater (x, w) y = Cast <to = 1> (p)", w=weight(4)),
    "Cast of integers": model_of("i = ArgMax <axis = 3> (x) y = Cast <to = 1> (i)"),
    "places that are not zero": model_of("i = NonZero (x) y = Cast <to = 1> (i)"),
    "Mod": model_of("y = Mod <fmod = 1> (x, w)", w=weight(4)),
    "OneHot": model_of(
        "i = ArgMax <axis = 3> (x) y = OneHot (i, four, v)", four=np.int64(4), v=np.array([-3, 2], np.float32)
    ),
    "ScatterND": model_of("y = ScatterND (x, i, w)", i=np.array([[1]]), w=9 * weight(1, 3, 4, 4)),
    "LSTM": model_of(
        "y = LSTM <hidden_size = 2> (x, w, r)", "5,1,3", w=9 * weight(1, 8, 3), r=9 * weight(1, 8, 2)
    ),
    "the cells of an LSTM": model_of(
        "a, h, y = LSTM <hidden_size = 2> (x, w, r, , , , s)",
        "5,1,3",
        w=9 * weight(1, 8, 3),
        r=9 * weight(1, 8, 2),
        s=9 * weight(1, 1, 2),
    ),
    "GRU": model_of(
        "y = GRU <hidden_size = 2> (x, w, r, , , s)",
        "5,1,3",
        w=weight(1, 6, 3),
        r=weight(1, 6, 2),
        s=9 * weight(1, 1, 2),
    ),
    **{
        f"codes of type {code}": model_of(_PAIR.format(code), opset=21, s=np.float32(scale))
        for code, scale in _CODES
    },
}


@pytest.mark.parametrize("model", [*CASES, *(pytest.param(model, id=name) for name, model in MORE.items())])
def test_nothing_is_larger_than_its_bound_and_bounds_are_finite(model: ir.Model) -> None:
    bounds, session = compile_bounds(model), open_session(model, optimize=False)
    shape = list(model.graph.inputs[0].shape.numpy()) if model.graph.inputs[0].shape is not None else []
    for scale in (0.01, 1.0, 10.0):
        for seed in range(5):
            x = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
            (y,) = session.run(["y"], {"x": x})
            found = bounds.find({"x": float(np.abs(x).max())}, 1e30)
            assert np.abs(y).max() <= found.magnitudes["y"] * (1 + 1e-5)
            assert found.unproven == []


def test_the_worst_input_reaches_the_bound_of_a_product() -> None:
    w = weight(4, 6)
    model = model_of("y = MatMul (x, w)", "1,4", w=w)
    column = int(np.abs(w).sum(axis=0).argmax())
    (y,) = open_session(model, optimize=False).run(["y"], {"x": 2 * np.sign(w[:, column])[None]})
    assert compile_bounds(model).find({"x": 2.0}, 1.0).magnitudes["y"] == pytest.approx(np.abs(y).max())


@pytest.mark.parametrize(
    "body",
    [
        "y = Div (w, x)",
        "y = Reciprocal (x)",
        "y = Pow (x, minus)",
        "y = Pow (w, x)",
        "y = Tan (x)",
        "y = LogSoftmax (x)",
        "m, y = LayerNormalization (x, w)",
        "y = MaxPool <kernel_shape = [2, 2], dilations = [3, 3], pads = [1, 1, 1, 1]> (x)",
        "y = Dropout (x, , yes)",
        'y = Resize <mode = "cubic", cubic_coeff_a = -6.0> (x, , sizes)',
        "c = Mul (x, x) m = ReduceMean (c) e = Sub (m, w) f = Add (m, minus) r = Sqrt (f) y = Div (x, r)",
        "c = Mul (x, x) m = ReduceMean (c) e = Add (m, x) r = Sqrt (e) y = Div (x, r)",
        'y = ScatterND <reduction = "mul"> (x, i, u)',
        'y, h, c = LSTM <hidden_size = 2, activations = ["Sigmoid", "Relu", "Relu"]> (z, lw, lr)',
        "c = Mul (x, x) m = ReduceMean <keepdims = 0> (c) e = Add (m, w) r = Sqrt (e) y = Div (x, r)",
    ],
)
def test_of_what_has_no_bound_none_is_told(body: str) -> None:
    sizes = np.array([1, 1, 2, 2], np.float32)
    constants: dict[str, Any] = {
        "w": np.ones(4, np.float32),
        "minus": np.float32(-1),
        "yes": np.array(True),
        "sizes": sizes,
        "i": np.array([[1]]),
        "u": np.ones((1, 3, 4, 4), np.float32),
        "z": np.ones((5, 1, 3), np.float32),
        "lw": np.ones((1, 8, 3), np.float32),
        "lr": np.ones((1, 8, 2), np.float32),
    }
    model = model_of(body, **constants)
    assert "y" in compile_bounds(model).find({"x": 1.0}, 1e30).unproven


def test_what_is_known_of_a_tensor_bounds_what_follows() -> None:
    model = model_of("a = Reciprocal (x) y = Mul (a, w)", w=np.full(4, 3, np.float32))
    bounds = compile_bounds(model)
    assert bounds.find({"x": 1.0, "a": 5.0}, 15.0).unproven == []
    assert bounds.find({"x": 1.0, "a": 5.0}, 14.9).unproven == ["y"]
    guessed = bounds.find({"x": 1.0}, 100.0, {"a": 5.0})
    assert (guessed.unproven, guessed.magnitudes["y"]) == (["a"], 15.0)


def test_an_infinite_constant_is_no_magnitude() -> None:
    model = model_of("y = Add (x, mask)", mask=np.array([0, 0, -np.inf, 2], np.float32))
    assert compile_bounds(model).find({"x": 1.0}, 3.0).unproven == []
