"""How precisions get into an engine, decided once for every command.

explicit    TensorRT 8 to 11, TensorRT-RTX, ONNX Runtime: the model says what is quantized, and how
implicit    TensorRT 8.6 to 10: the builder gets a range for every tensor and takes INT8 where that is faster
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trtq.errors import UsageError
from trtq.models.spec import LayerSpec
from trtq.pipeline.engine.backend import Backend, Precision
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import BF16, FP16, FP32, INT8
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement

FLOATS = {item.name: item for item in (FP32, FP16, BF16)}
"""What can compute that is not quantized, by name."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How precisions get into the engine.

    Attributes:
        quantization: "explicit" or "implicit".
        reason: Why this one, in words.
        rest: What computes that is not quantized.
        is_typed: Whether the builder goes by the types of the graph; else it is allowed precisions.
    """

    quantization: Literal["explicit", "implicit"]
    reason: str
    rest: FloatFormat
    is_typed: bool

    @property
    def is_implicit(self) -> bool:
        """Whether TensorRT quantizes the float model itself."""
        return self.quantization == "implicit"

    @property
    def graph_float(self) -> FloatFormat:
        """The float type that the graph itself computes in."""
        return self.rest if self.is_typed else FP32

    @property
    def scale_dtype(self) -> str:
        """The dtype of Q/DQ scales: FP16 where the graph is, so that none is rounded afterwards."""
        return "float16" if self.graph_float is FP16 else "float32"

    def list_precisions(self, precision: Precision) -> tuple[Precision, ...]:
        """Returns what the builder must be allowed for an engine of this precision."""
        if self.is_typed:
            return ()
        return (*(("int8",) if precision == "int8" else ()), *(("fp16",) if self.rest is FP16 else ()))


def choose_strategy(target: Target, backend: Backend) -> Strategy:
    """Returns how precisions get into the engine: explicitly, unless the target asks for implicit.

    Raises:
        UsageError: The target asks for implicit quantization where there is none.
    """
    rest = choose_rest(target, backend)
    if target.quantization != "implicit":
        asked = (
            "as asked"
            if target.quantization == "explicit"
            else f"{backend.name} takes Q/DQ models, as every version since TensorRT 8 does"
        )
        return Strategy("explicit", asked, rest, backend.takes_types())
    if target.form is not INT8 or len(target.code_formats) > 1:
        raise UsageError(f"--quantization implicit makes INT8 engines, no {target.precision} one")
    if reason := backend.lacks.get("implicit"):
        raise UsageError(f"backend {backend.name} has no implicit quantization: {reason}")
    return Strategy("implicit", "as asked; TensorRT 11 no longer has it", rest, is_typed=False)


def choose_rest(target: Target, backend: Backend | None = None) -> FloatFormat:
    """Returns what computes that is not quantized: by default FP16 where the backend gains from it.

    Args:
        target: What is built.
        backend: What builds it; None: the one that the target names, which need not work here.
    """
    if target.precision == "fp16" and target.kv_cache is None:
        return FP16
    if target.high_precision != "auto":
        return FLOATS[target.high_precision]
    backend = backend or BACKENDS.get(target.backend)
    return FP16 if backend is None or backend.runs_fp16 else FP32


def pin_precisions(
    graph: Graph, placement: Placement, strategy: Strategy, layers: LayerSpec, kept_fp32: Iterable[str]
) -> dict[str, Literal["fp16", "fp32"]]:
    """Returns, by node name, the lowest precision that a builder which chooses itself may take.

    With implicit quantization these are the nodes that explicit quantization would leave float; with FP16
    those that stay FP32. Where the builder goes by the graph's types there are none.

    Args:
        graph: The float model.
        placement: What is quantized.
        strategy: How precisions get into the engine.
        layers: What the user names.
        kept_fp32: The nodes that FP16 would ruin.
    """
    is_half = strategy.rest is FP16
    if strategy.is_typed or not (strategy.is_implicit or is_half):
        return {}
    fp32 = set(kept_fp32) if is_half else set()
    unquantized = {node.name for node in placement.kept} if strategy.is_implicit else set()
    pinned: dict[str, Literal["fp16", "fp32"]] = {}
    for name in (str(node.name) for node in graph.model.graph):
        if name in fp32 or _matches(name, layers.keep_fp32):
            pinned[name] = "fp32"
        elif name in unquantized or (strategy.is_implicit and _matches(name, layers.skip)):
            pinned[name] = "fp16" if is_half else "fp32"
    return pinned


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
