"""Rewrites that leave what the model computes as it is, and make it easier to quantize."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.session import open_session, run

_MAX_GROWTH = 1 << 18  # elements; not bytes, so that a Cast of FP16 weights to FP32 is no growth
_NOT_FOLDED = frozenset({
    "QuantizeLinear", "DequantizeLinear",  # they are the point of a quantized model
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip


def drop_identities(model: ir.Model) -> None:
    """Removes Identity nodes, except where an output of the model has no other node to come from."""
    for node in [node for node in model.graph if node.op_type == "Identity"]:
        source, result = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if not result.is_graph_output():
            result.replace_all_uses_with(source)
        elif source.producer() is not None and not source.is_graph_output():
            _take_place(result, source)
        else:
            continue
        model.graph.remove(node, safe=True)


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Puts a value where another stood; where that is an output of the model, its name and type stay."""
    was_output, name = old.is_graph_output(), old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if was_output:
        old.name, new.name = None, name
        new.type = new.type if old.type is None else old.type
        new.shape = new.shape if old.shape is None else old.shape


def fold_constants(model: ir.Model) -> Iterator[str]:
    """Replaces what does not depend on an input by its value, computed by ONNX Runtime.

    Values that would grow the model (a broadcast constant) stay computed, and so does what has a body or no
    numpy dtype (bfloat16). `Shape` of a tensor whose shape is known counts as a constant.
    """
    num_shapes = _fold_shapes(model)
    foldable = _foldable_nodes(model)
    frontier = [
        value
        for node in foldable
        for value in node.outputs
        if any(user not in foldable for user in value.consumers())
    ]
    if frontier:
        part = ir.Model(ir.convenience.extract(model.graph, [], frontier), ir_version=model.ir_version)
        taken = collect_names(model.graph)
        arrays = run(open_session(part, optimize=False), [str(value.name) for value in frontier], {})
        for value, array in zip(frontier, arrays, strict=True):
            value.replace_all_uses_with(add_initializer(model.graph, f"{value.name}_folded", array, taken))
    model.graph.remove(list(foldable), safe=True)
    if num_shapes + len(foldable):
        yield f"folded {num_shapes + len(foldable)} nodes that depend on no input"


def _fold_shapes(model: ir.Model) -> int:
    shapes = [node for node in model.graph if node.op_type == "Shape" and node.domain in ("", "ai.onnx")]
    folded, taken = 0, collect_names(model.graph)
    for node in shapes:
        shape = _static_shape(node.inputs[0])
        if shape is None or node.outputs[0].is_graph_output():
            continue
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
        values = np.array(shape[start:end], np.int64)
        constant = add_initializer(model.graph, f"{node.name}_shape", values, taken)
        node.outputs[0].replace_all_uses_with(constant)
        model.graph.remove(node, safe=True)
        folded += 1
    return folded


def _foldable_nodes(model: ir.Model) -> dict[ir.Node, None]:
    foldable: dict[ir.Node, None] = {}
    for node in model.graph:
        if _depends_on_no_input(node, foldable) and not any(out.is_graph_output() for out in node.outputs):
            foldable[node] = None
    return foldable


def _depends_on_no_input(node: ir.Node, foldable: dict[ir.Node, None]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_FOLDED or _has_body(node):
        return False
    constant = all(
        value is None or value.is_initializer() or value.producer() in foldable for value in node.inputs
    )
    if not constant or not all(_is_numpy(value) for value in node.outputs if value.name):
        return False
    sizes = [_num_elements(value) for value in node.outputs]
    room = _MAX_GROWTH + sum(_num_elements(value) or 0 for value in node.inputs)
    return all(size is None or size <= room for size in sizes)


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _is_numpy(value: ir.Value) -> bool:
    """Returns whether ONNX Runtime can hand the value over as an array: no sequence, string or bfloat16."""
    if not isinstance(value.type, ir.TensorType) or value.type.dtype is ir.DataType.STRING:
        return False
    return value.type.dtype.numpy().isbuiltin == 1


def _static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def _num_elements(value: ir.Value | None) -> int | None:
    shape = _static_shape(value)
    return None if shape is None else math.prod(shape)


def fold_batch_norm(model: ir.Model) -> Iterator[str]:
    """Multiplies a BatchNormalization into the Conv or ConvTranspose before it.

    Only where the convolution has no other user, all factors are constants and the products fit into the
    weight's dtype; then the two compute the same up to float rounding. The arithmetic is in float64.
    """
    folded, taken = 0, collect_names(model.graph)
    for norm in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if conv is None or not _can_take(conv, norm):
            continue
        weight, bias = _normalized(conv, norm)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            continue
        conv.resize_inputs(3)
        conv.replace_input_with(1, add_initializer(model.graph, f"{conv.name}_weight", weight, taken))
        conv.replace_input_with(2, add_initializer(model.graph, f"{conv.name}_bias", bias, taken))
        _take_place(norm.outputs[0], conv.outputs[0])
        model.graph.remove(norm, safe=True)
        folded += 1
    if folded:
        yield f"folded {folded} BatchNormalization nodes into the convolutions before them"


def _normalized(conv: ir.Node, norm: ir.Node) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the weight and the bias with which the convolution computes both nodes."""
    gamma, beta, mean, variance = (_constant(value).astype(np.float64) for value in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    weight = _constant(conv.inputs[1])
    bias = _constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    axis = 1 if conv.op_type == "ConvTranspose" else 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the caller looks
        factor = gamma / np.sqrt(variance + epsilon)
        scaled = weight * factor.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        shifted = (np.asarray(bias, np.float64) - mean) * factor + beta
        return scaled.astype(weight.dtype), shifted.astype(weight.dtype)


def fold_bias(model: ir.Model) -> Iterator[str]:
    """Adds a constant per channel to the bias of the Conv before it; Paddle's exporter leaves it apart."""
    folded, taken = 0, collect_names(model.graph)
    for add in [node for node in model.graph if node.op_type == "Add"]:
        for term, constant in ((0, 1), (1, 0)):
            value = add.inputs[term]
            conv = value.producer() if value is not None else None
            if conv is None or conv.op_type != "Conv" or not _is_only_user(conv, add):
                continue
            weight, offset = conv.inputs[1], add.inputs[constant]
            if not (
                _is_constant(weight) and _is_constant(offset) and all(map(_is_constant, conv.inputs[2:]))
            ):
                continue
            num_channels, shape = _constant(weight).shape[0], _constant(offset).shape
            per_channel = (num_channels, *(1,) * (_constant(weight).ndim - 2))
            if shape not in (per_channel, (1, *per_channel)):
                continue
            bias = _constant(offset).reshape(-1)
            if len(conv.inputs) > 2 and conv.inputs[2] is not None:
                bias = bias + _constant(conv.inputs[2])
            conv.resize_inputs(3)
            conv.replace_input_with(2, add_initializer(model.graph, f"{conv.name}_bias", bias, taken))
            _take_place(add.outputs[0], conv.outputs[0])
            model.graph.remove(add, safe=True)
            folded += 1
            break
    if folded:
        yield f"folded {folded} bias additions into the convolutions before them"


def _is_only_user(producer: ir.Node, user: ir.Node) -> bool:
    value = producer.outputs[0]
    return not value.is_graph_output() and [node for node, _ in value.uses()] == [user]


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _can_take(conv: ir.Node, norm: ir.Node) -> bool:
    grouped = "group" in conv.attributes and conv.attributes["group"].as_int() != 1
    training = "training_mode" in norm.attributes and norm.attributes["training_mode"].as_int() != 0
    return (
        (conv.op_type == "Conv" or (conv.op_type == "ConvTranspose" and not grouped))
        and _is_only_user(conv, norm)
        and not training
        and not any(value.uses() or value.is_graph_output() for value in norm.outputs[1:])
        and all(value is not None and value.is_initializer() for value in norm.inputs[1:5])
        and all(map(_is_constant, conv.inputs[1:]))
    )


def _constant(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def collect_names(graph: ir.Graph) -> set[str]:
    """Returns the names of all values of the graph and of the bodies in it."""
    taken = set(graph.initializers) | {str(value.name) for value in graph.inputs}
    return taken | {str(value.name) for node in graph.all_nodes() for value in node.outputs}


def make_unique_name(graph: ir.Graph, name: str, taken: set[str] | None = None) -> str:
    """Returns the name, with a number added if a value of the graph or of a body in it has it.

    Args:
        graph: Where the name is to be used.
        name: What is wanted.
        taken: `names_in(graph)`, for who needs many names: the new one is added to it.
    """
    taken = collect_names(graph) if taken is None else taken
    unique = next(
        candidate
        for candidate in itertools.chain([name], (f"{name}_{count}" for count in itertools.count(1)))
        if candidate not in taken
    )
    taken.add(unique)
    return unique


def add_initializer(
    graph: ir.Graph, name: str, array: NDArray[Any], taken: set[str] | None = None
) -> ir.Value:
    """Returns a new constant of the graph; a number is added to a name that is taken."""
    unique = make_unique_name(graph, name, taken)
    tensor = ir.tensor(np.asarray(array), name=unique)
    value = ir.Value(
        name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.initializers.add(value)
    return value


class Additions:
    """Adds many constants to a graph: the names that it has are read once."""

    def __init__(self, graph: ir.Graph) -> None:
        """Reads the names of the graph and of the bodies in it."""
        self.graph = graph
        self._taken = collect_names(graph)

    def name(self, wanted: str) -> str:
        """Returns the name, with a number added if it is taken; from now on it is."""
        return make_unique_name(self.graph, wanted, self._taken)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Returns a new constant; a number is added to a name that is taken."""
        return add_initializer(self.graph, name, array, self._taken)
