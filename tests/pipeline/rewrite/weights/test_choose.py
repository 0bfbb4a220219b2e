"""Which weights are chosen, and why others are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.pipeline import formats
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import Granularity, PerBlock, PerChannel
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import Placement, QuantizedWeight, find_unmatched
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight

ModelOf = Callable[..., ir.Model]
INT4, INT8 = WeightScheme("int4"), WeightScheme("int8")


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


MIXED = """g (float[N,64] x, int64[N,2] ids, float[N,16,8,8] image)
  => (float[N,128] y, float[N,2,64] e, float[N,32,A,B] c) {
  [product] h = MatMul (x, w)
  [gemm] y = Gemm <transB = 1> (h, v)
  [rows] e = Gather (table, ids)
  [conv] c = Conv (image, k)
}"""


def mixed(model_of: ModelOf) -> ir.Model:
    return model_of(MIXED, w=zeros(64, 128), v=zeros(128, 128), table=zeros(100, 64), k=zeros(32, 16, 3, 3))


def granularities(placement: Placement) -> dict[str, Granularity]:
    held = (node.held_weight for node in placement.quantized)
    return {weight.tensor: weight.encoding.granularity for weight in held if weight is not None}


def test_blocks_lie_along_the_axis_that_is_summed_over(model_of: ModelOf) -> None:
    found = choose_weights(mixed(model_of), INT4)
    assert granularities(found) == {"w": PerBlock(0, 64), "v": PerBlock(1, 64), "table": PerBlock(1, 64)}
    assert [(item.name, item.reason) for item in found.kept] == [
        ("conv", "TensorRT has no INT4 or NF4 for convolutions")
    ]


def test_int8_scales_lie_on_the_output_channels_and_rows(model_of: ModelOf) -> None:
    found = choose_weights(mixed(model_of), INT8)
    wanted = {"w": PerChannel(1), "v": PerChannel(0), "table": PerChannel(0), "k": PerChannel(0)}
    assert granularities(found) == wanted
    assert found.kept == ()


def test_a_weight_on_the_left_has_its_blocks_along_its_rows(model_of: ModelOf) -> None:
    model = model_of("g (float[64,N] x) => (float[128,N] y) { y = MatMul (w, x) }", w=zeros(128, 64))
    (node,) = choose_weights(model, INT4).quantized
    assert (node.weight, node.held_weight) == (
        (0, "w"),
        QuantizedWeight("w", Encoding(formats.INT4, PerBlock(1, 64))),
    )
    assert str(node.scheme) == "float x int4"


def test_a_block_that_does_not_divide_is_halved_and_else_the_weight_is_kept(model_of: ModelOf) -> None:
    text = "g (float[N,{0}] x) => (float[N,99] y) {{ [p] y = MatMul (x, w) }}"
    halved = choose_weights(model_of(text.format(96), w=zeros(96, 99)), INT4)
    assert granularities(halved) == {"w": PerBlock(0, 32)}
    kept = choose_weights(model_of(text.format(100), w=zeros(100, 99)), INT4)
    assert kept.kept[0].reason == "no block of 16 to 64 divides its 100 inputs"


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("/lm_head/MatMul", True),
        ("/model/proj_out/MatMul", True),
        ("transformer.norm_out/linear/Gemm", True),
        ("single_transformer_blocks.0.proj_out/MatMul", False),
        ("/single_transformer_blocks.37/proj_out/MatMul", False),
        ("norm_out.linear", True),
        ("lm_head_MatMul", True),
        ("/classifier/Gemm", True),
        ("/attention/out_proj/MatMul", False),
        ("/headline/MatMul", False),
        ("/multi_head/MatMul", False),
    ],
)
def test_layers_with_sensitive_names_are_kept_unless_that_is_switched_off(
    model_of: ModelOf, name: str, is_kept: bool
) -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { [p] y = MatMul (x, w) }", w=zeros(64, 64))
    model.graph[0].name = name
    assert bool(choose_weights(model, INT4).kept) == is_kept
    if is_kept:
        assert choose_weights(model, INT4).kept[0].reason == "its name is a sensitive one"
    assert not choose_weights(model, WeightScheme("int4", keep_sensitive=False)).kept


def test_the_name_of_a_weight_counts_too(model_of: ModelOf) -> None:
    text = 'g (float[N,64] x) => (float[N,64] y) { [p] y = MatMul (x, "lm_head.weight") }'
    model = model_of(text.replace('"lm_head.weight"', "head_weight"), head_weight=zeros(64, 64))
    assert choose_weights(model, INT4, ["^head_w"]).kept[0].reason == "skipped by '^head_w'"
    assert list(find_unmatched(model, ["^head_w", "q"], in_weights=True)) == [("q", [])]
    assert list(find_unmatched(model, ["pp"], in_weights=True)) == [("pp", ["p"])]


SHARED = """g (float[N,64] x, int64[N] ids) => (float[N,64] y, float[N,64] z) {{
  [first] y = {0}
  [second] z = {1}
}}"""


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("MatMul (x, w)", "MatMul (x, w)", None),
        ("Gemm <transB = 1> (x, w)", "Gather (w, ids)", None),
        (
            "MatMul (x, w)",
            "Gather (w, ids)",
            "its weight is shared by first, second, which would need different scales",
        ),
        (
            "MatMul (x, w)",
            "Add (x, w)",
            "its weight is shared, and of another reader Add 'second' takes it as no weight",
        ),
        (
            "MatMul (x, w)",
            "Gather <axis = 1> (w, ids)",
            "its weight is shared, and of another reader Gather 'second' takes no rows of a table from it",
        ),
    ],
)
def test_a_shared_weight_is_chosen_where_all_readers_take_the_same_form(
    model_of: ModelOf, first: str, second: str, reason: str | None
) -> None:
    text = SHARED.format(first, second).replace("[N,64] z", "[A,B] z").replace("[N,64] y", "[C,D] y")
    model = model_of(text, w=zeros(64, 64))
    found = choose_weights(model, INT4)
    if reason is None:
        assert [len(item.readers) for item in group_by_weight(model, found)] == [2]
        return
    assert not found.quantized
    assert {item.reason for item in found.kept} == {reason}


def test_a_weight_that_is_shared_with_a_skipped_layer_is_kept_and_the_layer_named(model_of: ModelOf) -> None:
    model = model_of(SHARED.format("MatMul (x, w)", "MatMul (x, w)"), w=zeros(64, 64))
    reasons = {item.reason for item in choose_weights(model, INT4, ["second"]).kept}
    assert reasons == {"skipped by 'second' (shared with second)"}


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        ("y = MatMul (x, w)", {"w": zeros(64, 8)}, "its weight has only 512 elements"),
        ("y = MatMul (x, w)", {"w": zeros(3, 64, 64)}, "its weight has 3 axes, blocks need 2"),
    ],
)
def test_why_a_weight_is_kept(model_of: ModelOf, text: str, weights: dict[str, Any], reason: str) -> None:
    model = model_of(f"g (float[N,64] x) => (float[A,B] y) {{ [p] {text} }}", **weights)
    assert [item.reason for item in choose_weights(model, INT4).kept] == [reason]


def test_a_weight_that_is_an_output_is_kept(model_of: ModelOf) -> None:
    model = model_of("g (float[N,64] x) => (float[N,64] y) { [p] y = MatMul (x, w) }", w=zeros(64, 64))
    model.graph.outputs.append(model.graph.initializers["w"])
    assert choose_weights(model, INT4).kept[0].reason == "its weight is an output of the model as well"


def test_weights_that_are_quantized_otherwise_are_left_alone(model_of: ModelOf) -> None:
    found = choose_weights(mixed(model_of), INT4, taken={"w", "k"})
    assert list(granularities(found)) == ["v", "table"]
    assert found.kept == ()


def test_integer_weights_and_indices_are_no_weights(model_of: ModelOf) -> None:
    model = model_of(
        "g (float[N,64] x) => (float[5000,64] y) { y = Gather (x, ids) }", ids=np.zeros(5000, np.int64)
    )
    assert choose_weights(model, INT4) == choose_weights(model, INT8)
    assert not choose_weights(model, INT4).quantized
