"""Puts the branch of an If whose condition is constant in the place of the If, as runtimes do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor


def inline_branches(model: ir.Model) -> Iterator[str]:
    """Replaces each If of the graph whose condition is constant by the nodes of the branch that it takes.

    An If inside such a branch is one of the graph then, so that it may be replaced the next time.
    """
    chosen = [(node, branch) for node in model.graph if (branch := _find_branch(node)) is not None]
    if not chosen:
        return
    edit = GraphEditor(model)
    counts = Counter(node.name for node in model.graph.all_nodes()), _count_values(model)
    for node, branch in chosen:
        results = list(branch.outputs)
        branch.outputs.clear()
        _rename(edit, branch, *counts)
        _move(edit.graph, branch, node)
        for old, new in zip(node.outputs, results, strict=True):
            is_free = new.producer() is not None and new.graph is edit.graph and not new.is_graph_output()
            if old.is_graph_output() and not is_free:  # an output has a node to come from
                new = edit.insert("Identity", [new], like=new, output=f"{old.name}_taken", before=node)
            edit.replace(old, new)
        edit.remove(node)
    yield f"inlined the branch of {format_count(len(chosen), 'If node')} with a constant condition"


def _find_branch(node: ir.Node) -> ir.Graph | None:
    """Returns the branch that an If always takes; None if that is not known, or it is no If."""
    condition = node.inputs[0] if node.op_type == "If" and node.domain in ("", "ai.onnx") else None
    if condition is None or not condition.is_initializer() or condition.const_value is None:
        return None
    if condition.is_graph_input() or condition.const_value.size != 1:
        return None
    is_true = bool(condition.const_value.numpy().reshape(()))
    return node.attributes["then_branch" if is_true else "else_branch"].as_graph()


def _move(graph: ir.Graph, branch: ir.Graph, before: ir.Node) -> None:
    """Moves the constants and the nodes of a branch into the graph, in front of its If."""
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        graph.initializers.add(value)
    nodes = list(branch)
    branch.remove(nodes)
    graph.insert_before(before, nodes)


def _rename(
    edit: GraphEditor, branch: ir.Graph, nodes: Counter[str | None], values: Counter[str | None]
) -> None:
    """Gives nodes and values of a branch a new name if others have theirs, perhaps in the other branch."""
    for node in branch:
        if node.name and nodes[node.name] > 1:
            node.name = edit.name_node(node.name)
    for value in (*branch.initializers.values(), *(value for node in branch for value in node.outputs)):
        if value.name and values[value.name] > 1:
            value.name = edit.name_value(value.name)


def _count_values(model: ir.Model) -> Counter[str | None]:
    graphs = [model.graph, *model.graph.subgraphs()]
    given = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    return Counter(value.name for value in (*given, *made))
