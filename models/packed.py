"""A model apart from its weights, so that these are not copied into protobuf and out of it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.skeleton import write_skeleton

_SMALL_BYTES = 4096
"""What is smaller may be a shape or an axis, which ONNX Runtime wants to see in the model."""
_IN_MEMORY = "in-memory"
"""Named as the file of a weight that is handed over beside the model."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model that pickles well, for workers that share neither memory nor files with this process.

    Attributes:
        proto: The ONNX model without its larger weights.
        weights: These, by name.
    """

    proto: bytes
    weights: Mapping[str, NDArray[Any]]

    def unpack(self) -> ir.Model:
        """Returns the model; it shares the memory of the weights."""
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(self.proto))
        for name, array in self.weights.items():
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return model


def pack(model: ir.Model, keeps: Callable[[ir.Value], bool] = lambda _: False) -> PackedModel:
    """Returns a model apart from its larger weights; those in other files are read. It is not changed.

    Args:
        model: The model.
        keeps: Whether a weight stays in the model.
    """
    held, weights = dict[str, ir.TensorProtocol](), dict[str, NDArray[Any]]()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        held[name] = tensor
        if tensor.nbytes < _SMALL_BYTES or keeps(value):
            continue
        if tensor.dtype is ir.DataType.STRING or tensor.dtype.numpy().isbuiltin != 1:
            continue  # which is no array, or one that only another package knows
        weights[name] = np.ascontiguousarray(tensor.numpy())
        shape = ir.Shape(tensor.shape.numpy())
        held[name] = ir.ExternalTensor(_IN_MEMORY, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    return PackedModel(write_skeleton(model, held).SerializeToString(), weights)
