"""The QOperator format of ONNX Runtime as Q/DQ pairs around the float operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.fold import add_initializer, make_unique_name
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_constant
from trtq.pipeline.graph.repair.change import Change

_UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAveragePool": "AveragePool",
    "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearSoftmax": "Softmax",
}  # fmt: skip
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_NOT_FLOAT = ("channels_last", "opset")  # attributes that the float operators do not have


def repair_operators(model: ir.Model) -> Iterator[Change]:
    """Replaces QLinear nodes by DequantizeLinear, the float operator and QuantizeLinear.

    The float operator keeps the node's name. ONNX defines the QLinear operators by just this; implementations
    may round a tie otherwise.
    """
    for node in list(model.graph):
        made = _converted(model, node)
        if made:
            yield Change("operator", str(node.name), f"Q/DQ pairs around {made}")
            model.graph.remove(node, safe=True)


def _converted(model: ir.Model, node: ir.Node) -> str:
    """Puts the nodes that compute the same before the node; returns the operator's name, or nothing."""
    if "channels_last" in node.attributes and node.attributes["channels_last"].as_int():
        return ""
    writer = _Writer(model, node)
    inputs = list(node.inputs)
    if node.op_type in _UNARY:
        return writer.write(_UNARY[node.op_type], [writer.dequantize(0)], inputs[3:5])
    if node.op_type in _BINARY:
        return writer.write(_BINARY[node.op_type], [writer.dequantize(0), writer.dequantize(3)], inputs[6:8])
    if node.op_type == "QLinearConcat":
        return writer.write("Concat", [writer.dequantize(i) for i in range(2, len(inputs), 3)], inputs[:2])
    if node.op_type == "QLinearMatMul":
        operands = [writer.dequantize(0, _rank(inputs[0]) - 2), writer.dequantize(3, _rank(inputs[3]) - 1)]
        return writer.write("MatMul", operands, inputs[6:8])
    if node.op_type == "QLinearConv":
        bias = writer.bias(8) if len(inputs) > 8 and inputs[8] is not None else []
        if bias is None:
            return ""
        return writer.write("Conv", [writer.dequantize(0), writer.dequantize(3, 0), *bias], inputs[6:8])
    if node.op_type == "QGemm":
        bias = writer.bias(6) if len(inputs) > 6 and inputs[6] is not None else []
        if bias is None:
            return ""
        axis = 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
        return writer.write("Gemm", [writer.dequantize(0), writer.dequantize(3, axis), *bias], inputs[7:9])
    return ""


class _Writer:
    """Writes the nodes that replace one node, before it."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._model, self._node = model, node

    def dequantize(self, place: int, axis: int = 1) -> ir.Value:
        """Returns the dequantized input whose codes, scale and zero point begin at this place."""
        codes, scale, zero = (*self._node.inputs[place : place + 3], None)[:3]
        assert codes is not None
        assert scale is not None
        per_channel = scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
        inputs = [codes, scale, *([] if zero is None else [zero])]
        attributes = {"axis": axis} if per_channel else {}
        name = f"{self._node.name}_DequantizeLinear_{place}"
        return self._add(DEQUANTIZE, name, inputs, attributes, codes.shape)

    def bias(self, place: int) -> list[ir.Value] | None:
        """Returns the int32 bias as a float constant: its scale is the product of the operands' scales."""
        codes, first, second = (find_constant(self._node, i) for i in (place, 1, 4))
        if codes is None or first is None or second is None:
            return None
        alpha = self._node.attributes["alpha"].as_float() if "alpha" in self._node.attributes else 1.0
        values = codes.astype(np.float64) * (alpha * first.astype(np.float64) * second.astype(np.float64))
        return [add_initializer(self._model.graph, f"{self._node.name}_bias", values.astype(np.float32))]

    def write(self, op_type: str, inputs: Sequence[ir.Value], params: Sequence[ir.Value | None]) -> str:
        """Writes the operator and the QuantizeLinear after it, and takes the node's place."""
        node, old = self._node, self._node.outputs[0]
        attributes = {name: item for name, item in node.attributes.items() if name not in _NOT_FLOAT}
        result = self._add(op_type, str(node.name), inputs, attributes, old.shape)
        if params and params[0] is not None:
            made = [value for value in (result, *params) if value is not None]
            result = self._add(QUANTIZE, f"{node.name}_QuantizeLinear", made, {}, old.shape)
            result.type = None if old.dtype is None else ir.TensorType(old.dtype)
        label, was_output = old.name, old.is_graph_output()
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        if was_output:
            old.name, result.name = None, label
        return op_type

    def _add(
        self,
        op_type: str,
        name: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, ir.Attr | int],
        shape: ir.Shape | None,
    ) -> ir.Value:
        graph = self._model.graph
        node = ir.node(op_type, list(inputs), attributes, name=name)
        graph.insert_before(self._node, node)
        result = node.outputs[0]
        result.name, result.shape = make_unique_name(graph, f"{name}_output"), shape
        result.type = ir.TensorType(ir.DataType.FLOAT)
        return result


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 2
