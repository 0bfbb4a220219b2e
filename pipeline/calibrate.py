"""From a graph and data to ranges: the first half of a build, and a command of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtq.calibrators import METHODS, Method, parameters_of
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import Conduct, observe
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.sources import WAYS, open_batches, random_batches
from trtq.calibrators.statistics import Source
from trtq.errors import DataError, UsageError
from trtq.models.preprocess import Preprocess
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
        UsageError: There is no such method, or it has no such parameter, or not with this value.
    """
    if spec.method not in METHODS:
        raise UsageError(f"there is no calibration method {spec.method!r}; take {', '.join(METHODS)}")
    every = {name for method in METHODS.values() for name in parameters_of(method)}
    own = parameters_of(METHODS[spec.method])
    given = {name: value for name in sorted(every) if (value := getattr(spec, name)) is not None}
    if foreign := [name for name in given if name not in own and name != "percentile"]:
        raise UsageError(
            f"{foreign[0]} is no parameter of the calibration method {spec.method}; "
            f"it has {', '.join(own) or 'none'}"
        )
    return METHODS[spec.method](**{name: value for name, value in given.items() if name in own})


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


def warn_of_preprocess(batches: Batches, spec: ModelSpec, watcher: Watcher) -> None:
    """Says how pictures are prepared where no settings say so: a wrong way ruins calibration unseen."""
    if batches.has_images and spec.preprocess == Preprocess():
        watcher.warn(
            "pictures are prepared as ImageNet classifiers want them (RGB, / 255, stretched, "
            f"mean {spec.preprocess.mean}, std {spec.preprocess.std}); "
            "if this model wants another way, say so in [preprocess] of model.toml"
        )


def placement_of(graph: Graph, spec: ModelSpec, target: Target, watcher: Watcher) -> Placement:
    """Returns what will be quantized: nothing that is skipped or kept FP32; warns of what matches nothing."""
    patterns = (*spec.layers.skip, *spec.layers.keep_fp32)
    warn_of_unmatched(graph, (*patterns, *spec.layers.force), watcher)
    placement = place(graph.model, skip=patterns, op_types=target.op_types, force=spec.layers.force)
    return Placement(placement.quantized, (*placement.kept, *graph.unseen))


def warn_of_unmatched(graph: Graph, patterns: Sequence[str], watcher: Watcher) -> None:
    """Warns of patterns that match no node, with the names nearest to them."""
    for pattern, nearest in unmatched(graph.model, patterns):
        near = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        watcher.warn(f"{pattern!r} matches no node{near}")


def calibrate_graph(
    graph: Graph, tensors: Sequence[str], batches: Batches, method: Method, watcher: Watcher
) -> Ranges:
    """Returns the ranges of the named tensors.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    watcher.stage("Calibrating", batches.num_samples)
    source = source_of(graph, batches)
    conduct = Conduct(note=watcher.note)
    statistics = observe(graph.model, tensors, batches, watcher.advance, conduct, source)
    return estimate(statistics, method)


def source_of(graph: Graph, batches: Batches, num_shards: int = 1) -> Source:
    """Returns what statistics of this model and data are made of."""
    digest = batches.digest or f"unread: {batches.origin}"
    return Source(graph.sha256, batches.origin, digest, batches.is_random, num_shards)


def warn_of_dead(ranges: Ranges, watcher: Watcher) -> None:
    """Warns of tensors that were zero in every sample."""
    if dead := [name for name, item in ranges.tensors.items() if item.is_dead]:
        shown = ", ".join(dead[:3]) + (" ..." if len(dead) > 3 else "")
        watcher.warn(f"{len(dead)} tensors were zero in every sample and get amax 1.0: {shown}")
