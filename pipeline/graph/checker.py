"""What ONNX's checker is given of a model: all but its large weights, in the form that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from trtq.pipeline.graph.tidy import VALUE_FIELDS, list_graphs

_REFUSED_NORMS = ("GroupNormalization", "SimplifiedLayerNormalization")
_UNCHECKED = "unchecked"
_HOLDERS = (GraphProto, NodeProto, AttributeProto, FunctionProto)
"""What tensors can lie in."""
_LARGE = 1 << 12


def copy_for_checker(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy for ONNX's checker, in which large weights and those of other files are empty.

    Outputs without a shape are scalars.
    GroupNormalization, which ONNX calls deprecated before opset 21, and ONNX Runtime's RMS normalization,
    which ONNX does not know, are in another domain.
    """
    copy = onnx.ModelProto()
    _copy_fields(proto, copy)
    copy.opset_import.add(domain=_UNCHECKED, version=1)
    for graph in list_graphs(copy):
        for output in graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.shape.SetInParent()
        for node in graph.node:
            if node.op_type in _REFUSED_NORMS and node.domain in ("", "ai.onnx"):
                node.domain = _UNCHECKED
    return copy


def _copy_fields(source: Message, target: Message) -> None:
    for field, value in source.ListFields():
        if isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
            continue
        place = getattr(target, field.name)
        if isinstance(value, Message):
            place.SetInParent()
            _copy_message(value, place)
        elif isinstance(value[0], (TensorProto, *_HOLDERS)):
            _copy_messages(value, place)
        else:
            place.extend(value)


def _copy_messages(sources: Iterable[Message], target: Iterable[Message]) -> None:
    for source in sources:
        _copy_message(source, target.add())  # type: ignore[attr-defined]


def _copy_message(source: Message, target: Message) -> None:
    if isinstance(source, TensorProto) and _is_left_out(source):
        target.MergeFrom(TensorProto(name=source.name, data_type=source.data_type, dims=[0]))
    elif isinstance(source, _HOLDERS) and not (isinstance(source, NodeProto) and _is_plain(source)):
        _copy_fields(source, target)
    else:
        target.CopyFrom(source)


def _is_left_out(tensor: TensorProto) -> bool:
    """Whether the values of a tensor, which are known to be as many as they must be, are no matter here."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return True
    is_raw = tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING
    others = (*VALUE_FIELDS, "string_data")
    return (
        is_raw and math.prod(tensor.dims) > _LARGE and not any(len(getattr(tensor, name)) for name in others)
    )


def _is_plain(node: NodeProto) -> bool:
    """Whether a node has no tensors in its attributes or bodies."""
    return not any(
        item.HasField("t") or item.HasField("g") or item.tensors or item.graphs for item in node.attribute
    )
