"""What a repair did, and the small rewrites that repairs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor


@dataclass(frozen=True, slots=True)
class Change:
    """A repair of one node.

    Attributes:
        rule: The rule of `trtq.pipeline.graph.lint` that the node broke.
        node: Its name.
        what: What it has now.
        is_exact: Whether the model still computes the same as the file, value for value.
        detail: The numbers of that, of this node alone.
    """

    rule: str
    node: str
    what: str
    is_exact: bool = True
    detail: str = ""


def set_scale(
    edit: GraphEditor, node: ir.Node, scale: NDArray[Any], dtype: ir.DataType = ir.DataType.INT8
) -> None:
    """Gives a Q or DQ node a scale of its own, and as many zero points of 0 in the dtype of the codes."""
    edit.set_constant(node, 1, f"{node.name}_scale", scale)
    zeros = ir.tensor(np.zeros(scale.shape, dtype.numpy()), dtype)
    edit.set_constant(node, 2, f"{node.name}_zero_point", zeros)


def set_params(
    edit: GraphEditor,
    node: ir.Node,
    scale: NDArray[Any],
    axis: int | None,
    dtype: ir.DataType = ir.DataType.INT8,
) -> None:
    """Makes a Q or DQ node symmetric with these scales; its codes are the caller's business.

    Args:
        edit: Of the graph of the node.
        node: A QuantizeLinear or DequantizeLinear.
        scale: Shape () if axis is None, else (C,).
        axis: The axis of the scales.
        dtype: Of the codes.
    """
    set_scale(edit, node, scale, dtype)
    for name in ("axis", "block_size", "output_dtype"):
        node.attributes.pop(name, None)
    if axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)


def name_rule(dtype: ir.DataType, points: NDArray[np.int64]) -> str:
    """Returns the rule that codes of a dtype with these zero points break, if they are not int8 around 0."""
    return "zero-point" if points.any() else "uint8" if dtype is ir.DataType.UINT8 else "codes-type"
