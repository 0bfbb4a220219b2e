"""Activations of straight pieces in operators that ONNX Runtime computes in codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor

_HARD_SWISH = (1 / 6, 0.5)


def part_hard_activations(model: ir.Model) -> Iterator[str]:
    """Writes HardSigmoid and HardSwish as sums, limits and products, in the model itself.

    ONNX Runtime computes neither of them in codes. `HardSigmoid(x) = alpha * Clip(x + beta / alpha, 0,
    1 / alpha)`: the sum has a kernel, the limits are those of the codes behind it, and the factor goes into
    their scale (`factors`). The output keeps its name. A HardSigmoid that does not rise stays as it is.
    """
    edit, parted = GraphEditor(model), 0
    for node in [node for node in model.graph if node.op_type in ("HardSigmoid", "HardSwish")]:
        source, result = node.inputs[0], node.outputs[0]
        slope, middle = _read_pieces(node)
        if source is None or result.dtype is not ir.DataType.FLOAT or slope <= 0 or node.domain:
            continue
        made = _limit(edit, node, source, middle / slope, 1 / slope)
        factor = _add_number(edit, f"{node.name}_slope", slope)
        if node.op_type == "HardSwish":
            name = f"{result.name}_product"
            made = edit.insert("Mul", [source, made], like=result, output=name, before=node)
        made = edit.insert("Mul", [made, factor], like=result, output=f"{result.name}_scaled", before=node)
        edit.replace(result, made, rename="")
        edit.remove(node)
        parted += 1
    if parted:
        yield f"wrote {format_count(parted, 'HardSigmoid or HardSwish node')} as sums and products"


def _limit(edit: GraphEditor, node: ir.Node, source: ir.Value, offset: float, top: float) -> ir.Value:
    """Returns `Clip(source + offset, 0, top)`, made before a node."""
    like, name = node.outputs[0], str(node.outputs[0].name)
    offset_, low, high = (
        _add_number(edit, f"{node.name}_{word}", number)
        for word, number in (("offset", offset), ("low", 0.0), ("high", top))
    )
    total = edit.insert("Add", [source, offset_], like=like, output=f"{name}_sum", before=node)
    return edit.insert("Clip", [total, low, high], like=like, output=f"{name}_limited", before=node)


def _add_number(edit: GraphEditor, name: str, number: float) -> ir.Value:
    return edit.add_constant(name, np.array(number, np.float32))


def _read_pieces(node: ir.Node) -> tuple[float, float]:
    """Returns the slope of the middle piece, and its value at 0."""
    if node.op_type == "HardSwish":
        return _HARD_SWISH
    return node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
