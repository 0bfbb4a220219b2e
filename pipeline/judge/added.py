"""What a network adds to its input, or masks of it: a denoiser, a picture made sharper, speech made clearer.

The output is nearly the input, and so is that of a network that is dead. So what it changes is judged alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from trtq.models.packed import PackedModel, pack
from trtq.models.session import fit_floats, open_session
from trtq.pipeline.graph.placement import holds_weights

_PASSED_ON = ("Identity", "Cast", "Clip")
_SUMS = ("Add", "Sub", "Mul")
_READ_NO_VALUES = ("Shape", "Size")
_MOST_NODES = 64
"""Of what leads from the input to the sum: resizing and scaling take fewer."""
_MOST_NUMBERS = 4096
"""Of a constant there: means, factors and sizes are fewer than a table of embeddings."""


@dataclass(frozen=True, slots=True)
class AddedPart:
    """An output that is a sum or a product of the input, perhaps resized or scaled, and of what layers make.

    Attributes:
        output: Its name.
        base: The tensor that is the input.
        part: The name of what is added, or of the mask.
        is_mask: Whether it is multiplied.
    """

    output: str
    base: str
    part: str
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
    found = (_find_sum(output) for output in model.graph.outputs)
    return tuple(item for item in found if item is not None)


def _find_sum(output: ir.Value) -> AddedPart | None:
    node = output.producer()
    while node is not None and node.op_type in _PASSED_ON and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.domain or node.op_type not in _SUMS:
        return None
    operands = [value for value in node.inputs if value is not None and not value.is_initializer()]
    bases = [value for value in operands if _is_input(value)]
    others = [value for value in operands if value not in bases and value.producer() is not None]
    if len(bases) != 1 or len(others) != 1:
        return None
    return AddedPart(str(output.name), str(bases[0].name), str(others[0].name), node.op_type == "Mul")


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
        """Opens the session that computes the inputs that are added to.

        Args:
            model: It is not changed.
            found: Of `find_added`.
        """
        self._found = {item.output: item for item in found}
        self.keys = frozenset((item.output, item.part) for item in found)
        self._model = model.clone()
        made = {value.name: value for node in self._model.graph for value in node.outputs}
        self._made = tuple(dict.fromkeys(item.base for item in found if item.base in made))
        self._model.graph.outputs[:] = [made[name] for name in self._made]
        self._session = None
        if self._made:
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
        bases = dict(inputs)
        if self._session is not None:
            feed = fit_floats(self._session.get_inputs(), inputs)
            bases |= zip(self._made, self._session.run(list(self._made), feed), strict=True)
        return {
            (name, item.part): item.separate(outputs[name], bases[item.base], num_samples)
            for name, item in self._found.items()
            if name in outputs and _spreads_to(bases[item.base].shape, outputs[name].shape)
        }


def _spreads_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Returns whether numpy makes an array of this shape as large as is wanted."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, other) for size, other in pairs)


def _open_again(packed: PackedModel, found: Sequence[AddedPart]) -> AddedParts:
    return AddedParts(packed.unpack(), found)
