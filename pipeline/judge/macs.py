"""How many multiplications each layer does, and how many numbers it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.errors import ModelError
from trtq.models.session import SessionOptions, open_session, run
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import WEIGHTED

Shape = tuple[int, ...]
_RECURRENT = ("LSTM", "GRU", "RNN")
_NUM_INPUTS = 3
"""Of a recurrent layer: the sequence, the weights of the input, those of the state."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What a layer does.

    Attributes:
        macs: Its multiply-accumulates a sample.
        operands: The numbers that it multiplies: those of its inputs a sample, and of its weight.
        results: Those that it writes, a sample.
    """

    macs: int
    operands: int = 0
    results: int = 0


def count_macs(model: ir.Model, feed: Feed) -> dict[str, int]:
    """Returns the multiply-accumulates a sample by the name of each layer: see `count_work`.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    return {name: work.macs for name, work in count_work(model, feed).items()}


def count_work(model: ir.Model, feed: Feed) -> dict[str, LayerWork]:
    """Returns the work of a sample by the name of each node with weights, and each MatMul.

    Shapes are those that the feed gives in ONNX Runtime: shape inference does not know all of them. Nodes in
    the bodies of If, Loop and Scan are not counted. The float graph is not changed.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    tapped = model.clone()
    nodes = [node for node in tapped.graph if node.op_type in WEIGHTED]
    values = (value for node in nodes for value in (*node.inputs[:_NUM_INPUTS], *node.outputs[:1]))
    shapes, count = _measure_shapes(
        tapped, dict.fromkeys(value for value in values if value and value.name), feed
    )
    found = {}
    for node in nodes:
        inputs = [shapes.get(value, ()) for value in node.inputs[:_NUM_INPUTS]]
        output = shapes.get(node.outputs[0], ())
        operands = sum(
            math.prod(shape) // (1 if value is not None and value.is_initializer() else count)
            for value, shape in zip(node.inputs[:2], inputs, strict=False)
        )
        macs = _macs(node, inputs, output) // count
        found[str(node.name)] = LayerWork(macs, operands, math.prod(output) // count)
    return found


def _measure_shapes(
    model: ir.Model, values: Collection[ir.Value], feed: Feed
) -> tuple[Mapping[ir.Value | None, Shape], int]:
    """Returns the shapes, and of how many samples: of one alone where the model takes that."""
    if not values:
        return {}, 1
    names = [f"trtq_shape_{index}" for index in range(len(values))]
    for name, value in zip(names, values, strict=True):
        node = ir.node("Shape", [value], name=name)
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.INT64)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    arrays = {str(value.name): feed.arrays[str(value.name)] for value in model.graph.inputs}
    # Not optimized: ONNX Runtime would look through all these outputs at each node.
    session = open_session(without_fp4(model), optimize=False, engine=SessionOptions(packs_weights=False))
    found, count = None, max(feed.num_samples, 1)
    if _takes_one(model, arrays, count):
        with suppress(ModelError):  # a size inside may be fixed all the same
            found = run(session, names, {name: array[:1] for name, array in arrays.items()})
            count = 1
    found = found or run(session, names, arrays)
    return {value: tuple(shape.tolist()) for value, shape in zip(values, found, strict=True)}, count


def _takes_one(model: ir.Model, arrays: Mapping[str, NDArray[Any]], num_samples: int) -> bool:
    """Whether the samples lie along the first axis of every input, which is open."""
    shapes = [value.shape for value in model.graph.inputs]
    is_open = all(shape and not isinstance(shape[0], int) for shape in shapes)
    return is_open and all(array.shape[0] == num_samples for array in arrays.values())


def _macs(node: ir.Node, inputs: Sequence[Shape], output: Shape) -> int:
    first, second = inputs[0], inputs[1]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type in _RECURRENT:
        return math.prod(first[:2]) * (math.prod(second) + math.prod(inputs[2]))
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    return math.prod(output) * (first[0] if transposed else first[-1])
