"""A Q/DQ model of which every layer can be switched to another format, or to float, at run time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Ranges
from trtq.models.packed import PackedModel, pack
from trtq.models.runner import MovableSession, PlainSession, create_runner
from trtq.models.session import SessionPort, open_session
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.opset import convert_opset, read_opset
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.importer import Importer
from trtq.pipeline.judge.views import OutputViews, create_views
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.rows import BEHIND
from trtq.workers import Shared, Workers

_SWITCH = "trtq_switch_"
_ON, _OFF = np.array(True), np.array(False)


@dataclass(frozen=True, slots=True)
class Switchable:
    """One session that computes any mixture of quantized and float layers.

    Attributes:
        session: The ONNX Runtime session, opened when it is needed.
        layers: The nodes that can be switched, in graph order, each with the names of its formats.
        views: How its outputs are looked at.
        models: What the session runs, and the float model.
        shared: This, where workers can take it.
    """

    session: PlainSession
    layers: Mapping[str, tuple[str, ...]]
    views: OutputViews
    models: tuple[ir.Model, ir.Model]
    shared: Shared[Switchable] | None = None

    def share(self, workers: Workers) -> Switchable:
        """Returns the same, which travels to each of the workers once, whatever it is part of."""
        return replace(self, shared=workers.share(self))

    def __reduce__(self) -> tuple[Callable[..., Switchable], tuple[Any, ...]]:
        """Pickles the models: another process opens a session of its own."""
        if self.shared is not None:
            return self.shared.__call__, ()
        return _open_packed, (*map(pack, self.models), self.layers)

    def runner(self, name: str, quantized: Mapping[str, str]) -> Any:
        """Returns a Polygraphy runner of this name that quantizes these layers so, and no others.

        Args:
            name: The runner's.
            quantized: The name of the format by layer.
        """
        switches = {
            _name_switch(index, form): _ON if quantized.get(layer) == form else _OFF
            for index, (layer, forms) in enumerate(self.layers.items())
            for form in forms
        }
        return create_runner(_Mixture(self, switches), name)


def _name_switch(index: int, form: str) -> str:
    return f"{_SWITCH}{index}_{form}"


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The session with its switches set: what Polygraphy needs of an ONNX Runtime session."""

    can_move: ClassVar[bool] = True
    switchable: Switchable
    switches: Mapping[str, NDArray[np.bool_]]

    def get_inputs(self) -> list[SessionPort]:
        return [item for item in self.switchable.session.get_inputs() if item.name not in self.switches]

    def get_outputs(self) -> list[SessionPort]:
        return list(self.switchable.session.get_outputs())

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return list(self.switchable.session.run(outputs, {**feed, **self.switches}))


def open_switchable(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    *,
    scale_dtype: str = "float32",
    others: Sequence[Placement] = (),
) -> Switchable:
    """Returns the session of `build_switchable`; graph optimizations are off, as in the comparison.

    It is opened by the first run, which raises ModelError if ONNX Runtime cannot load it.

    Raises:
        UsageError: The ranges lack a tensor.
    """
    made = build_switchable(model, placement, ranges, scale_dtype=scale_dtype, others=others)
    made = without_fp4(made)
    return _open(make_quantize_exact(made) or made, model, list_forms(placement, others))


def _open(made: ir.Model, model: ir.Model, layers: Mapping[str, tuple[str, ...]]) -> Switchable:
    session = MovableSession(partial(open_session, made, optimize=False))  # workers may have others
    return Switchable(session, layers, create_views(model), (made, model))


def _open_packed(made: PackedModel, model: PackedModel, layers: Mapping[str, tuple[str, ...]]) -> Switchable:
    return _open(made.unpack(), model.unpack(), layers)


def list_forms(placement: Placement, others: Sequence[Placement] = ()) -> dict[str, tuple[str, ...]]:
    """Returns the names of the formats that each layer of the first placement has in one of them."""
    parts = [placement, *(_list_alternatives(placement, others))]
    forms: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for node in part.quantized:
            forms[node.name] = (*forms.get(node.name, ()), node.scheme.form.name)
    return forms


def _list_alternatives(placement: Placement, others: Sequence[Placement]) -> list[Placement]:
    """Returns of each other placement the layers that read the same in a format not seen before."""
    before = {node.name: node for node in placement.quantized}
    seen = {(node.name, node.scheme.form.name) for node in placement.quantized}
    found = []
    for other in others:
        nodes = tuple(
            node
            for node in other.quantized
            if node.name in before
            and (node.name, node.scheme.form.name) not in seen
            and (node.activations, node.weight) == (before[node.name].activations, before[node.name].weight)
        )
        seen |= {(node.name, node.scheme.form.name) for node in nodes}
        found.append(Placement(nodes))
    return found


def build_switchable(
    model: ir.Model,
    placement: Placement,
    ranges: Ranges,
    *,
    scale_dtype: str = "float32",
    others: Sequence[Placement] = (),
) -> ir.Model:
    """Returns the Q/DQ model with an If around every quantized node, and a bool input for each format of it.

    The one branch holds the node with all that quantizing put before and behind it, such as its Q/DQ pairs,
    the other the node as it was, or an If again where there are further formats. So a layer costs what it
    costs in a model that is quantized, or not, for good: measured, half of what it costs to select each
    operand with Where. All switched on, it computes what the Q/DQ model computes, bit for bit.

    Args:
        model: The float graph; it is not changed.
        placement: Which nodes are quantized.
        ranges: The amax of every placed activation.
        scale_dtype: As for `quantize`.
        others: The same nodes in other formats; the first of two of one format counts.
    """
    if read_opset(model) < (opset := max(item.min_opset for item in (placement, *others))):
        model = convert_opset(model, opset)
    given, rescaled = model, rescale(model, placement, ranges)  # whose float layers compute the same
    model = rescaled.model
    result = quantize(model, rescaled.placement, rescaled.ranges, scale_dtype=scale_dtype)
    floats, known = {node.name: node for node in model.graph}, map_values(model.graph).keys()
    values = map_values(result.graph)
    for name, value in model.graph.initializers.items():
        if name not in values:  # a weight that the quantized model has as codes only
            kept = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            result.graph.initializers[name] = values[name] = kept
    edit = GraphEditor(result)  # which knows these names too: the other formats have constants of the same
    sources = [_Source({node.name: node for node in result.graph}, lambda value: value)]
    for other in _list_alternatives(placement, others):
        beside = rescale(given, _replace_nodes(placement, other), ranges)
        names = {node.name for node in other.quantized}
        nodes = tuple(node for node in beside.placement.quantized if node.name in names)
        made = quantize(beside.model, Placement(nodes), beside.ranges, scale_dtype=scale_dtype)
        importer = Importer(edit, values)
        by_name = {node.name: node for node in made.graph}
        sources.append(_Source(by_name, importer.take, {node.name: node for node in nodes}))
    for index, placed in enumerate(rescaled.placement.quantized):
        copies = []
        for source in sources:
            own = placed if source.placed is None else source.placed.get(placed.name)
            if own is None:
                continue
            switch = ir.val(_name_switch(index, own.scheme.form.name), ir.DataType.BOOL, ())
            result.graph.inputs.append(switch)
            node = source.nodes[placed.name]
            layer = (node, *_list_own_behind(node, floats.keys()))
            copies.append(_Copy(layer, switch, own.scheme.form.name, source.take))
        original = floats[placed.name]
        _switch_correction(edit, copies, floats, values)
        plain = [None if value is None else values[str(value.name)] for value in original.inputs]
        values.update(_put_in_if(edit, original, plain, copies, known=known))
    edit.drop_unused()
    return result


def _replace_nodes(placement: Placement, others: Placement) -> Placement:
    """Returns a placement with some of its nodes in the formats of others: what is rescaled stays alike."""
    found = {node.name: node for node in others.quantized}
    return Placement(tuple(found.get(node.name, node) for node in placement.quantized))


@dataclass(frozen=True, slots=True)
class _Source:
    """A quantized model that layers are taken from.

    Attributes:
        nodes: By name.
        take: Returns what stands for one of its values in the switchable model.
        placed: Its layers by name; None: all.
    """

    nodes: Mapping[str | None, ir.Node]
    take: Callable[[ir.Value], ir.Value]
    placed: Mapping[str, QuantizedNode] | None = None


@dataclass(frozen=True, slots=True)
class _Copy:
    """A layer in one format, and what switches it on.

    `layer` is its node in the model that has it so, and those behind it that quantizing put there; each has
    one output, which the next one reads first.
    """

    layer: Sequence[ir.Node]
    switch: ir.Value
    form: str
    take: Callable[[ir.Value], ir.Value]


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
    copies: Sequence[_Copy],
    floats: Mapping[str | None, ir.Node],
    values: Mapping[str, ir.Value],
) -> None:
    """Switches the bias correction that stands in an Add of the float graph behind a layer, as of MatMul."""
    found = _find_correction(copies[0])
    original = None if found is None else floats.get(found[0].name)
    if found is None or original is None:  # of another layer
        return
    add, place = found
    before = original.inputs[place]
    assert before is not None
    plain = values[str(before.name)]
    held = [_find_held(edit, copy, add) for copy in copies]
    if all(value is plain for value in held):
        return
    chosen = plain
    for copy, own in zip(reversed(copies), reversed(held), strict=True):
        name, output = f"{add.name}_chosen", f"{plain.name}_chosen"
        inputs = [copy.switch, own, chosen]
        chosen = edit.insert("Where", inputs, like=plain, output=output, name=name, before=add)
    add.replace_input_with(place, chosen)


def _find_held(edit: GraphEditor, copy: _Copy, add: ir.Node) -> ir.Value:
    """Returns what an Add behind a layer adds where it is in this format: 0 if its model has none there."""
    own = _find_correction(copy)
    if own is not None and own[0].name == add.name:
        value = own[0].inputs[own[1]]
        assert value is not None
        return copy.take(value)
    like = next(value for value in add.inputs if value is not None and value.is_initializer())
    return edit.add_constant(f"{add.name}_nothing", np.zeros_like(read_constant(like)))


def _find_correction(copy: _Copy) -> tuple[ir.Node, int] | None:
    """Returns the Add that alone reads a layer, and the place of its constant."""
    users = [user for user, _ in copy.layer[-1].outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    places = (index for index, value in enumerate(users[0].inputs) if value and value.is_initializer())
    return next(((users[0], place) for place in places), None)


def _put_in_if(
    edit: GraphEditor,
    original: ir.Node,
    plain: Sequence[ir.Value | None],
    copies: Sequence[_Copy],
    known: Collection[str],
) -> dict[str, ir.Value]:
    """Puts an If of its quantized forms and its plain one in the place of a layer; returns what this makes.

    Args:
        edit: Of the graph.
        original: The node in the float graph.
        plain: What it reads there.
        copies: The layer in each of its formats; the first is the one of the graph.
        known: The names of the values of the float graph, which keep them where it is quantized.
    """
    layer = copies[0].layer
    name, old = layer[0].name, layer[-1].outputs[0]
    rest = _branch([_copy(edit, original, plain, "float")], f"{name}_float")
    for copy in reversed(copies):
        own = _branch(_copy_with_own(edit, copy, known), f"{name}_{copy.form}")
        branches = {"then_branch": own, "else_branch": rest}
        choice = ir.node(
            "If", [copy.switch], branches, num_outputs=1, name=edit.name_node(f"{name}_switched")
        )
        new = choice.outputs[0]
        new.type, new.shape = old.type, old.shape
        if copy is not copies[0]:
            new.name = edit.name_value(f"{old.name}_or_{copy.form}")
            rest = _branch([choice], f"{name}_or_{copy.form}")
    layer[-1].prepend(choice)
    edit.replace(old, new, rename=f"{old.name}_unswitched")
    edit.remove([*layer])
    return {str(new.name): new}


def _copy_with_own(edit: GraphEditor, layer: _Copy, known: Collection[str]) -> list[ir.Node]:
    """Returns copies of the nodes of a layer, and of those before it that the float graph lacks."""
    copies: list[ir.Node] = []
    made: dict[ir.Value, ir.Value] = {}

    def copied(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in made:
            return None if value is None else made[value]
        producer = value.producer()
        if producer is None or str(value.name) in known:
            return layer.take(value)
        copy_node(producer, f"for_{layer.layer[0].name}")
        return made[value]

    def copy_node(node: ir.Node, suffix: str) -> None:
        copy = _copy(edit, node, [copied(value) for value in node.inputs], suffix)
        copies.append(copy)
        made.update(zip(node.outputs, copy.outputs, strict=True))

    for node in layer.layer:
        copy_node(node, layer.form)
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
