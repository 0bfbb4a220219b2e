"""Rows of what a softmax gets, and the ranges that keep what it makes of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.cross_entropy import CrossEntropy
from trtq.calibrators.levels import Levels
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.taps import open_taps
from trtq.models.session import SessionOptions
from trtq.pipeline.graph.opset import read_opset
from trtq.pipeline.judge.parts import PASSED_ON

SUFFIX = " + cross-entropy"
"""Of the method of ranges where those of logits are of this one."""
_SOFTMAX = ("Softmax", "LogSoftmax")
_SQUASHED = (*_SOFTMAX, "Sigmoid")
_AXIS_ALONE = 13
"""Before this opset a softmax goes over all axes from its own on."""
_NUM_FEEDS, _NUM_ROWS, _MOST_VALUES = 4, 1024, 2**20
_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Logits:
    """How a tensor becomes the input of a softmax.

    Attributes:
        source: The input of the softmax.
        axis: The axis that it goes over.
        factor: What the tensor is multiplied by to give the source; positive.
        joined: Whether the softmax goes over all axes from `axis` on.
    """

    source: str
    axis: int
    factor: float = 1.0
    joined: bool = False


def find_logits(model: ir.Model, tensors: Collection[str]) -> dict[str, Logits]:
    """Returns which of the tensors a softmax gets, or a softmax outside of the model would get.

    Those are the inputs of Softmax and LogSoftmax, the outputs called logits that are not normalized already,
    and what becomes them by moving values and by multiplying with one constant. An Add ends that: what a mask
    adds is no part of the tensor before it.
    """
    found: dict[str, Logits] = {}
    for value, axis, joined in _find_sources(model):
        for before, factor in _trace_back(value):
            if before.name in tensors and before.name not in found:
                found[str(before.name)] = Logits(str(value.name), axis, factor, joined)
    return found


def _find_sources(model: ir.Model) -> Iterator[tuple[ir.Value, int, bool]]:
    """Yields what each softmax gets, its axis, and whether it goes over all axes from that one on."""
    joined = read_opset(model) < _AXIS_ALONE
    for node in model.graph:
        value = node.inputs[0] if node.op_type in _SOFTMAX else None
        if value is not None and not value.is_initializer():
            default = 1 if joined else -1
            yield value, node.attributes["axis"].as_int() if "axis" in node.attributes else default, joined
    for value in model.graph.outputs:
        if "logit" in str(value.name).lower() and not _is_normalized(value):
            yield value, -1, False


def _is_normalized(value: ir.Value) -> bool:
    makers = (before.producer() for before, _ in _trace_back(value))
    return any(node is not None and node.op_type in _SQUASHED for node in makers)


def _trace_back(value: ir.Value) -> Iterator[tuple[ir.Value, float]]:
    """Yields a value and those that it is a multiple of, value for value, with the factor."""
    factor = 1.0
    while True:
        yield value, factor
        node = value.producer()
        if node is None or node.op_type not in (*PASSED_ON, "Mul", "Div"):
            return
        place = 0
        if node.op_type in ("Mul", "Div"):
            place = 1 if node.op_type == "Mul" and _read_scalar(node.inputs[0]) is not None else 0
            other = _read_scalar(node.inputs[1 - place])
            if other is None or not 0 < other < math.inf:
                return
            factor = factor * other if node.op_type == "Mul" else factor / other
        source = node.inputs[place]
        if source is None or source.is_initializer():
            return
        value = source


def _read_scalar(value: ir.Value | None) -> float | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array = value.const_value.numpy()
    return float(array.reshape(())) if array.size == 1 else None


def sample_rows(
    model: ir.Model, logits: Mapping[str, Logits], batches: Batches
) -> dict[str, NDArray[np.float64]]:
    """Returns rows of what each softmax gets, by source: of the first four even feeds, at random places.

    The odd feeds are left for judging. The float graph is not changed.
    """
    wanted = {item.source: item for item in logits.values()}
    feeds = list(islice(batches.every(0, 2), _NUM_FEEDS))
    found: dict[str, list[NDArray[np.float64]]] = defaultdict(list)

    def add(name: str, array: NDArray[Any]) -> None:
        found[name].append(_sample_rows(array, wanted[name], len(feeds)))

    names = list(wanted)
    for start in range(0, len(names), _AT_A_TIME):
        taps = open_taps(model, names[start : start + _AT_A_TIME], (), SessionOptions())
        for feed in feeds:
            taps.show(feed.arrays, add, lambda _name, _magnitude: None)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _sample_rows(array: NDArray[Any], logits: Logits, num_feeds: int) -> NDArray[np.float64]:
    """Returns a share of the rows of one feed, copied: shape (rows, classes)."""
    moved, split = (array, logits.axis) if logits.joined else (np.moveaxis(array, logits.axis, -1), -1)
    rows = moved.reshape(math.prod(moved.shape[:split]), math.prod(moved.shape[split:]))
    most = max(1, min(_NUM_ROWS, _MOST_VALUES // max(rows.shape[1], 1)) // num_feeds)
    places = np.random.default_rng(0).permutation(len(rows))[:most]
    return rows[places].astype(np.float64)


def measure_row_amaxes(model: ir.Model, tensors: Mapping[str, Levels], batches: Batches) -> dict[str, float]:
    """Returns the amax by cross-entropy of each of the tensors that a softmax gets; of no others.

    Args:
        model: The float graph.
        tensors: With the levels of the formats that they will be held in.
        batches: The calibration data.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    logits = find_logits(model, tensors)
    if not logits:
        return {}
    method = CrossEntropy()
    rows = sample_rows(model, logits, batches)
    forms = {(item.source, tensors[name].name): tensors[name] for name, item in logits.items()}
    amaxes = {key: method.amax(rows[key[0]], form) for key, form in forms.items() if key[0] in rows}
    found = {
        name: amaxes.get((item.source, tensors[name].name), 0.0) / item.factor
        for name, item in logits.items()
    }
    return {name: amax for name, amax in found.items() if amax > 0}


def with_row_amaxes(ranges: Ranges, amaxes: Mapping[str, float]) -> Ranges:
    """Returns the ranges with these instead of the ones of a method of histograms."""
    tensors = {
        name: replace(item, amax=float(np.float32(amaxes[name]))) if name in amaxes else item
        for name, item in ranges.tensors.items()
    }
    return replace(ranges, tensors=tensors, method=ranges.method + SUFFIX)


def add_row_variants(ranges: Sequence[Ranges], amaxes: Mapping[str, float], *, only: bool) -> list[Ranges]:
    """Returns the ranges, and each with these amaxes for logits; with `only`, the latter alone."""
    if not amaxes:
        return list(ranges)
    found = [with_row_amaxes(item, amaxes) for item in ranges]
    return found if only else [*ranges, *found]
