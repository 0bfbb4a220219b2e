"""ONNX's own shape inference, called without the weights so that size does not matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from trtq.errors import ModelError
from trtq.models.skeleton import write_skeleton
from trtq.pipeline.graph.opset.own import OWN_OPERATORS, list_functions

_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_LIKE_FIRST_INPUT = ("GroupNormalization", "MeanVarianceNormalization")
"""Operators for which ONNX has no inference of its own: their output is as their first input."""
_SMALL_BYTES = 4096  # shapes, axes and the like: the tools need their values


def infer_shapes(model: ir.Model) -> None:
    """Fills in the dtype and shape of every tensor where ONNX can tell them.

    What the file says of them is not believed: it is often out of date, when somebody has opened the batch of
    the inputs alone. Only where ONNX knows nothing does the file's word stay: for operators of other domains,
    and for the dims of the model's outputs.

    Raises:
        ModelError: The shapes contradict each other.
    """
    _take_shapes(model.graph, _infer(_write_without_weights(model)).graph)


def _take_shapes(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    known = {item.name: item.type for item in (*inferred.value_info, *inferred.output)}
    for node, twin in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            if value.name:
                _take_type(value, known.get(value.name, onnx.TypeProto()))
        bodies = {item.name: [item.g] if item.HasField("g") else item.graphs for item in twin.attribute}
        for name, attribute in node.attributes.items():
            for body, other in zip(_list_bodies(attribute), bodies.get(name, ()), strict=True):
                _take_shapes(body, other)


def _take_type(value: ir.Value, known: onnx.TypeProto) -> None:
    dtype = ir.serde.deserialize_type_proto_for_type(known)
    shape = ir.serde.deserialize_type_proto_for_shape(known)
    value.type = value.type if dtype is None else dtype
    value.shape = _filled(shape, value.shape) if value.is_graph_output() else shape


def _list_bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type is ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type is ir.AttributeType.GRAPHS else ()


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with shapes; nodes that ONNX cannot infer are Identity there."""
    _forget_shapes(proto.graph)
    _hide_untyped(proto)
    proto.functions.extend(list_functions(_all_nodes(proto.graph)))
    return _infer_strictly(proto)


def _infer_strictly(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with shapes; what ONNX fails on while it follows values is tried without that."""
    failures = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except failures:
        pass
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=False)
    except failures as error:
        words = " ".join(str(error).split())
        raise ModelError(f"the shapes of the model do not fit together: {words[:300]}") from error


def _hide_untyped(proto: onnx.ModelProto) -> None:
    """Puts Identity in place of what ONNX cannot infer."""
    for node in _all_nodes(proto.graph):
        if node.op_type in _LIKE_FIRST_INPUT and node.domain in ("", "ai.onnx"):
            node.op_type = "Identity"
            node.ClearField("attribute")
            del node.input[1:]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in _BODIES else ():
                yield from _all_nodes(body)


def _forget_shapes(graph: onnx.GraphProto) -> None:
    typed = (node for node in graph.node if node.domain in ("", "ai.onnx") or node.op_type in OWN_OPERATORS)
    made = {name for node in typed for name in node.output}
    for value in (*graph.value_info, *graph.output):
        if value.name in made and value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in _BODIES else ():
                _forget_shapes(body)


def _filled(shape: ir.Shape | None, declared: ir.Shape | None) -> ir.Shape | None:
    """Returns the shape with its open dims taken from the declared one."""
    if shape is None:
        return declared
    if declared is None or len(shape) != len(declared):
        return shape
    return ir.Shape(
        [
            want if _is_open(have) and not _is_open(want) else have
            for have, want in zip(shape, declared, strict=True)
        ]
    )


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    """Returns whether nothing is known of the dim; ONNX calls what it cannot infer `unk__0` and so on."""
    if isinstance(dim, int):
        return dim < 0
    return dim.value is None or dim.value.startswith("unk__")


def _write_without_weights(model: ir.Model) -> onnx.ModelProto:
    """Returns the model with the larger weights as inputs."""
    held, inputs = dict[str, ir.TensorProtocol](), list[ir.Value]()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > _SMALL_BYTES:
            inputs.append(ir.val(name, tensor.dtype, tensor.shape.numpy()))
        else:
            held[name] = tensor
    try:
        return write_skeleton(model, held, inputs)
    except ir.serde.SerdeError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ModelError(f"the model cannot be written as ONNX: {cause[:300]}") from error
