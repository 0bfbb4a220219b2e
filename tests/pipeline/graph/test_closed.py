"""Tests of codes behind layers, and that ONNX Runtime then runs these in INT8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.models.session import save
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.graph.closed import close_outputs, tie_ranges
from trtq.pipeline.graph.placed import CLOSED
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.rewrite.biases import quantize_biases
from trtq.pipeline.rewrite.coded import complete_codes
from trtq.pipeline.rewrite.qdq import quantize

ModelOf = Callable[..., ir.Model]


def _weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _net(model_of: ModelOf, body: str, **sizes: tuple[int, ...]) -> ir.Model:
    weights = {name: _weights(*shape) for name, shape in sizes.items()}
    return model_of(f"g (float[N,16,8,8] x) => (float[N,16,M,M] y) {{ {body} }}", **weights)


def _closed(model: ir.Model) -> Placement:
    return close_outputs(model, place(model, force=["."]))


def _added(placement: Placement) -> dict[str, tuple[str, ...]]:
    nodes = (node for node in placement.quantized if node.scheme.rule == CLOSED)
    return {node.op_type: tuple(name for _, name in node.activations) for node in nodes}


def _quantized(model: ir.Model, placement: Placement) -> ir.Model:
    ranges = {name: Range(4.0, 0.0 if name == "r" else -4.0, 4.0) for name in placement.activations}
    made = quantize(model, placement, Ranges(ranges, "minmax()", "", "", 1, activations="asymmetric"))
    complete_codes(made)
    quantize_biases(made)
    return made


def _kernels(model: ir.Model, tmp_path: Path) -> list[str]:
    save(model, tmp_path / "model.onnx")
    return [kernel.kind for kernel in OnnxRuntime().build(BuildRequest(tmp_path / "model.onnx")).kernels]


_SHORTCUT = """
    a = Conv(x, w1) r = Relu(a) b = Conv(r, w2) s = Sigmoid(b) m = Mul(b, s) t = Add(m, r)
    c = Conv(t, w3) y = Softmax(c)
"""
_ONE = {"w1": (16, 16, 1, 1), "w2": (16, 16, 1, 1), "w3": (16, 16, 1, 1)}


def test_who_reads_a_convolution_reads_codes(model_of: ModelOf) -> None:
    placement = _closed(_net(model_of, _SHORTCUT, **_ONE))
    assert _added(placement) == {
        "Sigmoid": ("b",), "Mul": ("b", "s"), "Add": ("m", "r"), "Softmax": ("c",)
    }  # fmt: skip
    assert [node.op_type for node in placement.layers] == ["Conv"] * 3
    assert set(placement.activations) == {"x", "r", "b", "s", "m", "t", "c"}


def test_onnx_runtime_then_runs_all_in_int8(model_of: ModelOf, tmp_path: Path) -> None:
    model = _net(model_of, _SHORTCUT, **_ONE)
    before = _kernels(_quantized(model, place(model, force=["."])), tmp_path)
    after = _kernels(_quantized(model, _closed(model)), tmp_path)
    assert "QLinearConv" not in before
    assert after.count("QLinearConv") == 3
    assert {"QLinearSigmoid", "QLinearMul", "QLinearAdd"} <= {*after}
    assert "Conv" not in after


def test_what_makes_an_output_stays_float(model_of: ModelOf) -> None:
    placement = _closed(_net(model_of, "a = Conv(x, w1) r = Relu(a) y = Conv(r, w2)", **_ONE))
    assert [node.weight for node in placement.layers] == [(1, "w1")]
    (kept,) = placement.kept
    assert (kept.op_type, "it makes an output of the model" in kept.reason) == ("Conv", True)


def test_what_a_kept_node_reads_stays_float_for_all(model_of: ModelOf) -> None:
    model = _net(model_of, _SHORTCUT, **_ONE)
    (sigmoid,) = (str(node.name) for node in model.graph if node.op_type == "Sigmoid")
    placement = close_outputs(model, place(model, force=["."]), [sigmoid])
    assert _added(placement) == {"Add": ("r",), "Softmax": ("c",)}


def test_what_a_body_reads_stays_float(model_of: ModelOf) -> None:
    body = "a = Conv(x, w1) b = If(c) <then_branch = t () => (float[N,16,8,8] p) { p = Relu(a) }, "
    body += "else_branch = e () => (float[N,16,8,8] q) { q = Neg(a) }> y = Softmax(b)"
    model = model_of(
        f"g (float[N,16,8,8] x, bool c) => (float[N,16,8,8] y) {{ {body} }}", w1=_weights(16, 16, 1, 1)
    )
    assert _added(_closed(model)) == {}


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w1) t = Add(a, a) y = Softmax(t)",  # no layer reads what the Add makes
        "a = Conv(x, w1) h = HardSigmoid(a) b = Conv(h, w2) y = Softmax(b)",  # no kernel for codes
    ],
)
def test_codes_end_where_nothing_computes_in_them(model_of: ModelOf, body: str) -> None:
    model = _net(model_of, body, **_ONE)
    made_by = ("Add", "HardSigmoid")
    behind = {value.name for node in model.graph if node.op_type in made_by for value in node.outputs}
    added = {name for names in _added(_closed(model)).values() for name in names}
    assert "a" in added
    assert added.isdisjoint(behind)


def test_what_passes_values_on_has_the_range_of_its_input(model_of: ModelOf, tmp_path: Path) -> None:
    body = "a = Conv(x, w1) p, q = Split<axis = 1>(a, sizes) t = Add(p, q) b = Conv(t, w2) y = Softmax(b)"
    model = model_of(
        f"g (float[N,16,8,8] x) => (float[N,16,M,M] y) <int64[2] sizes = {{8, 8}}> {{ {body} }}",
        w1=_weights(16, 16, 1, 1), w2=_weights(16, 8, 1, 1),
    )  # fmt: skip
    placement = _closed(model)
    ranges = {name: Range(float(i), -float(i), float(i)) for i, name in enumerate(placement.activations, 1)}
    tied = tie_ranges(model, placement, Ranges(ranges, "minmax()", "", "", 1)).tensors
    assert tied["p"] == tied["q"] == ranges["a"]
    assert {name: tied[name] for name in ranges.keys() - {"p", "q"}} == {
        name: item for name, item in ranges.items() if name not in ("p", "q")
    }
    assert "QLinearAdd" in _kernels(_quantized(model, placement), tmp_path)


@pytest.mark.parametrize(("mode", "passes"), [("nearest", True), ("linear", True), ("cubic", False)])
def test_resize_passes_codes_on_unless_it_overshoots(
    model_of: ModelOf, tmp_path: Path, mode: str, passes: bool
) -> None:
    model = model_of(
        f"""g (float[N,16,8,8] x) => (float[N,16,M,M] y) <float[4] scales = {{1.0, 1.0, 2.0, 2.0}}> {{
            a = Conv(x, w1) s = Resize<mode = "{mode}">(a, , scales) b = Conv(s, w2) y = Softmax(b)
        }}""",
        w1=_weights(16, 16, 1, 1), w2=_weights(16, 16, 1, 1),
    )  # fmt: skip
    placement = _closed(model)
    ranges = Ranges(
        {name: Range(float(len(name)), -1.0, 1.0) for name in placement.activations}, "", "", "", 1
    )
    wider = Ranges({**ranges.tensors, "s": Range(9.0, -9.0, 9.0)}, "", "", "", 1)
    assert (tie_ranges(model, placement, wider).tensors["s"] == wider.tensors["a"]) == passes


def test_half_precision_is_left_alone(model_of: ModelOf) -> None:
    text = "g (float16[N,16,8,8] x) => (float16[N,16,8,8] y) { a = Conv(x, w1) y = Relu(a) }"
    model = model_of(text, w1=_weights(16, 16, 1, 1).astype(np.float16))
    assert _added(_closed(model)) == {}


@pytest.mark.parametrize(
    ("tail", "is_coded"),
    [
        ("b = Conv(p, w2) y = Softmax(b)", True),
        ("t = Add(p, p) b = Conv(t, w2) y = Softmax(b)", True),
        ("g = GlobalAveragePool(p) b = Conv(g, w2) y = Softmax(b)", False),
        ("f = Flatten(p) b = MatMul(f, w) y = Softmax(b)", False),
    ],
)
def test_a_pool_takes_codes_on_the_way_to_a_convolution(model_of: ModelOf, tail: str, is_coded: bool) -> None:
    model = model_of(
        f"""g (float[N,16,8,8] x) => (float y) {{
            a = Conv(x, w1) m = Mul(a, a) p = MaxPool<kernel_shape = [2, 2]>(m) {tail}
        }}""",
        w1=_weights(16, 16, 1, 1), w2=_weights(16, 16, 1, 1), w=_weights(784, 4),
    )  # fmt: skip
    assert ("MaxPool" in _added(_closed(model))) == is_coded


_SWISH = "a = Conv(x, w1) s = Add(a, c) l = Clip(s, zero, six) m = Mul(a, l) d = Div(m, six) "
_NUMBERS = {name: np.float32(number) for name, number in (("c", 3), ("zero", 0), ("six", 6), ("less", -0.25))}


@pytest.mark.parametrize(
    ("tail", "added"),
    [("b = Conv(d, w2) y = Softmax(b)", 1), ("e = Add(d, less) b = Conv(e, w2) y = Softmax(b)", 2)],
)
def test_an_activation_of_straight_pieces_runs_in_codes(
    model_of: ModelOf, outputs_of: Callable[..., list[NDArray[Any]]], tmp_path: Path, tail: str, added: int
) -> None:
    text = f"g (float[N,16,8,8] x) => (float[N,16,8,8] y) {{ {_SWISH} {tail} }}"
    model = model_of(text, w1=_weights(16, 16, 1, 1) / 4, w2=_weights(16, 16, 1, 1) / 4, **_NUMBERS)
    placement = _closed(model)
    tops = {"l": 6.0, "m": 24.0, "d": 4.0, "e": 3.75}
    ranges = {
        name: Range(
            tops.get(name, 4.0), 0.0 if name == "l" else -3.0 if name == "m" else -4.0, tops.get(name, 4.0)
        )
        for name in placement.activations
    }
    made = quantize(model, placement, Ranges(ranges, "minmax()", "", "", 1, activations="asymmetric"))
    complete_codes(made)
    kinds = _kernels(made, tmp_path)
    assert (kinds.count("QLinearConv"), kinds.count("QLinearAdd"), kinds.count("QLinearMul")) == (2, added, 1)
    assert {"Add", "Clip", "Div", "Mul", "Conv"}.isdisjoint(kinds)
    wanted, found = outputs_of(model)[0], outputs_of(made)[0]
    assert np.square(found - wanted).sum() < 1e-3 * np.square(wanted).sum()


def test_a_limit_stays_where_codes_reach_beyond(model_of: ModelOf) -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { q = QuantizeLinear(l, s, z) y = DequantizeLinear(q, s, z) }"
    text = text.replace("{ q", "{ l = Clip(x, low, high) q")
    found = []
    for high in (1.0, 0.9):
        numbers = {"low": np.float32(0), "high": np.float32(high), "s": np.float32(1 / 255), "z": np.uint8(0)}
        model = model_of(text, **numbers)
        complete_codes(model)
        found.append(next(node.op_type for node in model.graph))
    assert found == ["QuantizeLinear", "Clip"]


@pytest.mark.parametrize("factor", [0.5, -0.5])
def test_only_a_positive_factor_goes_into_a_scale(
    model_of: ModelOf, outputs_of: Callable[..., list[NDArray[Any]]], factor: float
) -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, k)
    }"""
    numbers = {"s": np.float32(0.02), "z": np.uint8(128), "k": np.float32(factor)}
    model = model_of(text, **numbers)
    before = outputs_of(model)[0]
    complete_codes(model)
    assert ("Mul" in [node.op_type for node in model.graph]) == (factor < 0)
    np.testing.assert_allclose(outputs_of(model)[0], before, rtol=1e-6)


def test_a_factor_of_another_range_keeps_its_codes(
    model_of: ModelOf, outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Mul(d, k)
        r = QuantizeLinear(m, t, z) y = DequantizeLinear(r, t, z)
    }"""
    kept = []
    for step in (0.01, 0.011):
        numbers = {"s": np.float32(0.02), "t": np.float32(step), "z": np.uint8(128), "k": np.float32(0.5)}
        model = model_of(text, **numbers)
        before = outputs_of(model)[0]
        complete_codes(model)
        np.testing.assert_allclose(outputs_of(model)[0], before, rtol=1e-6)
        kept.append([node.op_type for node in model.graph].count("QuantizeLinear"))
    assert kept == [1, 2]


def _gemm(model_of: ModelOf, attributes: str, bias: NDArray[Any]) -> ir.Model:
    text = f"g (float[N,32] x) => (float[N,64] y) {{ y = Gemm<{attributes}>(x, w, b) }}"
    model = model_of(text, w=_weights(64, 32), b=bias)
    return _quantized(model, place(model, force=["."]))


def test_a_gemm_with_a_bias_runs_in_int8(
    model_of: ModelOf, outputs_of: Callable[..., list[NDArray[Any]]], tmp_path: Path
) -> None:
    bias = _weights(64, seed=1)
    made = _gemm(model_of, "transB = 1", bias)
    assert _kernels(made, tmp_path).count("QGemm") == 1
    (gemm,) = (node for node in made.graph if node.op_type == "Gemm")
    plain = made.clone()
    (other,) = (node for node in plain.graph if node.op_type == "Gemm")
    other.replace_input_with(2, ir.Value(name="bias", const_value=ir.tensor(bias, name="bias")))
    plain.graph.register_initializer(other.inputs[2])  # type: ignore[arg-type]
    np.testing.assert_allclose(outputs_of(made)[0], outputs_of(plain)[0], atol=1e-3)
    assert gemm.inputs[2] is not None


@pytest.mark.parametrize(
    ("attributes", "bias"),
    [
        ("transB = 1, beta = 0.5", _weights(64)),
        ("transB = 1, alpha = 0.5", _weights(64)),
        ("transB = 1", np.full(64, -np.inf, np.float32)),
    ],
)
def test_a_bias_that_32_bits_do_not_hold_stays_float(
    model_of: ModelOf, attributes: str, bias: NDArray[Any]
) -> None:
    (gemm,) = (node for node in _gemm(model_of, attributes, bias).graph if node.op_type == "Gemm")
    assert gemm.inputs[2] is not None
    assert gemm.inputs[2].is_initializer()
