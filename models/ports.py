"""Inputs and outputs of types that NumPy has not, exchanged as FP32: FP8, BF16, 4 bits and fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_FP32 = ir.DataType.FLOAT
_NO_NUMBERS = (None, ir.DataType.STRING, ir.DataType.UNDEFINED)


def with_plain_ports(model: ir.Model) -> ir.Model:
    """Returns the model with a Cast at each input and output of such a type, which is FP32 then.

    FP32 holds all their values. Where there are none, it is the model itself.
    """
    if not has_foreign_ports(model):
        return model
    model = model.clone()
    inputs = list(filter(_is_foreign, _list_fed(model)))
    outputs = [value for value in model.graph.outputs if _is_foreign(value) and value not in inputs]
    for value in inputs:
        narrow = ir.Value(name=f"{value.name}_narrow", type=value.type, shape=value.shape)
        for node, place in list(value.uses()):
            node.replace_input_with(place, narrow)
        assert value.dtype is not None
        model.graph.insert_before(model.graph[0], _cast(value, narrow, value.dtype))
        value.type = ir.TensorType(_FP32)
    for place, value in enumerate(model.graph.outputs):
        if value in outputs:
            name, value.name = value.name, f"{value.name}_narrow"
            plain = ir.Value(name=name, type=ir.TensorType(_FP32), shape=value.shape)
            model.graph.append(_cast(value, plain, _FP32))
            model.graph.outputs[place] = plain
    return model


def has_foreign_ports(model: ir.Model) -> bool:
    """Returns whether an input or an output has a type that NumPy has not."""
    return any(map(_is_foreign, (*_list_fed(model), *model.graph.outputs)))


def to_plain(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns arrays of such types as FP32."""
    return {
        name: array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
        for name, array in arrays.items()
    }


def _list_fed(model: ir.Model) -> list[ir.Value]:
    """Returns the inputs without the weights that some files list among them."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _is_foreign(value: ir.Value) -> bool:
    if not isinstance(value.type, ir.TensorType) or value.dtype in _NO_NUMBERS:
        return False
    assert value.dtype is not None
    return value.dtype.numpy().isbuiltin != 1


def _cast(source: ir.Value, result: ir.Value, dtype: ir.DataType) -> ir.Node:
    attributes = [ir.AttrInt64("to", int(dtype))]
    return ir.Node("", "Cast", [source], attributes, outputs=[result], name=f"{result.name}_cast")
