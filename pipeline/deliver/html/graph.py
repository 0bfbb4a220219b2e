"""What the page's script draws of the graph: nodes, what they run as, and the ranges between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from trtq.pipeline.deliver.html.numbers import format_magnitude
from trtq.pipeline.deliver.html.page_data import GraphNode, PageData
from trtq.pipeline.deliver.html.view import format_dtype
from trtq.pipeline.deliver.manifest import Manifest

if TYPE_CHECKING:
    import onnx_ir as ir

DrawnNode: TypeAlias = "tuple[str, str, str, list[tuple[int, str, str]]]"
"""Name, type, what it runs as, and what it reads: the number of the node, the tensor, and its amax."""


def summarize_graph(model: ir.Model) -> tuple[GraphNode, ...]:
    """Returns the nodes of a model that compute something of its inputs, those in bodies left out."""
    given = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    known = set(given)
    found = [GraphNode(name, "input", (), (name,)) for name in given]
    for node in model.graph:
        read = dict.fromkeys(str(value.name) for value in node.inputs if value is not None)
        inputs = tuple(name for name in read if name in known)
        if not inputs:
            continue
        outputs = tuple(str(value.name) for value in node.outputs)
        known.update(outputs)
        found.append(GraphNode(node.name or outputs[0], node.op_type, inputs, outputs))
    ends = [str(value.name) for value in model.graph.outputs if value.name in known]
    return (*found, *(GraphNode(name, "output", (name,)) for name in ends))


def list_nodes(seen: PageData, manifest: Manifest) -> list[DrawnNode]:
    """Returns the nodes as the script reads them, in the order of the graph."""
    sources = {tensor: at for at, node in enumerate(seen.graph) for tensor in node.outputs}
    ranges = {tensor.name: format_magnitude(tensor.used.amax) for tensor in seen.tensors}
    return [
        (
            node.name,
            node.op_type,
            format_dtype(manifest.layers.get(node.name, "")),
            [(sources[name], name, ranges.get(name, "")) for name in node.inputs if name in sources],
        )
        for node in seen.graph
    ]
