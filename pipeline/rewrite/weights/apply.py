"""From a graph and the weights that were chosen to one that holds these weights in few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import is_read_late, read_values, require_finite
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.rewrite.weights.awq import encode_by_importance
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.forms import (
    Chain,
    add_dequantize,
    add_double_lookup,
    add_lookup,
    add_matmul_bnb4,
)
from trtq.pipeline.rewrite.weights.layout import Form, Part, choose_form, fill_parts, plan_parts
from trtq.pipeline.rewrite.weights.streamed import stream_weight
from trtq.pipeline.rewrite.weights.strips import can_strip

Runtime = Literal["tensorrt", "onnxruntime"]
"""Who runs the result."""
Tensors = tuple[ir.TensorProtocol, ...]


def quantize_weights(
    model: ir.Model,
    source: ir.Model,
    chosen: Sequence[ChosenWeight],
    *,
    method: str = "rtn",
    runtime: Runtime = "tensorrt",
    known: Mapping[str, Codes] | None = None,
    importance: Mapping[str, NDArray[np.float64]] | None = None,
) -> ir.Model:
    """Returns the model with the chosen weights in few bits; activations are untouched.

    A weight that lies in another file is read and quantized when the result is saved, so that one is in
    memory at a time.

    Args:
        model: The graph, perhaps computing in FP16 already; it is not changed.
        source: The float graph with the weights as they were, under the same names of nodes.
        chosen: What `group_by_weight` returned for the source.
        method: How they are encoded: one of the format's.
        runtime: For ONNX Runtime, NF4 products are MatMulBnb4.
        known: Codes that were found already (GPTQ), by the weight's name.
        importance: What an error in each input of a weight counts (AWQ), by the weight's name.
    """
    result = model.clone()
    result.ir_version = max(result.ir_version, 10)  # the first with INT4
    edit, nodes = GraphEditor(result), {str(node.name): (i, node) for i, node in enumerate(result.graph)}
    for weight in chosen:
        tensor = source.graph.initializers[weight.tensor].const_value
        assert tensor is not None
        codes = (known or {}).get(weight.tensor)
        for dtype, readers in _by_dtype(nodes, weight).items():
            bnb4 = runtime == "onnxruntime" and dtype is ir.DataType.FLOAT and _takes_bnb4(readers)
            form = choose_form(weight.encoding, bnb4=bnb4)
            parts = plan_parts(weight, dtype, form)
            counts = (importance or {}).get(weight.tensor)
            kind = dtype.numpy().name
            make = partial(_make, codes, tensor, weight, kind, method, counts, parts, form)
            if codes is not None or not is_read_late(tensor):
                tensors = make()
            elif counts is None and form != "bnb4" and can_strip(tensor):
                tensors = stream_weight(tensor, weight, kind, method, parts, form)
            else:
                tensors = _delay(make, parts)
            named = dict(zip((part.name for part in parts), tensors, strict=True))
            _replace(edit, weight, readers, dtype, named, form)
    edit.drop_unused()
    return result


def _make(
    known: Codes | None,
    values: ir.TensorProtocol,
    weight: ChosenWeight,
    dtype: str,
    method: str,
    importance: NDArray[np.float64] | None,
    parts: Sequence[Part],
    form: Form,
) -> Tensors:
    """Returns the content of the constants of a weight, encoded unless its codes are known."""
    if known is None:
        known = encode_weight(values, weight, dtype, method, importance)
    return fill_parts(known, weight, parts, form)


def encode_weight(
    values: ir.TensorProtocol,
    weight: ChosenWeight,
    dtype: str,
    method: str = "rtn",
    importance: NDArray[np.float64] | None = None,
) -> Codes:
    """Returns the codes and scales of a weight; see `CodeFormat.encode` and `encode_by_importance`.

    Raises:
        ModelError: The weight is not finite.
    """
    array, encoding = read_values(values), weight.encoding
    require_finite(array, weight.tensor)
    if importance is None:
        return encoding.format.encode(array, encoding.granularity, dtype, method)
    if weight.blocks.axis == 0:
        return encode_by_importance(array, importance, weight.blocks.size, dtype)
    codes, scales = encode_by_importance(array.T, importance, weight.blocks.size, dtype)
    return codes.T, scales.T


def find_scale_dtypes(model: ir.Model, chosen: Sequence[ChosenWeight]) -> dict[str, str]:
    """Returns the dtype that the scales of each weight must survive, by name: the shortest of its readers.

    Args:
        model: The graph, perhaps computing in FP16 already, but for nodes that stay FP32.
        chosen: What `group_by_weight` returned for the float graph.
    """
    nodes = {str(node.name): (place, node) for place, node in enumerate(model.graph)}
    return {
        weight.tensor: min(_by_dtype(nodes, weight), key=lambda dtype: dtype.bitwidth).numpy().name
        for weight in chosen
    }


def _by_dtype(
    nodes: Mapping[str, tuple[int, ir.Node]], weight: ChosenWeight
) -> dict[ir.DataType, list[tuple[ir.Node, int]]]:
    """Returns the readers in graph order and the places of the weight in them, by dtype."""
    found: dict[ir.DataType, list[tuple[ir.Node, int]]] = {}
    for reader in sorted(weight.readers, key=lambda item: nodes[item.name][0]):
        assert reader.weight is not None
        node, place = nodes[reader.name][1], reader.weight[0]
        value = node.inputs[place]
        assert value is not None
        assert value.dtype is not None
        found.setdefault(value.dtype, []).append((node, place))
    return found


def _takes_bnb4(readers: Sequence[tuple[ir.Node, int]]) -> bool:
    return all(node.op_type == "MatMul" and place == 1 for node, place in readers)


def _replace(
    edit: GraphEditor,
    weight: ChosenWeight,
    readers: Sequence[tuple[ir.Node, int]],
    dtype: ir.DataType,
    tensors: Mapping[str, ir.TensorProtocol],
    form: Form,
) -> None:
    """Gives the readers, in graph order, the weight in its form, or products in their place."""
    first, place = readers[0]  # all new nodes stand before it
    chain = Chain(edit, first, edit.name_value(f"{weight.tensor}_{dtype.name.lower()}_quantized"))
    values = [chain.constant(name, tensor) for name, tensor in tensors.items()]
    if form == "bnb4":
        for node, _ in readers:
            result = add_matmul_bnb4(chain, weight, node, *values)
            edit.replace(node.outputs[0], result, rename="")
            edit.remove(node)
            result.producer().name = node.name  # type: ignore[union-attr]
        return
    if form == "double":
        magnitudes = add_double_lookup(Chain(edit, first, f"{chain.stem}/absmax"), weight, *values[1:])
        values = [values[0], chain.converted(magnitudes, dtype, "Magnitudes")]
    if form == "linear":
        new = add_dequantize(chain, weight, *values)
    else:
        new = add_lookup(chain, weight, values[0], values[1], after=_activation(first, place))
    for node, place in readers:
        node.replace_input_with(place, new)


def _activation(node: ir.Node, place: int) -> ir.Value | None:
    """Returns what a product multiplies its weight with; None for an embedding."""
    return None if node.op_type == "Gather" else node.inputs[1 - place]


def _delay(make: Callable[[], Tensors], parts: Sequence[Part]) -> Tensors:
    """Returns constants that are made when the first is read, and forgotten as each is handed out.

    They are read one after another when the model is saved, so that the work is done once and one weight is
    in memory.
    """
    left: dict[int, ir.TensorProtocol] = {}

    def take(index: int) -> ir.TensorProtocol:
        if index not in left:
            left.update(enumerate(make()))
        return left.pop(index)

    return tuple(
        ir.LazyTensor(partial(take, index), part.dtype, ir.Shape(part.shape))
        for index, part in enumerate(parts)
    )
