"""ONNX's own opset converter and shape inference, called without the weights so that size does not matter."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx import version_converter

from trtq.errors import ModelError

_SMALL_BYTES = 4096  # shapes, axes and the like: the tools need their values


def opset_of(model: ir.Model) -> int:
    """Returns the version of the standard operators."""
    return model.opset_imports.get("", 1)


def upgrade_opset(model: ir.Model, version: int) -> ir.Model:
    """Returns the model in a newer opset.

    Raises:
        ModelError: ONNX's converter does not know how; its own words are kept.
    """

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        return version_converter.convert_version(proto, version)

    try:
        return _without_weights(model, convert)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"ONNX's converter cannot raise this model from opset {opset_of(model)} to {version}: "
            f"{' '.join(str(error).split())[:300]}; export it with opset {version} or newer"
        ) from error


def infer_shapes(model: ir.Model) -> None:
    """Fills in the dtype and shape of every tensor where ONNX can tell them.

    Raises:
        ModelError: The shapes contradict each other.
    """

    def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)

    try:
        inferred = _without_weights(model, infer)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"the shapes of the model do not fit together: {str(error)[:300]}") from error
    known = {value.name: value for node in inferred.graph.all_nodes() for value in node.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            found = known.get(value.name)
            if found is not None and found.type is not None:
                value.type = found.type
                value.shape = found.shape if found.shape is not None else value.shape


def _without_weights(model: ir.Model, call: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """Returns what `call` makes of the model, with the weights taken out before and put back after."""
    skeleton = model.clone()
    weights = {}
    for name, value in list(skeleton.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL_BYTES:
            weights[name] = tensor
            del skeleton.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            skeleton.graph.inputs.append(value)
    result = ir.from_proto(call(ir.to_proto(skeleton)))
    for value in list(result.graph.inputs):
        if value.name in weights:
            result.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            result.graph.initializers.add(value)
    return result
