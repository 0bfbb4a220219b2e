"""A float graph that computes the same, with weights that lose less when they are held in few bits (AWQ)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.divisible import find_divisible
from trtq.pipeline.rewrite.channels.rescale import rename, rescale_tensor
from trtq.pipeline.rewrite.weights.awq import search_scales
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, group_by_weight
from trtq.pipeline.rewrite.weights.gptq import Gram
from trtq.pipeline.rewrite.weights.gram import map_inputs, read_weight
from trtq.workers import Workers


@dataclass(frozen=True, slots=True)
class RescaledInputs:
    """A graph with other weights and activations, and what is known of them.

    Attributes:
        model: The graph.
        placement: Of the graph.
        importance: What a squared error in each input of a weight counts, by the weight's name: shape (K,).
        names: Of the rescaled activations, by what each was called before.
    """

    model: ir.Model
    placement: Placement
    importance: Mapping[str, NDArray[np.float64]]
    names: Mapping[str, str]

    def rename_ranges(self, ranges: Ranges) -> Ranges:
        """Returns ranges of the float graph for this one; what is divided has other readers, perhaps."""
        beyond = ranges.beyond_fp16
        renamed = {self.names[name]: amax for name, amax in beyond.items() if name in self.names}
        return replace(ranges, beyond_fp16={**beyond, **renamed})


def rescale_inputs(
    model: ir.Model, placement: Placement, batches: Batches, dtype: str, workers: Workers | None = None
) -> RescaledInputs:
    """Returns the graph with the inputs of products with weights of few bits divided, where that wins.

    All products of an activation share its scales. It is divided where it is made (`find_divisible`); where
    that cannot be, by a Mul before the products. TensorRT-RTX computes the Mul within the normalization, the
    activation or the transposition behind attention that it follows; so an input of the graph is left.

    Args:
        model: The float graph; it is not changed.
        placement: Its layers; those with Q/DQ keep their weights.
        batches: The calibration data.
        dtype: Which the scales of the blocks must survive.
        workers: Who search the scales of some activations each; None: this process.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model, or a weight is not finite.
    """
    result = model.clone()
    edit, values = GraphEditor(result), map_values(result.graph)
    taken = {node.name for node in placement.quantized if node.activations}
    nodes = {str(node.name): node for node in result.graph}
    importance: dict[str, NDArray[np.float64]] = {}
    names: dict[str, str] = {}
    search = partial(_search, dtype=dtype)
    for source, weights, made in map_inputs(
        model, group_by_weight(model, placement), batches, search, workers
    ):
        counts, found = made
        if found is not None:
            names[source] = _divide(
                edit, values[source], _readers(values[source], weights, taken), found, taken
            )
            counts /= found**2
        for weight in weights:
            node = nodes[weight.readers[0].name]
            importance[str(node.inputs[1].name)] = counts  # type: ignore[union-attr]
    edit.drop_unused()
    placed = rename(placement, result, {})
    return RescaledInputs(result, placed, importance, names)


def _search(
    model: ir.Model, source: str, weights: Sequence[ChosenWeight], gram: Gram, *, dtype: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Returns what a squared error in each input counts, and by what these are divided; None: by nothing."""
    products = gram.damped()
    counts = np.diag(products).copy()
    if map_values(model.graph)[source].producer() is None:
        return counts, None
    read = (_read(model, weight) for weight in weights)
    return counts, search_scales(read, products, gram.magnitudes, dtype)


def _read(model: ir.Model, weight: ChosenWeight) -> tuple[NDArray[np.float32], int]:
    values = read_weight(model, weight)
    return (values if weight.blocks.axis == 0 else values.T), weight.blocks.size


def _divide(
    edit: GraphEditor,
    value: ir.Value,
    readers: Sequence[ir.Node],
    scale: NDArray[np.float64],
    taken: Collection[str],
) -> str:
    """Returns the name of the tensor that the readers read from then on."""
    producer = find_divisible(value, readers, taken)
    return str(rescale_tensor(edit, str(value.name), readers, scale, producer=producer).name)


def _readers(value: ir.Value, weights: Sequence[ChosenWeight], taken: Collection[str]) -> list[ir.Node]:
    """Returns the products of an activation whose weights can be multiplied: those chosen, and float ones."""
    chosen = {reader.name for weight in weights for reader in weight.readers}
    return [
        node
        for node in value.consumers()
        if node.name in chosen or (node.name not in taken and _is_float_product(node, value))
    ]


def _is_float_product(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is not value or node.graph is not value.graph:
        return False
    weight = node.inputs[1]
    if (
        weight is None
        or not weight.is_initializer()
        or weight.is_graph_input()
        or weight.dtype != value.dtype
    ):
        return False
    is_plain = node.attributes.get_int("transA", 0) == 0 and weight is not value
    return is_plain and len(weight.shape or ()) == 2 and len(weight.uses()) == 1
