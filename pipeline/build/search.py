"""When the gate fails: the job again, with the fewest layers kept out of INT8 that make it hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.build.comparison import compare_job
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import keep_layers
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.report import AutoReport, KeptByAuto
from trtq.pipeline.formats import FP16, LAYER_FORMATS
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import Verdict, judge
from trtq.pipeline.judge.macs import count_macs
from trtq.pipeline.judge.mixed_precision import (
    DataSize,
    EffectMeter,
    LayerChoice,
    choose_layers,
    count_needed,
)
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.sensitivity import Effect, to_effect
from trtq.pipeline.judge.switchable import open_switchable
from trtq.progress import Log
from trtq.records import REFERENCES

_FEW_MACS, _MOST_NAMED = 0.8, 3
"""Below this share of what could be in INT8, in MACs, the user is warned; how many layers are named then."""
_MOST_ATTEMPTS = 3
"""At models that the data that was held back confirms."""
_HOLDS: Mapping[str, str] = {"pass": "the gate holds", "unverified": "the gate does not fail"}
"""By the outcome of the verdict."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A job that was looked at, and what was done.

    Attributes:
        job: As it was, or with layers kept, and with the data to judge on that did not choose them.
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
    """Returns the job, with layers kept out of INT8 if its gate fails without.

    The layers are chosen on the first, third ... batch of the evaluation data, and the choice is judged on
    the second, fourth ...: the real models are compared on these. If that fails, these batches decide how
    many more layers are kept, and are then no longer independent of the choice; the outcome says so.

    Args:
        job: An INT8 build with Q/DQ and data to compare on.
        ranges: Of its tensors.
        models: Its models, written already.
        first: Their comparison.
        quantize: Writes the models of a changed job in their place.
        labels: Of the data, loaded.
        log: Is told of it all.
    """
    verdict = judge(first, job.spec.accuracy, candidate=job.target.name)
    if verdict.outcome != "fail":
        outcome = f"not needed: {_HOLDS[verdict.outcome]} with every layer in INT8"
        return SearchResult(job, models, AutoReport(outcome), first)
    assert job.evaluation is not None
    sizes = [feed.num_samples for feed in job.evaluation]
    if hindrance := _hindrance(job, first, sizes):
        log.warn(f"--auto cannot help: {hindrance}")
        return SearchResult(job, models, AutoReport(hindrance), first)
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
    """What a search begins with: how good plain INT8 is, the size and labels of the data to choose on."""

    plain: Comparison
    size: DataSize
    labels: Labels | None


def _search(
    job: Job, ranges: Ranges, quantize: Callable[[Job], ModelFiles], start: _Start, log: Log
) -> SearchResult:
    assert job.evaluation is not None
    to_choose, to_judge = job.evaluation.take_every(0, 2), job.evaluation.take_every(1, 2)
    judged_on = replace(to_judge, origin=f"every second batch of {job.evaluation.origin}")
    macs = count_macs(job.graph.model, next(iter(job.evaluation)))
    if start.labels is not None:
        _warn_of_few(start.size.num_samples, job.spec.accuracy.max_drop, log)
    log.stage("Choosing layers")
    meter = EffectMeter(
        open_switchable(job.graph.model, job.placement, ranges, scale_dtype=job.strategy.scale_dtype),
        lambda kept: _list_quantized(keep_layers(job, ranges, dict.fromkeys(kept, ""))),
        start.labels,
        log.advance,
    )
    choice = choose_layers(meter, macs, job.spec.accuracy, to_choose, start.size)
    count, attempts = len(choice.kept), 0
    while True:
        attempts += 1
        changed = keep_layers(job, ranges, {name: _reason(choice, name) for name in choice.order[:count]})
        changed = replace(changed, evaluation=judged_on)
        models = quantize(changed)
        comparison = compare_written(changed, models, start.labels, log)
        meter.samples_run += comparison.num_samples * len(models.files)
        verdict = judge(comparison, job.spec.accuracy, candidate=job.target.name)
        if verdict.outcome != "fail" or count == len(choice.order) or attempts == _MOST_ATTEMPTS:
            break
        log.stage("Choosing further layers")
        times = _MOST_ATTEMPTS - attempts  # twice, then once: all stays near thirty passes
        count = count_needed(meter, choice.order, count, job.spec.accuracy, to_judge, times)
    passes = meter.samples_run / max(2 * comparison.num_samples, 1)
    auto = _report(job, changed, _Found(choice, attempts, passes), macs, verdict)
    (log.warn if verdict.outcome == "fail" else log.note)(auto.outcome)
    if (auto.int8_macs or 0.0) < _FEW_MACS * (auto.int8_macs_before or 0.0):
        log.warn(_few_in_int8(auto, start.plain))
    return SearchResult(changed, models, auto, comparison)


def _warn_of_few(num_samples: int, max_drop: float, log: Log) -> None:
    if (each := 100 / num_samples) > max_drop:
        log.warn(
            f"--auto has {num_samples} samples to choose on, so that one answer can be {each:.1f} points, "
            f"and the gate allows {max_drop:g}: layers may be kept for the sake of one answer; give more "
            f"evaluation data"
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a search found, and what it cost."""

    choice: LayerChoice
    attempts: int
    passes: float


def _few_in_int8(auto: AutoReport, plain: Comparison) -> str:
    worst = sorted(auto.kept, key=lambda layer: layer.sqnr_db)[:_MOST_NAMED]
    named = ", ".join(f"{layer.name!r} ({layer.sqnr_db:.1f} dB alone)" for layer in worst)
    return (
        f"only {auto.int8_macs or 0.0:.1%} of the MACs are in INT8, {auto.int8_macs_before or 0.0:.1%} "
        f"without --auto; with every layer in INT8 the outputs had an SQNR of "
        f"{_effect(plain).sqnr_db:.1f} dB; the worst layers are {named}; see whether the gate is too "
        f"strict, or `trtq sensitivity` for each layer"
    )


def _effect(comparison: Comparison) -> Effect:
    pairs = [
        item
        for item in comparison.outputs
        if item.candidate in LAYER_FORMATS and item.reference in REFERENCES
    ]
    return to_effect(pairs)


def _list_quantized(job: Job) -> set[str]:
    return {node.name for node in job.placement.quantized}


def _reason(choice: LayerChoice, name: str) -> str:
    return f"kept by --auto: alone in INT8 it leaves an SQNR of {choice.alone[name].sqnr_db:.1f} dB"


def compare_written(job: Job, models: ModelFiles, labels: Labels | None, log: Log) -> Comparison:
    """Returns the comparison of the models of a job that has data to compare on."""
    comparison = compare_job(job, models.files, log, labels=labels)
    assert comparison is not None  # there is data
    return comparison


def _report(before: Job, after: Job, found: _Found, macs: Mapping[str, int], verdict: Verdict) -> AutoReport:
    choice = found.choice
    total = max(sum(macs.values()), 1)
    kept = [name for name in after.kept if name not in before.kept]
    given = {layer.name for layer in find_quantized_layers(before.graph.model)}  # it came so, and stays
    share = sum(macs.get(name, 0) for name in _list_quantized(after) | given) / total
    return AutoReport(
        outcome=_describe(before, kept, share, found.attempts, verdict),
        kept=tuple(
            KeptByAuto(name, macs.get(name, 0) / total, choice.alone[name].sqnr_db)
            for name in kept
            if name in choice.alone
        ),
        skip=tuple(f"^{re.escape(name)}$" for name in kept),
        int8_macs=share,
        int8_macs_before=sum(macs.get(name, 0) for name in {*choice.order} | given) / total,
        times_judged=found.attempts,
        evaluation_passes=round(found.passes, 1),
    )


def _describe(job: Job, kept: Sequence[str], share: float, attempts: int, verdict: Verdict) -> str:
    """Returns the outcome in a sentence."""
    layers = {layer.name for layer in job.placement.layers}
    count = sum(name in layers for name in kept)
    done = f"{count} of {len(layers)} layers are kept out of INT8, {share:.1%} of the MACs stay in it"
    if attempts > 1:
        done += (
            f"; the first choice failed on the data held back, which then decided how many more to keep, in "
            f"{attempts} attempts: it is no longer wholly independent"
        )
    if verdict.outcome == "fail":
        return f"the gate still fails: {done}; {'; '.join(verdict.reasons)}"
    if not {node.name for node in job.placement.quantized} - {*kept}:
        return f"{_HOLDS[verdict.outcome]}, but with no layer in INT8: {done}"
    return f"{_HOLDS[verdict.outcome]}: {done}"
