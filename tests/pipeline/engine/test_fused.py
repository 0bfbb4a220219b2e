"""Tests of what the builder did with attention in 8 bits."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from trtq.pipeline.engine.backend import BuiltEngine
from trtq.pipeline.engine.fused import find_unfused
from trtq.pipeline.engine.kernels import Kernel
from trtq.pipeline.formats import FP8
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.graph.attention import Attention
from trtq.pipeline.graph.placement import Placement, QuantizedNode

SCORES, CONTEXT = (ir.node("MatMul", [], name=name) for name in ("scores", "context"))
BOTH = ("[x]", "scores", "context")
CODES = Encoding(FP8)


def _placed(rule: str) -> Placement:
    scheme = LayerScheme(rule, ((0, CODES), (1, CODES)))
    nodes = (QuantizedNode(name, "MatMul", scheme, ((0, "a"), (1, "b"))) for name in ("scores", "context"))
    return Placement(tuple(nodes))


@pytest.mark.parametrize(
    ("kernels", "runs_as"),
    [
        ([Kernel("_gemm_mha_v2_myl0_6", "kgen", BOTH, ("FP8", "FP8", "Half", "FP8"), ())], ""),
        ([Kernel("_gemm_mha_v2_myl0_6", "kgen", BOTH, ("Half", "Half", "Half"), ())], "Half/Half/Half"),
        (
            [Kernel(name, "gemm", (name,), ("FP8", "FP8"), ()) for name in ("scores", "context")],
            "several kernels",
        ),
        ([], ""),
    ],
)
def test_attention_is_fused_in_one_kernel_that_multiplies_the_codes(
    kernels: list[Kernel], runs_as: str
) -> None:
    found = find_unfused(iter([Attention(SCORES, CONTEXT, None)]), _placed("attention"), _built(kernels))
    reason = f"the builder did not fuse this attention in fp8: {runs_as}"
    assert found == (dict.fromkeys(("scores", "context"), reason) if runs_as else {})


def test_what_the_user_asked_for_stays() -> None:
    kernels = [Kernel(name, "gemm", (name,), ("FP8", "FP8"), ()) for name in ("scores", "context")]
    asked = _placed("two-activations")
    assert find_unfused(iter([Attention(SCORES, CONTEXT, None)]), asked, _built(kernels)) == {}


def _built(kernels: list[Kernel]) -> BuiltEngine:
    return BuiltEngine(b"", tuple(kernels))
