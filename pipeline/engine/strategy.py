"""Which way INT8 gets into an engine: explicitly, by Q/DQ in the model, or implicitly, by TensorRT itself.

explicit    TensorRT 8 to 11, TensorRT-RTX, ONNX Runtime: what is quantized, and how, stands in the model
implicit    TensorRT 8.6 to 10: it gets a range for every tensor, and picks INT8 where that is faster
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from trtq.calibrators import create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.cache import to_cache
from trtq.calibrators.entropy import Auto, Entropy
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.ranges import Ranges
from trtq.errors import DataError, UsageError
from trtq.models.spec import CalibrationSpec, LayerSpec
from trtq.pipeline.engine.backend import Backend, ImplicitQuantization, Precision
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import QuantizedLayer

_TENSORRT_ALGORITHMS: dict[type, str] = {Auto: "entropy2", Entropy: "entropy2", MinMax: "minmax"}
"""The methods that TensorRT's own calibrators have too."""
_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class Strategy:
    """How precisions get into the engine.

    Attributes:
        quantization: "explicit" or "implicit".
        reason: Why this one, for people.
        fp16: Whether what is not quantized shall compute in FP16.
        is_typed: Whether the builder goes by the types of the graph; else it is allowed precisions.
    """

    quantization: Literal["explicit", "implicit"]
    reason: str
    fp16: bool
    is_typed: bool

    @property
    def fp16_graph(self) -> bool:
        """Whether FP16 must stand in the graph."""
        return self.fp16 and self.is_typed

    def precisions(self, precision: Precision) -> tuple[Precision, ...]:
        """Returns what the builder must be allowed for an engine of this precision."""
        if self.is_typed:
            return ()
        return (*(("int8",) if precision == "int8" else ()), *(("fp16",) if self.fp16 else ()))


def choose_strategy(target: Target, backend: Backend) -> Strategy:
    """Returns the way to build; explicit wherever nothing else is asked for.

    Raises:
        UsageError: Implicit quantization is asked for where there is none.
    """
    gains = target.high_precision == "auto" and backend.runs_fp16
    fp16 = gains or "fp16" in (target.precision, target.high_precision)
    if target.quantization != "implicit":
        asked = (
            "as asked"
            if target.quantization == "explicit"
            else f"{backend.name} takes Q/DQ models, as every version since TensorRT 8 does"
        )
        return Strategy("explicit", asked, fp16, backend.takes_types())
    if target.precision != "int8":
        raise UsageError(f"--quantization implicit makes INT8 engines, no {target.precision} one")
    if reason := backend.lacks.get("implicit"):
        raise UsageError(f"backend {backend.name} has no implicit quantization: {reason}")
    return Strategy("implicit", "as asked; TensorRT 11 has it no more", fp16, is_typed=False)


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


def pin_precisions(
    graph: Graph, placement: Placement, way: Strategy, layers: LayerSpec, kept_fp32: Iterable[str]
) -> dict[str, Literal["fp16", "fp32"]]:
    """Returns the precision of nodes, by name, for which a builder that is free to choose takes no lower one.

    With implicit quantization: the nodes that explicit quantization would leave float. With FP16: those that
    are kept FP32. Where the graph's types rule, they say it all.

    Args:
        graph: The float model.
        placement: What is quantized.
        way: How precisions get into the engine.
        layers: What the user names.
        kept_fp32: The nodes that FP16 would ruin.
    """
    is_implicit = way.quantization == "implicit"
    if way.is_typed or not (is_implicit or way.fp16):
        return {}
    fp32 = set(kept_fp32) if way.fp16 else set()
    unquantized = {node.name for node in placement.kept} if is_implicit else set()
    kept: dict[str, Literal["fp16", "fp32"]] = {}
    for name in (str(node.name) for node in graph.model.graph):
        if name in fp32 or _is_named(name, layers.keep_fp32):
            kept[name] = "fp32"
        elif name in unquantized or (is_implicit and _is_named(name, layers.skip)):
            kept[name] = "fp16" if way.fp16 else "fp32"
    return kept


def list_implicit_layers(placement: Placement) -> tuple[QuantizedLayer, ...]:
    """Returns the layers that should run in INT8, as those of a Q/DQ model."""
    return tuple(QuantizedLayer(node.name, node.op_type, None, None, None) for node in placement.layers)


def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
