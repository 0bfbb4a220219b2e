"""The INT8 model and the FP16 baseline of one graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtq.calibrators.ranges import Ranges
from trtq.kept import KeptFp32
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qdq import quantize


@dataclass(frozen=True, slots=True)
class MixedModel:
    """A model in several precisions, and what stays FP32 although the rest is FP16."""

    model: ir.Model
    kept_fp32: tuple[KeptFp32, ...] = ()


def convert_to_int8(
    graph: Graph, placement: Placement, ranges: Ranges, *, fp16: bool, keep_fp32: tuple[str, ...] = ()
) -> MixedModel:
    """Returns the Q/DQ model; what is not quantized is FP16 if `fp16`.

    Raises:
        UsageError: The ranges lack a tensor.
    """
    scale_dtype = "float16" if fp16 else "float32"
    quantized = quantize(graph.model, placement, ranges, scale_dtype=scale_dtype)
    if not fp16:
        return MixedModel(quantized)
    return MixedModel(*to_fp16(quantized, keep_fp32=keep_fp32, beyond_fp16=ranges.beyond_fp16))


def convert_to_fp16(graph: Graph, ranges: Ranges | None, *, keep_fp32: tuple[str, ...] = ()) -> MixedModel:
    """Returns the FP16 baseline; without ranges only constants tell what FP16 cannot hold."""
    beyond = ranges.beyond_fp16 if ranges is not None else {}
    return MixedModel(*to_fp16(graph.model, keep_fp32=keep_fp32, beyond_fp16=beyond))
