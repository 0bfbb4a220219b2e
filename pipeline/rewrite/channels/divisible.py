"""What computes a tensor out of constants that can take the division of its channels, exactly."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.operands import is_fixed
from trtq.pipeline.rewrite.channels.producers import (
    KEEP_SCALE,
    Divided,
    Producer,
    divide_layer,
    is_constant_clip,
)

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def find_divisible(
    source: ir.Value, readers: Collection[ir.Node], taken: Collection[str] = ()
) -> Producer | None:
    """Returns the constants that can take the division of a tensor along its last axis; None if none can.

    The tensor may have no readers but the given ones, and what is passed through no second reader:

    - the scale and bias of a LayerNormalization or RMSNormalization over the last axis;
    - the constant of a Mul or Div, which every decomposed normalization ends with;
    - weight and bias of a MatMul or Gemm;
    - through an Add or Sub of a constant, which is divided too; ReLU, LeakyReLU, PReLU and a Clip;
    - one factor of the Mul of two activations, as the gate of a SwiGLU has it.

    Args:
        source: The tensor, of known shape.
        readers: The nodes that are made to read what is divided.
        taken: Names of layers whose weights must stay as they are.
    """
    width = _width(source)
    return _find(source, {*readers}, width, taken) if width is not None else None


def _find(value: ir.Value, readers: set[ir.Node], width: int, taken: Collection[str]) -> Producer | None:
    node = value.producer()
    users = {user for user, _ in value.uses()}
    if node is None or value.is_graph_output() or not users <= readers or _width(value) != width:
        return None
    if node.op_type in _NORMALIZATIONS:
        return _of_normalization(node, value)
    if node.op_type in ("MatMul", "Gemm"):
        return _of_product(node, taken)
    if node.op_type in KEEP_SCALE:
        return _through(node, 0, width, taken)
    if is_constant_clip(node):
        found = _through(node, 0, width, taken)
        return found and replace(found, clips=(node, *found.clips))
    if node.op_type in ("Add", "Sub"):
        return _of_sum(node, width, taken)
    return _of_factors(node, width, taken) if node.op_type in ("Mul", "Div") else None


def _through(node: ir.Node, place: int, width: int, taken: Collection[str]) -> Producer | None:
    before = node.inputs[place]
    return None if before is None else _find(before, {node}, width, taken)


def _of_normalization(node: ir.Node, value: ir.Value) -> Producer | None:
    """Its statistics are those of its input, so its scale and bias alone make the size of each channel."""
    axis, rank = node.attributes.get_int("axis", -1), len(value.shape or ())
    constants = [place for place in (1, 2) if len(node.inputs) > place and node.inputs[place] is not None]
    is_last = axis in (-1, rank - 1) and value is node.outputs[0] and node.domain in _DOMAINS
    if not is_last or not all(_is_constant(node.inputs[place]) for place in constants):
        return None
    return Producer(tuple(Divided(node, place) for place in constants))


def _of_product(node: ir.Node, taken: Collection[str]) -> Producer | None:
    found = divide_layer(node)
    weight = node.inputs[1]
    is_own = weight is not None and len(weight.uses()) == 1 and len(weight.shape or ()) > 1
    if node.name in taken or not is_own or not all(_is_constant(node.inputs[item.place]) for item in found):
        return None
    return Producer(found)


def _of_sum(node: ir.Node, width: int, taken: Collection[str]) -> Producer | None:
    for place in (0, 1):
        if _is_constant(node.inputs[place]):
            found = _through(node, 1 - place, width, taken)
            return found and replace(found, constants=(*found.constants, Divided(node, place)))
    return None


def _of_factors(node: ir.Node, width: int, taken: Collection[str]) -> Producer | None:
    for place in (0, 1):
        if _is_constant(node.inputs[place]):
            return Producer((Divided(node, place, is_divisor=node.op_type == "Div" and place == 1),))
    if node.inputs[0] is node.inputs[1]:
        return None
    places = (0, 1) if node.op_type == "Mul" else (0,)
    found = (_through(node, place, width, taken) for place in places)
    return next((producer for producer in found if producer is not None), None)


def _is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant of floats that no caller can replace."""
    return value is not None and is_fixed(value) and value.dtype in FLOAT_TYPES


def _width(value: ir.Value) -> int | None:
    """Returns the length of the last axis; None if it is not known."""
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
