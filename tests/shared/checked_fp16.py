"""The cast to FP16 with its promises checked, and a look at what it made."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from trtq.pipeline.rewrite.precision import to_fp16


def cast(model: ir.Model, **arguments: Any) -> tuple[ir.Model, dict[str, str]]:
    """Returns the model in FP16, which passes the checker and keeps its signature, and the reasons."""
    before = ir.to_proto(model).SerializeToString()
    result, kept = to_fp16(model, **arguments)
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for old, new in (
        (model.graph.inputs, result.graph.inputs),
        (model.graph.outputs, result.graph.outputs),
    ):
        assert [(value.name, value.dtype) for value in new] == [(value.name, value.dtype) for value in old]
    return result, {node.name: node.reason for node in kept}


def types_of(model: ir.Model) -> dict[str, ir.DataType | None]:
    """Returns the dtype of the first output of every node that was there before."""
    return {
        str(node.name): node.outputs[0].dtype
        for node in model.graph
        if "_to_fp16" not in str(node.name) and "_to_fp32" not in str(node.name)
    }


def casts_of(model: ir.Model) -> list[str]:
    """Returns the names of the casts."""
    return sorted(str(node.name) for node in model.graph if node.op_type == "Cast")
