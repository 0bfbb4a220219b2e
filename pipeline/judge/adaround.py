"""Finds for each weight which values to round up and which down, on a few batches of calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.ranges import QMAX, Ranges
from trtq.calibrators.taps import open_taps
from trtq.models.session import SessionOptions
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import Placement, QuantizedNode, QuantizedWeight
from trtq.pipeline.judge.columns import gather_columns
from trtq.pipeline.rewrite.channels.operands import has_input_channels
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qdq import divide_by_scale, find_qparams
from trtq.pipeline.rewrite.rounding import choose_roundings, hash_weight, pack

_NUM_SAMPLES = 32
_NUM_ROWS = 4096
_NUM_SWEEPS = 3
_MOST_MACS = 4e10
"""What all layers may cost together: some ten seconds on two cores. The cheapest come first."""
_DAMPING = 0.64
"""Times inputs over rows: the share of the mean square that every input counts as alone (as for GPTQ)."""
_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class _Work:
    """A weight and the layers that use it."""

    weight: QuantizedWeight
    values: NDArray[Any]
    layers: tuple[tuple[QuantizedNode, ir.Node], ...]

    @property
    def macs(self) -> float:
        """What it costs to round it."""
        groups, rows, inputs = self.shape
        return float(groups * inputs**2 * (_NUM_ROWS + _NUM_SWEEPS * rows))

    @property
    def is_turned(self) -> bool:
        """Whether the outputs lie on the last axis of the weight: a matrix that is not transposed."""
        return self.weight.axis == 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs of one group, inputs of one output."""
        node = self.layers[0][1]
        if node.op_type != "Conv":
            axis = self.weight.axis
            assert axis is not None
            return 1, self.values.shape[axis], self.values.shape[1 - axis]
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return groups, len(self.values) // groups, int(np.prod(self.values.shape[1:]))


def find_roundings(
    model: ir.Model, placement: Placement, ranges: Ranges, batches: Batches
) -> dict[str, bytes]:
    """Returns the roundings of the weights, for `Ranges.roundings`; of as many layers as can be afforded.

    Layer by layer, on what the layer gets once its activation is quantized (AdaRound, Nagel et al., arXiv
    2004.10568, section 3.2). The cost is bounded by multiplications, so that the same data gives the same
    result.

    Args:
        model: The float graph; it is not changed.
        placement: What of it is quantized.
        ranges: Of the activations, with the repairs that are made before.
        batches: The calibration data, of which the first even feeds are looked at.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    made = rescale(model, placement, ranges)
    works = list(_affordable(made.model, made.placement))
    feeds: list[Feed] = []
    for feed in batches.every(0, 2):
        if sum(item.num_samples for item in feeds) >= _NUM_SAMPLES:
            break
        feeds.append(feed)
    found: dict[str, bytes] = {}
    for start in range(0, len(works), _AT_A_TIME):
        part = works[start : start + _AT_A_TIME]
        for work, gram in zip(part, _grams(made.model, part, made.ranges, feeds), strict=True):
            qparams = find_qparams(work.values, work.weight.axis, made.ranges)
            steps = divide_by_scale(work.values, qparams)
            turned = _as_rows(steps, work)
            moved = choose_roundings(turned, gram, _NUM_SWEEPS)
            found[hash_weight(work.values)] = pack(_as_weight(moved, work))
    return found


def _affordable(model: ir.Model, placement: Placement) -> Iterator[_Work]:
    nodes = {node.name: node for node in model.graph}
    layers: dict[QuantizedWeight, list[tuple[QuantizedNode, ir.Node]]] = {}
    for layer in placement.layers:
        node = nodes[layer.name]
        if layer.weight is None or layer.weight[1].axis is None:
            continue
        if has_input_channels(layer, node):
            layers.setdefault(layer.weight[1], []).append((layer, node))
    works = (
        _Work(weight, read_constant(model.graph.initializers[weight.tensor]), tuple(users))
        for weight, users in layers.items()
    )
    left = _MOST_MACS
    for work in sorted(works, key=lambda item: item.macs):
        left -= work.macs
        if left < 0:
            return
        yield work


def _grams(
    model: ir.Model, works: Sequence[_Work], ranges: Ranges, feeds: Sequence[Feed]
) -> list[NDArray[np.float64]]:
    """Returns the damped X^T X of each weight's quantized inputs: shape (groups, inputs, inputs)."""
    sums = [np.zeros((work.shape[0], work.shape[2], work.shape[2])) for work in works]
    numbers = [0] * len(works)
    tensors = dict.fromkeys(layer.activations[0][1] for work in works for layer, _ in work.layers)
    taps = open_taps(model, list(tensors), (), SessionOptions())

    def take(tensor: str, array: NDArray[Any]) -> None:
        low, high = ranges.ends(tensor)
        scale = (high - low) / (2 * QMAX)
        for index, work in enumerate(works):
            for layer, node in work.layers:
                if layer.activations[0][1] == tensor:
                    most = max(1, _NUM_ROWS // (len(feeds) * len(work.layers)))
                    rows = gather_columns(array, node, work.values, most)
                    rows = np.clip(np.rint(rows / scale) * scale, low, high)
                    sums[index] += rows.transpose(0, 2, 1) @ rows
                    numbers[index] += rows.shape[1]

    for feed in feeds:
        taps.show(feed.arrays, take, lambda _tensor, _magnitude: None)
    for total, number in zip(sums, numbers, strict=True):
        share = _DAMPING * total.shape[-1] / max(number, 1)
        diagonal = np.einsum("gii->gi", total)  # a view
        diagonal += share * diagonal.mean(axis=1, keepdims=True)
    return sums


def _as_rows(steps: NDArray[np.float64], work: _Work) -> NDArray[np.float64]:
    """Returns the weight as it meets the rows: shape (groups, outputs of one group, inputs)."""
    return steps.T[None] if work.is_turned else steps.reshape(work.shape)


def _as_weight(moved: NDArray[np.bool_], work: _Work) -> NDArray[np.bool_]:
    """Returns it in the shape of the weight again."""
    return np.asarray(moved[0].T if work.is_turned else moved.reshape(work.values.shape))
