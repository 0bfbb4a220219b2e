"""From a placement to a model in several number formats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Ranges
from trtq.kept import KeptFp32
from trtq.pipeline.formats import BF16, FP16, FP32
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.graph.edit import map_values
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.rescale import rename
from trtq.pipeline.rewrite.kv_cache import hold_caches
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.reach import spread
from trtq.pipeline.rewrite.rotation.rotate import rotate
from trtq.pipeline.rewrite.rotation.weights import measure_gain
from trtq.pipeline.rewrite.weights.apply import Runtime, find_scale_dtypes, quantize_weights
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, group_by_weight
from trtq.pipeline.rewrite.weights.gram import quantize_by_gptq
from trtq.pipeline.rewrite.weights.rescaled import rescale_inputs
from trtq.workers import Workers


@dataclass(frozen=True, slots=True)
class MixedModel:
    """A model in several precisions, what stays FP32 although the rest is FP16, and what to tell of it."""

    model: ir.Model
    kept_fp32: tuple[KeptFp32, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightEncoding:
    """How weights are encoded that are quantized alone.

    Attributes:
        method: One of their format's methods.
        runtime: Who runs the result, caches of codes too.
        batches: The data, checked against the model; GPTQ and AWQ need it.
        workers: Who share what these do; None: this process.
        rotates: Whether residual streams may be rotated, where the weights then lose less.
    """

    method: str = "rtn"
    runtime: Runtime = "tensorrt"
    batches: Batches | None = None
    workers: Workers | None = None
    rotates: bool = False


def quantize_graph(
    graph: Graph,
    placement: Placement,
    ranges: Ranges | None = None,
    *,
    rest: FloatFormat = FP32,
    keep_fp32: tuple[str, ...] = (),
    weights: WeightEncoding = WeightEncoding(),
    floats: MixedModel | None = None,
) -> MixedModel:
    """Returns the model that a placement describes: with Q/DQ, weights in few bits, or caches of codes.

    Args:
        graph: The float model; it is not changed.
        placement: How each layer is held.
        ranges: Of the activations that get Q/DQ, and their repairs.
        rest: What computes that is not quantized, but for the nodes of `keep_fp32`.
        keep_fp32: Patterns of nodes that stay FP32.
        weights: How weights are encoded that are quantized alone.
        floats: The model in the format `rest`, where it is known and nothing gets Q/DQ.

    Raises:
        UsageError: The ranges lack a tensor.
        ModelError: A weight is not finite.
        DataError: The data does not fit.
    """
    importance: Mapping[str, NDArray[np.float64]] = {}
    observed = map_values(graph.model.graph).keys()
    notes: tuple[str, ...] = ()
    if weights.rotates and weights.method != "awq" and not placement.encodings:  # AWQ scales channels itself
        chosen, dtype = group_by_weight(graph.model, placement), rest.array_dtype.name
        if (gain := measure_gain(graph.model, chosen, dtype)) is not None:
            rotated = rotate(graph.model)
            notes = (
                f"the residual stream is rotated: the weights then make {gain:.3g} times less noise; "
                f"--repair none leaves it",
            )
            graph, placement = (
                replace(graph, model=rotated.model),
                rename(placement, rotated.model, rotated.names),
            )
            ranges, floats = ranges and rotated.rename_ranges(ranges), None
    if weights.method == "awq":
        assert weights.batches is not None
        found = rescale_inputs(
            graph.model, placement, weights.batches, rest.array_dtype.name, weights.workers
        )
        graph, placement, importance = replace(graph, model=found.model), found.placement, found.importance
        ranges, floats = ranges and found.rename_ranges(ranges), None
    if floats is None or placement.encodings or placement.caches:
        model, dtype = graph.model, "float16" if rest is FP16 else "float32"
        if placement.encodings and ranges is not None:
            model = quantize(model, placement, ranges, scale_dtype=dtype)
        if placement.caches and ranges is not None:
            joins = weights.runtime != "onnxruntime"
            model = hold_caches(model, placement.caches, ranges, scale_dtype=dtype, joins_codes=joins)
        floats = convert_floats(model, rest, ranges, keep_fp32=keep_fp32, observed=observed)
    chosen = group_by_weight(graph.model, placement)
    made = _with_few_bits(floats, graph.model, chosen, weights, importance) if chosen else floats
    return replace(made, notes=notes)


def convert_floats(
    model: ir.Model,
    rest: FloatFormat,
    ranges: Ranges | None = None,
    *,
    keep_fp32: tuple[str, ...] = (),
    observed: Collection[str] | None = None,
) -> MixedModel:
    """Returns the model with its floats in a format; without ranges only constants tell what FP16 lacks.

    Args:
        model: It is not changed.
        rest: The format.
        ranges: With the tensors that FP16 cannot hold.
        keep_fp32: Patterns of nodes that stay FP32.
        observed: The tensors of the model that the ranges are of; None: it is this one.
    """
    if rest is FP16:
        beyond = ranges.beyond_fp16 if ranges is not None else {}
        if observed is not None:
            beyond = spread(model.graph, beyond, observed)
        return MixedModel(*to_fp16(model, keep_fp32=keep_fp32, beyond_fp16=beyond))
    return MixedModel(*to_bf16(model, keep_fp32=keep_fp32)) if rest is BF16 else MixedModel(model)


def _with_few_bits(
    floats: MixedModel,
    source: ir.Model,
    chosen: tuple[ChosenWeight, ...],
    how: WeightEncoding,
    importance: Mapping[str, NDArray[np.float64]],
) -> MixedModel:
    known = {}
    if how.method == "gptq":
        assert how.batches is not None
        dtypes = find_scale_dtypes(floats.model, chosen)
        known = quantize_by_gptq(source, chosen, how.batches, dtypes, how.workers)
    model = quantize_weights(
        floats.model,
        source,
        chosen,
        method=how.method,
        runtime=how.runtime,
        known=known,
        importance=importance,
    )
    return MixedModel(model, floats.kept_fp32)
