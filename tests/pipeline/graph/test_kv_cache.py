"""Which caches codes can take the place of."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from cached_decoder import write_decoder

from trtq.errors import ModelError, UsageError
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.graph.kv_cache import CodedCache, find_caches, find_coded_caches
from trtq.pipeline.graph.load import load

_HEAD = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[N, 2, S, 16] x, float[N, 2, P, 16] past_0) => (float[N, 2, T, 16] y, float[N, 2, T, 16] present_0)"""


def _parse(body: str) -> ir.Model:
    return ir.from_onnx_text(f"{_HEAD} {{ {body} }}")


def test_caches_that_grow_by_a_concat_are_found(tmp_path: Path) -> None:
    graph = load(write_decoder(tmp_path / "m.onnx"), min_opset=21)
    found = find_caches(graph.model, FP8, graph.path)
    assert [(item.past, item.present, item.node) for item in found] == [
        ("past_key_values_0_key", "present_0_key", "keys"),
        ("past_key_values_0_value", "present_0_value", "values"),
    ]
    assert {item.form for item in found} == {FP8}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "[grow] y, present_0 = com.microsoft.GroupQueryAttention <num_heads = 2> (x, past_0)",
            "goes to GroupQueryAttention 'grow'",
        ),
        ("[put] present_0 = ScatterND (past_0, i, x) y = Relu (present_0)", "goes to ScatterND 'put'"),
        (
            "[also] y = Relu (past_0) [cat] present_0 = Concat <axis = 2> (past_0, x)",
            "goes to Relu 'also'",
        ),
        (
            "[cat] y = Concat <axis = 2> (past_0, x) [last] present_0 = Relu (y)",
            "goes to Concat 'cat'",
        ),
        ("[twice] present_0 = Concat <axis = 2> (past_0, past_0) y = Relu (x)", "goes to Concat 'twice'"),
    ],
)
def test_other_forms_are_refused_with_the_node(body: str, told: str) -> None:
    with pytest.raises(
        ModelError, match=rf"^m.onnx: the cache 'past_0' {told}; --kv-cache takes one Concat of the cache and"
    ):
        find_caches(_parse(body), INT8, Path("m.onnx"))


def test_two_caches_that_one_output_continues_are_refused() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
g (float[N, S, 4] x, float[N, P, 4] past_0, float[N, P, 4] cache_0) => (float[N, T, 4] present_0) {
    [both] present_0 = Concat <axis = 1> (past_0, cache_0, x) }""")
    with pytest.raises(ModelError, match="the cache 'past_0' goes to Concat 'both'"):
        find_caches(model, INT8, Path("m.onnx"))


def test_a_model_without_a_cache_is_refused() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    with pytest.raises(
        UsageError,
        match=r"^--kv-cache is for a model with a cache, and no output of m.onnx continues one .* x$",
    ):
        find_caches(model, INT8, Path("m.onnx"))


def test_a_float_cache_is_none_of_codes() -> None:
    assert find_coded_caches(_parse("present_0 = Concat <axis = 2> (past_0, x) y = Relu (present_0)")) == ()


@pytest.mark.parametrize(
    ("zero", "body"),
    [
        (0, "y = DequantizeLinear (present_0, scale, zero)"),
        (0, "y = Relu (x)"),
        (3, "y = DequantizeLinear (present_0, scale, zero)"),
    ],
)
def test_the_scale_of_codes_is_that_of_either_side_if_0_is_their_zero_point(zero: int, body: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[N, S, 4] x, int8[N, P, 4] past_0) => (float[N, Q, 4] y, int8[N, T, 4] present_0)
<float scale = {{0.5}}, int8 zero = {{{zero}}}> {{
    new = QuantizeLinear (x, scale, zero) present_0 = Concat <axis = 1> (past_0, new) {body} }}"""
    wanted = () if zero else (CodedCache("past_0", "present_0", INT8, 0.5),)
    assert find_coded_caches(ir.from_onnx_text(text)) == wanted


def test_a_scale_may_be_the_output_of_a_constant() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
g (float[N, S, 4] x, int8[N, P, 4] past_0) => (int8[N, T, 4] present_0) {
    scale = Constant <value_float = 0.5> () new = QuantizeLinear (x, scale)
    present_0 = Concat <axis = 1> (past_0, new) }""")
    assert find_coded_caches(model) == (CodedCache("past_0", "present_0", INT8, 0.5),)


def test_codes_that_go_on_as_numbers_are_no_cache_of_codes() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
g (float[N, S, 4] x, int8[N, P, 4] past_0) => (float[N, T, 4] present_0) <float scale = {0.5}> {
    old = DequantizeLinear (past_0, scale) present_0 = Concat <axis = 1> (old, x) }""")
    assert find_coded_caches(model) == ()
