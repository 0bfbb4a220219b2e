"""How large the tensors of a graph can get at most, given how large some of them do.

Interval arithmetic with intervals that are symmetric around 0; `operator_bounds` has the operators.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtq.calibrators.operator_bounds import Step, find_step
from trtq.models.tensors import read_values


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest magnitude of each float32 tensor of a graph, and which of them cannot be trusted to FP16.

    Attributes:
        magnitudes: By name; infinite where nothing is known.
        unproven: The tensors that may be larger than the limit.
    """

    magnitudes: Mapping[str, float]
    unproven: Collection[str]


@dataclass(slots=True)
class _Node:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    step: Step


@dataclass(slots=True)
class MagnitudeBounds:
    """The bounds of one graph; its weights are read once.

    Attributes:
        constants: The largest magnitudes of the constants.
        nodes: In graph order.
    """

    constants: dict[str, float] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)

    def find(
        self, known: Mapping[str, float], limit: float, guesses: Mapping[str, float] | None = None
    ) -> Bounds:
        """Returns the bounds.

        Args:
            known: The largest magnitudes of some tensors. Of other inputs nothing is known.
            limit: A tensor whose bound is above it is unproven.
            guesses: What to go on with, after a tensor that is unproven.
        """
        found = dict(self.constants) | dict(known)
        unproven = []
        for node in self.nodes:
            given = [found.get(name, math.inf) if name else 0.0 for name in node.inputs]
            with np.errstate(over="ignore", invalid="ignore"):
                bound = node.step(given)
            bound = math.inf if math.isnan(bound) else bound
            for name in node.outputs:
                if name in known:
                    continue
                if bound > limit:
                    unproven.append(name)
                found[name] = min(bound, guesses.get(name, math.inf)) if guesses and bound > limit else bound
        return Bounds(found, unproven)


def compile_bounds(model: ir.Model) -> MagnitudeBounds:
    """Returns the bounds of a graph; what is in bodies is not looked at."""
    constants = {
        str(value.name): _measure(value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point()
    }
    nodes = []
    for node in model.graph:
        outputs = tuple(
            str(value.name) for value in node.outputs if value.name and value.dtype is ir.DataType.FLOAT
        )
        if outputs:
            inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
            nodes.append(_Node(inputs, outputs, find_step(node)))
    return MagnitudeBounds(constants, nodes)


def _measure(tensor: ir.TensorProtocol) -> float:
    """Returns the largest finite magnitude: FP16 has infinities."""
    magnitudes = np.abs(read_values(tensor))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))
