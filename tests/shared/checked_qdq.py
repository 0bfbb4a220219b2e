"""Q/DQ models made for tests: every activation has one range, and the checker has looked at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir

from trtq.calibrators.ranges import Range, Ranges
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.qdq import quantize


def ranges_to(amax: Mapping[str, float]) -> Ranges:
    """Returns symmetric ranges."""
    tensors = {name: Range(value, -value, value) for name, value in amax.items()}
    return Ranges(tensors, "minmax()", "0" * 64, "made up", 1)


def quantized(model: ir.Model, scale_dtype: str = "float32", amax: float = 4.0, **arguments: Any) -> ir.Model:
    """Returns the model with Q/DQ, which passes the checker; every activation has the same amax."""
    placement = place(model, **arguments)
    ranges = ranges_to(dict.fromkeys(placement.activations, amax))
    result = quantize(model, placement, ranges, scale_dtype=scale_dtype)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result
