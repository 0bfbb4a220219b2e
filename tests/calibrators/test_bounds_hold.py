"""Graphs that a rule could take for harmless: no bound is below what ONNX Runtime computes."""

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
from trtq.calibrators.survey import measure_inputs
from trtq.models.session import open_session

_FLOAT = np.float32
_ENDS = {"lo": _FLOAT(-1e5), "hi": _FLOAT(1e5)}
_LIMIT = 32752.0


def _model(signature: str, body: str, constants: dict[str, Any], domains: str = "") -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18{domains}]> net {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


@pytest.mark.parametrize(
    ("signature", "body", "constants", "feed"),
    [
        pytest.param(
            "(float[1,5,1] x, float[1,5,1] w) => (float y)",
            "p = Mul (x, w) s = ReduceSum <keepdims = 0> (p, one) n = ReduceSum <keepdims = 0> (w, one) "
            "c = Clip (n, least, most) y = Div (s, c)",
            {"one": np.array([1]), "least": _FLOAT(1e-9), "most": _FLOAT(1)},
            {"x": np.full((1, 5, 1), 10000, _FLOAT), "w": np.ones((1, 5, 1), _FLOAT)},
            id="a sum over weights that are cut off is no mean",
        ),
        *(
            pytest.param(
                "(int64[N] x) => (float y)",
                f"c = Cast <to = {kind}> (x) y = Cast <to = 1> (c)",
                {},
                {"x": np.array([-1])},
                id=f"negative integers wrap around in type {kind}",
            )
            for kind in (2, 4, 12, 13)
        ),
        pytest.param(
            "(float[N] x) => (float y)",
            "r = Relu (x) l = Log (r) y = Clip (l, lo, hi)",
            _ENDS,
            {"x": np.array([-1, 1], _FLOAT)},
            id="a Clip makes a number of the logarithm of 0",
        ),
        pytest.param(
            "(float[2] x) => (float y)",
            "a = Add (x, k) y = Clip (a, lo, hi)",
            {**_ENDS, "k": np.array([-np.inf, 0], _FLOAT)},
            {"x": np.ones(2, _FLOAT)},
            id="a Clip makes a number of a mask",
        ),
        pytest.param(
            "(float[N] x) => (float y)",
            "y = Mod <fmod = 1> (x, k)",
            {"k": np.array([np.inf], _FLOAT)},
            {"x": np.array([1e5], _FLOAT)},
            id="what is left of a division by infinity",
        ),
        pytest.param(
            "(float[1,4] x) => (float y)",
            "s = Pow (x, x) m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e) y = Div (x, r)",
            {"last": np.array([-1]), "eps": _FLOAT(1e-5)},
            {"x": np.full((1, 4), -1e4, _FLOAT)},
            id="a power of itself is no square",
        ),
        pytest.param(
            "(float[6,8] x) => (float y)",
            "s = Mul (x, x) m = ReduceMean (s, last) e = Add (m, eps) r = Sqrt (e) z = Div (x, r) "
            "y = MatMul (w, z)",
            {"last": np.array([1]), "eps": np.full((1, 1, 1), 1e-12, _FLOAT),
             "w": np.full((1, 6), 2500, _FLOAT)},
            {"x": np.eye(1, 8, dtype=_FLOAT).repeat(6, 0)},
            id="an epsilon of more axes moves those of the norm",
        ),
        pytest.param(
            "(int32[1,2,1] x) => (float y)",
            "q = ReduceSumSquare <keepdims = 0> (x, last) k = Cast <to = 1> (q) y = MatMul (k, w)",
            {"last": np.array([2]), "w": np.array([[1], [-1]], _FLOAT)},
            {"x": np.array([[[40000], [50000]]], np.int32)},
            id="squares of integers wrap around",
        ),
    ],
)  # fmt: skip
def test_the_bound_holds(
    signature: str, body: str, constants: dict[str, Any], feed: dict[str, NDArray[Any]]
) -> None:
    model = _model(signature, body, constants)
    found = compile_bounds(model).find(measure_inputs(feed), _LIMIT)
    (computed,) = open_session(model, optimize=False).run(["y"], feed)
    assert found.magnitudes["y"] >= np.nanmax(np.abs(computed))


def test_nothing_is_known_of_an_operator_of_another_domain() -> None:
    body = "n = LayerNormalization (x, g) a = MatMul (n, w) b = foo.Relu (a) y = Mul (b, k)"
    constants = {"g": np.ones(4, _FLOAT), "w": np.ones((4, 4), _FLOAT), "k": _FLOAT(2)}
    model = _model("(float[1,4] x) => (float y)", body, constants, ', "foo": 1')
    for node in model.graph:
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 4])
    found = compile_bounds(model).find(measure_inputs({"x": np.ones((1, 4), _FLOAT)}), _LIMIT)
    assert {"b", "y"} <= {*found.unproven}


def test_a_normalization_by_the_batch_has_no_constant_gain() -> None:
    body = "y, m1, v1 = BatchNormalization <training_mode = 1> (x, s, b, m, v)"
    one = np.ones(1, _FLOAT)
    constants = {"s": 1e4 * one, "b": 0 * one, "m": 0 * one, "v": 1e6 * one}
    model = _model("(float[4,1] x) => (float[4,1] y)", body, constants)
    found = compile_bounds(model).find(measure_inputs({"x": np.eye(4, 1, dtype=_FLOAT)}), _LIMIT)
    assert "y" in found.unproven
