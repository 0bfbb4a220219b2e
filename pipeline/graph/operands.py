"""From a layer back to the DequantizeLinear nodes that its operands come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.pipeline.graph.edit import GraphEditor, widen
from trtq.pipeline.graph.opset import read_opset

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
DYNAMIC = ("TRT_DynamicQuantize", "TRT_FP4DynamicQuantize", "TRT_MXFP8DynamicQuantize")
"""TensorRT's own, which find the scales of blocks in each run."""
OPERATOR_FORMAT = frozenset({
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
    "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere", "QAttention",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QMoE",
})  # fmt: skip
EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)
SIGNED = (ir.DataType.INT8, ir.DataType.INT4)
PER_CHANNEL_OPSET = 13
"""The first that has scales by channel."""
CODE_FORMATS = {
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "int4",
    ir.DataType.FLOAT4E2M1: "nvfp4",
}
"""The formats that layers come in, by the dtype of their codes; FP4 with plain scales is "fp4"."""
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_MOVES = frozenset({
    "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Neg", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What only moves or picks values: TensorRT runs it on the INT8 codes, before the DequantizeLinear."""
CODE_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators on codes that commute with adding a constant to all of them."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of a layer that comes from a DequantizeLinear.

    Attributes:
        value: What the layer reads.
        dequantize: The node that it comes from; of a Concat the first.
        path: The nodes between them, from the layer back.
    """

    value: ir.Value
    dequantize: ir.Node
    path: tuple[ir.Node, ...]

    @property
    def codes(self) -> ir.Value:
        """What is dequantized."""
        value = self.dequantize.inputs[0]
        assert value is not None
        return value

    @property
    def dtype(self) -> ir.DataType | None:
        """The dtype of the codes; None if it cannot be told."""
        return find_code_dtype(self.dequantize)

    @property
    def is_weight(self) -> bool:
        """Whether it is a constant: codes, or floats that are quantized and dequantized."""
        source = _find_source(self.codes, QUANTIZE)
        return source is not None and (source.is_initializer() or self.stored is not None)

    @property
    def is_looked_up(self) -> bool:
        """Whether it is rows of a table; TensorRT moves their codes on only if all have one scale."""
        picks = (node.inputs[1] for node in self.path if node.op_type == "Gather")
        return self.is_weight and any(index is not None and not index.is_initializer() for index in picks)

    @property
    def stored(self) -> ir.Node | None:
        """The DequantizeLinear that reads the stored codes of a weight which is quantized a second time.

        So are weights of 4 bits beside activations of 8: DQ in blocks, Q by channel, DQ.
        """
        source = _find_source(self.codes, QUANTIZE)
        quantized = source if source is not None and source is not self.codes else None
        stored = None if quantized is None else (_find_source(quantized, "Cast") or quantized).producer()
        if stored is None or stored.op_type != DEQUANTIZE or stored.inputs[0] is None:
            return None
        return stored if stored.inputs[0].is_initializer() else None

    @property
    def format(self) -> str | None:
        """The format of the codes that a layer multiplies; None if it is one that no layer runs in.

        Codes that cannot be told are taken for INT8.
        """
        if self.dtype is ir.DataType.FLOAT4E2M1 and not _is_made(self.dequantize.inputs[1], DEQUANTIZE):
            return "fp4"
        return "int8" if self.dtype is None else CODE_FORMATS.get(self.dtype)

    @property
    def stored_format(self) -> str | None:
        """The format that a weight is stored in: `format`, unless it is quantized a second time."""
        dtype = find_code_dtype(self.stored) if self.stored is not None else None
        return self.format if dtype is None else CODE_FORMATS.get(dtype)

    @property
    def scale(self) -> NDArray[np.generic] | None:
        """The scale of the DequantizeLinear; None if it is computed."""
        return find_constant(self.dequantize, 1)

    @property
    def rank(self) -> int:
        """The rank of what the layer reads; that of the codes where it is not known; else 2."""
        shapes = (self.value.shape, *([] if self.path else [self.codes.shape]))
        return next((len(shape) for shape in shapes if shape is not None), 2)

    @property
    def num_casts(self) -> int:
        """How many Cast nodes lie between."""
        return sum(node.op_type == "Cast" for node in self.path)


def _is_made(value: ir.Value | None, op_type: str) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == op_type


def _find_source(value: ir.Value, op_type: str) -> ir.Value | None:
    """Returns what a node of this type makes a value from; the value itself if another node makes it."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == op_type else value


def find_operand(value: ir.Value | None) -> Operand | None:
    """Returns the DequantizeLinear that a value comes from, through what only moves values; None if none."""
    operand = _walk_back(value)
    if operand is None or not all(_is_folded(node, operand) for node in operand.path):
        return None
    return None if operand.is_looked_up and (operand.scale is None or operand.scale.size > 1) else operand


def find_operands(node: ir.Node) -> tuple[Operand | None, Operand | None]:
    """Returns the activation and the weight of a layer; of two activations the second is the weight."""
    first, second = (find_operand(value) for value in node.inputs[:2])
    if first is not None and first.is_weight and not (second is not None and second.is_weight):
        return second, first
    return first, second


def _walk_back(value: ir.Value | None) -> Operand | None:
    path: list[ir.Node] = []
    current = value
    while value is not None and current is not None and (node := current.producer()) is not None:
        if node.op_type == DEQUANTIZE:
            return Operand(value, node, tuple(path)) if _reaches(node, path) else None
        if node.op_type == "Concat":
            return _through_concat(value, node, path)
        if node.op_type not in _MOVES and node.op_type != "Cast" and not _scales(node):
            return None
        path.append(node)
        current = node.inputs[0]
    return None


def _reaches(dequantize: ir.Node, path: list[ir.Node]) -> bool:
    """Whether TensorRT moves the codes along the path: it pools int8 only, and in two dimensions at most."""
    if dequantize.inputs[0] is None:
        return False
    pools = [node for node in path if node.op_type == "MaxPool"]
    flat = all(node.outputs[0].shape is None or len(node.outputs[0].shape) < 5 for node in pools)
    dtypes = (find_code_dtype(dequantize), dequantize.outputs[0].dtype)
    eight = dtypes[0] in EIGHT_BITS and dtypes[1] is not ir.DataType.BFLOAT16
    return not pools or (flat and eight)


def _through_concat(value: ir.Value, node: ir.Node, path: list[ir.Node]) -> Operand | None:
    """A Concat moves codes if all of them have the same scale."""
    parts: list[Operand] = []
    for part in node.inputs:
        operand = find_operand(part)
        if operand is None or operand.scale is None:
            return None
        parts.append(operand)
    if len({part.scale.tobytes() for part in parts if part.scale is not None}) != 1:
        return None
    return Operand(value, parts[0].dequantize, (*path, node, *parts[0].path))


def _scales(node: ir.Node) -> bool:
    """Whether it multiplies or divides by a constant."""
    factor = node.inputs[1] if node.op_type in ("Mul", "Div") else None
    return factor is not None and factor.is_initializer() and factor.const_value is not None


def _is_folded(node: ir.Node, operand: Operand) -> bool:
    """Whether TensorRT folds a factor on the path: into a weight, or one number into a scale."""
    if not _scales(node) or operand.is_weight:
        return True
    factor = find_constant(node, 1)
    return factor is not None and factor.size == 1


def read_constant(value: ir.Value | None) -> NDArray[Any]:
    """Returns the array of an initializer."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def find_constant(node: ir.Node, place: int) -> NDArray[np.generic] | None:
    """Returns the value of an input of a node; None if it has none there or it is computed."""
    value = node.inputs[place] if len(node.inputs) > place else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is a constant that no caller can replace."""
    if value is None or value.is_graph_input():
        return False
    return value.is_initializer() and value.const_value is not None


def read_points(node: ir.Node) -> NDArray[np.int64] | None:
    """Returns the zero points of a Q or DQ node, 0 where it has none; None if they are computed."""
    points = find_constant(node, 2)
    if points is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    return np.zeros((), np.int64) if points is None else points.astype(np.int64)


def list_moved_codes(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs of a node of `CODE_MOVES` that are codes."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in inputs if value is not None]


def find_code_dtype(node: ir.Node) -> ir.DataType | None:
    """Returns the dtype of the codes that a QuantizeLinear makes or a DequantizeLinear takes.

    ONNX: that of the zero point; without one that of `output_dtype`, and else uint8.
    """
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    codes = node.inputs[0] if node.op_type == DEQUANTIZE else node.outputs[0]
    output_dtype = node.attributes.get_int("output_dtype", 0)
    if output_dtype and node.op_type == QUANTIZE:  # that of a DequantizeLinear is of the floats
        return ir.DataType(output_dtype)
    if codes is not None and codes.dtype is not None:
        return codes.dtype
    return ir.DataType.UINT8 if node.op_type == QUANTIZE else None


def read_axis(node: ir.Node) -> int | None:
    """Returns the axis of the scales of a Q or DQ node, counted from the front; None for one scale."""
    scale = find_constant(node, 1)
    if scale is None or scale.size <= 1 or scale.ndim != 1:
        return None
    axis = node.attributes.get_int("axis", 1)
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return min(axis, rank - 1) if axis >= 0 and rank else axis + rank if axis < 0 else axis


def find_scale_axes(operand: Operand) -> frozenset[int]:
    """Returns the axes, as the layer sees them, along which a constant has scales of its own."""
    axis = read_axis(operand.dequantize)
    if axis is None:
        return frozenset()
    if not operand.path:
        return frozenset({axis})
    scale = operand.scale
    assert scale is not None
    numbers = (np.arange(scale.size) + 1).astype(scale.dtype)
    marks = evaluate(operand, codes=True, scale=numbers)
    return frozenset(i for i in range(marks.ndim) if np.any(np.diff(marks, axis=i)))


def evaluate(
    operand: Operand, *, codes: bool = False, scale: NDArray[np.generic] | None = None
) -> NDArray[np.generic]:
    """Returns the constant that a layer reads, computed by ONNX Runtime.

    Args:
        operand: A constant one.
        codes: Whether to take 1 for every code, so that the result shows each element's scale.
        scale: To take instead of the node's own; of the same shape.
    """
    edit = GraphEditor(_extract(operand))
    for node in list(edit.graph):
        if scale is not None and node.name == operand.dequantize.name:
            edit.set_constant(node, 1, f"{node.name}_scale", scale)
        source = node.inputs[0] if codes and node.op_type == DEQUANTIZE else None
        if source is not None and source.shape is not None and source.dtype is not None:
            ones = np.ones(tuple(source.shape.numpy()), source.dtype.numpy())
            edit.set_constant(node, 0, f"{node.name}_codes", ones)
    widen(edit.model, _HALVES)  # since ONNX Runtime does not compute in bfloat16
    if not any(node.op_type in ("Squeeze", "Unsqueeze") for node in edit.graph):  # axes are inputs since 13
        edit.graph.opset_imports[""] = max(read_opset(edit.model), PER_CHANNEL_OPSET)
    return np.asarray(run(open_session(edit.model, optimize=False), [str(operand.value.name)], {})[0])


def _extract(operand: Operand) -> ir.Model:
    """Returns a copy of the nodes that make an operand, found without looking at the rest of the graph."""
    graph, last = operand.dequantize.graph, operand.value.producer()
    assert isinstance(graph, ir.Graph)
    assert last is not None
    nodes: dict[ir.Node, None] = {}
    todo = [last]
    while todo:
        if before := [node for node in todo[-1].predecessors() if node not in nodes]:
            todo += before
        else:
            nodes[todo.pop()] = None
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    constants = tuple(value for value in read if value.is_initializer())
    found, opsets = tuple(nodes), graph.opset_imports
    view = ir.GraphView([], [operand.value], nodes=found, initializers=constants, opset_imports=opsets)
    return ir.Model(view.clone(), ir_version=10)


def list_sizes(value: ir.Value | None) -> tuple[int, ...]:
    """Returns the dimensions of a value, -1 for an unknown one; none where their number is unknown."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)
