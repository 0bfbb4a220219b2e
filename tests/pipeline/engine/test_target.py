"""What may be asked for, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from trtq.errors import UsageError
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.scheme import WeightScheme


def test_the_default_is_int8_for_the_first_backend_that_works() -> None:
    target = Target()
    assert (target.precision, target.high_precision, target.backend) == ("int8", "auto", "auto")
    assert target.op_types == ("Conv", "Gemm", "MatMul")


@pytest.mark.parametrize("workspace_bytes", [None, 1, 1 << 30, (1 << 63) - 1])
def test_a_workspace_may_be_any_number_of_bytes(workspace_bytes: int | None) -> None:
    assert Target(workspace_bytes=workspace_bytes).workspace_bytes == workspace_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "INT8"}, "precision must be one of int8, fp8, nvfp4, fp16, weights, got 'INT8'"),
        ({"high_precision": "fp8"}, "high_precision must be one of auto, fp16, bf16, fp32, got 'fp8'"),
        ({"quantization": "Q/DQ"}, "quantization must be one of auto, explicit, implicit, got 'Q/DQ'"),
        ({"op_types": ("Conv", "Relu")}, "'Relu' cannot be quantized; the types to quantize are Conv, Conv"),
        (
            {"formats": ("int8", "int9")},
            "'int9' is not a format for layers; --formats takes int8, ",
        ),
        ({"formats": ("int4",)}, "'int4' is not a format for layers; --formats takes int8, fp8, "),
        ({"formats": ("fp16",)}, "--formats fp16 quantizes nothing; use --fp16, or name int8 or fp8 too"),
        (
            {"formats": ("int8", "fp8"), "quantization": "implicit"},
            "--formats chooses which layers get Q/DQ, of which there are none with --quantization implicit",
        ),
        (
            {"formats": ("int8", "fp16"), "weights": WeightScheme("int8")},
            "--formats keeps layers as they are, and the weights of these would be stored in fewer bits",
        ),
        ({"workspace_bytes": 0}, r"the workspace must have 1 to 2\^63 - 1 bytes, got 0"),
        (
            {"workspace_bytes": 1 << 63},
            r"the workspace must have 1 to 2\^63 - 1 bytes, got 9223372036854775808",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Target(**settings)


def test_the_formats_of_layers_start_with_the_fastest_on_the_gpu() -> None:
    """Of equal ones INT8, whatever the order in which they are named."""
    mixed = Target(formats=("fp16", "fp8", "int8"), compute_capabilities=("8.9",))
    assert (mixed.precision, mixed.name, mixed.code_formats) == ("int8", "quantized", ("int8", "fp8"))
    assert (mixed.searches, mixed.search_option, mixed.min_opset) == (True, "--formats", 19)
    newest = Target(formats=("int8", "fp8"), compute_capabilities=("10.3",))
    assert newest.precision == "fp8"  # which multiplies INT8 slowly
    one = Target(formats=("fp8",), compute_capabilities=("9.0",))
    assert (one.precision, one.name, one.searches) == ("fp8", "fp8", False)
    plain, auto = Target(), Target(auto=True)
    assert (plain.allowed, plain.searches) == (("int8",), False)
    assert (auto.allowed, auto.searches, auto.search_option) == (("int8", "fp16"), True, "--auto")
