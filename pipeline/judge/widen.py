"""BF16 models as ONNX Runtime can run them on the CPU, where it has hardly any BF16 kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FLOAT, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def without_bf16(model: ir.Model) -> ir.Model:
    """Returns the model computing in FP32 where it computes in BF16; weights and scales keep their values.

    What the rounding of activations to BF16 costs is not seen then.

    Args:
        model: It is not changed.
    """
    result = model.clone()
    for value in result.graph.initializers.values():
        if value.dtype is _BFLOAT16 and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for node in result.graph.all_nodes():
        for name in ("to", "output_dtype"):
            if name in node.attributes and node.attributes[name].as_int() == _BFLOAT16:
                node.attributes[name] = ir.AttrInt64(name, _FLOAT)
        for value in node.outputs:
            if value.dtype is _BFLOAT16:
                value.type = ir.TensorType(_FLOAT)
    return result


def has_bf16(model: ir.Model) -> bool:
    """Returns whether a node of the model computes in BF16."""
    attributes = (node.attributes.get("to") for node in model.graph.all_nodes())
    casts = any(attribute is not None and attribute.as_int() == _BFLOAT16 for attribute in attributes)
    return casts or any(value.dtype is _BFLOAT16 for value in model.graph.initializers.values())
