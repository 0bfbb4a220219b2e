"""Each rule on a small graph that breaks it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from trtq.errors import ModelError
from trtq.pipeline.graph.foreign_operators import standardize_codes
from trtq.pipeline.graph.lint import lint, refuse
from trtq.pipeline.graph.lint.finding import Finding

ModelOf = Callable[..., ir.Model]
PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
WEIGHT = "dw = DequantizeLinear <axis = 1> (w, sw, zw)"
MATRIX = "(float[8,16] x) => (float[8,32] y)"
IMAGE = "(float[1,16,9,9] x) => (float[1,32,7,7] y)"
_WEIGHTS: dict[str, Any] = {
    "s": np.float32(0.05),
    "z": np.int8(0),
    "w": np.ones((16, 32), np.int8),
    "sw": np.full(32, 0.01, np.float32),
    "zw": np.zeros(32, np.int8),
}
_KERNEL: dict[str, Any] = {"w": np.ones((32, 16, 3, 3), np.int8)}


@pytest.fixture
def rules_of(model_of: ModelOf) -> Callable[..., list[tuple[str, str, str]]]:
    """Returns rule, effect and node of each finding in a graph."""

    def check(interface: str, body: str, *, opset: int = 19, **weights: Any) -> list[tuple[str, str, str]]:
        used = {name: value for name, value in {**_WEIGHTS, **weights}.items() if _uses(body, name)}
        model = model_of(f"g {interface} {{ {body} }}", opset=opset, **used)
        return [(finding.rule, finding.effect, finding.node) for finding in lint(model)]

    return check


def _uses(body: str, name: str) -> bool:
    return name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()


def test_what_tensorrt_wants_breaks_no_rule(rules_of: Callable[..., Any]) -> None:
    assert rules_of(MATRIX, f"{PAIR} {WEIGHT} [layer] y = MatMul (d, dw)") == []
    kernel = "dw = DequantizeLinear <axis = 0> (w, sw, zw)"
    assert rules_of(IMAGE, f"{PAIR} {kernel} [layer] y = Conv (d, dw)", **_KERNEL) == []


@pytest.mark.parametrize(
    ("changed", "rule", "effect"),
    [
        ({"z": np.int8(-3)}, "zero-point", "refused"),
        ({"z": np.uint8(128)}, "zero-point", "refused"),
        ({"z": np.uint8(0)}, "uint8", "wrong"),
        ({"z": np.int16(0)}, "codes-type", "refused"),
        ({"s": np.float32(0)}, "scale", "refused"),
        ({"s": np.float32(-0.5)}, "scale", "refused"),
        ({"s": np.float32("nan")}, "scale", "refused"),
        ({"s": np.float32("inf")}, "scale", "wrong"),
    ],
)
def test_a_pair_by_its_parameters(
    changed: dict[str, Any], rule: str, effect: str, rules_of: Callable[..., Any]
) -> None:
    body = f"[quantize] {PAIR.replace(' d =', ' [dequantize] d =')} y = Relu (d)"
    found = rules_of("(float[8,16] x) => (float[8,16] y)", body, opset=21, **changed)
    assert found == [(rule, effect, "quantize"), (rule, effect, "dequantize")]


@pytest.mark.parametrize(
    ("body", "weights", "found"),
    [
        ("[q] q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)", {}, ("missing-zero-point", "wrong")),
        ("q = QuantizeLinear <axis = 1> (x, sw, zw) y = Cast <to = 1> (q)", {}, ("scale-count", "refused")),
        ("[q] q = QuantizeLinear (x, s, zw) y = Cast <to = 1> (q)", {}, ("scale-count", "refused")),
        ("a, b, c = DynamicQuantizeLinear (x) y = Cast <to = 1> (a)", {}, ("operator", "refused")),
        (f"{PAIR} a = DequantizeLinear (c, s, z) y = Clip (d, a)", {"c": np.int8(0)},
         ("quantized-bound", "refused")),
        ("c = Cast <to = 1> (w) y = MatMul (x, c)", {}, ("int8-constant", "refused")),
        ("b = DequantizeLinear (c, s) y = Add (x, b)", {"c": np.ones(16, np.int32)}, ("int32", "refused")),
        ("b = DequantizeLinear (c, s, u) y = Add (x, b)",
         {"c": np.ones(16, np.uint8), "u": np.uint8(0)}, ("uint8", "refused")),
    ],
)  # fmt: skip
def test_codes_that_are_not_taken(
    body: str, weights: dict[str, Any], found: tuple[str, str], rules_of: Callable[..., Any]
) -> None:
    rules = {finding[:2] for finding in rules_of("(float[8,16] x) => (float[M,N] y)", body, **weights)}
    assert rules == {found}


def test_pooling_codes_in_three_dimensions_is_refused(rules_of: Callable[..., Any]) -> None:
    pool = "[p] p = MaxPool <kernel_shape = [2,2,2]> (q)"
    body = f"q = QuantizeLinear (x, s, z) {pool} y = DequantizeLinear (p, s, z)"
    found = rules_of("(float[1,4,6,6,6] x) => (float[1,4,5,5,5] y)", body)
    assert found == [("pool", "refused", "p")]


@pytest.mark.parametrize(
    ("body", "weights", "rule"),
    [
        (f"{PAIR} [layer] y = MatMul (d, f)", {"f": np.ones((16, 32), np.float32)}, "half-quantized"),
        (f"{PAIR} {WEIGHT.replace('= 1', '= 0')} [layer] y = MatMul (d, dw)",
         {"sw": np.full(16, 0.01, np.float32), "zw": np.zeros(16, np.int8)}, "weight-axis"),
        (f"{PAIR} {WEIGHT} a = Cast <to = 10> (d) b = Cast <to = 1> (a) [layer] y = MatMul (b, dw)",
         {}, "casts"),
        ("q = QuantizeLinear <axis = 1> (x, sw, zw) d = DequantizeLinear <axis = 1> (q, sw, zw) "
         "v = DequantizeLinear (w, s, z) [layer] y = MatMul (d, v)",
         {"sw": np.full(16, 0.01, np.float32), "zw": np.zeros(16, np.int8)}, "activation-scale"),
        ("t = Abs (s) q = QuantizeLinear (x, t, z) d = DequantizeLinear (q, t, z) "
         f"{WEIGHT} [layer] y = MatMul (d, dw)", {}, "computed-scale"),
    ],
)  # fmt: skip
def test_a_matmul_that_runs_in_float(
    body: str, weights: dict[str, Any], rule: str, rules_of: Callable[..., Any]
) -> None:
    assert rules_of(MATRIX, body, **weights) == [(rule, "float", "layer")]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (f"{PAIR} dw = DequantizeLinear (w, s, z) [layer] y = ConvTranspose (d, dw)", ("no-kernel", "float")),
        ("t = Abs (s) q = QuantizeLinear (x, t, z) d = DequantizeLinear (q, t, z) "
         "dw = DequantizeLinear (w, s, z) [layer] y = Conv (d, dw)", ("computed-scale", "refused")),
        ("q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, o, z) "
         "dw = DequantizeLinear (w, s, z) [layer] y = Conv (d, dw)", ("activation-scale", "float")),
    ],
)  # fmt: skip
def test_a_convolution_that_does_not_run_in_int8(
    body: str, found: tuple[str, str], rules_of: Callable[..., Any]
) -> None:
    weights = {"w": np.ones((16, 16, 3, 3), np.int8), "o": np.full(1, 0.05, np.float32)}
    interface = "(float[1,16,9,9] x) => (float[1,16,M,N] y)"
    assert [item[:2] for item in rules_of(interface, body, **weights)] == [found]


def test_a_scale_of_shape_1_is_fine_for_a_matmul_and_on_the_quantizelinear(
    rules_of: Callable[..., Any],
) -> None:
    one = {"s": np.full(1, 0.05, np.float32), "z": np.zeros(1, np.int8)}
    assert rules_of(MATRIX, f"{PAIR} {WEIGHT} [layer] y = MatMul (d, dw)", **one) == []
    body = "q = QuantizeLinear (x, o, z) d = DequantizeLinear (q, s, z) dw = DequantizeLinear (w, s, z) "
    kernel = {**_KERNEL, "o": np.full(1, 0.05, np.float32)}
    assert rules_of(IMAGE, f"{body} [layer] y = Conv (d, dw)", **kernel) == []


@pytest.mark.parametrize(
    ("operator", "batch", "found"),
    [("LSTM", "N", [("recurrent", "refused", "layer")]), ("LSTM", "2", []), ("GRU", "2", [])],
)
def test_a_recurrent_layer_with_an_open_batch(
    operator: str, batch: str, found: list[Any], rules_of: Callable[..., Any]
) -> None:
    rows = {"LSTM": 32, "GRU": 24}[operator]
    weights = {"w": np.ones((1, rows, 16), np.float32), "r": np.ones((1, rows, 8), np.float32)}
    body = f"{PAIR} [layer] y = {operator} <hidden_size = 8> (d, w, r)"
    interface = f"(float[5,{batch},16] x) => (float[5,1,{batch},8] y)"
    assert rules_of(interface, body, **weights) == found


def test_int8_times_float8_is_refused(rules_of: Callable[..., Any]) -> None:
    cast = "c = Cast <to = 17> (f)"  # float8 e4m3
    body = f"{PAIR} {cast} dw = DequantizeLinear (c, s) [layer] y = MatMul (d, dw)"
    found = rules_of(MATRIX, body, f=np.ones((16, 32), np.float32))
    assert ("mixed-types", "refused", "layer") in found


def test_a_weight_joined_of_parts_is_refused(rules_of: Callable[..., Any]) -> None:
    body = (
        f"{PAIR} a = DequantizeLinear (w, s, z) b = DequantizeLinear (w, s, z) "
        "e = Concat <axis = 1> (a, b) [layer] y = MatMul (d, e)"
    )
    found = rules_of("(float[8,16] x) => (float[8,64] y)", body)
    assert found == [("joined-weight", "refused", "layer")]


def test_onnx_runtimes_own_domain_is_the_standard_one(model_of: ModelOf) -> None:
    model = model_of(
        f"g (float[4] x) => (float[4] y) {{ {PAIR} y = Relu (d) }}", s=np.float32(1), z=np.int8(0)
    )
    for node in model.graph:
        node.domain = "com.microsoft" if "Linear" in node.op_type else ""
    standardize_codes(model)
    assert {node.domain for node in model.graph} == {""}


def test_the_first_finding_that_stops_is_raised_with_the_names_of_the_next() -> None:
    findings = [
        Finding("weight-axis", "float", "a", "Conv", "slow", "-"),
        *(Finding("zero-point", "refused", name, "QuantizeLinear", "it has 3", "do") for name in "bcdefg"),
    ]
    with pytest.raises(
        ModelError,
        match=r"node 'b' \(QuantizeLinear\): it has 3; do, .*and 5 more: 'c', 'd', 'e' \.\.\.$",
    ):
        refuse(findings)
    refuse(findings[:1])


@pytest.mark.parametrize(
    ("between", "made", "read", "told"),
    [
        ("", {}, {"s": np.float32(0.1)}, "the scale 0.05, and it dequantizes with 0.1"),
        ("", {}, {"s": np.full(16, 0.1, np.float32)}, "the scale 0.05, and it dequantizes with 0.1"),
        (
            "",
            {},
            {"s": np.linspace(0.05, 0.1, 16, dtype=np.float32)},
            "other scales than it dequantizes with",
        ),
        ("Transpose", {}, {"s": np.float32(0.1)}, "the scale 0.05, and it dequantizes with 0.1"),
        (
            "",
            {"s": np.linspace(0.05, 0.1, 16, dtype=np.float32), "axis": 1},
            {"s": np.linspace(0.05, 0.1, 8, dtype=np.float32), "axis": 0},
            "scales along axis 1, and it dequantizes with scales along axis 0",
        ),
        ("", {}, {"s": np.float32(0.0501)}, ""),  # rounded, as to bfloat16
        ("", {}, {"s": np.full(16, 0.05, np.float32)}, ""),
        (
            "Transpose",  # which moves the axis
            {"s": np.linspace(0.05, 0.1, 16, dtype=np.float32), "axis": 1},
            {"s": np.linspace(0.05, 0.1, 16, dtype=np.float32), "axis": 0},
            "",
        ),
    ],
)
def test_codes_that_are_read_otherwise_than_they_are_made_are_suspect(
    model_of: ModelOf, between: str, made: dict[str, Any], read: dict[str, Any], told: str
) -> None:
    values = {"a": made.get("s", np.float32(0.05)), "b": read["s"]}
    zeros = {f"z{name}": np.zeros(np.shape(scale), np.int8) for name, scale in values.items()}
    move = "m = Transpose (q)" if between else "m = Identity (q)"
    body = f"""q = QuantizeLinear <axis = {made.get("axis", 1)}> (x, a, za) {move if between else ""}
    [dq] y = DequantizeLinear <axis = {read.get("axis", 1)}> ({"m" if between else "q"}, b, zb)"""
    shape = "[16,8]" if between else "[8,16]"
    model = model_of(f"g (float[8,16] x) => (float{shape} y) {{ {body} }}", opset=19, **values, **zeros)
    found = [item for item in lint(model) if item.rule == "pair"]
    assert [(item.effect, item.node) for item in found] == ([("suspect", "dq")] if told else [])
    assert all(told in item.reason for item in found)
    refuse(found)


def test_blocks_of_two_sizes_are_suspect(model_of: ModelOf) -> None:
    scales = [np.linspace(0.05, 0.1, 32 // size * 4, dtype=np.float32).reshape(-1, 4) for size in (8, 16)]
    body = """q = QuantizeLinear <axis = 0, block_size = 8, output_dtype = 3> (x, a)
    [dq] y = DequantizeLinear <axis = 0, block_size = 16> (q, b)"""
    model = model_of(f"g (float[32,4] x) => (float[32,4] y) {{ {body} }}", opset=21, a=scales[0], b=scales[1])
    (found,) = (item for item in lint(model) if item.rule == "pair")
    assert "blocks of 8, and it dequantizes with blocks of 16" in found.reason


def test_codes_that_are_read_as_another_type_are_wrong(rules_of: Callable[..., Any]) -> None:
    body = "q = QuantizeLinear (x, s, z) [dq] y = DequantizeLinear (q, s, zu)"
    found = rules_of("(float[8,16] x) => (float[8,16] y)", body, zu=np.uint8(0))
    assert ("pair", "wrong", "dq") in found


def test_every_part_of_a_concat_of_codes_is_compared(rules_of: Callable[..., Any]) -> None:
    body = """q = QuantizeLinear (x, s, z) q2 = QuantizeLinear (x, s2, z) c = Concat <axis = 0> (q, q2)
    [dq] y = DequantizeLinear (c, s, z)"""
    interface = "(float[8,16] x) => (float[16,16] y)"
    assert rules_of(interface, body, s2=np.float32(0.07)) == [("pair", "suspect", "dq")]
    assert rules_of(interface, body, s2=np.float32(0.05)) == []
