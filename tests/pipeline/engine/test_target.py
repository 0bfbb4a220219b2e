"""What may be asked for, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from trtq.errors import UsageError
from trtq.pipeline.engine.target import Target


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
        ({"precision": "INT8"}, "precision must be one of int8, fp8, fp16, weights, got 'INT8'"),
        ({"high_precision": "fp8"}, "high_precision must be one of auto, fp16, bf16, fp32, got 'fp8'"),
        ({"quantization": "Q/DQ"}, "quantization must be one of auto, explicit, implicit, got 'Q/DQ'"),
        ({"op_types": ("Conv", "Relu")}, "'Relu' cannot be quantized; the types to quantize are Conv, Conv"),
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
