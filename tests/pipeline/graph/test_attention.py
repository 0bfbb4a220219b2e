"""Tests of finding attention, and of where both of its products take codes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from made_up import random_array

from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.attention import choose_attention, find_attentions, list_tried
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, Placement, place

ModelOf = Callable[..., ir.Model]
TEXT = """g (float[{batch},2,{length},{head}] q, float[{batch},2,{head},{length}] k,
           float[{batch},2,{length},{head}] v, float[{batch},1,1,{length}] mask)
    => (float[{batch},{length},{out}] y) {{
    [scores] s = MatMul (q, k)
    {between}
    [softmax] p = Softmax <axis = -1> (m)
    [context] c = MatMul (p, v)
    [turn] t = Transpose <perm = [0, 2, 1, 3]> (c)
    [join] j = Reshape (t, shape)
    {behind} }}"""
PROJECTED = "[proj] y = MatMul (j, w)"


def _attention(
    model_of: ModelOf,
    *,
    between: str = "m = Mul (s, scale)",
    behind: str = PROJECTED,
    length: int | str = 64,
    batch: str = "N",
    head: int = 32,
) -> ir.Model:
    text = TEXT.format(batch=batch, length=length, head=head, out=2 * head, between=between, behind=behind)
    weights: dict[str, Any] = {"w": random_array(2 * head, 2 * head)} if "w)" in behind else {}
    scales = {"scale": np.float32(0.2)} if "scale" in between else {}
    return model_of(text, shape=np.array([0, 0, 2 * head]), **weights, **scales)


def _names(placement: Placement) -> dict[str, str]:
    return {node.name: node.scheme.rule for node in placement.quantized}


def _reasons(placement: Placement) -> dict[str, str]:
    return {item.name: item.reason for item in placement.kept}


@pytest.mark.parametrize(
    "between",
    [
        "m = Mul (s, scale)",
        "m = Mul (scale, s)",
        "m = Div (s, scale)",
        "a = Mul (s, scale) m = Add (a, mask)",
        "a = Mul (s, scale) m = Add (mask, a)",
        "shape_of = Shape (s) m = Div (s, scale)",
    ],
)
def test_attention_is_found_through_its_scale_and_its_mask(model_of: ModelOf, between: str) -> None:
    model = _attention(model_of, between=between)
    (found,) = find_attentions(model.graph)
    assert found.behind is not None
    assert (found.scores.name, found.context.name, found.behind.name) == ("scores", "context", "proj")
    assert (found.lengths, found.head_size) == ((64, 64), 32)


@pytest.mark.parametrize(
    "between",
    [
        "m = Identity (s)",
        "r = Relu (s) m = Mul (r, scale)",
        "m = Mul (s, scale) also = Relu (m)",
        "m = Div (scale, s)",
    ],
)
def test_what_tensorrt_does_not_fuse_is_no_attention(model_of: ModelOf, between: str) -> None:
    assert [*find_attentions(_attention(model_of, between=between).graph)] == []


def test_a_softmax_over_queries_is_no_attention(model_of: ModelOf) -> None:
    model = _attention(model_of)
    softmax = next(node for node in model.graph if node.name == "softmax")
    softmax.attributes["axis"] = ir.AttrInt64("axis", 2)
    assert [*find_attentions(model.graph)] == []


@pytest.mark.parametrize(
    ("form", "settings", "reason"),
    [
        (INT8, {}, ""),
        (FP8, {}, ""),
        (INT8, {"length": "L"}, ""),
        (FP8, {"length": "L"}, "FP8 only with a fixed number of keys, 32 or more"),
        (FP8, {"length": 31}, "FP8 only with a fixed number of keys, 32 or more"),
        (INT8, {"length": 31}, ""),
        (INT8, {"length": 512}, ""),
        (INT8, {"length": 513}, "INT8 only with 512 keys or fewer"),
        (FP8, {"length": 513}, ""),
        (INT8, {"head": 48}, "INT8 only with heads of 16, 32, 64 channels"),
        (FP8, {"head": 48}, ""),
        (INT8, {"behind": "y = Relu (j)"}, "INT8 only if the next layer takes INT8 with one scale"),
        (FP8, {"behind": "y = Relu (j)"}, ""),
    ],
)
def test_both_products_take_codes_where_they_are_fused(
    model_of: ModelOf, form: CodeFormat, settings: dict[str, Any], reason: str
) -> None:
    """Each line was built by TensorRT-RTX 1.7.1 for 8.9, which ran one kernel in 8 bits, or did not."""
    placement = place(_attention(model_of, **settings), form=form, attention=None)
    both = {"scores", "context"}
    if reason:
        assert not both & _names(placement).keys()
        wanted = f"attention: TensorRT fuses it in {reason}"
        assert {name: _reasons(placement)[name] for name in both} == dict.fromkeys(both, wanted)
    else:
        assert {name: _names(placement)[name] for name in both} == dict.fromkeys(both, "attention")


def test_the_range_of_a_softmax_in_fp8_is_known(model_of: ModelOf) -> None:
    assert place(_attention(model_of), form=FP8).activations == ("q", "k", "v", "j")
    assert place(_attention(model_of), attention=None).activations == ("q", "k", "p", "v", "j")


@pytest.mark.parametrize("skip", ["scores", "context"])
def test_one_product_is_not_quantized_alone(model_of: ModelOf, skip: str) -> None:
    placement = place(_attention(model_of), form=FP8, skip=[f"^{skip}$"])
    assert [*_names(placement)] == ["proj"]
    other = {"scores": "context", "context": "scores"}[skip]
    assert _reasons(placement) == {
        skip: f"skipped by '^{skip}$'",
        other: f"attention: both MatMuls or neither, and {skip!r} stays float",
    }


def test_int8_waits_for_a_trial(model_of: ModelOf) -> None:
    model = _attention(model_of)
    all_of_it, none = place(model, attention=None), place(model)
    assert list_tried(all_of_it) == ("scores", "context")
    assert list_tried(place(model, form=FP8)) == ()
    assert none == choose_attention(all_of_it, ())
    assert place(model, attention=("scores", "context")) == all_of_it
    reason = "attention: it stays float unless INT8 costs at most 0.5 dB on held-out calibration data"
    assert {name: text.partition(";")[0] for name, text in _reasons(none).items()} == dict.fromkeys(
        ("scores", "context"), reason
    )


def test_rows_with_scales_of_their_own_do_not_follow_int8_attention(model_of: ModelOf) -> None:
    reason = "attention: TensorRT fuses it in INT8 only if the next layer takes INT8 with one scale"
    placement = place(_attention(model_of), attention=None, per_token=True)
    assert _reasons(placement) == {"scores": reason, "context": reason}
    assert "scores" in _names(place(_attention(model_of), form=FP8, per_token=True))


@pytest.mark.parametrize(
    ("op_types", "wanted"),
    [
        (DEFAULT_OP_TYPES, {"scores": "attention", "context": "attention", "proj": "weighted-input"}),
        (
            (*DEFAULT_OP_TYPES, "Attention"),
            {"scores": "two-activations", "context": "two-activations", "proj": "weighted-input"},
        ),
        (("Conv",), {}),
    ],
)
def test_types_that_are_named_decide(
    model_of: ModelOf, op_types: Collection[str], wanted: dict[str, str]
) -> None:
    assert _names(place(_attention(model_of), form=FP8, op_types=[*op_types])) == wanted
