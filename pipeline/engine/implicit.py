"""Implicit quantization: what TensorRT 8.6 to 10 gets, so that it quantizes a float model itself."""

from __future__ import annotations

import onnx_ir as ir

from trtq.calibrators import create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.cache import to_cache
from trtq.calibrators.entropy import Auto, Entropy
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.ranges import Ranges
from trtq.errors import DataError
from trtq.models.spec import CalibrationSpec
from trtq.pipeline.engine.backend import ImplicitQuantization
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import QuantizedLayer

_TENSORRT_ALGORITHMS: dict[type, str] = {Auto: "entropy2", Entropy: "entropy2", MinMax: "minmax"}
"""The methods that TensorRT's own calibrators have too."""
_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def find_tensorrt_algorithm(spec: CalibrationSpec) -> str | None:
    """Returns which calibrator of TensorRT runs this method over the data; None if the ranges are ours."""
    method = create_method(spec)
    return _TENSORRT_ALGORITHMS.get(type(method)) if method == type(method)() else None


def list_float_tensors(graph: Graph) -> tuple[str, ...]:
    """Returns every tensor that TensorRT wants a range of: float inputs and results, in graph order."""
    values = [*graph.model.graph.inputs, *(value for node in graph.model.graph for value in node.outputs)]
    return tuple(
        str(value.name)
        for value in values
        if value.dtype in _FLOAT and value.name and not value.is_initializer()
    )


def plan_implicit(
    graph: Graph,
    spec: CalibrationSpec,
    *,
    batches: Batches | None,
    ranges: Ranges | None,
) -> ImplicitQuantization:
    """Returns how TensorRT quantizes the model: with our ranges, or by its own algorithm over the batches.

    Raises:
        DataError: There is no data where there are no ranges, or it holds no batch.
    """
    if ranges is not None:
        return ImplicitQuantization(scales=to_cache(ranges).scales)
    assert batches is not None
    first = next(iter(batches), None)
    if first is None:
        raise DataError(f"{batches.origin} holds no batch to calibrate with")
    shapes = {item.name: first.arrays[item.name].shape for item in graph.inputs}
    algorithm = find_tensorrt_algorithm(spec) or "entropy2"
    return ImplicitQuantization(algorithm=algorithm, batches=batches, shapes=shapes)


def list_implicit_layers(placement: Placement) -> tuple[QuantizedLayer, ...]:
    """Returns the layers that should run in INT8, as those of a Q/DQ model."""
    return tuple(QuantizedLayer(node.name, node.op_type, None, None, None) for node in placement.layers)
