"""The one way to change a graph: new names, constants and nodes, other readers, and what nothing reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtq.models.streamed import cast_tensor

_DTYPES = frozenset({"to", "output_dtype", "dtype", "output_datatype", "stash_type", "softmax_precision"})
"""The attributes that name a dtype."""


class GraphEditor:
    """Changes the graph of a model in place.

    ONNX keeps the names of values and of nodes apart; a new one is unique among its kind, also in the bodies
    of If, Loop and Scan. The names are collected once, so that no change looks through the graph.

    Attributes:
        model: The model.
        graph: Its graph.
    """

    def __init__(self, model: ir.Model) -> None:
        """Collects the names that the graph and its bodies have."""
        self.model, self.graph = model, model.graph
        graphs = [self.graph, *self.graph.subgraphs()]
        nodes = list(self.graph.all_nodes())
        values = {
            str(value.name) for graph in graphs for value in (*graph.inputs, *graph.initializers.values())
        }
        self._values = _Names(values | {str(value.name) for node in nodes for value in node.outputs})
        self._nodes = _Names({str(node.name) for node in nodes})

    def name_value(self, wanted: str) -> str:
        """Returns the name, with a number added if a value has it; from now on it is taken."""
        return self._values.take(wanted)

    def name_node(self, wanted: str) -> str:
        """Returns the name, with a number added if a node has it; from now on it is taken."""
        return self._nodes.take(wanted)

    def add_constant(self, name: str, content: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
        """Returns a new initializer of the graph; a number is added to a name that is taken."""
        tensor = ir.Tensor(np.asarray(content)) if isinstance(content, np.ndarray | np.generic) else content
        tensor.name = self.name_value(name)
        value = ir.val(tensor.name, const_value=tensor)
        self.graph.initializers.add(value)
        return value

    def set_constant(
        self, node: ir.Node, place: int, name: str, content: NDArray[Any] | ir.TensorProtocol
    ) -> None:
        """Gives a node a new initializer as an input; others that read the old one keep it."""
        node.resize_inputs(max(place + 1, len(node.inputs)))
        node.replace_input_with(place, self.add_constant(name, content))

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value,
        output: str,
        name: str | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        before: ir.Node | None = None,
    ) -> ir.Value:
        """Returns the output of a new node.

        Args:
            op_type: The operator.
            inputs: What the node reads.
            attributes: By name.
            like: The output has the type and the shape of this value.
            output: The name of the output; a number is added if it is taken.
            name: The name of the node, likewise; None: `<output>_<op_type>`.
            dtype: Of the output, where it is another than that of `like`.
            domain: Of the operator.
            before: The node that it stands before, perhaps in a body; None: it stands behind the node that
                makes the first input, or in front of all nodes where none does.
        """
        output = self.name_value(output)
        name = self.name_node(name or f"{output}_{op_type}")
        node = ir.node(op_type, inputs, attributes, domain=domain, name=name)
        result = node.outputs[0]
        result.name, result.shape = output, like.shape
        result.type = like.type if dtype is None else ir.TensorType(dtype)
        self._put(node, before)
        return result

    def cast(
        self, value: ir.Value, dtype: ir.DataType, *, output: str, name: str, before: ir.Node | None = None
    ) -> ir.Value:
        """Returns a value in another dtype, as `insert`."""
        attributes = {"to": int(dtype)}
        return self.insert(
            "Cast", [value], attributes, like=value, dtype=dtype, output=output, name=name, before=before
        )

    def _put(self, node: ir.Node, before: ir.Node | None) -> None:
        maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if before is not None:
            before.prepend(node)
        elif maker is not None:
            maker.append(node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.append(node)

    def put_behind(self, value: ir.Value, other: ir.Value) -> None:
        """Moves the node that makes a value behind the one that makes another, which it reads too."""
        node, maker = value.producer(), other.producer()
        assert node is not None
        assert maker is not None
        self.graph.remove(node)
        maker.append(node)

    def replace(self, old: ir.Value, new: ir.Value, *, rename: str | None = None) -> None:
        """Puts a value wherever another is read, also in bodies and as an output of its graph.

        The node that makes the new value keeps what it reads, so that it can stand behind the old one. An
        output of the graph keeps its name, type and shape.

        Args:
            old: What is read now.
            new: What is read from then on.
            rename: What `old` is called from then on, since its name goes to `new`; "" if it is about to be
                removed. None: only the name of an output goes to `new`.
        """
        for reader, place in old.uses():
            if reader is not new.producer():
                reader.replace_input_with(place, new)
        was_output, name = old.is_graph_output(), old.name
        if was_output:
            assert isinstance(old.graph, ir.Graph)
            _replace_output(old.graph, old, new)
        if was_output or rename is not None:
            old.name = None if rename == "" else self.name_value(rename or str(name))
            new.name = name

    def remove(self, nodes: ir.Node | Sequence[ir.Node]) -> None:
        """Removes nodes of which nothing reads the outputs any more."""
        self.graph.remove(nodes, safe=True)

    def drop_unused(self) -> None:
        """Removes the nodes and the constants that nothing reads, and optional outputs that nothing reads."""
        RemoveUnusedNodesPass()(self.model)


class _Names:
    """Names of one kind, and the last number that was given to each wanted one."""

    def __init__(self, taken: set[str]) -> None:
        self._taken, self._last = taken, Counter[str]()

    def take(self, wanted: str) -> str:
        unique = wanted
        while unique in self._taken:
            self._last[wanted] += 1
            unique = f"{wanted}_{self._last[wanted]}"
        self._taken.add(unique)
        return unique


def _replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
    new.type = new.type if old.type is None else old.type
    new.shape = new.shape if old.shape is None else old.shape


def map_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Returns the inputs and constants of a graph and what its nodes make, by name; not what is in bodies."""
    made = {str(value.name): value for node in graph for value in node.outputs if value.name}
    return {str(value.name): value for value in graph.inputs} | dict(graph.initializers) | made


def list_bodies(node: ir.Node) -> list[ir.Graph]:
    """Returns the graphs inside a node: of an If, Loop or Scan."""
    graph, graphs = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
    attributes = list(node.attributes.values())
    bodies = [attribute.as_graph() for attribute in attributes if attribute.type is graph]
    return bodies + [body for item in attributes if item.type is graphs for body in item.as_graphs()]


def widen(model: ir.Model, narrow: Collection[ir.DataType]) -> None:
    """Makes a model compute in float32 where it computes in these dtypes; constants keep their values.

    Its inputs and outputs are float32 then, too. A constant in another file is widened when it is read.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *graph.initializers.values()):
            if value.dtype in narrow:
                if value.const_value is not None:
                    value.const_value = cast_tensor(value.const_value, ir.DataType.FLOAT)
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph.all_nodes():
        _widen_attributes(node, narrow)
        for value in node.outputs:
            if value.dtype in narrow:
                value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node, narrow: Collection[ir.DataType]) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in _DTYPES and attribute.type is ir.AttributeType.INT and attribute.as_int() in narrow:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
        elif attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in narrow:
            node.attributes[name] = ir.AttrTensor(name, cast_tensor(attribute.as_tensor(), ir.DataType.FLOAT))
