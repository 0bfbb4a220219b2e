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
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"ONNX's converter cannot raise this model from opset {opset_of(model)} to {version}: "
            f"{' '.join(str(error).split())[:300]}; export it with opset {version} or newer"
        ) from error


def infer_shapes(model: ir.Model) -> None:
    """Fills in the dtype and shape of every tensor where ONNX can tell them.

    What the file says of them is not believed: it is often out of date, when somebody has opened the batch of
    the inputs alone. Only where ONNX knows nothing does the file's word stay: for operators of other domains,
    and for the dims of the model's outputs.

    Raises:
        ModelError: The shapes contradict each other.
    """

    def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)

    def forget(skeleton: ir.Model) -> None:
        for node in skeleton.graph.all_nodes():
            for value in node.outputs if node.domain in ("", "ai.onnx") else ():
                value.shape = None

    try:
        inferred = _without_weights(model, infer, forget)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ModelError(f"the shapes of the model do not fit together: {words[:300]}") from error
    for node, twin in zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True):
        for value, found in zip(node.outputs, twin.outputs, strict=True):
            value.type = value.type if found.type is None else found.type
            value.shape = _filled(found.shape, value.shape) if value.is_graph_output() else found.shape


def _filled(shape: ir.Shape | None, declared: ir.Shape | None) -> ir.Shape | None:
    """Returns the shape with its open dims taken from the declared one."""
    if shape is None:
        return declared
    if declared is None or len(shape) != len(declared):
        return shape
    return ir.Shape(
        [
            want if _is_open(have) and not _is_open(want) else have
            for have, want in zip(shape, declared, strict=True)
        ]
    )


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    """Returns whether nothing is known of the dim; ONNX calls what it cannot infer `unk__0` and so on."""
    if isinstance(dim, int):
        return dim < 0
    return dim.value is None or dim.value.startswith("unk__")


def _without_weights(
    model: ir.Model,
    call: Callable[[onnx.ModelProto], onnx.ModelProto],
    prepare: Callable[[ir.Model], None] = lambda _: None,
) -> ir.Model:
    """Returns what `call` makes of the model, with the weights taken out before and put back after.

    What goes into it may be prepared; it is a copy.
    """
    skeleton = model.clone()
    prepare(skeleton)
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
