"""What a scheme refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest

from trtq.errors import UsageError
from trtq.pipeline.formats.scheme import WeightScheme


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "int3"}, "the weight format must be one of int8, fp8, int4, nf4, got 'int3'"),
        (
            {"format": "int4", "method": "nope"},
            "the weight method must be one of rtn, mse, gptq, awq, got 'nope'",
        ),
        ({"format": "int4", "block_size": 48}, "the block size must be one of 16, 32, 64, 128, 256, got 48"),
        ({"format": "int4", "block_size": 0}, "the block size must be one of 16, 32, 64, 128, 256, got 0"),
        (
            {"format": "nf4", "method": "gptq"},
            "the weight method gptq is for int4, nf4 weights have only rtn",
        ),
        (
            {"format": "int8", "method": "mse"},
            "the weight method mse is for int4, int8 weights have only rtn",
        ),
        (
            {"format": "int4", "method": "rtn", "in_products": True},
            "W4A8 stores weights as int4, with clips by mse, not as int4 by rtn; leave --weights and "
            "--weight-method out, or --w4a8",
        ),
        ({"format": "int4", "double_quantization": True}, "double quantization is for nf4, not for int4"),
    ],
)
def test_a_scheme_that_does_not_exist_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        WeightScheme(**arguments)


def test_the_opset_is_the_first_that_holds_the_format() -> None:
    opsets = [WeightScheme(name).number_format.min_opset for name in ("int8", "int4", "nf4")]
    assert opsets == [19, 21, 21]


def test_a_weight_is_stored_in_the_format_of_the_first_pattern_that_matches() -> None:
    scheme = WeightScheme("int4", "mse", 32, others=(("embed", "int8"), ("attn|embed", "nf4")))
    assert scheme.choose(["w", "model/mlp/MatMul"]) is scheme
    embedding, attention = scheme.choose(["model.embed.weight"]), scheme.choose(["w", "model/attn/MatMul"])
    assert (embedding.format, attention.format, attention.block_size) == ("int8", "nf4", 32)
    assert scheme.keep_sensitive
    assert not embedding.keep_sensitive
    assert [form.name for form in scheme.number_formats] == ["int4", "int8", "nf4"]
    assert scheme.has_blocks
    assert not WeightScheme("int8").has_blocks


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"others": (("embed", "int7"),)},
            "'embed=int7' is not REGEX=FORMAT; the format is one of int8, fp8",
        ),
        ({"others": (("(", "int8"),)}, "'(' is not a regular expression"),
        (
            {"method": "awq", "others": (("embed", "int8"),)},
            "--weights-for and --weight-method awq contradict each other; leave one of them out",
        ),
        (
            {"method": "mse", "in_products": True, "others": (("embed", "int8"),)},
            "--weights-for and --w4a8 contradict each other; leave one of them out",
        ),
    ],
)
def test_formats_of_single_weights_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        WeightScheme("int4", **given)
