"""What two versions of an operator have in common, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import onnx
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor

Rule = Callable[[GraphEditor, ir.Node], None]
"""Rewrites a node so that the next version of its operator computes the same; raises CannotConvertError."""


class CannotConvertError(Exception):
    """Why a node cannot say the same in another opset."""


@cache
def find_schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """Returns the schema that a standard operator has in an opset; None if it is not there yet."""
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def refit(node: ir.Node, old: onnx.defs.OpSchema | None, new: onnx.defs.OpSchema | None) -> None:
    """Makes a node of one version of its operator one of another version.

    An attribute that only the old version has goes if it has its default; a default that differs is written
    down. What the new version alone has is left out: by ONNX's custom its default means what was before.

    Raises:
        CannotConvertError: The new version has no place for something.
    """
    if old is None or new is None or new.deprecated:
        raise CannotConvertError("ONNX has no such operator there")
    for name, attribute in list(node.attributes.items()):
        known = new.attributes.get(name)
        if known is not None and _read_type(known) is attribute.type:
            continue
        default = read_default(old, name)
        if name != "consumed_inputs" and (default is None or default.value != attribute.value):
            raise CannotConvertError(f"the attribute {name!r} is not there")
        node.attributes.pop(name)
    for name in old.attributes.keys() & new.attributes.keys() - node.attributes.keys():
        default, other = read_default(old, name), read_default(new, name)
        if default is not None and (other is None or other.value != default.value):
            node.attributes[name] = default
    if len(node.inputs) > new.max_input or len(node.outputs) > new.max_output:
        raise CannotConvertError("it has more inputs or outputs than the operator")
    needed = [index for index, item in enumerate(new.inputs[: new.min_input]) if _is_single(item)]
    if any(index >= len(node.inputs) or node.inputs[index] is None for index in needed):
        raise CannotConvertError("an input is missing")
    is_older = new.since_version < old.since_version  # a newer version takes what the older one did
    for items, values in ((new.inputs, node.inputs), (new.outputs, node.outputs)) if is_older else ():
        for index, value in enumerate(values):
            _check_type(value, items[min(index, len(items) - 1)].types)


def _check_type(value: ir.Value | None, types: Collection[str]) -> None:
    if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
        return
    name = value.dtype.name.lower()
    if f"tensor({name})" not in types:
        raise CannotConvertError(f"it takes no {name} there")


def _is_single(item: onnx.defs.OpSchema.FormalParameter) -> bool:
    return item.option == onnx.defs.OpSchema.FormalParameterOption.Single


def read_default(schema: onnx.defs.OpSchema, name: str) -> ir.Attr | None:
    """Returns an attribute with its default value; None if it has none."""
    known = schema.attributes.get(name)
    if known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    return ir.Attr(name, _read_type(known), ir.serde.deserialize_attribute(known.default_value).value)


def _read_type(known: onnx.defs.OpSchema.Attribute) -> ir.AttributeType:
    return ir.AttributeType[str(known.type).rpartition(".")[2]]
