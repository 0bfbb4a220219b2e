"""A model as protobuf with other tensors in place of its weights, written without a clone of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir


class Stand:
    """Stands for an object where its attributes are read; some of them are others."""

    def __init__(self, original: Any, **others: Any) -> None:
        self._original = original
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._original)

    def __len__(self) -> int:
        return len(self._original)


def write_skeleton(
    model: ir.Model, initializers: Mapping[str, ir.TensorProtocol], inputs: Sequence[ir.Value] = ()
) -> onnx.ModelProto:
    """Returns a model as protobuf, with these weights in place of its own.

    Args:
        model: It is not changed.
        initializers: By name; the graph has no others.
        inputs: Further inputs of the graph.

    Raises:
        onnx_ir.serde.SerdeError: The model cannot be written.
    """
    graph = model.graph
    held = {name: Stand(graph.initializers[name], const_value=item) for name, item in initializers.items()}
    shown: Any = Stand(model, graph=Stand(graph, initializers=held, inputs=[*graph.inputs, *inputs]))
    return ir.serde.serialize_model(shown)
