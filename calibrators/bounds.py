"""How large the tensors of a graph can get at most, given how large some of them do.

Interval arithmetic with intervals that are symmetric around 0; `operator_bounds` has the operators.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtq.calibrators.finite import measure
from trtq.calibrators.linear_bounds import ChannelBounds, Channels, Step
from trtq.calibrators.operator_bounds import find_step
from trtq.calibrators.ranges import FP16_LIMIT
from trtq.calibrators.signs import find_mean
from trtq.calibrators.survey import name_negative
from trtq.models.tensors import iterate_values

_MOST_AXES = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest magnitude of each tensor of a graph, and which float32 ones cannot be trusted to FP16.

    Attributes:
        magnitudes: By name; infinite where nothing is known.
        unproven: The tensors that may be larger than the limit.
    """

    magnitudes: Mapping[str, float]
    unproven: Collection[str]


@dataclass(slots=True)
class _Node:
    """One node: its tensors by name, the largest magnitude that their types hold, and what bounds them."""

    inputs: tuple[str, ...]
    outputs: Mapping[str, float]
    floats: Collection[str]
    step: Step


@dataclass(slots=True)
class MagnitudeBounds:
    """The bounds of one graph; its weights are read once.

    Attributes:
        constants: The largest finite magnitudes of the constants.
        nodes: In graph order.
        certain: The tensors that stay inside FP16 whatever the data is.
    """

    constants: dict[str, float] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)
    certain: set[str] = field(default_factory=set)

    def find(
        self, known: Mapping[str, float], limit: float, guesses: Mapping[str, float] | None = None
    ) -> Bounds:
        """Returns the bounds.

        Args:
            known: The largest magnitudes of some tensors. Of other inputs nothing is known.
            limit: A tensor whose bound is above it is unproven, unless it is a certain one.
            guesses: Magnitudes that are assumed behind unproven tensors, so that the search goes on.
        """
        found = dict(self.constants) | dict(known)
        unproven = list[str]()
        with np.errstate(over="ignore", invalid="ignore"):
            for index in range(len(self.nodes)):
                unproven += self.visit(index, found, known, limit, guesses or {})
        return Bounds(found, unproven)

    def visit(
        self,
        index: int,
        found: MutableMapping[str, float],
        known: Mapping[str, float],
        limit: float,
        guesses: Mapping[str, float],
    ) -> list[str]:
        """Bounds what one node makes, and returns what of it is unproven.

        Args:
            index: Of the node.
            found: The bounds of the tensors before it, which gets those that it makes.
            known: As in `find`; they stay as they are in `found`.
            limit: The same.
            guesses: The same.
        """
        node, unproven = self.nodes[index], list[str]()
        given = [found.get(name, math.inf) if name else 0.0 for name in node.inputs]
        bound = node.step(given)
        bound = math.inf if math.isnan(bound) else bound
        for name, most in node.outputs.items():
            if name in known:
                continue
            found[name] = min(bound, most)
            if name in node.floats and bound > limit and name not in self.certain:
                unproven.append(name)
                found[name] = min(bound, guesses.get(name, math.inf))
        return unproven


def compile_bounds(model: ir.Model, measured: Mapping[str, float] | None = None) -> MagnitudeBounds:
    """Returns the bounds of a graph; what is in bodies is not looked at.

    Args:
        model: The graph.
        measured: Its `constants`, if they are known.
    """
    constants = dict(measured or {})
    for name, value in model.graph.initializers.items() if measured is None else ():
        if value.const_value is not None and value.dtype not in (None, ir.DataType.STRING):
            constants[name] = _measure_finite(value.const_value)
    nodes, channels = [], Channels()
    with np.errstate(over="ignore", invalid="ignore"):  # what is behind many layers may be as large as can be
        for node in model.graph:
            outputs = {str(value.name): _find_most(value.dtype) for value in node.outputs if value.name}
            floats = [str(value.name) for value in node.outputs if value.dtype is ir.DataType.FLOAT]
            inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
            step = find_step(node, channels)
            if (mean := find_mean(node)) is not None:
                inputs, step = (mean.value, *map(name_negative, mean.inputs)), _bound_mean
            known = (channels.get((name, axis)) for name in floats for axis in range(_MOST_AXES))
            for item in filter(None, known):
                inputs, step = (*inputs, item.origin), _bound_channels(step, item)
            nodes.append(_Node(inputs, outputs, floats, step))
    bounds = MagnitudeBounds(constants, nodes)
    of_any = bounds.find({}, math.inf).magnitudes
    bounds.certain = {name for name, magnitude in of_any.items() if magnitude <= FP16_LIMIT}
    return bounds


def _measure_finite(tensor: ir.TensorProtocol) -> float:
    """Returns the largest finite magnitude: FP16 has infinities."""
    largest = measure(tensor)
    if largest < math.inf:
        return largest
    finite = (piece[np.isfinite(piece)] for piece in iterate_values(tensor))
    return max(float(np.abs(piece).max(initial=0.0)) for piece in finite)


def _bound_channels(step: Step, channels: ChannelBounds) -> Step:
    """Returns a step that takes the magnitude of the origin as its last input."""
    return lambda given: min(step(given[:-1]), channels.reach(given[-1]))


def _bound_mean(given: Sequence[float]) -> float:
    """Bounds a mean, of which the first bound is that of the values, and the others are of their weights."""
    return math.inf if any(given[1:]) else given[0]


def _find_most(dtype: ir.DataType | None) -> float:
    """Returns the largest magnitude of a type, also of integers that wrap around."""
    if dtype is ir.DataType.BOOL:
        return 1.0
    return 2.0**dtype.bitwidth if dtype is not None and dtype.is_integer() else math.inf
