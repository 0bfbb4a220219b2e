"""From a graph and the weights that were chosen to one that holds these weights in few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from trtq.models.tensors import read_values, require_finite
from trtq.pipeline.formats.fp8 import quantize_fp8
from trtq.pipeline.formats.int4 import quantize_int4
from trtq.pipeline.formats.int8 import quantize_int8
from trtq.pipeline.formats.nf4 import quantize_nf4
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.forms import (
    Chain,
    add_dequantize,
    add_double_lookup,
    add_lookup,
    add_matmul_bnb4,
)
from trtq.pipeline.rewrite.weights.layout import Codes, Form, Part, choose_form, fill_parts, plan_parts

Runtime = Literal["tensorrt", "onnxruntime"]
"""Who runs the result."""
Tensors = tuple[ir.TensorProtocol, ...]


def quantize_weights(
    model: ir.Model,
    source: ir.Model,
    chosen: Sequence[ChosenWeight],
    scheme: WeightScheme,
    *,
    runtime: Runtime = "tensorrt",
    known: Mapping[str, Codes] | None = None,
) -> ir.Model:
    """Returns the model with the chosen weights in few bits; activations are untouched.

    A weight that lies in another file is read and quantized when the result is saved, so that one is in
    memory at a time.

    Args:
        model: The graph, perhaps computing in FP16 already; it is not changed.
        source: The float graph with the weights as they were, under the same names of nodes.
        chosen: What `choose_weights` returned for the source.
        scheme: The format.
        runtime: For ONNX Runtime, NF4 products are MatMulBnb4.
        known: Codes that were found already (GPTQ), by the weight's name.
    """
    result = model.clone()
    result.ir_version = max(result.ir_version, 10)  # the first with INT4
    edit, nodes = GraphEditor(result), {str(node.name): node for node in result.graph}
    order = {node: index for index, node in enumerate(result.graph)}
    for weight in chosen:
        tensor = source.graph.initializers[weight.tensor].const_value
        assert tensor is not None
        codes = (known or {}).get(weight.tensor)
        for dtype, readers in _by_dtype(nodes, weight).items():
            bnb4 = runtime == "onnxruntime" and dtype is ir.DataType.FLOAT and _takes_bnb4(readers)
            form = choose_form(scheme, bnb4=bnb4)
            parts = plan_parts(weight, scheme, dtype, form)
            tensors = _tensors(tensor, weight, scheme, codes, parts, form)
            readers.sort(key=lambda reader: order[reader[0]])
            _replace(edit, weight, readers, dtype, tensors, form)
    edit.drop_unused()
    return result


def encode_weight(values: ir.TensorProtocol, weight: ChosenWeight, scheme: WeightScheme, dtype: str) -> Codes:
    """Returns the weight's codes and scales.

    Args:
        values: The weight.
        weight: How it was chosen.
        scheme: The format; its method is "rtn" or "mse".
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".

    Raises:
        ModelError: The weight is not finite.
    """
    array = read_values(values)
    require_finite(array, weight.tensor)
    if scheme.format == "int8":
        return quantize_int8(array, weight.axis, dtype)
    if scheme.format == "fp8":
        return quantize_fp8(array, weight.axis, dtype)
    assert weight.axis is not None
    if scheme.format == "nf4":
        return quantize_nf4(array, weight.axis, weight.block_size)
    return quantize_int4(array, weight.axis, weight.block_size, dtype, scheme.method)


def _by_dtype(
    nodes: Mapping[str, ir.Node], weight: ChosenWeight
) -> dict[ir.DataType, list[tuple[ir.Node, int]]]:
    """Returns the readers and the places of the weight in them, by the dtype in which they take it."""
    found: dict[ir.DataType, list[tuple[ir.Node, int]]] = {}
    for reader in weight.readers:
        node = nodes[reader.node]
        value = node.inputs[reader.place]
        assert value is not None
        assert value.dtype is not None
        found.setdefault(value.dtype, []).append((node, reader.place))
    return found


def _takes_bnb4(readers: Sequence[tuple[ir.Node, int]]) -> bool:
    return all(node.op_type == "MatMul" and place == 1 for node, place in readers)


def _replace(
    edit: GraphEditor,
    weight: ChosenWeight,
    readers: Sequence[tuple[ir.Node, int]],
    dtype: ir.DataType,
    tensors: Tensors,
    form: Form,
) -> None:
    """Gives the readers, in graph order, the weight in its form, or products in their place."""
    first, place = readers[0]  # all new nodes stand before it
    chain = Chain(edit, first, edit.name_value(f"{weight.tensor}_{dtype.name.lower()}_quantized"))
    names = (
        ("codes", "scale") if form != "double" else ("codes", "absmax_codes", "absmax_scale", "absmax_offset")
    )
    values = [chain.constant(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
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


def _tensors(
    source: ir.TensorProtocol,
    weight: ChosenWeight,
    scheme: WeightScheme,
    codes: Codes | None,
    parts: Sequence[Part],
    form: Form,
) -> Tensors:
    """Returns the constants of a weight; of one that lies in another file when they are read."""
    dtype = parts[1].dtype.numpy().name if form == "linear" else "float32"

    def make() -> Tensors:
        found = codes if codes is not None else encode_weight(source, weight, scheme, dtype)
        return fill_parts(found, weight, parts, form)

    if codes is not None or not isinstance(source, ir.ExternalTensor):
        return make()
    once = _Once(make)
    return tuple(
        ir.LazyTensor(once.taker(index), part.dtype, ir.Shape(part.shape)) for index, part in enumerate(parts)
    )


class _Once:
    """Makes the constants of one weight when the first is read, and forgets each as it is handed out.

    They are read one after another when the model is saved, so that the work is done once and one weight is
    in memory.
    """

    def __init__(self, make: Callable[[], Tensors]) -> None:
        self._make = make
        self._left: dict[int, ir.TensorProtocol] = {}

    def taker(self, index: int) -> Callable[[], ir.TensorProtocol]:
        """Returns the function that hands out one of them."""

        def take() -> ir.TensorProtocol:
            if index not in self._left:
                self._left = dict(enumerate(self._make()))
            return self._left.pop(index)

        return take
