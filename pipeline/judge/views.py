"""How outputs are looked at: with the samples along the first axis, and each part of a joined one for itself.

A detector gives boxes of hundreds of pixels and scores below 1 in one tensor: as a whole it is near another
whose scores are all zero. So what the last Concat joins is judged apart too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.packed import PackedModel, pack
from trtq.models.session import fit_floats, open_session, open_session_of
from trtq.pipeline.graph.open_sizes import find_open_sizes
from trtq.pipeline.judge.added import AddedParts, find_added
from trtq.pipeline.judge.drawn import find_drawn
from trtq.pipeline.judge.filled import Filled, find_filled, see_filled
from trtq.pipeline.judge.origins import find_origins, name_part
from trtq.pipeline.judge.parts import is_computed, is_joined, list_parts
from trtq.pipeline.judge.places import find_places
from trtq.pipeline.judge.ranked import find_ranked
from trtq.pipeline.judge.steady import split_by_sample

Key: TypeAlias = tuple[str, str]
"""An output and the tensor that is joined to it; an empty one stands for the whole."""
_Place: TypeAlias = tuple[Any, ...]
_WHOLE = ""
_TYPES: Mapping[str, ir.DataType] = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int32)": ir.DataType.INT32,
}
"""By ONNX Runtime's words."""
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_GIVEN = -1
"""Stands for values that no node computes."""


@dataclass(frozen=True, slots=True)
class OutputViews:
    """The views of the outputs of one model, and of others with the same outputs.

    Attributes:
        axes: The axis of the samples, of outputs where it is not the first.
        labels: Tells which part each value of an output is of.
        open_sizes: The outputs whose size depends on values, as behind NonMaxSuppression.
        drawn: The outputs that differ from run to run, and the nodes that draw random numbers for them.
        names: Whether an output or a part holds names, such as indices, or amounts, where that is known.
        places: The axes of an output that are places of a picture; of none whose samples are not first.
        ranked: The outputs whose rows a TopK has ordered.
        added: Computes what is added to the input, where that gives an output.
        filled: The constants that fill outputs in part.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    labels: PartLabels | None = None
    open_sizes: Collection[str] = ()
    names: Mapping[Key, bool] = field(default_factory=dict)
    drawn: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranked: Collection[str] = ()
    added: AddedParts | None = None
    filled: Mapping[str, Filled] = field(default_factory=dict)

    def see(
        self, outputs: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]], num_samples: int
    ) -> dict[Key, NDArray[Any]]:
        """Returns each output as a whole, the samples first, and then its parts.

        Args:
            outputs: Of one batch.
            inputs: What they come of.
            num_samples: How many samples the batch has.
        """
        found: dict[Key, NDArray[Any]] = {}
        for name, output in outputs.items():
            axis = self.axes.get(name, 0)
            whole = np.moveaxis(output, axis, 0) if axis < output.ndim else output
            found[name, _WHOLE] = whole
            if self.labels is not None:
                rows = split_by_sample(whole, num_samples)
                places = self.labels.find(name, rows, axis, inputs, num_samples)
                found |= {(name, part): rows[(slice(None), *place)] for part, place in places.items()}
        found |= see_filled(self.filled, outputs)
        return found if self.added is None else found | self.added.find(outputs, inputs, num_samples)

    def is_added(self, key: Key) -> bool:
        """Whether a part is what is added to the input."""
        return self.added is not None and key in self.added.keys


def create_views(model: ir.Model) -> OutputViews:
    """Returns how to look at the outputs of a model.

    Raises:
        ModelError: ONNX Runtime cannot load what tells the parts.
    """
    joined = [value for value in model.graph.outputs if _has_parts(value)]
    labels = PartLabels(model, joined) if joined else None
    opened = find_open_sizes(model).intersection(model.graph.outputs)
    sizes = {str(value.name) for value in opened}
    axes = find_sample_axes(model)
    sums = [item for item in find_added(model) if item.output not in axes]
    places = {name: found for name, found in find_places(model).items() if name not in axes}
    origins, drawn, ranked = find_origins(model), find_drawn(model), find_ranked(model)
    added = AddedParts(model, sums) if sums else None
    filled = {name: found for name, found in find_filled(model).items() if name not in axes}
    return OutputViews(axes, labels, sizes, origins, drawn, places, ranked, added, filled)


def find_sample_axes(model: ir.Model) -> dict[str, int]:
    """Returns the axis of the samples of each output where it is not the first, such as (T, N, C).

    It is known where the inputs have a name for their first axis which one other axis of the output bears.
    """
    shapes = [_list_symbols(value) for value in model.graph.inputs if value.shape]
    symbols = {symbols[0] for symbols in shapes} - {None}
    if len(symbols) != 1 or any(symbols & {*others} for _, *others in shapes):
        return {}
    (symbol,) = symbols
    axes = {str(value.name): _list_symbols(value) for value in model.graph.outputs}
    return {
        name: found.index(symbol)
        for name, found in axes.items()
        if found.count(symbol) == 1 and found[0] != symbol
    }


def _list_symbols(value: ir.Value) -> list[str | None]:
    """Returns the name of each axis; None of those with a fixed or an unknown size."""
    return [size.value if isinstance(size, ir.SymbolicDim) else None for size in value.shape or ()]


def _has_parts(value: ir.Value) -> bool:
    if not (is_computed(value) and is_joined(value)):
        return False
    parts = list_parts(value)
    return len(parts) > 1 and any(item.producer() is not None for item in chain(*parts))


class PartLabels:
    """Tells which part each value of an output is of, by joining arrays that are filled with numbers."""

    def __init__(self, model: ir.Model, outputs: Sequence[ir.Value]) -> None:
        """Opens the sessions that tell the shapes of the parts, and that join them.

        Args:
            model: It is not changed.
            outputs: Those of its outputs that are joined.
        """
        self._model, self._outputs = model, tuple(str(value.name) for value in outputs)
        groups = {str(value.name): list_parts(value) for value in outputs}
        tail = _Tail({part for parts in groups.values() for part in chain(*parts)})
        ends = [tail.copy(value) for value in outputs]
        self._probe = open_session_of(model, [name for name in tail.inputs if name not in tail.given])
        made = {item.name for item in self._probe.get_outputs() if item.type in _FLOATS}
        for item in self._probe.get_outputs():  # ONNX Runtime knows types that ONNX does not infer
            if tail.inputs[item.name].type is None and item.type in _TYPES:
                tail.inputs[item.name].type = ir.TensorType(_TYPES[item.type])
        joins = ir.Graph(
            list(tail.inputs.values()),
            ends,
            nodes=tail.nodes,
            initializers=list(tail.constants.values()),
            opset_imports=model.opset_imports,
        )
        self._joins = open_session(ir.Model(joins, ir_version=model.ir_version), optimize=False)
        self._given = tail.given
        self._names = {output: tuple(map(name_part, parts)) for output, parts in groups.items()}
        self._numbers = {
            output: {
                str(value.name): number if value.name in made else _GIVEN
                for number, part in enumerate(parts)
                for value in part
            }
            for output, parts in groups.items()
        }
        sized = {*outputs, *(part for parts in groups.values() for part in chain(*parts))}
        self._is_fixed = find_open_sizes(model).isdisjoint(sized)
        self._known: dict[tuple[object, ...], dict[str, _Place]] = {}
        self._last: tuple[str, list[NDArray[Any]], NDArray[Any]] | None = None

    def __reduce__(self) -> tuple[Callable[..., PartLabels], tuple[Any, ...]]:
        """Pickles the model: another process opens sessions of its own."""
        return _open_labels, (pack(self._model), self._outputs)

    def find(
        self,
        output: str,
        rows: NDArray[Any],
        axis: int,
        inputs: Mapping[str, NDArray[Any]],
        num_samples: int,
    ) -> dict[str, _Place]:
        """Returns where each computed part is in a sample: an index of all axes after the first.

        Args:
            output: Its name.
            rows: Its values, the samples first.
            axis: The axis of the samples in the model.
            inputs: A batch of which the model computes an output of this shape.
            num_samples: Of the batch.
        """
        if output not in self._names:
            return {}
        shapes = tuple(sorted((name, array.shape) for name, array in inputs.items()))
        key = output, rows.shape, shapes
        if self._is_fixed and key in self._known:
            return self._known[key]
        labels = split_by_sample(np.moveaxis(self._join(output, inputs), axis, 0), num_samples)
        if labels.shape != rows.shape:  # whoever compares will say so
            return {}
        self._known[key] = self._locate(output, labels[0])
        return self._known[key]

    def _join(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Returns the output with the number of a part at each value; found once for all models of a feed."""
        arrays = list(inputs.values())
        if self._last is not None and self._last[0] == output and _are_same(self._last[1], arrays):
            return self._last[2]
        self._last = output, arrays, self._compute(output, inputs)
        return self._last[2]

    def _compute(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        names = [item.name for item in self._probe.get_outputs()]
        given = fit_floats(self._probe.get_inputs(), inputs)
        seen = dict(zip(names, self._probe.run(names, given), strict=True))
        feed = {**self._given, **seen, **inputs}
        wanted = {item.name: feed[item.name] for item in self._joins.get_inputs()}
        parts = {part for numbers in self._numbers.values() for part in numbers}
        for name in wanted.keys() & parts:
            wanted[name] = np.full_like(wanted[name], self._numbers[output].get(name, _GIVEN))
        return self._joins.run([output], wanted)[0]

    def _locate(self, output: str, labels: NDArray[Any]) -> dict[str, _Place]:
        found = {name: labels == number for number, name in enumerate(self._names[output])}
        return {name: _to_slices(mask) for name, mask in found.items() if mask.any()}


def _open_labels(packed: PackedModel, outputs: Collection[str]) -> PartLabels:
    model = packed.unpack()
    return PartLabels(model, [value for value in model.graph.outputs if value.name in outputs])


def _are_same(ours: Sequence[object], theirs: Sequence[object]) -> bool:
    return len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))


def _to_slices(mask: NDArray[np.bool_]) -> _Place:
    """Returns the index of a mask: slices where it is a box, which keeps the shape and copies nothing."""
    box = tuple(slice(int(found.min()), int(found.max()) + 1) for found in np.nonzero(mask))
    return box if mask[box].all() else (mask,)


class _Tail:
    """A copy of the nodes from the parts to the outputs; all else that they read becomes an input.

    Attributes:
        inputs: By name.
        given: The values of those that no node computes, by name; not of the inputs of the model.
        constants: Shapes and axes that the nodes read.
        nodes: In their order.
    """

    def __init__(self, parts: Collection[ir.Value]) -> None:
        self.inputs: dict[str, ir.Value] = {}
        self.given: dict[str, NDArray[Any]] = {}
        self.constants: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self._parts = parts
        self._copies: dict[ir.Value, ir.Value] = {}

    def copy(self, value: ir.Value) -> ir.Value:
        """Returns the copy of a value that comes of the parts."""
        if value not in self._copies:
            node = None if value in self._parts else value.producer()
            self._copies[value] = self._add_input(value) if node is None else self._copy_node(node, value)
        return self._copies[value]

    def _copy_node(self, node: ir.Node, value: ir.Value) -> ir.Value:
        followed = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        inputs = [None if item is None else self.copy(item) for item in followed]
        inputs += [None if item is None else self._add_side(item) for item in node.inputs[len(followed) :]]
        output = ir.val(str(value.name), type=value.type)
        attributes = tuple(node.attributes.values())
        self.nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=[output]))
        return output

    def _add_input(self, value: ir.Value) -> ir.Value:
        if value.const_value is not None:
            self.given[str(value.name)] = value.const_value.numpy()
        return self.inputs.setdefault(str(value.name), ir.val(str(value.name), type=value.type))

    def _add_side(self, value: ir.Value) -> ir.Value:
        if value.const_value is None:
            return self._add_input(value)
        copy = ir.val(str(value.name), type=value.type, const_value=value.const_value)
        return self.constants.setdefault(str(value.name), copy)
