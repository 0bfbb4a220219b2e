"""What a repair did, and the small rewrites that repairs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.fold import add_initializer


@dataclass(frozen=True, slots=True)
class Change:
    """A repair of one node.

    Attributes:
        rule: The rule of `trtq.pipeline.graph.lint` that the node broke.
        node: Its name.
        what: What it has now.
        is_exact: Whether the model still computes the same as the file, value for value.
    """

    rule: str
    node: str
    what: str
    is_exact: bool = True


def set_constant(node: ir.Node, place: int, array: NDArray[Any]) -> None:
    """Gives a node a constant of its own as an input; others that read the old one keep it."""
    assert isinstance(node.graph, ir.Graph)
    node.resize_inputs(max(place + 1, len(node.inputs)))
    node.replace_input_with(place, add_initializer(node.graph, f"{node.name}_{_NAMES[place]}", array))


_NAMES = ("codes", "scale", "zero_point")


def set_params(node: ir.Node, scale: NDArray[Any], axis: int | None) -> None:
    """Makes a Q or DQ node symmetric int8 with these scales; its codes are the caller's business.

    Args:
        node: A QuantizeLinear or DequantizeLinear.
        scale: Shape () if axis is None, else (C,).
        axis: The axis of the scales.
    """
    set_constant(node, 1, scale)
    set_constant(node, 2, np.zeros(scale.shape, np.int8))
    for name in ("axis", "block_size", "output_dtype"):
        node.attributes.pop(name, None)
    if axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)


def drop_unused(model: ir.Model) -> None:
    """Removes the nodes and constants that nothing reads any more."""
    ir.passes.common.RemoveUnusedNodesPass()(model)
