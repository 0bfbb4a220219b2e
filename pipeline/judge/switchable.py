"""A Q/DQ model of which every quantized layer can be switched to float at run time: one session for all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.ranges import Ranges
from trtq.models.session import Session, SessionPort, open_session
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.fp4 import DYNAMIC_QUANTIZE, emulate_fp4
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, read_constant
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.views import OutputViews, create_views
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qdq import quantize

_SWITCH = "trtq_switch_"
_PAIR = (QUANTIZE, DEQUANTIZE, DYNAMIC_QUANTIZE)
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
    made = build_switchable(model, placement, ranges, scale_dtype=scale_dtype)
    made = emulate_fp4(made) or made
    session = open_session(make_quantize_exact(made) or made, optimize=False)
    return Switchable(session, tuple(node.name for node in placement.quantized), create_views(model))


def build_switchable(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the Q/DQ model with an If around every quantized node, and a bool input for each.

    The one branch holds the node with its Q/DQ pairs, the other the node as it was. So a layer costs what it
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
        _switch_correction(edit, node, floats, values, switch)
        plain = [None if value is None else values[str(value.name)] for value in original.inputs]
        values.update(_put_in_if(edit, node, plain, switch, known=floats.keys()))
    edit.drop_unused()
    return result


def _switch_correction(
    edit: GraphEditor,
    node: ir.Node,
    floats: Mapping[str | None, ir.Node],
    values: Mapping[str, ir.Value],
    switch: ir.Value,
) -> None:
    """Switches the bias correction of a layer that has no bias for it, such as a MatMul: an Add holds it."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return
    add = users[0]
    place = next((index for index, value in enumerate(add.inputs) if value and value.is_initializer()), None)
    if place is None:
        return
    corrected, original = add.inputs[place], floats.get(add.name)
    assert corrected is not None
    if original is None:  # it was put there for the correction
        plain = edit.add_constant(f"{corrected.name}_plain", np.zeros_like(read_constant(corrected)))
    else:
        before = original.inputs[place]
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
    node: ir.Node,
    plain: list[ir.Value | None],
    switch: ir.Value,
    known: Collection[str | None],
) -> dict[str, ir.Value]:
    """Puts an If of its quantized and its plain form in the place of a node; returns what this makes."""
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    branches = {
        "then_branch": _branch(edit, node, *_with_own_pairs(edit, node, known), used, "int8"),
        "else_branch": _branch(edit, node, [], plain, used, "float"),
    }
    choice = ir.node(
        "If", [switch], branches, num_outputs=len(used), name=edit.name_node(f"{node.name}_switched")
    )
    node.prepend(choice)
    for old, new in zip(used, choice.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        edit.replace(old, new, rename=f"{old.name}_unswitched")
    edit.remove(node)
    return {str(value.name): value for value in choice.outputs}


def _with_own_pairs(
    edit: GraphEditor, node: ir.Node, known: Collection[str | None]
) -> tuple[list[ir.Node], list[ir.Value | None]]:
    """Returns copies of the Q/DQ nodes before a node, which the float graph lacks, and its inputs then."""
    copies: list[ir.Node] = []
    made: dict[ir.Value, ir.Value] = {}

    def copied(value: ir.Value | None) -> ir.Value | None:
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.op_type not in _PAIR or producer.name in known:
            return value
        if value not in made:
            copy = _copy(edit, producer, [copied(item) for item in producer.inputs], f"for_{node.name}")
            copies.append(copy)
            made.update(zip(producer.outputs, copy.outputs, strict=True))
        return made[value]

    inputs = [copied(value) for value in node.inputs]
    return copies, inputs


def _branch(
    edit: GraphEditor,
    node: ir.Node,
    before: list[ir.Node],
    inputs: list[ir.Value | None],
    used: list[ir.Value],
    suffix: str,
) -> ir.Graph:
    copy = _copy(edit, node, inputs, suffix)
    outputs = [copy.outputs[value.index()] for value in used]  # type: ignore[index]
    return ir.Graph([], outputs, nodes=[*before, copy], name=f"{node.name}_{suffix}")


def _copy(edit: GraphEditor, node: ir.Node, inputs: list[ir.Value | None], suffix: str) -> ir.Node:
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
