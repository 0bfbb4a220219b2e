"""Operators of other domains than ONNX's: which are taken, in what form, and the types of what they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import onnx
import onnx_ir as ir

from trtq.errors import ModelError
from trtq.models.operators import find_foreign, list_custom_ops, list_plugins
from trtq.models.session import SessionPort, open_session
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_code_dtype
from trtq.pipeline.graph.opset import convert_opset, infer_shapes, read_opset
from trtq.pipeline.graph.opset.own import OWN_OPERATORS

_STANDARD = ("", "ai.onnx")
_CODES = {
    f"TRT_{name}{op_type}": (op_type, dtype, opset)
    for name, dtype, opset in (("FP8", ir.DataType.FLOAT8E4M3FN, 19), ("INT4", ir.DataType.INT4, 21))
    for op_type in (QUANTIZE, DEQUANTIZE)
}
"""Q and DQ of TensorRT's own, which its exporters write into models of older opsets."""
_PLACEHOLDER = ("trt", "TRT_FP4QDQ")
_CLASSICAL = "ai.onnx.ml"
_NOT_RUN = (ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E8M0)
"""Types that ONNX Runtime has no kernels for."""
_SMALL_BYTES = 4096  # shapes, axes and the like, whose values decide a shape


def refuse_foreign_operators(model: ir.Model) -> None:
    """Refuses what neither ONNX Runtime nor TensorRT knows, unless libraries of operators are named.

    What a library has by the name of an operator of ONNX is refused too: names decide what is quantized, and
    what TensorRT's parser takes a node for.

    Raises:
        ModelError: There is such a node.
    """
    if list_custom_ops() or list_plugins():
        node = find_foreign(model, onnx.defs.has)
        if node is not None:
            raise ModelError(
                f"node {node.name!r} is {node.domain}::{node.op_type}, which TensorRT takes for ONNX's "
                f"{node.op_type}; give the operator a name that ONNX does not have"
            )
        return
    for node in model.graph.all_nodes():
        is_known = node.domain == "trt" and (node.op_type in _CODES or node.op_type in OWN_OPERATORS)
        if not is_known and node.domain not in ("", "ai.onnx", "com.microsoft"):
            what = _describe_foreign(node)
            raise ModelError(f"node {node.name!r} is {node.domain}::{node.op_type}, which is {what}")


def _describe_foreign(node: ir.Node) -> str:
    """Returns what an operator is that is refused, and what to do."""
    if (node.domain, node.op_type) == _PLACEHOLDER:
        return "a placeholder of modelopt for an NVFP4 weight; export the model by NVFP4QuantExporter"
    if node.domain == _CLASSICAL:
        return (
            "ONNX's, but of classical machine learning, which TensorRT has not; export the network without it"
        )
    return (
        "not a standard ONNX operator; TensorRT has it only as a plugin: --plugins names its library, and "
        "--ort-custom-ops that for ONNX Runtime"
    )


def refuse_half_known(model: ir.Model, *, for_tensorrt: bool) -> None:
    """Refuses operators that are known to only one of the two that a build needs.

    Args:
        model: What is built.
        for_tensorrt: Whether TensorRT runs the result.

    Raises:
        ModelError: TensorRT has no plugin for a node, or nothing here can run it to calibrate and compare.
    """
    node = find_foreign(model)
    if node is None:
        return
    named = f"node {node.name!r} is {node.domain}::{node.op_type}"
    if not list_custom_ops():
        raise ModelError(
            f"{named}: TensorRT has its plugin by --plugins, but nothing here runs it to calibrate and "
            f"compare; name a library that has it for ONNX Runtime with --ort-custom-ops"
        )
    if for_tensorrt and not list_plugins():
        raise ModelError(
            f"{named}: ONNX Runtime has it by --ort-custom-ops, but TensorRT does not know it; name "
            "the library of its plugin with --plugins, or use --backend onnxruntime"
        )


def explain_unrunnable(model: ir.Model) -> str:
    """Returns why ONNX Runtime cannot run a model that TensorRT takes; empty if it can.

    Args:
        model: With inferred dtypes.
    """
    for node in model.graph.all_nodes():
        if node.domain == "trt":
            return f"node {node.name!r} is {node.op_type}, an operator of TensorRT's own"
        values = (value for value in (*node.inputs, *node.outputs) if value is not None)
        if dtype := next((value.dtype for value in values if value.dtype in _NOT_RUN), None):
            return f"node {node.name!r} ({node.op_type}) has {dtype.name.lower()}"
    return ""


def explain_incomparable(model: ir.Model) -> str:
    """Returns why nothing can be compared with a model: not even its emulation runs; empty if it can.

    Args:
        model: With inferred dtypes.
    """
    with suppress(ModelError):
        return explain_unrunnable(without_fp4(model))
    return explain_unrunnable(model)


def standardize(model: ir.Model) -> ir.Model:
    """Returns the model with standard Q and DQ, in an opset that has them, and with the types of the rest."""
    if all(node.domain in _STANDARD for node in model.graph.all_nodes()):
        return model
    if read_opset(model) < (opset := find_least_opset(model)):
        model = convert_opset(model, opset)
    standardize_codes(model)
    infer_shapes(model)
    _type_foreign_values(model)
    return model


def infer_foreign_shapes(model: ir.Model) -> ir.Model:
    """Returns the model with shapes inferred anew, also behind what ONNX has no rules for."""
    for node in model.graph:
        for value in node.outputs if node.domain not in _STANDARD else ():
            value.type = value.shape = None
    infer_shapes(model)
    _type_foreign_values(model)
    return model


def standardize_codes(model: ir.Model) -> None:
    """Makes Q and DQ of ONNX Runtime's and TensorRT's own domains standard ones; TensorRT takes all alike.

    Those of 16 bits stay, which older opsets do not have.
    """
    edit = GraphEditor(model)
    for node in list(model.graph.all_nodes()):
        op_type = _CODES.get(node.op_type, (node.op_type,))[0]
        if node.domain not in ("com.microsoft", "trt") or op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        if find_code_dtype(node) in (ir.DataType.INT16, ir.DataType.UINT16):
            continue
        if node.op_type in _CODES:
            node.op_type, dtype, _ = _CODES[node.op_type]
            scale = node.inputs[1]
            shape = () if scale is None or scale.shape is None else tuple(scale.shape.numpy())
            zero = ir.tensor(np.zeros(shape, dtype.numpy()), dtype)
            edit.set_constant(node, 2, f"{node.name}_zero_point", zero)
        node.domain = ""


def find_least_opset(model: ir.Model) -> int:
    """Returns the first opset that has the standard form of TensorRT's own Q and DQ; 1 without them."""
    names = (node.op_type for node in model.graph.all_nodes() if node.domain == "trt")
    return max((_CODES[name][2] for name in names if name in _CODES), default=1)


def _type_foreign_values(model: ir.Model) -> None:
    """Fills in the dtype and shape of what ONNX has no rules for, as ONNX Runtime tells them.

    TensorRT's parser takes most such operators by their names alone, so what stands behind them is quantized
    like anything else. What ONNX Runtime does not know either stays as it is.

    Args:
        model: With the shapes that `infer_shapes` finds; it is changed in place.

    Raises:
        ModelError: The shapes contradict each other.
    """
    if not list(_list_untyped(model)):
        return
    with suppress(ModelError):  # an operator that it does not know, or a model that it does not take
        tapped = _tap_untyped(model)
        ports = {port.name: port for port in open_session(tapped, optimize=False).get_outputs()}
        for value in _list_untyped(model):
            _take_type(value, ports[str(value.name)])
    infer_shapes(model)


def _list_untyped(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        if node.domain not in _STANDARD:
            yield from (value for value in node.outputs if value.name and value.dtype is None)


def _tap_untyped(model: ir.Model) -> ir.Model:
    """Returns the model with its untyped values as outputs, and without its weights."""
    tapped = model.clone()
    graph = tapped.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL_BYTES:
            del graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            graph.inputs.append(value)
    graph.outputs[:] = list(_list_untyped(tapped))
    return tapped


def _take_type(value: ir.Value, port: SessionPort) -> None:
    name = port.type.removeprefix("tensor(").removesuffix(")").upper()
    if name in ir.DataType.__members__:
        value.type = ir.TensorType(ir.DataType[name])
        sizes = [None if isinstance(size, str) and size.startswith("unk__") else size for size in port.shape]
        value.shape = ir.Shape(sizes) if sizes else None  # what is not known looks like a scalar's
