"""One pass over the data that fills the statistics of every tensor that will be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.ranges import Shapes
from trtq.calibrators.statistics import Histogram
from trtq.errors import DataError, ModelError
from trtq.models.session import open_session, run

Progress = Callable[[int], None]
"""Called after every feed with the number of its samples."""

_NUM_FEEDS_FOR_EXTREMES = 4
_FLOAT32 = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Observation:
    """What one pass saw.

    Attributes:
        histograms: Of the tensors that were asked for, by name.
        magnitudes: The largest magnitude of every float32 tensor in the first feeds, by name.
        shapes: The shapes of the inputs.
        num_samples: How many samples were seen.
    """

    histograms: Mapping[str, Histogram]
    magnitudes: Mapping[str, float]
    shapes: Mapping[str, Shapes]
    num_samples: int


def observe(
    model: ir.Model, tensors: Sequence[str], batches: Batches, progress: Progress = lambda _: None
) -> Observation:
    """Returns the statistics of the named tensors over all the data.

    Args:
        model: The float graph; it is not changed.
        tensors: Names of float tensors of the graph.
        batches: The data, checked against the model.
        progress: Told of every feed.

    Raises:
        DataError: The data does not fit, or makes a tensor NaN or infinite (the tensor and feed are named).
        ModelError: ONNX Runtime cannot run the model.
    """
    magnitudes = _magnitudes(model, batches)  # first, so that one session is in memory at a time
    session = open_session(_with_outputs(model, tensors), optimize=True)
    inputs = [str(value.name) for value in model.graph.inputs]
    computed = [name for name in tensors if name not in inputs]
    histograms = {name: Histogram() for name in tensors}
    shapes: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in inputs}
    num_samples = 0
    for feed in batches:
        arrays = {name: feed.arrays[name] for name in shapes}
        values: dict[str, NDArray[Any]] = dict(arrays)
        if computed:
            values |= zip(computed, run(session, computed, arrays), strict=True)
        for name in tensors:
            histograms[name] = _add(histograms[name], values[name], name, feed)
        for name, array in arrays.items():
            shapes[name][array.shape] += 1
        num_samples += feed.num_samples
        progress(feed.num_samples)
    return Observation(
        histograms,
        {**magnitudes, **_largest(magnitudes, histograms)},
        {name: _summary(seen) for name, seen in shapes.items()},
        num_samples,
    )


def _add(histogram: Histogram, values: NDArray[Any], name: str, feed: Feed) -> Histogram:
    try:
        return histogram.with_values(values)
    except FloatingPointError as error:
        raise DataError(
            f"tensor {name!r} of the float model goes wrong on {feed.source}: {error}; "
            f"leave this data out or repair the model"
        ) from error


def _with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Returns a clone of the model that also returns the named tensors."""
    tapped = model.clone()
    present = {value.name for value in (*tapped.graph.outputs, *tapped.graph.inputs)}
    wanted = set(tensors) - present
    found = [value for node in tapped.graph for value in node.outputs if value.name in wanted]
    if missing := wanted - {value.name for value in found}:
        raise ModelError(f"the model has no tensor {sorted(missing)[0]!r} to observe")
    tapped.graph.outputs.extend(found)
    return tapped


def _largest(magnitudes: Mapping[str, float], histograms: Mapping[str, Histogram]) -> dict[str, float]:
    """Returns what is known of the tensors with a histogram, which has seen all the data."""
    return {name: max(item.amax, magnitudes.get(name, 0.0)) for name, item in histograms.items()}


def _magnitudes(model: ir.Model, batches: Batches) -> dict[str, float]:
    """Returns the largest magnitude of every float32 tensor, reduced inside the session to one number each.

    Only the first feeds are run: this finds tensors that FP16 cannot hold, with room to spare.
    """
    reduced = model.clone()
    names: list[str] = []
    scalars: list[ir.Value] = []
    for node in list(reduced.graph):
        for value in node.outputs:
            # A sequence of floats has a dtype as well, but no largest element.
            if value.dtype is not _FLOAT32 or not isinstance(value.type, ir.TensorType) or not value.name:
                continue
            magnitude = ir.node("Abs", [value], name=f"trtq_abs_{len(names)}")
            largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0}, name=f"trtq_max_{len(names)}")
            largest.outputs[0].name = f"trtq_largest_{len(names)}"
            magnitude.outputs[0].name = f"trtq_magnitude_{len(names)}"
            largest.outputs[0].type = ir.TensorType(_FLOAT32)
            reduced.graph.extend([magnitude, largest])
            names.append(value.name)
            scalars.append(largest.outputs[0])
    if not names:
        return {}
    reduced.graph.outputs.clear()
    reduced.graph.outputs.extend(scalars)
    session = open_session(reduced, optimize=True)
    inputs = [str(value.name) for value in model.graph.inputs]
    found = dict.fromkeys(names, 0.0)
    for feed in islice(batches, _NUM_FEEDS_FOR_EXTREMES):
        largest_now = run(session, [], {name: feed.arrays[name] for name in inputs})
        for name, seen in zip(names, largest_now, strict=True):
            found[name] = float(np.fmax(found[name], seen))
    return found


def _summary(seen: Counter[tuple[int, ...]]) -> Shapes:
    by_axis = list(zip(*seen, strict=True))
    return Shapes(
        tuple(min(sizes) for sizes in by_axis),
        seen.most_common(1)[0][0],
        tuple(max(sizes) for sizes in by_axis),
    )
