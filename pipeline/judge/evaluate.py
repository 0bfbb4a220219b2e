"""The data that models are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.files import hash_file, refuse_damage
from trtq.models.spec import METRICS, EvaluationSpec, InputSpec, ModelSpec, ProfileSpec
from trtq.pipeline.engine.profiles import list_profiles
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.score import Labels, refuse_unknown_output

_UNLABELLED_SAMPLES = 128
_FROM_FILE = "labels"


def open_evaluation_data(graph: Graph, spec: ModelSpec, calibration: Batches | None) -> Batches | None:
    """Returns the stream to compare on: the evaluation data, else the calibration data, else None.

    Without labels, 128 samples are enough unless the settings say otherwise.

    Raises:
        DataError: The data does not fit.
        UsageError: The settings name an output that the model does not have.
    """
    evaluation = spec.evaluation
    refuse_unknown_output(evaluation.output, [item.name for item in graph.outputs])
    if evaluation.data is None:
        if evaluation.labels is not None:
            raise DataError(
                f"labels {evaluation.labels!r} are named without evaluation data; give --eval-data"
            )
        return calibration and calibration.first(evaluation.samples or _UNLABELLED_SAMPLES)
    labels = find_labels(evaluation)
    batches = open_batches(
        evaluation.data,
        graph.inputs,
        spec.calibration.batch_size,
        preprocess=spec.preprocess,
        extra=(labels.array,) if labels is not None and labels.array is not None else (),
    )
    if evaluation.labels is not None and evaluation.labels.endswith(".npy"):
        own = spec.accuracy.script is not None
        batches = with_labels(batches, Path(evaluation.labels), any_rank=own)
    return batches.first(evaluation.samples or (None if evaluation.labels else _UNLABELLED_SAMPLES))


def filter_by_profiles(
    batches: Batches, profiles: Mapping[str, InputSpec], left_out: list[int], *, any_batch: bool = False
) -> Batches:
    """Returns the feeds that an engine with these profiles, of inputs with open shapes, takes.

    Args:
        batches: The data.
        profiles: By input; a feed has to fit one of an engine's optimization profiles.
        left_out: Gets the number of samples of every other feed of the last pass.
        any_batch: Whether the samples of a feed may be shown to the engine one by one.
    """
    wanted = list_profiles(profiles) or [{}]

    def fits(array: NDArray[Any], profile: ProfileSpec) -> bool:
        triples = [*zip(profile.min, array.shape, profile.max, strict=True)][int(any_batch) :]
        return all(smallest <= size <= largest for smallest, size, largest in triples)

    def keep(feeds: Iterator[Feed]) -> Iterator[Feed]:
        left_out.clear()
        for feed in feeds:
            if any(all(fits(feed.arrays[name], item) for name, item in one.items()) for one in wanted):
                yield feed
            else:
                left_out.append(feed.num_samples)

    again = batches.reopen and partial(_open_filtered, batches.reopen, profiles, any_batch=any_batch)
    return replace(batches.changed(keep), reopen=again)


def _open_filtered(
    reopen: Callable[[], Batches], profiles: Mapping[str, InputSpec], *, any_batch: bool
) -> Batches:
    return filter_by_profiles(reopen(), profiles, [], any_batch=any_batch)


def find_labels(evaluation: EvaluationSpec, metric: str = METRICS[0]) -> Labels | None:
    """Returns where the labels are and how answers are scored; None if there is nothing to score by.

    Without labels only a metric of the user's own, which may know the right answers itself, can score.
    """
    if evaluation.labels is None:
        return None if metric in METRICS else Labels(None, evaluation.output, metric)
    array = _FROM_FILE if evaluation.labels.endswith(".npy") else evaluation.labels
    return Labels(array, evaluation.output, metric)


def with_labels(batches: Batches, path: Path, *, any_rank: bool = False) -> Batches:
    """Returns the stream with the labels of a .npy file, one a sample in the order of the data.

    A label is a number, or an array of any shape if `any_rank`.

    Raises:
        DataError: The file cannot be read, or has another number of labels than there are samples.
    """
    with refuse_damage(DataError, f"cannot read the labels {path}"), path.open("rb") as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    wanted = None if batches.num_samples is None else batches.num_samples + batches.left_out
    if not (labels.ndim == 1 or (any_rank and labels.ndim)) or wanted not in (None, len(labels)):
        count = "an unknown number of" if wanted is None else wanted
        raise DataError(
            f"{path} has labels of shape {labels.shape}, {batches.origin} has {count} samples; give "
            "one label per sample"
        )

    def read() -> Iterator[Feed]:
        start = 0
        for feed in batches:
            stop = start + feed.num_samples
            yield replace(feed, arrays={**feed.arrays, _FROM_FILE: labels[start:stop]})
            start = stop

    digest = batches.digest and f"{batches.digest}/{hash_file(path)}"
    again = batches.reopen and partial(_open_with_labels, batches.reopen, path.absolute(), any_rank=any_rank)
    # A part does not know its labels.
    return replace(batches, read=read, part=None, files=(), content=digest, reopen=again)


def _open_with_labels(reopen: Callable[[], Batches], path: Path, *, any_rank: bool) -> Batches:
    return with_labels(reopen(), path, any_rank=any_rank)
