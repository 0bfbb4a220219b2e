"""BF16 models as ONNX Runtime can run them on the CPU, where it has hardly any BF16 kernel."""

from __future__ import annotations

import onnx_ir as ir

from trtq.pipeline.graph.edit import widen

_BFLOAT16 = ir.DataType.BFLOAT16


def without_bf16(model: ir.Model) -> ir.Model:
    """Returns the model computing in FP32 where it computes in BF16; weights and scales keep their values.

    What the rounding of activations to BF16 costs is not seen then.

    Args:
        model: It is not changed.
    """
    result = model.clone()
    widen(result, (_BFLOAT16,))
    return result


def has_bf16(model: ir.Model) -> bool:
    """Returns whether a node of the model computes in BF16."""
    casts = any(node.attributes.get_int("to") == _BFLOAT16 for node in model.graph.all_nodes())
    return casts or any(value.dtype is _BFLOAT16 for value in model.graph.initializers.values())
