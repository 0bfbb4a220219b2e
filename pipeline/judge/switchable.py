"""A Q/DQ model of which every quantized layer can be switched to float at run time: one session for all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.ranges import Ranges
from trtq.models.session import Session, SessionPort, open_session
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.fp4 import DYNAMIC_QUANTIZE, without_fp4
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.views import OutputViews, create_views
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.rows import BEHIND, CHAIN

_SWITCH = "trtq_switch_"
_BEFORE = (QUANTIZE, DEQUANTIZE, DYNAMIC_QUANTIZE, *CHAIN)
"""What `quantize` puts before a layer, beside rescaling, which the float layers share."""
_ON, _OFF = np.array(True), np.array(False)


@dataclass(frozen=True, slots=True)
class Switchable:
    """One session that computes any mixture of quantized and float layers.

    Attributes:
        session: The ONNX Runtime session.
        layers: The names of the nodes that can be switched, in graph order; switch i is that of layers[i].
        views: How its outputs are looked at.
    """

    session: Session
    layers: tuple[str, ...]
    views: OutputViews

    def runner(self, name: str, quantized: Collection[str]) -> Any:
        """Returns a Polygraphy runner of this name that quantizes these layers and no others."""
        switches = {
            f"{_SWITCH}{index}": _ON if layer in quantized else _OFF
            for index, layer in enumerate(self.layers)
        }
        runner = lazy.require("polygraphy.backend.onnxrt", None, "comparing models").OnnxrtRunner
        return runner(_Mixture(self.session, switches), name=name)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The session with its switches set: what Polygraphy needs of an ONNX Runtime session."""

    session: Session
    switches: Mapping[str, NDArray[np.bool_]]

    def get_inputs(self) -> list[SessionPort]:
        return [item for item in self.session.get_inputs() if item.name not in self.switches]

    def get_outputs(self) -> list[SessionPort]:
        return list(self.session.get_outputs())

    def run(self, outputs: list[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return list(self.session.run(outputs, {**feed, **self.switches}))


def open_switchable(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> Switchable:
    """Returns the session of `build_switchable`; graph optimizations are off, as in the comparison.

    Raises:
        UsageError: The ranges lack a tensor.
        ModelError: ONNX Runtime cannot load it.
    """
    made = without_fp4(build_switchable(model, placement, ranges, scale_dtype=scale_dtype))
    session = open_session(make_quantize_exact(made) or made, optimize=False)
    return Switchable(session, tuple(node.name for node in placement.quantized), create_views(model))


def build_switchable(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the Q/DQ model with an If around every quantized node, and a bool input for each.

    The one branch holds the node with all that quantizing put before and behind it, such as its Q/DQ pairs,
    the other the node as it was. So a layer costs what it
    costs in a model that is quantized, or not, for good: measured, half of what it costs to select each
    operand with Where. All switched on, it computes what the Q/DQ model computes, bit for bit.

    Args:
        model: The float graph; it is not changed.
        placement: Which nodes are quantized.
        ranges: The amax of every placed activation.
        scale_dtype: As for `quantize`.
    """
    rescaled = rescale(model, placement, ranges)
    model, placement = rescaled.model, rescaled.placement  # of which the float layers compute the same
    result = quantize(model, placement, rescaled.ranges, scale_dtype=scale_dtype)
    floats = {node.name: node for node in model.graph}
    edit, values = GraphEditor(result), map_values(result.graph)
    for name, value in model.graph.initializers.items():
        if name not in values:  # a weight that the quantized model has as codes only
            kept = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            result.graph.initializers[name] = values[name] = kept
    nodes = {node.name: node for node in result.graph}
    for index, placed in enumerate(placement.quantized):
        switch = ir.val(f"{_SWITCH}{index}", ir.DataType.BOOL, ())
        result.graph.inputs.append(switch)
        node, original = nodes[placed.name], floats[placed.name]
        layer = [node, *_list_own_behind(node, floats.keys())]
        _switch_correction(edit, layer[-1], floats, values, switch)
        plain = [None if value is None else values[str(value.name)] for value in original.inputs]
        values.update(_put_in_if(edit, layer, original, plain, switch, known=floats.keys()))
    edit.drop_unused()
    return result


def _list_own_behind(node: ir.Node, known: Collection[str | None]) -> list[ir.Node]:
    """Returns the nodes behind a node, one after another, that only quantizing it has put there."""
    output = node.outputs[0]
    users = output.consumers()
    if len(users) != 1 or users[0].name in known or users[0].op_type not in BEHIND:
        return []
    if users[0].inputs[0] is not output or output.is_graph_output():
        return []
    return [users[0], *_list_own_behind(users[0], known)]


def _switch_correction(
    edit: GraphEditor,
    node: ir.Node,
    floats: Mapping[str | None, ir.Node],
    values: Mapping[str, ir.Value],
    switch: ir.Value,
) -> None:
    """Switches the bias correction that stands in an Add of the float graph behind a layer, as of MatMul."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return
    add = users[0]
    place = next((index for index, value in enumerate(add.inputs) if value and value.is_initializer()), None)
    if place is None:
        return
    corrected, original = add.inputs[place], floats.get(add.name)
    if original is None:  # of another layer
        return
    before = original.inputs[place]
    assert corrected is not None
    assert before is not None
    plain = values[str(before.name)]
    if plain is corrected:
        return
    name = f"{add.name}_chosen"
    inputs, output = [switch, corrected, plain], f"{corrected.name}_chosen"
    chosen = edit.insert("Where", inputs, like=corrected, output=output, name=name, before=add)
    add.replace_input_with(place, chosen)


def _put_in_if(
    edit: GraphEditor,
    layer: Sequence[ir.Node],
    original: ir.Node,
    plain: Sequence[ir.Value | None],
    switch: ir.Value,
    known: Collection[str | None],
) -> dict[str, ir.Value]:
    """Puts an If of its quantized and its plain form in the place of a layer; returns what this makes.

    Args:
        edit: Of the graph.
        layer: The node and those behind it; each has one output, which the next one reads first.
        original: The node in the float graph.
        plain: What it reads there.
        switch: The condition.
        known: The names of the nodes of the float graph.
    """
    node, old = layer[0], layer[-1].outputs[0]
    float_copy = _copy(edit, original, plain, "float")
    branches = {
        "then_branch": _branch(_copy_with_own(edit, layer, known), f"{node.name}_int8"),
        "else_branch": _branch([float_copy], f"{node.name}_float"),
    }
    name = edit.name_node(f"{node.name}_switched")
    choice = ir.node("If", [switch], branches, num_outputs=1, name=name)
    layer[-1].prepend(choice)
    new = choice.outputs[0]
    new.type, new.shape = old.type, old.shape
    edit.replace(old, new, rename=f"{old.name}_unswitched")
    edit.remove([*layer])
    return {str(new.name): new}


def _copy_with_own(
    edit: GraphEditor, layer: Sequence[ir.Node], known: Collection[str | None]
) -> list[ir.Node]:
    """Returns copies of the nodes of a layer, and of those before it that the float graph lacks."""
    copies: list[ir.Node] = []
    made: dict[ir.Value, ir.Value] = {}

    def copied(value: ir.Value | None) -> ir.Value | None:
        producer = None if value is None else value.producer()
        if value is None or producer is None or value in made:
            return value if value is None else made.get(value, value)
        if producer.op_type in _BEFORE and producer.name not in known:
            copy_node(producer, f"for_{layer[0].name}")
        return made.get(value, value)

    def copy_node(node: ir.Node, suffix: str) -> None:
        copy = _copy(edit, node, [copied(value) for value in node.inputs], suffix)
        copies.append(copy)
        made.update(zip(node.outputs, copy.outputs, strict=True))

    for node in layer:
        copy_node(node, "int8")
    return copies


def _branch(nodes: Sequence[ir.Node], name: str) -> ir.Graph:
    return ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=name)


def _copy(edit: GraphEditor, node: ir.Node, inputs: Sequence[ir.Value | None], suffix: str) -> ir.Node:
    outputs = [
        ir.val(
            edit.name_value(f"{value.name}_{suffix}") if value.name else "",
            shape=value.shape,
            type=value.type,
        )
        for value in node.outputs
    ]
    name, attributes = edit.name_node(f"{node.name}_{suffix}"), tuple(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=name)
