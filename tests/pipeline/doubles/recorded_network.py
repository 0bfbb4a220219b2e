"""What the recording TensorRT parses: enumerations, tensors, layers, the network, and the parser."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import onnx


class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    def __init__(self) -> None:
        self.is_made = True


DataType = IntEnum(
    "DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64"], start=0
)
LayerType = IntEnum("LayerType", ["CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE", "OTHER"], start=0)
MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"], start=0)
ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"], start=0)
LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0)
_DTYPES = {1: DataType.FLOAT, 10: DataType.HALF, 3: DataType.INT8, 6: DataType.INT32, 7: DataType.INT64}
_LAYER_TYPES = {
    "Constant": LayerType.CONSTANT,
    "Shape": LayerType.SHAPE,
    "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE,
}


class ITensor:
    __slots__ = ("dtype", "is_network_output", "is_shape_tensor", "name", "shape")

    def __init__(self, value: onnx.ValueInfoProto, *, is_output: bool = False) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = _DTYPES.get(kind.elem_type, DataType.BOOL)
        self.shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        self.is_network_output = is_output
        self.is_shape_tensor = self.dtype is DataType.INT64 and len(self.shape) == 1


class StrictLayer:
    """A layer as TensorRT 11 has it."""

    __slots__ = ("_outputs", "inputs", "metadata", "name", "num_outputs", "op_type", "type")

    def __init__(self, node: onnx.NodeProto, outputs: list[ITensor | None]) -> None:
        self.name, self.op_type = node.name, node.op_type
        self.metadata = f"[ONNX Layer: {node.name}]"
        self.type = _LAYER_TYPES.get(node.op_type, LayerType.OTHER)
        self.inputs = list(node.input)
        self._outputs = outputs
        self.num_outputs = len(outputs)

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index]


class Layer(StrictLayer):
    """A layer that can be bound to a precision, up to TensorRT 10."""

    __slots__ = ("output_types", "precision")

    def __init__(self, node: onnx.NodeProto, outputs: list[ITensor | None]) -> None:
        super().__init__(node, outputs)
        self.precision: DataType | None = None
        self.output_types: dict[int, str] = {}

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self.output_types[index] = dtype.name


class INetworkDefinition:
    def __init__(self, flags: int, layer_class: type[StrictLayer]) -> None:
        self.flags, self.layer_class = flags, layer_class
        self.layers: list[StrictLayer] = []
        self.inputs: list[ITensor] = []
        self.num_outputs = 0
        self.model = ""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_layer(self, index: int) -> StrictLayer:
        return self.layers[index]

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]


class _Error:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def code(self) -> Any:
        return IntEnum("Code", ["UNSUPPORTED_NODE"]).UNSUPPORTED_NODE  # type: ignore[attr-defined] # as it says

    def desc(self) -> str:
        return "false"

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert logger.is_made
        self._network = network
        self._errors: list[_Error] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _Error:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        self._errors = [_Error(node) for node in graph.node if node.op_type == "Unique"]
        values = {item.name: item for item in (*graph.value_info, *graph.output)}
        outputs = {item.name for item in graph.output}
        weights = {item.name for item in graph.initializer}
        for node in graph.node:
            tensors = [
                ITensor(values[name], is_output=name in outputs) if name in values else None
                for name in node.output
            ]
            self._network.layers.append(self._network.layer_class(node, tensors))
        self._network.inputs = [ITensor(item) for item in graph.input if item.name not in weights]
        self._network.num_outputs = len(outputs)
        self._network.model = path
        return not self._errors
