"""Which axes of an output are the places of a picture, as a convolution makes them.

Rows share the weights of their channels, and so their unit: a row of background whose values are far below
the noise of all rows is not lost. Channels have weights and units of their own, and so may tokens have.
"""

from __future__ import annotations

import onnx_ir as ir

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_AS_INPUT = (
    "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus",
    "Exp", "Sqrt", "Neg", "Identity", "Cast", "Add", "Sub", "Mul", "Div", "BatchNormalization", "Slice",
    "QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "MaxPool", "AveragePool", "DepthToSpace",
)  # fmt: skip
"""Operators whose output has its places on the same axes as an operand of as many axes."""


def find_places(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Returns the axes of places of each output that has some; what is not known is left out."""
    found = {str(value.name): _walk(value) for value in model.graph.outputs}
    return {name: axes for name, axes in found.items() if axes}


def _walk(value: ir.Value) -> tuple[int, ...]:
    """Returns the axes of places of one value; empty if no convolution is known to make them."""
    rank = None if value.shape is None else len(value.shape)
    if rank is None:
        return ()
    axes = tuple(range(rank))  # of the output, as the axes of what is walked to
    node = value.producer()
    while node is not None and not node.domain:
        if node.op_type in _CONVOLUTIONS:
            return tuple(place for place, axis in enumerate(axes) if axis > 1)
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
            axes = tuple(order[axis] for axis in axes)
        elif not (node.op_type in _AS_INPUT or _joins_channels(node)):
            return ()
        source = _find_operand(node, rank)
        node = None if source is None else source.producer()
    return ()


def _joins_channels(node: ir.Node) -> bool:
    return node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 1


def _find_operand(node: ir.Node, rank: int) -> ir.Value | None:
    """Returns the first operand with so many axes that a node computes."""
    operands = (value for value in node.inputs if value is not None and value.producer() is not None)
    return next((value for value in operands if value.shape is not None and len(value.shape) == rank), None)
