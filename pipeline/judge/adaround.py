"""Finds for each weight which values to round up and which down, on a few batches of calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed, take_samples
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.taps import open_taps
from trtq.models.session import SessionOptions
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerToken
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import Placement, QuantizedNode, QuantizedWeight
from trtq.pipeline.judge.columns import gather_columns
from trtq.pipeline.rewrite.channels.operands import has_input_channels
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qparams import divide_by_scale, find_qparams
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
class _Weight:
    """A weight and the layers that use it."""

    placed: QuantizedWeight
    values: NDArray[Any]
    layers: tuple[tuple[QuantizedNode, ir.Node], ...]

    @property
    def macs(self) -> float:
        """What it costs to round it."""
        groups, rows, inputs = self.shape
        return float(groups * inputs**2 * (_NUM_ROWS + _NUM_SWEEPS * rows))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs of one group, inputs of one output."""
        node = self.layers[0][1]
        if node.op_type != "Conv":
            axis = self.placed.encoding.channel_axis
            assert axis is not None
            return 1, self.values.shape[axis], self.values.shape[1 - axis]
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return groups, len(self.values) // groups, int(np.prod(self.values.shape[1:]))


def find_roundings(
    model: ir.Model, placement: Placement, ranges: Ranges, batches: Batches
) -> dict[str, bytes]:
    """Returns the roundings of the weights, for `Ranges.roundings`; of as many layers as can be afforded.

    Layer by layer, on what the layer gets once its activation is quantized (AdaRound, Nagel et al., arXiv
    2004.10568, section 3.2), over the first even feeds. The cost is bounded by multiplications, so that the
    same data gives the same result. The ranges come with the repairs that are made before.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    rescaled = rescale(model, placement, ranges)
    weights = list(_list_affordable(rescaled.model, rescaled.placement))
    feeds = list(take_samples(batches.every(0, 2), _NUM_SAMPLES))
    found: dict[str, bytes] = {}
    for start in range(0, len(weights), _AT_A_TIME):
        part = weights[start : start + _AT_A_TIME]
        for weight, gram in zip(part, _sum_grams(rescaled.model, part, rescaled.ranges, feeds), strict=True):
            qparams = find_qparams(weight.values, weight.placed.encoding, rescaled.ranges)
            steps = divide_by_scale(weight.values, qparams)
            found[hash_weight(weight.values, weight.placed.encoding.format)] = pack(
                _round(weight, steps, gram)
            )
    return found


def _list_affordable(model: ir.Model, placement: Placement) -> Iterator[_Weight]:
    nodes = {node.name: node for node in model.graph}
    layers: dict[QuantizedWeight, list[tuple[QuantizedNode, ir.Node]]] = {}
    for layer in placement.layers:
        node, held = nodes[layer.name], layer.held_weight
        if (
            held is None
            or held.encoding.channel_axis is None
            or held.encoding.stored
            or layer.scheme.inputs[0][1].is_given
        ):
            continue
        if has_input_channels(layer, node):
            layers.setdefault(held, []).append((layer, node))
    weights = (
        _Weight(weight, read_constant(model.graph.initializers[weight.tensor]), tuple(users))
        for weight, users in layers.items()
    )
    left = _MOST_MACS
    for weight in sorted(weights, key=lambda item: item.macs):
        left -= weight.macs
        if left < 0:
            return
        yield weight


def _sum_grams(
    model: ir.Model, weights: Sequence[_Weight], ranges: Ranges, feeds: Sequence[Feed]
) -> list[NDArray[np.float64]]:
    """Returns the damped X^T X of each weight's quantized inputs: shape (groups, inputs, inputs)."""
    sums = [np.zeros((weight.shape[0], weight.shape[2], weight.shape[2])) for weight in weights]
    num_rows = [0] * len(weights)
    tensors = dict.fromkeys(layer.activations[0][1] for weight in weights for layer, _ in weight.layers)
    taps = open_taps(without_fp4(model), list(tensors), (), SessionOptions())

    def add(tensor: str, array: NDArray[Any]) -> None:
        for index, weight in enumerate(weights):
            for layer, node in weight.layers:
                if layer.activations[0][1] == tensor:
                    most = max(1, _NUM_ROWS // (len(feeds) * len(weight.layers)))
                    given = gather_columns(array, node, weight.values, most).astype(np.float64)
                    rows = _quantize_rows(given, layer.scheme.inputs[0][1], ranges, tensor)
                    sums[index] += rows.transpose(0, 2, 1) @ rows
                    num_rows[index] += rows.shape[1]

    for feed in feeds:
        taps.show(feed.arrays, add, lambda _tensor, _magnitude: None)
    for total, number in zip(sums, num_rows, strict=True):
        share = _DAMPING * total.shape[-1] / max(number, 1)
        diagonal = np.einsum("gii->gi", total)  # a view
        diagonal += share * diagonal.mean(axis=1, keepdims=True)
    return sums


def _quantize_rows(
    rows: NDArray[np.float64], encoding: Encoding, ranges: Ranges, tensor: str
) -> NDArray[np.float64]:
    """Returns rows of a tensor, shape (..., inputs), as they are once it is quantized."""
    form = encoding.format
    if isinstance(encoding.granularity, PerToken):
        largest = np.abs(rows).max(axis=-1, keepdims=True, initial=0.0)
        scales = np.where(largest > 0, largest, 1.0) / form.largest
        return form.round_steps(rows / scales) * scales
    low, high = ranges.ends(tensor, form.name)
    scale = (high - low) / (2 * form.largest)
    return np.clip(form.round_steps(rows / scale) * scale, low, high)


def _round(weight: _Weight, steps: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which values are not rounded to the nearest, in the shape of the weight."""
    form = weight.placed.encoding.format
    if weight.placed.encoding.channel_axis == 1:  # not transposed: its outputs lie on the last axis
        return np.asarray(choose_roundings(steps.T[None], gram, _NUM_SWEEPS, form)[0].T)
    moved = choose_roundings(steps.reshape(weight.shape), gram, _NUM_SWEEPS, form)
    return np.asarray(moved.reshape(weight.values.shape))
