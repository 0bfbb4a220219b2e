"""Along which axes of the operands of layers scales can lie."""

from __future__ import annotations

import onnx_ir as ir

from trtq.pipeline.formats.granularity import PerChannel, PerTensor
from trtq.pipeline.formats.nvfp4 import BLOCK
from trtq.pipeline.graph.operands import find_operand


def choose_granularity(axis: int | None) -> PerChannel | PerTensor:
    """Returns one scale for each output channel, or for all where they lie on no one axis."""
    return PerTensor() if axis is None else PerChannel(axis)


def find_channel_axis(node: ir.Node, place: int, rank: int) -> int | None:
    """Returns the axis of a weight's output channels, on which TensorRT runs INT8 (others run in float).

    None where one scale is for all: a batch of matrices, and a ConvTranspose with groups.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) == 1 else 1
    return place if rank == 2 else None


def explain_other(node: ir.Node) -> str:
    """Returns why a layer cannot have a scale for every 16 values along the summed axis; empty if it can.

    TensorRT-RTX quantizes so the last axis of the first operand of a MatMul or Gemm.
    """
    if node.op_type not in ("Gemm", "MatMul"):
        return f"NVFP4 is for MatMul and Gemm, not for {node.op_type}"
    activation, weight = node.inputs[:2]
    if activation is None or activation.is_initializer() or weight is None or not weight.is_initializer():
        return "NVFP4 takes an activation and, as the second operand, a constant weight"
    if weight.shape is None or activation.shape is None:
        return "the shapes of its operands are not known"
    if len(weight.shape) != 2 or len(activation.shape) < 2 or node.attributes.get_int("transA", 0) == 1:
        return "NVFP4 takes one matrix as weight, and an activation that is not transposed"
    if find_operand(activation) is not None:
        return "its input is already quantized"
    length = weight.shape[find_summed_axis(node)]
    if not isinstance(length, int) or length % BLOCK:
        return f"NVFP4 takes multiples of {BLOCK} inputs, it has {length}"
    return ""


def find_summed_axis(node: ir.Node) -> int:
    """Returns the axis of the constant matrix of a MatMul or Gemm along which products are summed."""
    return 1 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else 0
