"""What a network adds to its input, or masks of it: a denoiser, a picture made sharper, speech made clearer.

The output is nearly the input, and so is that of a network that is dead. So what it changes is judged alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from trtq.models.packed import PackedModel, pack
from trtq.models.session import fit_floats, open_session
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.placement import holds_weights

_SUMS = ("Add", "Sub", "Sum", "Mean")
_MOVES = (
    "DepthToSpace", "Flatten", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_PASSED_ON = (
    *_MOVES, "Abs", "Cast", "Ceil", "Clip", "Div", "Exp", "Floor", "HardSigmoid", "Identity", "LeakyRelu",
    "Max", "Min", "Neg", "Pow", "Relu", "Round", "Sigmoid", "Sqrt", "Tanh",
)  # fmt: skip
"""What may follow the sum, with constants: scales, limits, another order of axes."""
_READ_NO_VALUES = ("Shape", "Size")
_MOST_NODES = 64
"""Of what leads from the input to the sum, and from there to the output: resizing and scaling take fewer."""
_MOST_NUMBERS = 4096
"""Of a constant there: means, factors and sizes are fewer than a table of embeddings."""


@dataclass(frozen=True, slots=True)
class AddedPart:
    """An output that is a sum or a product of the input, perhaps resized or scaled, and of what layers make.

    Attributes:
        output: Its name.
        part: The name of what is added first, or of the mask.
        left_out: The operands without which it is the input: the name of what is made of each, and its place.
        is_mask: Whether they are multiplied.
    """

    output: str
    part: str
    left_out: tuple[tuple[str, int], ...]
    is_mask: bool = False

    def separate(self, output: NDArray[Any], base: NDArray[Any], num_samples: int) -> NDArray[Any]:
        """Returns what is added; of a mask, what it does beside making each sample louder or softer."""
        output = output if np.issubdtype(output.dtype, np.floating) else output.astype(np.float32)
        base = np.broadcast_to(base.astype(output.dtype), output.shape)
        if not self.is_mask:
            return np.asarray(output - base)
        axes = tuple(range(int(output.shape[:1] == (num_samples,)), output.ndim))
        products, squares = (
            (item * base).sum(axis=axes, keepdims=True, dtype=np.float64) for item in (output, base)
        )
        gains = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
        return np.asarray(output - base * gains.astype(output.dtype))


def find_added(model: ir.Model) -> tuple[AddedPart, ...]:
    """Returns the outputs that are such sums."""
    found = (_Sum().find(output) for output in model.graph.outputs)
    return tuple(item for item in found if item is not None)


class _Sum:
    """Looks for the sums and products of the input that lead to an output."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def find(self, output: ir.Value) -> AddedPart | None:
        """Returns what the output is without, to be the input; None if it is no such sum."""
        if _is_input(output) or not self._carries(output):
            return None
        nodes = [*self._list_nodes(output)]
        operands = [(node, place) for node in nodes for place in self._list_others(node)]
        others = [value for node, place in operands if (value := node.inputs[place]) is not None]
        if not others or any(value.dtype not in FLOAT_TYPES for value in others) or self._is_spread(nodes):
            return None
        left_out = tuple((str(node.outputs[0].name), place) for node, place in operands)
        return AddedPart(
            str(output.name),
            str(others[0].name),
            left_out,
            all(node.op_type == "Mul" for node, _ in operands),
        )

    def _carries(self, value: ir.Value | None) -> bool:
        """Returns whether a value is the input, or a sum or product of it."""
        if value is None or _is_constant(value):
            return False
        if value not in self._known:
            self._known[value] = False  # where there are too many
            self._known[value] = len(self._known) <= _MOST_NODES and self._find_whether(value)
        return self._known[value]

    def _find_whether(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None or node.domain or _is_input(value):
            return _is_input(value)
        carrying = [place for place, item in enumerate(node.inputs) if self._carries(item)]
        if node.op_type in _SUMS:
            return bool(carrying)
        if node.op_type == "Mul":
            return len(carrying) == 1
        return node.op_type in _PASSED_ON and len(carrying) == 1 and not self._list_others(node)

    def _list_others(self, node: ir.Node) -> list[int]:
        """Returns the places of the operands of a node that are computed, and not of the input alone."""
        return [
            place
            for place, value in enumerate(node.inputs)
            if value is not None and not _is_constant(value) and not self._carries(value)
        ]

    def _list_nodes(self, output: ir.Value) -> Iterator[ir.Node]:
        """Yields the nodes between the input and the output, the last first."""
        todo, seen = [output], set[ir.Node]()
        while todo:
            value = todo.pop()
            node = None if _is_input(value) else value.producer()
            if node is not None and node not in seen:
                seen.add(node)
                yield node
                todo += [item for item in node.inputs if item is not None and self._carries(item)]

    def _is_spread(self, nodes: Sequence[ir.Node]) -> bool:
        """Returns whether axes are moved that the input alone may not have."""
        if not any(node.op_type in _MOVES for node in nodes):
            return False
        sums = [node for node in nodes if node.op_type in (*_SUMS, "Mul")]
        pairs = [(item, node.outputs[0]) for node in sums for item in node.inputs if self._carries(item)]
        return any(item is None or item.shape is None or item.shape != made.shape for item, made in pairs)


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")


def _is_input(value: ir.Value) -> bool:
    """Returns whether a value comes of inputs of the model, and of no layer."""
    todo, seen, reaches = [value], set[ir.Node](), False
    while todo:
        item = todo.pop()
        node = item.producer()
        if item.const_value is not None and item.const_value.size > _MOST_NUMBERS:
            return False
        reaches = reaches or (item.is_graph_input() and not item.is_initializer())
        if node is None or node in seen or node.op_type in _READ_NO_VALUES:
            continue
        seen.add(node)
        if holds_weights(node) or len(seen) > _MOST_NODES:
            return False
        todo += [operand for operand in node.inputs if operand is not None]
    return reaches


class AddedParts:
    """Computes what is added or masked: an output without what is the input of it."""

    def __init__(self, model: ir.Model, found: Sequence[AddedPart]) -> None:
        """Opens the session that computes what the outputs are without that.

        Args:
            model: It is not changed.
            found: Of `find_added`.
        """
        self._found = {item.output: item for item in found}
        self.keys = frozenset((item.output, item.part) for item in found)
        self._model = model.clone()
        _leave_out(self._model, found)
        passes.RemoveUnusedNodesPass()(self._model)
        self._session = open_session(self._model, optimize=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the model: another process opens a session of its own."""
        return _open_again, (pack(self._model), tuple(self._found.values()))

    def find(
        self, outputs: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]], num_samples: int
    ) -> dict[tuple[str, str], NDArray[Any]]:
        """Returns what is added to give each output, by the output and the part.

        Args:
            outputs: Of one batch.
            inputs: What they come of.
            num_samples: How many samples the batch has.
        """
        names = [name for name in self._found if name in outputs]
        feed = fit_floats(self._session.get_inputs(), inputs)
        bases = zip(names, self._session.run(names, feed), strict=True)
        return {
            (name, self._found[name].part): self._found[name].separate(outputs[name], base, num_samples)
            for name, base in bases
            if _spreads_to(base.shape, outputs[name].shape)
        }


def _leave_out(model: ir.Model, found: Sequence[AddedPart]) -> None:
    """Makes a model compute the outputs without what is added, and nothing else."""
    edit = GraphEditor(model)
    made = {value.name: value for node in model.graph for value in node.outputs}
    for name, place in (operand for item in found for operand in item.left_out):
        node = made[name].producer()
        other = None if node is None else node.inputs[place]
        if node is not None and other is not None and other.dtype is not None:
            number = np.array(float(node.op_type == "Mul"), other.dtype.numpy())
            node.replace_input_with(place, edit.add_constant(f"{name}_without", ir.tensor(number)))
    model.graph.outputs[:] = [made[item.output] for item in found]


def _spreads_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Returns whether numpy makes an array of this shape as large as is wanted."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, other) for size, other in pairs)


def _open_again(packed: PackedModel, found: Sequence[AddedPart]) -> AddedParts:
    return AddedParts(packed.unpack(), found)
