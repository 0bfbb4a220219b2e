"""One pass over the data that fills the statistics of every tensor that will be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

_FLOAT32 = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Observation:
    """What one pass saw.

    Attributes:
        histograms: Of the tensors that were asked for, by name.
        magnitudes: The largest magnitude of every float32 tensor, by name.
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
    tapped, names = _tapped(model, tensors)
    session = open_session(tapped, optimize=True)
    inputs = [str(value.name) for value in model.graph.inputs]
    computed = [name for name in tensors if name not in inputs]
    histograms = {name: Histogram() for name in tensors}
    magnitudes = dict.fromkeys(names.values(), 0.0)
    shapes: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in inputs}
    num_samples = 0
    for feed in batches:
        arrays = {name: feed.arrays[name] for name in shapes}
        wanted = [*computed, *names]
        found = dict(zip(wanted, run(session, wanted, arrays) if wanted else [], strict=True))
        for name in tensors:
            values = found[name] if name in found else arrays[name]
            histograms[name] = _add(histograms[name], values, name, feed)
        for output, name in names.items():
            magnitudes[name] = float(np.fmax(magnitudes[name], found[output]))
        for name, array in arrays.items():
            shapes[name][array.shape] += 1
        num_samples += feed.num_samples
        progress(feed.num_samples)
    magnitudes |= {name: histogram.amax for name, histogram in histograms.items()}
    return Observation(
        histograms, magnitudes, {name: _summary(seen) for name, seen in shapes.items()}, num_samples
    )


def _add(histogram: Histogram, values: NDArray[Any], name: str, feed: Feed) -> Histogram:
    try:
        return histogram.with_values(values)
    except FloatingPointError as error:
        raise DataError(
            f"tensor {name!r} of the float model goes wrong on {feed.source}: {error}; "
            f"leave this data out or repair the model"
        ) from error


def _tapped(model: ir.Model, tensors: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """Returns a clone of the model that also returns the named tensors, and how large all the others get.

    The largest magnitude of a float32 tensor is reduced inside the session to one number, an output of its
    own: the second value maps these outputs to the tensors.
    """
    tapped = model.clone()
    present = {value.name for value in (*tapped.graph.outputs, *tapped.graph.inputs)}
    made = {str(value.name): value for node in tapped.graph for value in node.outputs if value.name}
    if missing := set(tensors) - present - set(made):
        raise ModelError(f"the model has no tensor {sorted(missing)[0]!r} to observe")
    tapped.graph.outputs.extend(made[name] for name in tensors if name not in present)
    names: dict[str, str] = {}
    for name, value in made.items():
        # A sequence of floats has a dtype as well, but no largest element.
        if name in tensors or value.dtype is not _FLOAT32 or not isinstance(value.type, ir.TensorType):
            continue
        magnitude = ir.node("Abs", [value], name=f"trtq_abs_{len(names)}")
        magnitude.outputs[0].name = f"trtq_magnitude_{len(names)}"
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0}, name=f"trtq_max_{len(names)}")
        largest.outputs[0].name = f"trtq_largest_{len(names)}"
        largest.outputs[0].type = ir.TensorType(_FLOAT32)
        tapped.graph.extend([magnitude, largest])
        tapped.graph.outputs.append(largest.outputs[0])
        names[f"trtq_largest_{len(names)}"] = name
    return tapped, names


def _summary(seen: Counter[tuple[int, ...]]) -> Shapes:
    by_axis = list(zip(*seen, strict=True))
    return Shapes(
        tuple(min(sizes) for sizes in by_axis),
        seen.most_common(1)[0][0],
        tuple(max(sizes) for sizes in by_axis),
    )
