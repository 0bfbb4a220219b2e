"""From what was seen of a model to the ranges and repairs that lose least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtq.calibrators import METHODS, Method, create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import ChannelLayout
from trtq.calibrators.entropy import Auto, EntropyWithRows
from trtq.calibrators.estimate import describe, estimate
from trtq.calibrators.levels import Levels, are_even
from trtq.calibrators.minmax import RoomyMinMax
from trtq.calibrators.observe import PassControl
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.statistics import Statistics
from trtq.models.spec import AUTO, SLOW_REPAIRS, Effort, ModelSpec
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, SOFTMAX, Placement
from trtq.progress import Watcher
from trtq.workers import Workers

if TYPE_CHECKING:
    from trtq.pipeline.judge.repairs import SampleBudget
    from trtq.records import Repairs

_NUM_RUNS = 750
"""Runs of one sample that a search takes about with its full budget; two thirds more where rescaling gains
and is tried without headroom and with other ranges."""


_CHEAP_MACS = 1e11
"""What every search may cost: some five to eight seconds on two cores."""
_MOST_PASSES: Mapping[Effort, int] = {"balanced": 2, "thorough": 6}
"""A search may also cost as much as so many passes over the calibration data; quick searches for nothing."""
_SMALLEST_BUDGET = (4, 24)
_ONE_BATCH = (
    "the calibration data is one batch, so that nothing can be held back; "
    "give more data, or a smaller --calib-batch-size"
)
_NO_FLOATS = "no output is computed from float values"
_ENOUGH_TO_OBSERVE = 64
"""Samples of which a quarter tells the ranges of rescaled tensors as well as half does, in trials."""


@dataclass(frozen=True, slots=True)
class RangeSearch:
    """Ranges with their repairs, the method of the ranges, and what was tried; None if nothing was."""

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
    workers: Workers | None = None,
) -> RangeSearch:
    """Returns the ranges of the placed activations, with the repairs that gain on data held back.

    Args:
        graph: The model.
        placement: What will be quantized.
        statistics: Of the placed activations over all the data.
        batches: The same data.
        spec: The method, "auto" for the best of all, and the repairs that may be made.
        watcher: Gets the progress and notes on what was chosen.
        workers: Who try what there is to try; None: threads of this process.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
    """
    by_trial = isinstance(create_method(spec.calibration), Auto)
    first, allowed = choose_first(spec, placement.formats), _choose_repairs(spec, placement.formats)
    if not _may_try(placement, batches, spec) or not (by_trial or allowed):
        return take_ranges(graph, placement.formats, statistics, batches, spec, watcher)
    # Late: where nothing is tried, it is not needed.
    from trtq.pipeline.judge.parts import list_judged_outputs
    from trtq.pipeline.judge.proposals import FEWEST_SAMPLES, RESCALING
    from trtq.pipeline.judge.repairs import find_repairs
    from trtq.pipeline.judge.rows import SUFFIX, add_row_variants
    from trtq.pipeline.rewrite.channels.reobserve import Reobserver
    from trtq.pipeline.rewrite.channels.statistics import observe_channels
    from trtq.records import NO_REPAIR_TRIED

    others = [method() for method in METHODS.values() if not isinstance(first, method)] if by_trial else []
    methods = {describe(method): method for method in (first, *others)}
    candidates = _drop_repeats(
        [
            estimate(
                statistics,
                method,
                placement.activations,
                spec.quantization.kind_of_ranges,
                placement.formats,
            )
            for method in methods.values()
        ]
    )
    if by_trial or isinstance(first, EntropyWithRows):
        amaxes = _row_amaxes(graph, placement.formats, batches, first, watcher)
        candidates = add_row_variants(candidates, amaxes, only=not by_trial)
    watcher.stage("Trying repairs" if allowed else "Trying methods")
    budget = _plan_budget(graph, batches, statistics.num_samples, spec.quantization.effort)
    control = PassControl(spec.calibration.device, spec.calibration.memory_bytes)
    reobserver = Reobserver(
        [*methods.values()],
        control,
        workers,
        trial_step=_choose_step(statistics.num_samples, spec.quantization.effort),
    )
    channels, layouts = statistics.channels, list_channels(graph, placement, batches, spec)
    observed = [*dict.fromkeys((*statistics.histograms, *layouts))]  # those scaled by token were not
    if channels is None or len(observed) > len(statistics.histograms):
        channels = observe_channels(graph.model, observed, layouts, batches, control, workers)
    found = find_repairs(
        graph.model, placement, candidates, batches, allowed, budget, reobserver, workers, channels
    )
    if found is None:
        watcher.note(f"{NO_REPAIR_TRIED}: {_ONE_BATCH if list_judged_outputs(graph.model) else _NO_FLOATS}")
        return RangeSearch(candidates[0], first)
    ranges, repairs = found
    if {*RESCALING} & {*allowed} and repairs.num_samples < FEWEST_SAMPLES:
        watcher.note(
            f"no channels are rescaled: that takes {FEWEST_SAMPLES} samples held back to judge by, and there "
            f"were {repairs.num_samples}; give {2 * FEWEST_SAMPLES} calibration samples or more"
        )
    return RangeSearch(ranges, methods[ranges.method.removesuffix(SUFFIX)], repairs)


def list_channels(
    graph: Graph, placement: Placement, batches: Batches, spec: ModelSpec
) -> dict[str, ChannelLayout]:
    """Returns the tensors whose channels `improve_ranges` looks at, and where these are."""
    allowed = _choose_repairs(spec, placement.formats)
    if not (allowed and _may_try(placement, batches, spec)):
        return {}
    from trtq.pipeline.judge.proposals import CHANNEL_REPAIRS  # late, as above
    from trtq.pipeline.rewrite.channels.statistics import find_channel_layouts

    return find_channel_layouts(graph.model, placement) if {*allowed} & CHANNEL_REPAIRS else {}


def _may_try(placement: Placement, batches: Batches, spec: ModelSpec) -> bool:
    """Whether anything may be tried by running models."""
    return spec.quantization.effort != "quick" and not batches.is_random and bool(placement.layers)


def take_ranges(
    graph: Graph,
    tensors: Mapping[str, Levels],
    statistics: Statistics,
    batches: Batches,
    spec: ModelSpec,
    watcher: Watcher,
) -> RangeSearch:
    """Returns the ranges of these tensors by the method of `spec`, without trials; see `improve_ranges`.

    The tensors come with the levels of the formats that they will be held in. For "auto" it is the method
    that trials start from. A note says where the method does not apply.
    """
    first = choose_first(spec, tensors)
    ranges = estimate(statistics, first, tensors, spec.quantization.kind_of_ranges, tensors)
    if isinstance(first, EntropyWithRows):
        from trtq.pipeline.judge.rows import add_row_variants  # late, as above

        amaxes = _row_amaxes(graph, tensors, batches, first, watcher)
        ranges, *_ = add_row_variants([ranges], amaxes, only=True)
    return RangeSearch(ranges, first)


def choose_first(spec: ModelSpec, tensors: Mapping[str, Levels]) -> Method:
    """Returns the method of `spec`; for "auto" the one that trials start from, by the formats of tensors."""
    method = create_method(spec.calibration)
    return RoomyMinMax() if _are_floats(tensors) and isinstance(method, Auto) else method


def _choose_repairs(spec: ModelSpec, tensors: Mapping[str, Levels]) -> tuple[str, ...]:
    """Returns the repairs to try: in FP8, where ranges win little, "auto" rounds weights too."""
    named = spec.quantization.repairs
    is_auto = spec.quantization.repair == (AUTO,)
    return (*named, *SLOW_REPAIRS) if is_auto and _are_floats(tensors) else named


def _are_floats(tensors: Mapping[str, Levels]) -> bool:
    return bool(tensors) and not any(map(are_even, tensors.values()))


def _row_amaxes(
    graph: Graph, tensors: Mapping[str, Levels], batches: Batches, method: Method, watcher: Watcher
) -> dict[str, float]:
    from trtq.pipeline.judge.rows import measure_row_amaxes  # late, as above

    found = measure_row_amaxes(graph.model, tensors, batches)
    if not found and isinstance(method, EntropyWithRows):
        types = ",".join((*DEFAULT_OP_TYPES, SOFTMAX))
        watcher.note(
            "no quantized tensor feeds a softmax, so cross-entropy is entropy here; "
            f"--op-types {types} quantizes what a Softmax gets"
        )
    return found


def _drop_repeats(candidates: Sequence[Ranges]) -> list[Ranges]:
    tensors = [item.tensors for item in candidates]
    return [item for index, item in enumerate(candidates) if item.tensors not in tensors[:index]]


def _choose_step(num_samples: int, effort: Effort) -> int:
    """Returns of which feeds rescaled tensors that are only tried get their ranges: every so many-th."""
    return 4 if effort != "thorough" and num_samples >= _ENOUGH_TO_OBSERVE else 2


def _plan_budget(graph: Graph, batches: Batches, num_samples: int, effort: Effort) -> SampleBudget:
    """Returns how many samples candidates are scored on: fewer where the model is large.

    It counts multiplications, not time, so that the same data gives the same result.
    """
    from trtq.pipeline.judge.macs import count_macs
    from trtq.pipeline.judge.repairs import SampleBudget

    wanted = SampleBudget()
    macs = sum(count_macs(graph.model, next(iter(batches))).values())
    share = min(1.0, max(_CHEAP_MACS / max(macs, 1), _MOST_PASSES[effort] * num_samples) / _NUM_RUNS)
    first, second = round(wanted.first * share), round(wanted.second * share)
    least, most = _SMALLEST_BUDGET
    return SampleBudget(max(least, first), max(most, second), races=effort != "thorough")
