"""Rules for formats beyond INT8: what a GPU has, and which formats a layer multiplies with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from trtq.pipeline.graph.lint.finding import Finding, report
from trtq.pipeline.graph.operands import DEQUANTIZE, DYNAMIC, QUANTIZE, Operand, find_code_dtype

_FIRST = {ir.DataType.FLOAT8E4M3FN: "8.9", ir.DataType.FLOAT4E2M1: "12.0", ir.DataType.INT4: "8.0"}
"""The first compute capability that has a format; TensorRT builds nothing with it for an older one."""
_INSTEAD = {
    ir.DataType.FLOAT8E4M3FN: "quantize to int8",
    ir.DataType.FLOAT4E2M1: "quantize to float8 e4m3 or int8",
    ir.DataType.INT4: "quantize to int8",
}
_FP4 = ("fp4", "nvfp4")
_DIMS = 3
_AFTER = "the layer runs in float, and converting costs time"


def check_target(node: ir.Node, targets: Sequence[str]) -> Iterator[Finding]:
    """A GPU has the formats of its compute capability and of older ones.

    Args:
        node: Any.
        targets: Compute capabilities, such as "8.9"; empty: nothing is said.
    """
    if node.op_type not in (QUANTIZE, DEQUANTIZE, *DYNAMIC):
        return
    dtype = node.outputs[0].dtype if node.op_type in DYNAMIC else find_code_dtype(node)
    first = _FIRST.get(dtype) if dtype is not None else None
    lacking = [item for item in targets if first is not None and _number(item) < _number(first)]
    if lacking and dtype is not None:
        reason = (
            f"its quantized values are {dtype.name.lower()}, which compute capability {lacking[0]} does "
            "not have"
        )
        advice = f"build for {first} or newer, or {_INSTEAD[dtype]}"
        yield report("target", "refused", node, reason, advice)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split(".") if part.isdecimal())


def check_dynamic(node: ir.Node) -> Iterator[Finding]:
    """TensorRT quantizes two or three dims by blocks in each run, in whole blocks; no kernel takes MXFP8."""
    if "MXFP8" in node.op_type and node.domain == "trt":
        reason = "TensorRT-RTX has no kernel that multiplies MXFP8, and fails on most graphs with it"
        yield report(
            "no-kernel", "refused", node, reason, "quantize to float8 e4m3, with one scale per tensor"
        )
        return
    if node.op_type not in DYNAMIC or node.inputs[0] is None or (shape := node.inputs[0].shape) is None:
        return
    block = node.attributes.get_int("block_size", 16)
    if len(shape) > _DIMS:
        reason = f"it quantizes a tensor of {len(shape)} dims in blocks; TensorRT takes 2 or 3"
        yield report("blocks", "refused", node, reason, "put a Reshape to 2 dims before it, and one after it")
    elif isinstance(size := shape[-1], int) and size % block:
        reason = f"it quantizes {size} numbers a row in blocks of {block}, which leaves a part of one"
        yield report(
            "blocks", "refused", node, reason, f"leave a layer float whose K is not a multiple of {block}"
        )


def check_mixture(node: ir.Node, activation: Operand, weight: Operand) -> Iterator[Finding]:
    """FP4 is multiplied with FP4 alone, the activation quantized by TensorRT's own operator."""
    formats = (activation.format, weight.format)
    if not set(formats) & set(_FP4) or None in formats or formats == ("nvfp4", "nvfp4"):
        return
    shown = " with ".join(str(item).upper() for item in formats)
    advice = "quantize the activation by TRT_FP4DynamicQuantize and the weight with two-level scales (NVFP4)"
    if set(formats) <= set(_FP4) or "nvfp4" in formats:
        reason = f"TensorRT has no kernel for {shown} in this form: {_AFTER}"
        yield report("mixed-types", "float", node, reason, advice)
    else:
        reason = f"it multiplies {shown}, for which TensorRT has no kernel"
        yield report("mixed-types", "refused", node, reason, advice)


def has_cast(weight: Operand) -> bool:
    """Whether a Cast to another type stands between a weight and its layer."""
    casts = (step for step in weight.path if step.op_type == "Cast" and step.inputs[0] is not None)
    return any(step.inputs[0].dtype is not step.outputs[0].dtype for step in casts)  # type: ignore[union-attr]


def _is_turned(node: ir.Node, weight: Operand) -> bool:
    turns = [step for step in weight.path if step.op_type == "Transpose"]
    return bool(turns) or node.attributes.get_int("transB", 0) == 1


def check_weight_alone(node: ir.Node, weight: Operand) -> Iterator[Finding]:
    """A MatMul or Gemm reads weights of few bits beside floats, in the forms that its kernel takes."""
    alone = "TensorRT dequantizes it separately in each run: less memory, but not faster"
    scale, form = weight.scale, weight.format
    if node.op_type in ("Conv", "ConvTranspose"):
        reason = f"its weight has Q/DQ and its activation has none that reaches it: {_AFTER}"
        advice = "quantize its activation too, right before the layer, or leave both float"
        yield report("half-quantized", "float", node, reason, advice)
    elif weight.stored is not None:
        reason = (
            f"its weight is quantized twice, as for quantized activations, which it does not have: {alone}"
        )
        advice = "quantize its activation too, or leave the second QuantizeLinear out"
        yield report("half-quantized", "float", node, reason, advice)
    elif form in _FP4:
        reason = f"it reads an {str(form).upper()} weight with float activations; {alone}"
        advice = "store the weight in INT4, or quantize the activation by TRT_FP4DynamicQuantize"
        yield report("no-kernel", "float", node, reason, advice)
    elif form == "int4" and (scale is None or scale.ndim < 2 or min(scale.shape) < 2):
        reason = f"its INT4 weight has one scale for a whole row; {alone}"
        yield report("blocks", "float", node, reason, "quantize it in blocks of 16 to 128 along K")
    elif (
        form == "int8" and weight.num_casts and not weight.codes.is_initializer() and _is_turned(node, weight)
    ):
        reason = (
            f"its weight is a float with a pair, a Cast and a transposition, which TensorRT folds: {_AFTER}"
        )
        yield report(
            "half-quantized", "float", node, reason, "store the codes, and scales in the layer's type"
        )
    elif form == "int4" and has_cast(weight):
        reason = f"a Cast follows the DequantizeLinear of its INT4 weight; {alone}"
        yield report(
            "scale-type", "float", node, reason, "write scales in the type that the layer computes in"
        )
