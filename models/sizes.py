"""The sizes that a model's tensors have when its inputs have given ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def infer_sizes(model: ir.Model, sizes: Mapping[str, Sequence[int]]) -> ir.Model:
    """Returns a copy of the model with the sizes that ONNX can tell; those of the first axis stay open.

    Args:
        model: It is not changed.
        sizes: Of the inputs, by name, along all axes but the first.
    """
    sized = model.clone()
    for value in sized.graph.inputs:
        if (known := sizes.get(str(value.name))) is not None and value.shape:
            value.shape = ir.Shape([value.shape[0], *known])
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what ONNX cannot infer stays as it was
    try:
        return ShapeInferencePass()(sized).model
    finally:
        logger.setLevel(level)


def has_open_sizes(value: ir.Value) -> bool:
    """Returns whether a size of a tensor is not known, other than along the first axis."""
    return value.shape is None or not all(isinstance(size, int) for size in value.shape[1:])
