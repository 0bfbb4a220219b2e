"""From what was seen of a model to the ranges and repairs that lose least."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtq.calibrators import METHODS, Method, create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.entropy import Auto, EntropyWithRows
from trtq.calibrators.estimate import describe, estimate
from trtq.calibrators.observe import PassControl
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.statistics import Statistics
from trtq.models.spec import ModelSpec
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, SOFTMAX, Placement
from trtq.pipeline.judge.macs import count_macs
from trtq.pipeline.judge.rows import SUFFIX, add_row_variants, measure_row_amaxes
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.progress import Watcher

if TYPE_CHECKING:
    from trtq.pipeline.judge.repairs import Repairs, SampleBudget

_NUM_RUNS = 750
"""Runs of one sample that a search takes about, with the looks that it would like; two thirds more where
rescaling pays and is tried without headroom and with other ranges."""
_CHEAP_MACS = 4e11
"""What a search may cost at least: some twenty to thirty seconds on two cores."""
_MOST_PASSES = 2
"""Above that, it may cost as much as so many passes over the calibration data."""
_FEWEST = (4, 16)
"""Samples of the first and of the second look."""


@dataclass(frozen=True, slots=True)
class RangeSearch:
    """Ranges, and how they and the repairs were found.

    Attributes:
        ranges: With the repairs.
        method: With which the ranges were taken.
        repairs: What was tried; None if nothing was.
    """

    ranges: Ranges
    method: Method
    repairs: Repairs | None = None


def improve_ranges(
    graph: Graph,
    placement: Placement,
    statistics: Statistics,
    batches: Batches,
    spec: ModelSpec,
    watcher: Watcher,
) -> RangeSearch:
    """Returns the ranges of the placed activations, with the repairs that pay on data held back.

    Args:
        graph: The model.
        placement: What will be quantized.
        statistics: Of the placed activations over all the data.
        batches: The same data.
        spec: With the method, "auto" for the best of all, and the repairs that may be made.
        watcher: Is told of the progress and of what was chosen.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    first = create_method(spec.calibration)
    by_trial, allowed = isinstance(first, Auto), spec.quantization.repairs
    if batches.is_random or not placement.layers or not (by_trial or allowed):
        return take_ranges(graph, placement.activations, statistics, batches, spec, watcher)
    # Late: where nothing is tried, it is not needed.
    from trtq.pipeline.judge.repairs import FEWEST_SAMPLES, RESCALING, find_repairs

    others = [method() for method in METHODS.values() if not isinstance(first, method)] if by_trial else []
    methods = {describe(method): method for method in (first, *others)}
    candidates = _different(
        [
            estimate(statistics, method, placement.activations, spec.quantization.activations)
            for method in methods.values()
        ]
    )
    if isinstance(first, Auto | EntropyWithRows):
        amaxes = _row_amaxes(graph, placement.activations, batches, first, watcher)
        candidates = add_row_variants(candidates, amaxes, only=not by_trial)
    watcher.stage("Trying repairs" if allowed else "Trying methods")
    look = _look(graph, batches, statistics.num_samples)
    reobserver = Reobserver(
        [*methods.values()], PassControl(spec.calibration.device, spec.calibration.memory_bytes)
    )
    found = find_repairs(graph.model, placement, candidates, batches, allowed, look, reobserver)
    if found is None:
        watcher.note(
            "no repair is tried: the calibration data is one batch, so that nothing can be held back; "
            "give more data, or a smaller --calib-batch-size"
        )
        return RangeSearch(candidates[0], first)
    ranges, repairs = found
    if {*RESCALING} & {*allowed} and repairs.num_samples < FEWEST_SAMPLES:
        watcher.note(
            f"no channels are rescaled: that takes {FEWEST_SAMPLES} samples held back to judge by, and there "
            f"were {repairs.num_samples}; give {2 * FEWEST_SAMPLES} calibration samples or more"
        )
    return RangeSearch(ranges, methods[ranges.method.removesuffix(SUFFIX)], repairs)


def take_ranges(
    graph: Graph,
    tensors: Collection[str],
    statistics: Statistics,
    batches: Batches,
    spec: ModelSpec,
    watcher: Watcher,
) -> RangeSearch:
    """Returns the ranges of the method that is asked for, and nothing that is tried.

    Args:
        graph: The model.
        tensors: Those that are wanted.
        statistics: Of all the data.
        batches: The same data.
        spec: With the method; for "auto" it is the one that trials start from.
        watcher: Is told where the method does not apply.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    first = create_method(spec.calibration)
    ranges = estimate(statistics, first, tensors, spec.quantization.activations)
    if isinstance(first, EntropyWithRows):
        amaxes = _row_amaxes(graph, tensors, batches, first, watcher)
        ranges, *_ = add_row_variants([ranges], amaxes, only=True)
    return RangeSearch(ranges, first)


def _row_amaxes(
    graph: Graph, tensors: Collection[str], batches: Batches, method: Method, watcher: Watcher
) -> dict[str, float]:
    found = measure_row_amaxes(graph.model, tensors, batches)
    if not found and isinstance(method, EntropyWithRows):
        types = ",".join((*DEFAULT_OP_TYPES, SOFTMAX))
        watcher.note(
            "no quantized tensor feeds a softmax, so cross-entropy is entropy here; "
            f"--op-types {types} quantizes what a Softmax gets"
        )
    return found


def _different(candidates: Sequence[Ranges]) -> list[Ranges]:
    """Returns the ranges without those that are the same as earlier ones."""
    tensors = [item.tensors for item in candidates]
    return [item for index, item in enumerate(candidates) if item.tensors not in tensors[:index]]


def _look(graph: Graph, batches: Batches, num_samples: int) -> SampleBudget:
    """Returns on how many samples candidates are judged: on fewer where the model is large.

    It goes by multiplications and not by the clock, so that the same data gives the same result.
    """
    from trtq.pipeline.judge.repairs import SampleBudget

    wanted = SampleBudget()
    macs = sum(count_macs(graph.model, next(iter(batches))).values())
    share = min(1.0, max(_CHEAP_MACS / max(macs, 1), _MOST_PASSES * num_samples) / _NUM_RUNS)
    return SampleBudget(
        max(_FEWEST[0], round(wanted.first * share)), max(_FEWEST[1], round(wanted.second * share))
    )
