"""Q/DQ in FP16 as TensorRT computes it, on every ONNX Runtime."""

from __future__ import annotations

import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor

_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def make_quantize_exact(model: ir.Model) -> ir.Model | None:
    """Returns the model with every FP16 QuantizeLinear fed in FP32; None if it has none.

    The codes are the same by definition, since FP32 holds every FP16 value and scale. ONNX Runtime up to
    1.23, the last for Python 3.10, truncates in FP16 where the operator has to round.

    Args:
        model: A Q/DQ model; it is not changed.
    """
    if not any(_is_fp16(node) for node in model.graph.all_nodes()):
        return None
    result = model.clone()
    edit = GraphEditor(result)
    for node in list(result.graph.all_nodes()):
        for index in (0, 1) if _is_fp16(node) else ():
            value, name = node.inputs[index], f"{node.name}_exact_{index}"
            assert value is not None
            cast = edit.cast(value, _FLOAT, output=name, name=name, before=node)
            node.replace_input_with(index, cast)
    return result


def _is_fp16(node: ir.Node) -> bool:
    scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
    return scale is not None and scale.dtype is _FLOAT16
