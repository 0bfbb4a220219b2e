"""When the gate fails: the job again, with layers in more exact formats, as cheap as it then holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.build.comparison import compare_job
from trtq.pipeline.build.found import HOLDS, Found, describe_plain, explain_step, report_search, warn_of_few
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import hold_layers, list_forms, place_in
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.report import AutoReport
from trtq.pipeline.formats import FP16
from trtq.pipeline.formats.throughput import find_speed
from trtq.pipeline.graph.attention import find_attentions
from trtq.pipeline.graph.placement import RESIDUAL_ADD
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.costs import FLOAT, price_layers
from trtq.pipeline.judge.gate import judge
from trtq.pipeline.judge.macs import count_work
from trtq.pipeline.judge.mixed_precision import DataSize, EffectMeter, choose_layers, count_needed
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.switchable import Switchable, open_switchable
from trtq.progress import Log

_MOST_ATTEMPTS = 3
"""At models that the data that was held back confirms."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A job that was looked at, and what was done.

    Attributes:
        job: As it was, or with layers in other formats or float, and with the data to judge on that did not
            choose them.
        models: Those of the job.
        auto: For the report.
        comparison: Of the job's models on its data.
    """

    job: Job
    models: ModelFiles
    auto: AutoReport
    comparison: Comparison


def search_layers(
    job: Job,
    ranges: Ranges,
    models: ModelFiles,
    first: Comparison,
    quantize: Callable[[Job], ModelFiles],
    labels: Labels | None,
    log: Log,
) -> SearchResult:
    """Returns the job, with layers in more exact formats or float if its gate fails without.

    The layers are chosen on the first, third ... batch of the evaluation data, and the choice is judged on
    the second, fourth ...: the real models are compared on these. If that fails, these batches decide how
    many more layers are raised, and are then no longer independent of the choice; the outcome says so.

    Args:
        job: A build with Q/DQ, all in the format of its target, and data to compare on.
        ranges: Of its tensors.
        models: Its models, written already.
        first: Their comparison.
        quantize: Writes the models of a changed job in their place.
        labels: Of the data, loaded.
        log: Is told of it all.
    """
    verdict = judge(first, job.spec.accuracy, candidate=job.name)
    if verdict.outcome != "fail":
        outcome = f"not needed: {HOLDS[verdict.outcome]} with every layer {describe_plain(job)}"
        return SearchResult(job, models, AutoReport(outcome, option=job.target.search_option), first)
    assert job.evaluation is not None
    sizes = [feed.num_samples for feed in job.evaluation]
    if hindrance := _hindrance(job, first, sizes):
        log.warn(f"{job.target.search_option} cannot help: {hindrance}")
        return SearchResult(job, models, AutoReport(hindrance, option=job.target.search_option), first)
    with log.timed("auto"):
        start = _Start(first, DataSize(len(sizes[::2]), sum(sizes[::2])), labels)
        return _search(job, ranges, quantize, start, log)


def _hindrance(job: Job, comparison: Comparison, sizes: Sequence[int]) -> str:
    """Returns why no choice of layers can be made; empty if it can."""
    fp16 = judge(comparison, job.spec.accuracy, candidate="fp16")
    if job.strategy.graph_float is FP16 and fp16.outcome == "fail":
        return (
            f"FP16 fails the gate without any quantization ({'; '.join(fp16.reasons)}): quantization is not "
            f"the cause; keep layers in FP32 with --keep-fp32, or the whole rest with --high-precision fp32"
        )
    if len(sizes) < 2:
        return (
            f"{comparison.data} is one batch, and layers are not judged on the data that they are chosen on; "
            f"give more data, or a smaller --calib-batch-size"
        )
    if sum(sizes[1::2]) == 1:
        return f"{comparison.data} leaves one sample to judge a choice on, which is no proof; give more data"
    return ""


@dataclass(frozen=True, slots=True)
class _Start:
    """What a search begins with: how good the cheapest is, the size and labels of the data to choose on."""

    plain: Comparison
    size: DataSize
    labels: Labels | None


def _search(
    job: Job, ranges: Ranges, quantize: Callable[[Job], ModelFiles], start: _Start, log: Log
) -> SearchResult:
    assert job.evaluation is not None
    to_choose, to_judge = job.evaluation.take_every(0, 2), job.evaluation.take_every(1, 2)
    judged_on = replace(to_judge, origin=f"every second batch of {job.evaluation.origin}")
    works = count_work(job.graph.model, next(iter(job.evaluation)))
    if start.labels is not None:
        _warn_of_few(job, start.size.num_samples, log)
    log.stage("Choosing layers")
    others = [place_in(job, form) for form in job.target.code_formats if form != job.target.precision]
    session = open_switchable(
        job.graph.model,
        job.placement.without_closed,
        ranges,
        scale_dtype=job.strategy.scale_dtype,
        others=others,
    )
    followers = _find_followers(job, session)

    def spread(forms: Mapping[str, str]) -> dict[str, str]:
        return {**forms, **{name: forms[leader] for name, leader in followers.items()}}

    meter = EffectMeter(
        session,
        lambda forms: list_forms(hold_layers(job, ranges, spread(forms), lambda _: "")),
        followers,
        start.labels,
        log.advance,
        workers=job.workers,
    )
    speed = find_speed(job.target.compute_capabilities)
    costs = price_layers(works, _list_allowed(job, session), speed)
    for name, leader in followers.items():
        behind = costs.pop(name)
        costs[leader] = {form: cost + behind[form] for form, cost in costs[leader].items() if form in behind}
    choice = choose_layers(meter, costs, job.spec.accuracy, to_choose, start.size)
    attempts = 0
    while True:
        attempts += 1
        changed = hold_layers(
            job,
            ranges,
            spread(choice.forms()),
            partial(explain_step, job.target.search_option, choice, followers),
        )
        changed = replace(changed, evaluation=judged_on)
        models = quantize(changed)
        comparison = compare_written(changed, models, start.labels, log)
        meter.samples_run += comparison.num_samples * len(models.files)
        verdict = judge(comparison, job.spec.accuracy, candidate=changed.name)
        if verdict.outcome != "fail" or not choice.is_more_exact or attempts == _MOST_ATTEMPTS:
            break
        log.stage("Choosing further layers")
        times = _MOST_ATTEMPTS - attempts  # twice, then once: all stays near thirty passes
        choice = replace(choice, count=count_needed(meter, choice, job.spec.accuracy, to_judge, times))
    passes = meter.samples_run / max(2 * comparison.num_samples, 1)
    macs = {name: work.macs for name, work in works.items()}
    found = Found(choice, attempts, passes, macs, costs)
    auto = report_search(job, changed, found, verdict)
    (log.warn if verdict.outcome == "fail" else log.note)(auto.outcome)
    if few := warn_of_few(job, auto, start.plain):
        log.warn(few)
    return SearchResult(changed, models, auto, comparison)


def _find_followers(job: Job, session: Switchable) -> dict[str, str]:
    """Returns the second products of attention, with the first ones: a kernel takes both in one format."""
    pairs = (
        (str(item.scores.name), str(item.context.name)) for item in find_attentions(job.graph.model.graph)
    )
    return {second: first for first, second in pairs if {first, second} <= session.layers.keys()}


def _list_allowed(job: Job, session: Switchable) -> dict[str, tuple[str, ...]]:
    """Returns the formats that each layer may have; an Add behind a convolution has that of the latter."""
    follows = {node.name for node in job.placement.quantized if node.scheme.rule == RESIDUAL_ADD}
    rest = (FLOAT,) if FLOAT in job.target.allowed else ()
    return {
        name: (*(forms[:1] if name in follows else forms), *rest) for name, forms in session.layers.items()
    }


def _warn_of_few(job: Job, num_samples: int, log: Log) -> None:
    each, max_drop = 100 / num_samples, job.spec.accuracy.max_drop
    if each > max_drop:
        log.warn(
            f"{job.target.search_option} has {num_samples} samples to choose on, so that one answer can be "
            f"{each:.1f} points, and the gate allows {max_drop:g}: layers may be kept for the sake of one "
            f"answer; give more evaluation data"
        )


def compare_written(job: Job, models: ModelFiles, labels: Labels | None, log: Log) -> Comparison:
    """Returns the comparison of the models of a job that has data to compare on."""
    comparison = compare_job(job, models.files, log, labels=labels)
    assert comparison is not None  # there is data
    return comparison
