"""What a search for formats found, in words and for the report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import list_forms
from trtq.pipeline.deliver.report import AutoReport, KeptByAuto
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.costs import FLOAT, Costs
from trtq.pipeline.judge.gate import Verdict
from trtq.pipeline.judge.mixed_precision import LayerChoice, Step
from trtq.pipeline.judge.sensitivity import to_effect
from trtq.records import REFERENCES

_FEW_MACS, _MOST_NAMED = 0.8, 3
"""Below this share of what could be quantized, in MACs, a warning names so many layers."""
HOLDS: Mapping[str, str] = {"pass": "the gate passes", "unverified": "the gate does not fail"}
"""By the outcome of the verdict."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, and what it cost.

    Attributes:
        choice: The formats.
        attempts: How often one was judged on the data held back.
        passes: Runs of one model over the evaluation data.
        macs: Of every layer of the model.
        costs: Of every layer that could be chosen in every format.
    """

    choice: LayerChoice
    attempts: int
    passes: float
    macs: Mapping[str, int]
    costs: Costs


def describe_plain(job: Job) -> str:
    """Returns what every layer of the cheapest model is in, in words."""
    more = sorted({form.name.upper() for form in job.forms.values()})
    return f"in {' and '.join([job.target.precision.upper(), *more])}"


def explain_step(option: str, choice: LayerChoice, followers: Mapping[str, str], name: str) -> str:
    """Returns why a layer is float, by the option that asked for the search."""
    leader = followers.get(name, name)
    form, alone = choice.start[leader], _alone(choice, leader)
    return f"kept by {option}: alone in {form.upper()} it leaves an SQNR of {alone:.1f} dB"


def _alone(choice: LayerChoice, name: str) -> float:
    """Returns the SQNR in dB with a layer alone in its cheapest format."""
    return choice.alone[Step(name, choice.start[name])].sqnr_db


def report_search(before: Job, after: Job, found: Found, verdict: Verdict) -> AutoReport:
    """Returns what the report says of a search.

    Args:
        before: The job with every layer in the cheapest format.
        after: As it was chosen.
        found: What was found.
        verdict: On the chosen models.
    """
    choice = found.choice
    total = max(sum(found.macs.values()), 1)
    kept = [name for name in after.kept if name not in before.kept]
    formats = _share_macs(before, after, found)
    plain = _share_macs(before, before, found)
    layers = {node.name for node in after.placement.layers}
    final = choice.forms()
    return AutoReport(
        outcome=_describe(before, kept, formats, found.attempts, verdict),
        kept=tuple(
            KeptByAuto(name, found.macs.get(name, 0) / total, _alone(choice, name))
            for name in kept
            if name in choice.start
        ),
        skip=tuple(f"^{re.escape(name)}$" for name in kept),
        quantized_macs=sum(share for form, share in formats.items() if form != FLOAT),
        quantized_macs_before=sum(share for form, share in plain.items() if form != FLOAT),
        times_judged=found.attempts,
        evaluation_passes=round(found.passes, 1),
        layers={
            name: form
            for name, form in list_forms(after).items()
            if name in layers and len(before.target.code_formats) > 1
        },
        formats=formats,
        cost=_sum_costs(found.costs, final),
        cost_before=_sum_costs(found.costs, choice.start),
        cost_float=_sum_costs(found.costs, dict.fromkeys(final, FLOAT)),
        option=before.target.search_option,
    )


def revise(auto: AutoReport, built: Job) -> AutoReport:
    """Returns what the report says of a search after layers without a kernel were built in float.

    The shares and costs were those of the chosen formats, and are left out.
    """
    forms = list_forms(built)
    return replace(
        auto,
        outcome=f"{auto.outcome}; layers without a kernel were built in float after that",
        layers={name: forms[name] for name in auto.layers if name in forms},
        quantized_macs=None,
        formats={},
        cost=None,
    )


def _sum_costs(costs: Costs, forms: Mapping[str, str]) -> float | None:
    found = [costs[layer].get(form) for layer, form in forms.items()]
    known = [cost for cost in found if cost is not None]
    return sum(known) if len(known) == len(found) else None


def _share_macs(before: Job, job: Job, found: Found) -> dict[str, float]:
    """Returns the share of the MACs by format; what came quantized stays so."""
    given = find_quantized_layers(before.graph.model)
    forms = {**list_forms(job), **{layer.name: layer.activation or FLOAT for layer in given}}
    total = max(sum(found.macs.values()), 1)
    counts = Counter(dict.fromkeys((*before.target.code_formats, FLOAT), 0))
    for name, macs in found.macs.items():
        counts[forms.get(name, FLOAT)] += macs
    return {form: count / total for form, count in counts.items()}


def _describe(
    job: Job, kept: Sequence[str], formats: Mapping[str, float], attempts: int, verdict: Verdict
) -> str:
    """Returns the outcome in a sentence."""
    layers = {layer.name for layer in job.placement.layers}
    count = sum(name in layers for name in kept)
    first, *others = job.target.code_formats
    words = [f"{formats[form]:.1%} in {form.upper()}" for form in others]
    done = f"{count} of {len(layers)} layers are kept out of {job.target.code_words}, " + (
        f"{formats[first]:.1%} of the MACs are in {first.upper()}, {', '.join(words)}"
        if words
        else f"{formats[first]:.1%} of the MACs stay in it"
    )
    if attempts > 1:
        done += (
            "; the first choice failed on the held-out data, which then decided how many more to "
            f"{'raise' if words else 'keep'}, in {attempts} attempts: the result is no longer fully "
            "independent"
        )
    if verdict.outcome == "fail":
        return f"the gate still fails: {done}; {'; '.join(verdict.reasons)}"
    if not {node.name for node in job.placement.without_closed.quantized} - {*kept}:
        return f"no choice of layers in {job.target.code_words} was found that holds the gate: {done}"
    return f"{HOLDS[verdict.outcome]}: {done}"


def warn_of_few(job: Job, auto: AutoReport, plain: Comparison) -> str:
    """Returns what to say where little is left of what could be quantized; empty where enough is."""
    if (auto.quantized_macs or 0.0) >= _FEW_MACS * (auto.quantized_macs_before or 0.0):
        return ""
    before = auto.quantized_macs_before or 0.0
    worst = sorted(auto.kept, key=lambda layer: layer.sqnr_db)[:_MOST_NAMED]
    named = ", ".join(f"{layer.name!r} ({layer.sqnr_db:.1f} dB alone)" for layer in worst)
    return (
        f"only {auto.quantized_macs or 0.0:.1%} of the MACs are in {job.target.code_words}, "
        f"{before:.1%} without {auto.option}; with every layer {describe_plain(job)} "
        f"the outputs had an SQNR of {_sqnr_db(plain):.1f} dB; the worst layers are {named}; see whether "
        f"the gate is too strict, or `trtq sensitivity` for each layer"
    )


def _sqnr_db(comparison: Comparison) -> float:
    pairs = [item for item in comparison.outputs if item.candidate != "fp16" and item.reference in REFERENCES]
    return to_effect(pairs).sqnr_db
