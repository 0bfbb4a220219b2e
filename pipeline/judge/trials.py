"""How near quantized models come to the float one, on data that nobody who made them has looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ahead import count_cores, map_ordered
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.survey import map_values_made
from trtq.models.session import Session, SessionOptions, open_session, run
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.parts import list_judged_outputs
from trtq.pipeline.rewrite.qdq import quantize

_EXACT_DB = 80.0
LEAST_GAIN_DB = 0.2
"""What a candidate must gain at least to be taken."""
_MOST_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class Marks:
    """How near the outputs of a model are to those of the float model, in dB of signal to noise.

    Attributes:
        samples: Of each sample, the mean over the outputs: float64, shape (samples,).
        wholes: Of all samples together in each output: float64, shape (outputs,); NaN without a signal.
    """

    samples: NDArray[np.float64]
    wholes: NDArray[np.float64]

    @property
    def db(self) -> float:
        """The mean of both: the first counts every sample alike, the second the worst samples most."""
        return float(self.samples.mean() + _means(self.wholes)) / 2

    def is_clearly_above(self, other: Marks, least_db: float = LEAST_GAIN_DB) -> bool:
        """Whether these are better by so much, and by more than chance: twice the error of the mean gain."""
        gains = self.samples - other.samples
        error = gains.std(ddof=1) / math.sqrt(gains.size) if gains.size > 1 else math.inf
        least = max(least_db, 2 * float(error))
        return bool(gains.mean() >= least) and self.db - other.db >= least_db


@dataclass(frozen=True, slots=True)
class Judge:
    """The float model's answers to the data that is held back.

    Attributes:
        model: The float graph.
        placement: What of it is quantized.
        outputs: The tensors to judge by.
        feeds: The data that is held back; the first few are spread over all of it.
        truth: The outputs of every feed.
    """

    model: ir.Model
    placement: Placement
    outputs: tuple[str, ...]
    feeds: tuple[Feed, ...]
    truth: tuple[tuple[NDArray[Any], ...], ...]

    @property
    def num_samples(self) -> int:
        """How many samples are held back."""
        return sum(feed.num_samples for feed in self.feeds)

    def first(self, num_samples: int) -> Sequence[Feed]:
        """Returns the first feeds with at least so many samples."""
        seen = 0
        for index, feed in enumerate(self.feeds):
            if seen >= num_samples:
                return self.feeds[:index]
            seen += feed.num_samples
        return self.feeds

    def marks(self, candidates: Sequence[Ranges], feeds: Sequence[Feed]) -> list[Marks]:
        """Returns the marks of the model that each of the ranges makes, on the first of the feeds.

        Raises:
            ModelError: ONNX Runtime cannot run the model.
        """
        at_a_time = max(1, min(count_cores(), len(candidates), _MOST_AT_A_TIME))
        engine = SessionOptions(num_threads=max(1, count_cores() // at_a_time))
        return list(map_ordered(lambda ranges: self._marks(ranges, feeds, engine), candidates, at_a_time))

    def _marks(self, ranges: Ranges, feeds: Sequence[Feed], engine: SessionOptions) -> Marks:
        session = _session(quantize(self.model, self.placement, ranges), self.outputs, engine)
        samples: list[float] = []
        signal, noise = np.zeros(len(self.outputs)), np.zeros(len(self.outputs))
        for feed, wanted in zip(feeds, self.truth, strict=False):
            found = []
            for index, (ours, theirs) in enumerate(
                zip(_answers(session, self.outputs, feed), wanted, strict=True)
            ):
                powers, lost = _powers(ours, theirs, feed.num_samples)
                found.append(np.broadcast_to(_decibels(powers, lost), feed.num_samples))
                signal[index] += powers.sum()
                noise[index] += lost.sum()
            samples += _means(np.array(found)).tolist()
        return Marks(np.array(samples), _decibels(signal, noise))


def open_judge(model: ir.Model, placement: Placement, batches: Batches, num_samples: int) -> Judge | None:
    """Returns the judge of some of the second, fourth ... feeds; None if there is nothing to judge by.

    Args:
        model: The float graph; it is not changed.
        placement: What of it is quantized.
        batches: The calibration data.
        num_samples: How many samples are held back at most, rounded to whole feeds.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    outputs = list_judged_outputs(model)
    feeds = _held_back(batches, num_samples) if outputs else ()
    if not feeds:
        return None
    session = _session(model.clone(), outputs, SessionOptions())
    truth = tuple(tuple(_answers(session, outputs, feed)) for feed in feeds)
    return Judge(model, placement, outputs, feeds, truth)


def _held_back(batches: Batches, num_samples: int) -> tuple[Feed, ...]:
    """Returns some of the odd feeds, spread over all of them; the first few are spread as well."""
    kept: list[Feed] = []
    stride, most = 1, 0
    for index, feed in enumerate(batches.every(1, 2)):
        most = most or max(1, num_samples // max(feed.num_samples, 1))
        if index % stride == 0:
            kept.append(feed)
        if len(kept) >= 2 * most:
            kept, stride = kept[::2], stride * 2
    kept = [kept[place * len(kept) // most] for place in range(most)] if len(kept) > most else kept
    return tuple(feed for start in range(4) for feed in kept[start::4])


def _session(model: ir.Model, outputs: Sequence[str], engine: SessionOptions) -> Session:
    """Returns a session that gives these tensors; the model gets them as its outputs."""
    values = map_values_made(model)
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in outputs)
    return open_session(model, optimize=False, engine=engine)


def _answers(session: Session, outputs: Sequence[str], feed: Feed) -> Iterator[NDArray[Any]]:
    inputs = {item.name for item in session.get_inputs()}
    found = run(session, outputs, {name: array for name, array in feed.arrays.items() if name in inputs})
    return (np.asarray(array) for array in found)


def _powers(
    ours: NDArray[Any], theirs: NDArray[Any], num_samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the power of the signal and of the noise of each sample, or of all where they lie otherwise."""
    parts = num_samples if theirs.ndim and theirs.shape[0] == num_samples else 1
    wanted = theirs.astype(np.float64).reshape(parts, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        noise = np.square(ours.astype(np.float64).reshape(parts, -1) - wanted).sum(axis=1)
    return np.square(wanted).sum(axis=1), np.nan_to_num(noise, nan=np.inf, posinf=np.inf)


def _decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the ratios in dB, between -80 and 80; NaN where there is no signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(10 * np.log10(signal / noise), -_EXACT_DB, _EXACT_DB)
    return np.where(signal > 0, found, np.nan)


def _means(marks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the means over the first axis of what is not NaN; 0 where nothing is left."""
    known = np.isfinite(marks)
    total = np.where(known, marks, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(known.sum(axis=0), 1))
