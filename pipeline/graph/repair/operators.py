"""The QOperator format of ONNX Runtime as Q/DQ pairs around the float operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_constant
from trtq.pipeline.graph.repair.change import Change

_UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAveragePool": "AveragePool",
    "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearSoftmax": "Softmax",
}  # fmt: skip
_FLOAT = ir.DataType.FLOAT
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_NOT_FLOAT = ("channels_last", "opset")  # attributes that the float operators do not have


def repair_operators(edit: GraphEditor) -> Iterator[Change]:
    """Replaces QLinear nodes by DequantizeLinear, the float operator and QuantizeLinear.

    The float operator keeps the node's name. ONNX defines the QLinear operators by just this; implementations
    may round a tie otherwise.
    """
    for node in list(edit.graph):
        if made := _convert(edit, node):
            yield Change("operator", str(node.name), f"Q/DQ pairs around {made}")
            edit.remove(node)


def _convert(edit: GraphEditor, node: ir.Node) -> str:
    """Puts the nodes that compute the same before the node; returns the operator's name, or nothing."""
    if node.attributes.get_int("channels_last", 0):
        return ""
    writer = _Writer(edit, node)
    inputs = list(node.inputs)
    if node.op_type in _UNARY:
        return writer.write(_UNARY[node.op_type], [writer.dequantize(0)], inputs[3:5])
    if node.op_type in _BINARY:
        return writer.write(_BINARY[node.op_type], [writer.dequantize(0), writer.dequantize(3)], inputs[6:8])
    if node.op_type == "QLinearConcat":
        return writer.write("Concat", [writer.dequantize(i) for i in range(2, len(inputs), 3)], inputs[:2])
    if node.op_type == "QLinearMatMul":
        axes = (_rank(inputs[0]) - 2, _rank(inputs[3]) - 1)
        return writer.write(
            "MatMul", [writer.dequantize(0, axes[0]), writer.dequantize(3, axes[1])], inputs[6:8]
        )
    if node.op_type == "QLinearConv":
        return writer.write_layer("Conv", 0, 8, inputs[6:8])
    if node.op_type == "QGemm":
        return writer.write_layer("Gemm", 0 if node.attributes.get_int("transB", 0) else 1, 6, inputs[7:9])
    return ""


class _Writer:
    """Writes the nodes that replace one node, before it."""

    def __init__(self, edit: GraphEditor, node: ir.Node) -> None:
        self._edit, self._node = edit, node

    def dequantize(self, place: int, axis: int = 1) -> ir.Value:
        """Returns the dequantized input whose codes, scale and zero point begin at this place."""
        codes, scale, zero = (*self._node.inputs[place : place + 3], None)[:3]
        assert codes is not None
        assert scale is not None
        per_channel = scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
        inputs = [codes, scale, *([] if zero is None else [zero])]
        name = f"{self._node.name}_DequantizeLinear_{place}"
        return self._insert(DEQUANTIZE, name, inputs, {"axis": axis} if per_channel else {}, codes, _FLOAT)

    def write_layer(self, op_type: str, axis: int, place: int, params: Sequence[ir.Value | None]) -> str:
        """Writes a Conv or Gemm with its bias, if that is a constant or there is none."""
        bias: list[ir.Value] = []
        if len(self._node.inputs) > place and self._node.inputs[place] is not None:
            values = self._compute_bias(place)
            if values is None:
                return ""
            bias = [self._edit.add_constant(f"{self._node.name}_bias", values)]
        return self.write(op_type, [self.dequantize(0), self.dequantize(3, axis), *bias], params)

    def _compute_bias(self, place: int) -> NDArray[np.float32] | None:
        """Returns the int32 bias as floats: its scale is the product of the operands' scales."""
        codes, first, second = (find_constant(self._node, i) for i in (place, 1, 4))
        if codes is None or first is None or second is None:
            return None
        alpha = self._node.attributes.get_float("alpha", 1.0)
        values = codes.astype(np.float64) * (alpha * first.astype(np.float64) * second.astype(np.float64))
        return values.astype(np.float32)

    def write(self, op_type: str, inputs: Sequence[ir.Value], params: Sequence[ir.Value | None]) -> str:
        """Writes the operator and the QuantizeLinear after it, and takes the node's place."""
        node, old = self._node, self._node.outputs[0]
        attributes = {name: item for name, item in node.attributes.items() if name not in _NOT_FLOAT}
        result = self._insert(op_type, str(node.name), inputs, attributes, old, _FLOAT)
        result.producer().name = node.name  # type: ignore[union-attr]  # which is removed
        if params and params[0] is not None:
            given = [result, *(value for value in params if value is not None)]
            result = self._insert(QUANTIZE, f"{node.name}_QuantizeLinear", given, {}, old, old.dtype)
        self._edit.replace(old, result)
        return op_type

    def _insert(
        self,
        op_type: str,
        name: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, ir.Attr | int],
        like: ir.Value,
        dtype: ir.DataType | None,
    ) -> ir.Value:
        output = f"{name}_output"
        return self._edit.insert(
            op_type, inputs, attributes, like=like, dtype=dtype, output=output, name=name, before=self._node
        )


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 2
