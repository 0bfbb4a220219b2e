"""From a graph and data to ranges: the first half of a build, and a command of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtq.calibrators import METHODS, Method
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import observe
from trtq.calibrators.percentile import Percentile
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.sources import WAYS, open_batches, random_batches
from trtq.errors import DataError, UsageError
from trtq.models.spec import CalibrationSpec, ModelSpec, read_spec
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place, unmatched
from trtq.pipeline.target import Target
from trtq.pipeline.watch import Watcher

_NUM_RANDOM_FEEDS = 16


def spec_beside(model: Path) -> ModelSpec:
    """Returns the settings beside a model, `<name>.toml` or `model.toml`; the defaults if there are none."""
    candidates = (model.parent / f"{model.stem}.toml", model.parent / "model.toml")
    found = next((path for path in candidates if path.is_file()), None)
    return read_spec(found) if found is not None else ModelSpec()


def method_of(spec: CalibrationSpec) -> Method:
    """Returns the method that the settings name, with its parameters.

    Raises:
        UsageError: There is no such method.
    """
    if spec.method not in METHODS:
        raise UsageError(f"there is no calibration method {spec.method!r}; take {', '.join(METHODS)}")
    return Percentile(spec.percentile) if spec.method == "percentile" else METHODS[spec.method]()


def calibration_data(graph: Graph, spec: ModelSpec, target: Target, *, random_data: bool) -> Batches:
    """Returns the stream that calibrates the model.

    Raises:
        DataError: None is named, or it does not fit.
    """
    if random_data:
        shapes = {
            **{name: item.opt for name, item in spec.inputs.items()},
            **target.shapes.max,
            **target.shapes.opt,
        }
        return random_batches(graph.inputs, shapes, _NUM_RANDOM_FEEDS)
    if spec.calibration.data is None:
        raise DataError(
            f"{graph.path} cannot be calibrated without data; give --calib-data with {WAYS}; or "
            f"name it in [calibration] of model.toml beside the model; or take --random-data to try a build"
        )
    batches = open_batches(
        spec.calibration.data,
        graph.inputs,
        spec.calibration.batch_size,
        preprocess=spec.preprocess,
        extra=(spec.evaluation.labels,) if spec.evaluation.labels else (),
    )
    return batches.first(spec.calibration.samples)


def placement_of(graph: Graph, spec: ModelSpec, target: Target, watcher: Watcher) -> Placement:
    """Returns what will be quantized; warns of patterns that match nothing."""
    warn_of_unmatched(graph, (*spec.layers.skip, *spec.layers.keep_fp32), watcher)
    return place(graph.model, skip=spec.layers.skip, op_types=target.op_types)


def warn_of_unmatched(graph: Graph, patterns: Sequence[str], watcher: Watcher) -> None:
    """Warns of patterns that match no node, with the names nearest to them."""
    for pattern, nearest in unmatched(graph.model, patterns):
        near = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        watcher.warn(f"{pattern!r} matches no node{near}")


def calibrate_graph(
    graph: Graph, placement: Placement, batches: Batches, method: Method, watcher: Watcher
) -> Ranges:
    """Returns the ranges of the placed activations.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    watcher.stage("Calibrating", batches.num_samples)
    observation = observe(graph.model, placement.activations, batches, watcher.advance)
    ranges = estimate(observation, method, batches, graph.sha256)
    if dead := [name for name, item in ranges.tensors.items() if item.is_dead]:
        shown = ", ".join(dead[:3]) + (" ..." if len(dead) > 3 else "")
        watcher.warn(f"{len(dead)} tensors were zero in every sample and get amax 1.0: {shown}")
    return ranges
