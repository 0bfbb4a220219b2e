"""Scales of INT4 weights in the type that their layer computes in, without a Cast behind them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint.formats import has_cast
from trtq.pipeline.graph.operands import find_constant, find_operands
from trtq.pipeline.graph.repair.change import Change

_ROUNDED = 2.0**-10


def repair_scales(edit: GraphEditor) -> Iterator[Change]:
    """Casts the scales of INT4 weights instead of the weights: TensorRT fuses no Cast into the product.

    That is exact where the type of the layer holds every scale. Else scales are rounded by half a step of
    that type, as the Cast rounds what they make; where one would become 0 or infinite, nothing is done.
    """
    for node in list(edit.graph):
        for operand in find_operands(node) if node.op_type in ("Gemm", "MatMul") else ():
            if operand is None or operand.format != "int4" or not operand.is_weight or not has_cast(operand):
                continue
            changed = _cast_scales(edit, operand.dequantize, operand.path[-1])
            if changed is not None:
                yield Change("scale-type", str(node.name), *changed)


def _cast_scales(edit: GraphEditor, dequantize: ir.Node, cast: ir.Node) -> tuple[str, bool] | None:
    """Puts a DequantizeLinear in the type of a Cast right behind it in its place; None if none can be."""
    scale, dtype = find_constant(dequantize, 1), cast.outputs[0].dtype
    if cast.op_type != "Cast" or scale is None or dtype is None or not dtype.is_floating_point():
        return None
    with np.errstate(over="ignore", under="ignore"):
        taken = scale.astype(dtype.numpy())
    difference = np.abs(taken.astype(np.float64) - scale.astype(np.float64))
    if not np.all(difference <= np.abs(scale.astype(np.float64)) * _ROUNDED):
        return None
    name = f"{dequantize.name}_{dtype.name.lower()}"
    result = edit.insert(
        dequantize.op_type,
        dequantize.inputs,
        {key: item for key, item in dequantize.attributes.items() if key != "output_dtype"},
        like=cast.outputs[0],
        output=f"{name}_output",
        name=name,
        before=cast,
    )
    made = result.producer()
    assert made is not None
    edit.set_constant(made, 1, f"{name}_scale", ir.tensor(taken, dtype))
    edit.replace(cast.outputs[0], result)
    edit.remove(cast)
    is_exact = not difference.any()
    return f"scales in {dtype.name.lower()} and no Cast after them" + (
        "" if is_exact else ", rounded"
    ), is_exact
