"""Rules for layers with arithmetic: whether both operands reach them in a form that INT8 kernels take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from trtq.pipeline.formats.nvfp4 import BLOCK
from trtq.pipeline.graph.lint.finding import Finding, report
from trtq.pipeline.graph.lint.formats import check_mixture, check_weight_alone, has_cast
from trtq.pipeline.graph.operands import Operand, find_operand, find_operands, find_scale_axes, read_axis
from trtq.pipeline.graph.placement import QUANTIZABLE

_RECURRENT = ("LSTM", "GRU", "RNN")
_AFTER = "the layer runs in float, and converting costs time"


def check_layer(node: ir.Node) -> Iterator[Finding]:
    """A layer runs in INT8 if both operands do, with scales that its kernels take."""
    if node.op_type not in QUANTIZABLE:
        return
    activation, weight = find_operands(node)
    present = [operand for value in node.inputs[:2] if (operand := find_operand(value)) is not None]
    if node.op_type == "ConvTranspose" and node.outputs[0].dtype is ir.DataType.BFLOAT16:
        reason = "it computes in bfloat16, for which TensorRT has no ConvTranspose"
        yield report("no-kernel", "refused", node, reason, "keep this layer float32 or float16")
        return
    if len(present) == 1:
        is_weight = present[0].is_weight and not present[0].is_looked_up
        yield from check_weight_alone(node, present[0]) if is_weight else _check_half(node)
    elif (
        activation is not None
        and weight is not None
        and (found := [*check_mixture(node, activation, weight)])
    ):
        yield from found
    elif activation is not None and weight is not None and node.op_type == "ConvTranspose":
        reason = f"TensorRT has no quantized kernel for ConvTranspose: {_AFTER}"
        yield report("no-kernel", "float", node, reason, "leave it out of quantization")
    elif activation is not None and weight is not None:
        findings = list(_check_pair(node, activation, weight))
        yield from findings or _check_types(node, *present)


def _check_pair(node: ir.Node, activation: Operand, weight: Operand) -> Iterator[Finding]:
    if activation.format == weight.format == "nvfp4":
        yield from _check_nvfp4(node, activation, weight)
        return
    if not (activation.scale is not None and weight.scale is not None):
        yield from _computed(node)
        return
    yield from _check_casts(node, (activation, weight))
    yield from _check_activation(node, activation, weight)
    if not weight.is_weight:
        yield from _check_activation(node, weight, activation)
    elif any(step.op_type == "Concat" for step in weight.path):
        reason = "its weight is put together from dequantized parts, on which TensorRT's builder fails"
        yield report("joined-weight", "refused", node, reason, "quantize the whole weight as one constant")
    elif weight.scale.ndim > 1:
        yield from _check_blocks(node, activation, weight)
    else:
        yield from _check_weight(node, weight)


def _check_half(node: ir.Node) -> Iterator[Finding]:
    reason = f"its activation has Q/DQ and its other operand has none that reaches it: {_AFTER}"
    advice = "quantize its other operand too, right before the layer, or leave both float"
    yield report("half-quantized", "float", node, reason, advice)


def _check_types(node: ir.Node, *operands: Operand) -> Iterator[Finding]:
    dtypes = [operand.dtype.name.lower() for operand in operands if operand.dtype is not None]
    kinds = {"int8" if name == "uint8" else name for name in dtypes}  # which TensorRT takes for int8
    if len(kinds) < 2 or (kinds == {"int8", "int4"} and node.op_type != "Conv"):
        return
    reason = f"it multiplies {' with '.join(dtypes)}, for which TensorRT has no kernel"
    advice = "quantize both operands to the same type"
    if "int4" in kinds:
        advice = f"put Q/DQ of {dtypes[0]} by output channel after the DequantizeLinear of the int4 weight"
    yield report("mixed-types", "refused", node, reason, advice)


def _check_casts(node: ir.Node, operands: tuple[Operand, ...]) -> Iterator[Finding]:
    for operand in operands:
        widened = operand.dequantize.outputs[0].dtype is ir.DataType.FLOAT16  # and back: no value changes
        if operand.num_casts > 1 and not widened:
            reason = f"{operand.num_casts} casts stand between a DequantizeLinear and it: {_AFTER}"
            yield report("casts", "float", node, reason, "cast at most once between them")


def _check_activation(node: ir.Node, operand: Operand, other: Operand) -> Iterator[Finding]:
    scale = operand.scale
    assert scale is not None
    if scale.shape == () or (scale.shape == (1,) and node.op_type != "Conv"):
        return
    own = read_axis(operand.dequantize) == find_output_axis(node, operand)
    if node.op_type != "Conv" and own and operand.rank == other.rank:
        return  # one scale for each row of the product, which TensorRT applies after it
    wanted = "one 0-d scale" if scale.shape == (1,) else "one scale for the whole activation"
    reason = f"its activation scale has shape {scale.shape}, kernels need {wanted}: {_AFTER}"
    yield report("activation-scale", "float", node, reason, "write scales of activations as 0-d tensors")


def _computed(node: ir.Node) -> Iterator[Finding]:
    if node.op_type == "Conv":
        reason = "a scale of its operands is computed, on which TensorRT-RTX's builder crashes"
        yield report("computed-scale", "refused", node, reason, "quantize with constant scales")
    else:
        reason = f"a scale of its operands is computed: {_AFTER}"
        yield report("computed-scale", "float", node, reason, "quantize with constant scales")


def _check_blocks(node: ir.Node, activation: Operand, weight: Operand) -> Iterator[Finding]:
    if node.op_type == "Conv":
        reason = f"its weight is quantized in blocks, kernels need a scale for each channel: {_AFTER}"
        yield report("blocks", "float", node, reason, "quantize with one scale for each output channel")
    elif activation.scale is not None and activation.scale.size > 1:
        reason = (
            "its activation has one scale per channel and its weight has blocks: TensorRT's builder fails"
        )
        yield report("blocks", "refused", node, reason, "write scales of activations as 0-d tensors")
    elif weight.format == "int4" and has_cast(weight):
        reason = f"a Cast follows the DequantizeLinear of its INT4 weight: {_AFTER}"
        yield report(
            "scale-type", "float", node, reason, "write scales in the type that the layer computes in"
        )
    elif activation.rank != weight.rank or _reads_transposed(node, None) or _is_turned(weight):
        reason = "it multiplies int8 activations with a weight in blocks, on which TensorRT's builder fails"
        yield report("blocks", "refused", node, reason, "quantize with one scale for each output channel")
    elif any(_check_types(node, activation, weight)):
        return  # it is refused for that
    elif weight.scale is not None and weight.scale.shape[weight.dequantize.attributes.get_int("axis", 1)] > 1:
        reason = (
            "it multiplies 8-bit activations with a weight in several blocks; TensorRT-RTX applies their "
            "scales to the finished product, and its numbers are wrong"
        )
        advice = "quantize the weight again after its blocks, with one scale for each output channel (W4A8)"
        yield report("blocks", "wrong", node, reason, advice)


def _is_turned(operand: Operand) -> bool:
    return any(step.op_type == "Transpose" for step in operand.path)


def _check_nvfp4(node: ir.Node, activation: Operand, weight: Operand) -> Iterator[Finding]:
    for operand in (activation, weight):
        block = operand.dequantize.attributes.get_int("block_size", 0)
        if block != BLOCK:
            reason = f"it multiplies NVFP4 in blocks of {block}, kernels need {BLOCK}: {_AFTER}"
            yield report("blocks", "float", node, reason, f"quantize in blocks of {BLOCK}")
            return
    turns = sum(step.op_type == "Transpose" for step in weight.path)
    axis = weight.dequantize.attributes.get_int("axis", 1) % 2
    if (axis if turns % 2 == 0 else 1 - axis) == find_output_axis(node, weight):
        reason = f"the blocks of its weight lie along the output channels, NVFP4 needs them along K: {_AFTER}"
        yield report("blocks", "float", node, reason, "quantize the weight in blocks along the summed axis")


def _check_weight(node: ir.Node, operand: Operand) -> Iterator[Finding]:
    axes, wanted = find_scale_axes(operand), find_output_axis(node, operand)
    if axes <= {wanted}:
        return
    found = " and ".join(f"axis {axis}" for axis in sorted(axes))
    reason = f"its weight is quantized along {found}, kernels need it along axis {wanted}: {_AFTER}"
    yield report("weight-axis", "float", node, reason, f"quantize the weight along axis {wanted}")


def find_output_axis(node: ir.Node, operand: Operand) -> int:
    """Returns the axis of an operand, as the layer reads it, that is no sum: a weight's output channels."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    on_the_left = node.inputs[0] is operand.value
    return operand.rank - 2 if on_the_left != _reads_transposed(node, operand) else operand.rank - 1


def _reads_transposed(node: ir.Node, operand: Operand | None) -> bool:
    """Whether a Gemm transposes this operand; None: its second."""
    name = "transA" if operand is not None and node.inputs[0] is operand.value else "transB"
    return node.attributes.get_int(name, 0) != 0


def check_recurrent(node: ir.Node) -> Iterator[Finding]:
    """An LSTM, GRU or RNN does not take a DequantizeLinear at once if its batch is open."""
    if node.op_type not in _RECURRENT:
        return
    value = node.inputs[0]
    operand = find_operand(value)
    if operand is None or value is None or value.shape is None or isinstance(value.shape[1], int):
        return
    reason = (
        "its input comes straight from a DequantizeLinear and its batch is dynamic: TensorRT's builder fails"
    )
    yield report("recurrent", "refused", node, reason, "leave its input float, or fix the batch")
