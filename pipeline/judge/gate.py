"""Whether what is left of the accuracy is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trtq.models.spec import AccuracySpec
from trtq.numbers import format_beside, format_count
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.score import format_score, name_metric
from trtq.records import ENTRY_FACTOR, LOST_ENTRY, LOW_FACTOR, REFERENCES, OutputComparison

_SAME_DB = 6.0
"""Noise within a factor of two in amplitude counts as the same."""
_ROUNDED_DB = 60.0
"""From here on the noise is that of rounding to FP16, which constants may have."""
_ENOUGH_KNOWN = 0.5
_CHANGE_DB = 6.0
"""Noise of up to half the amplitude of what differs between samples leaves that to be seen."""
_SETTLED = "were read: no others can change this"

Outcome = Literal["pass", "fail", "unverified"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says, and why; "unverified" where there was nothing to judge by."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a gate looks at.

    Attributes:
        name: Such as "cosine of output 'logits' to fp32".
        outcome: What the gate says of it alone.
        found: What was measured and what is wanted; of what fails, why.
    """

    name: str
    outcome: Outcome
    found: str


def judge_pair(comparison: Comparison, gate: AccuracySpec) -> Verdict:
    """Returns the verdict on a comparison of one candidate with one reference."""
    reasons = _cosine_reasons(comparison.outputs, gate)
    for candidate, reference in comparison.pairs:
        reasons += _drop_reasons(comparison, candidate, reference, gate)
    return _decide(comparison, comparison.outputs, reasons, gate)


def _decide(
    comparison: Comparison, judged: Sequence[OutputComparison], reasons: Sequence[str], gate: AccuracySpec
) -> Verdict:
    """Returns "fail" with the reasons, if any; "pass" only if what holds is evidence."""
    if reasons:
        return Verdict("fail", tuple(reasons))
    doubts = (*comparison.doubts, *_doubt_uneven(comparison), *_doubt(comparison, judged, gate))
    return Verdict("unverified", doubts) if doubts else Verdict("pass")


def _doubt_uneven(comparison: Comparison) -> list[str]:
    """Returns why nothing is known of outputs whose sizes differ, unless the metric looks at them."""
    reasons: dict[str, str] = {}
    for item in comparison.uneven:
        if item.output not in comparison.scored:
            words = (
                f"output {item.output!r} of {item.candidate} differs in size from that of "
                f"{item.reference} in {format_count(item.num_samples, 'sample')}, because its shape "
                "depends on values, so it was not compared; give a custom metric that reads it, or a "
                "model that ends before that"
            )
            reasons.setdefault(item.output, words)
    return list(reasons.values())


def _doubt(comparison: Comparison, judged: Sequence[OutputComparison], gate: AccuracySpec) -> list[str]:
    """Returns why outputs that are near each other prove nothing."""
    if comparison.num_samples == 0 or not (judged or comparison.accuracy):
        return ["nothing was compared"]
    if comparison.num_samples == 1:
        return ["only one sample was compared; give more data"]
    if judged and not any(item.varies for item in judged):
        return [
            f"the outputs of {judged[0].reference} are the same for all {comparison.num_samples} "
            "samples, so they prove nothing; check the data"
        ]
    reasons: dict[str, str] = {}
    for item in judged:
        if reason := _doubt_output(item, gate, is_scored=item.output in comparison.scored):
            reasons.setdefault(item.name, reason)
    return list(reasons.values())


def _doubt_output(item: OutputComparison, gate: AccuracySpec, *, is_scored: bool) -> str:
    """Returns why one output proves nothing; empty if it does."""
    name = f"{_name(item)} of {item.reference}"
    if item.known == 0:
        return f"{name} has no finite value in any sample; give data with which it has"
    if item.known < _ENOUGH_KNOWN:
        return f"{name} is NaN or infinite but for {item.known:.1%}; check the model and its data"
    if not item.varies and item.sqnr_db < _ROUNDED_DB:
        return f"{name} is the same for all samples, so it proves nothing; is that right?"
    if is_scored:
        return ""
    if not item.is_change_known and item.sqnr_db < math.inf:
        return f"how much {name} differs between samples is not known; give labels, or samples of one shape"
    least = max(0.0, min(_CHANGE_DB, _find_least_db(gate)))
    if item.change_db is not None and (item.change_db < least or item.change_db <= 0):
        nearly = "nearly " if item.change_db > 0 else ""
        return (
            f"the error of {item.candidate} on {_name(item)} is {nearly}as large as the difference between "
            f"samples ({item.change_db:.1f} dB), so a constant output would score {nearly}as well; give "
            "samples that differ more, or labels"
        )
    if item.quiet_change_db is not None and item.quiet_change_db < least:
        return (
            f"a few samples with large values of {_name(item)} hide the others: on nine in ten the error of "
            f"{item.candidate} is nearly as large as the difference between them "
            f"({item.quiet_change_db:.1f} dB); give labels, or a metric that says what counts"
        )
    return ""


def judge(
    comparison: Comparison | None,
    gate: AccuracySpec,
    *,
    candidate: str,
    is_random: bool = False,
    is_inexact: bool = False,
) -> Verdict:
    """Returns the verdict on the candidate: "engine", or where that cannot be run, "int8" or "fp16".

    The truth is FP32, or the model as it was given if that has Q/DQ. FP16 is a second reference where it
    holds the gate itself. Nothing can be said without a comparison, nor of random data.

    Args:
        comparison: What was measured, if anything.
        gate: What is wanted.
        candidate: The name of the candidate.
        is_random: Whether the data was made up.
        is_inexact: Whether repairs have changed what the model as it was given computes, in FP16 too.
    """
    if comparison is None:
        return Verdict("unverified", ("there was no float model or no data to compare with",))
    if is_random:
        return Verdict("unverified", ("the data was random, so its accuracy means nothing",))
    ours = [item for item in comparison.outputs if item.candidate == candidate]
    if not ours and candidate not in comparison.accuracy:
        doubts = (*comparison.doubts, *_doubt_uneven(comparison))
        unknown = f"{candidate} was not run, so its accuracy is unknown"
        return Verdict("unverified", doubts or (unknown,))
    bad_fp16 = _list_bad_fp16(comparison, gate)
    reasons = _cosine_reasons(_list_judged(comparison, candidate, gate), gate)
    for truth in REFERENCES:
        reasons += _drop_reasons(comparison, candidate, truth, gate)
    if reasons and candidate != "fp16" and bad_fp16 and _is_as_bad(bad_fp16[0], ours):
        reasons.append((_blame_repairs if is_inexact else _blame_fp16)(bad_fp16[0]))
    if reasons and comparison.is_settled:
        number = format_count(comparison.num_samples, "sample")
        reasons.append(f"only the first {number} of {comparison.data} {_SETTLED}")
    return _decide(comparison, ours, reasons, gate)


def list_checks(comparison: Comparison, gate: AccuracySpec, candidate: str | None = None) -> list[Check]:
    """Returns what a verdict goes by: every output against every reference, and the metric.

    Args:
        comparison: What was measured.
        gate: What is wanted.
        candidate: What is judged, as for `judge`; None: the one of a pair, as for `judge_pair`.
    """
    judged = comparison.outputs if candidate is None else _list_judged(comparison, candidate, gate)
    pairs = comparison.pairs if candidate is None else [(candidate, truth) for truth in REFERENCES]
    checks = [_check_output(item, gate) for item in judged]
    for pair in pairs:
        checks += _check_metric(comparison, *pair, gate)
    return [_doubt_part(item) for item in checks] if comparison.is_settled else checks


def is_settled(reasons: Sequence[str]) -> bool:
    """Whether the reasons of a verdict tell that the rest of the data was not read."""
    return any(reason.endswith(_SETTLED) for reason in reasons)


def _doubt_part(check: Check) -> Check:
    """Returns what is known where the rest of the data was not read: of what holds, that it did so far."""
    if check.outcome != "pass":
        return check
    return replace(check, outcome="unverified", found=f"{check.found}; the rest of the data was not read")


def _check_output(item: OutputComparison, gate: AccuracySpec) -> Check:
    """Returns what the gate says of one output against one reference."""
    name = f"cosine of {_name(item)} to {item.reference}"
    if _holds(item, gate):
        told = "left to the metric" if item.is_left_to_metric else f"the gate requires {gate.min_cosine:.12g}"
        return Check(name, "pass", f"{item.judged_cosine:.5f}, {told}")
    return Check(name, "fail", _explain_cosine(item, gate))


def _check_metric(comparison: Comparison, candidate: str, reference: str, gate: AccuracySpec) -> list[Check]:
    """Returns what the gate says of the lost points of accuracy; nothing without labels."""
    ours, theirs = comparison.accuracy.get(candidate), comparison.accuracy.get(reference)
    if ours is None or theirs is None:
        return []
    name = f"{name_metric(comparison.metric)} beside {reference}"
    if reasons := _drop_reasons(comparison, candidate, reference, gate):
        return [Check(name, "fail", reasons[0])]
    before, after = (format_score(score, comparison.metric) for score in (theirs, ours))
    return [
        Check(name, "pass", f"{after} against {before}, the gate allows a drop of {gate.max_drop:g} points")
    ]


def _list_bad_fp16(comparison: Comparison, gate: AccuracySpec) -> list[OutputComparison]:
    return [item for item in comparison.outputs if item.candidate == "fp16" and not _holds(item, gate)]


def _list_judged(comparison: Comparison, candidate: str, gate: AccuracySpec) -> list[OutputComparison]:
    """Returns the comparisons that decide: with FP16 too, where that holds the gate itself."""
    references = REFERENCES if _list_bad_fp16(comparison, gate) else (*REFERENCES, "fp16")
    ours = [item for item in comparison.outputs if item.candidate == candidate]
    return [item for item in ours if item.reference in references]


def _drop_reasons(comparison: Comparison, candidate: str, reference: str, gate: AccuracySpec) -> list[str]:
    """Returns what to say of the lost points of accuracy; nothing without labels."""
    ours, theirs = comparison.accuracy.get(candidate), comparison.accuracy.get(reference)
    if ours is None or theirs is None:
        return []
    drop = round(100 * (theirs - ours), 9)
    if drop <= gate.max_drop:
        return []
    before, after = (format_score(score, comparison.metric) for score in (theirs, ours))
    return [
        f"{name_metric(comparison.metric)} falls from {before} ({reference}) to {after}, by "
        f"{format_beside(drop, gate.max_drop, 2)} points; the gate allows {gate.max_drop:g}"
    ]


def _cosine_reasons(outputs: Sequence[OutputComparison], gate: AccuracySpec) -> list[str]:
    """Returns what is wrong with each output, once for all references."""
    bad = {item.name: item for item in reversed(outputs) if not _holds(item, gate)}
    return [_explain_cosine(item, gate) for item in reversed(bad.values())]


def _name(item: OutputComparison) -> str:
    return f"part {item.part!r} of output {item.output!r}" if item.part else f"output {item.output!r}"


def _explain_cosine(item: OutputComparison, gate: AccuracySpec) -> str:
    worst = ", ".join(map(str, item.worst[:3]))
    if item.nonfinite:
        return (
            f"{_name(item)} has {format_count(item.nonfinite, 'NaN or infinite value')} where "
            f"{item.reference} has numbers; worst samples: {worst}"
        )
    if math.isnan(item.cosine):
        return (
            f"{_name(item)} cannot be compared: its values in {item.reference} are NaN, infinite or "
            f"too large; check the model and its data"
        )
    if item.is_dead:
        return (
            f"{_name(item)} of {item.candidate} is the same for all samples, where that of "
            f"{item.reference} differs"
        )
    if item.lost is not None and item.judged_cosine >= gate.min_cosine:
        return (
            f"{_name(item)} has {item.cosine:.4f} of its places as {item.reference} has them, but class "
            f"{item.lost.number} in {item.lost.found} of {item.lost.count} only; worst samples: {worst}"
        )
    if item.is_added:
        least = -10 * math.log10(2 * (1 - _find_least_entry(gate)))
        return (
            f"{_name(item)}, which is what the model adds to its input or masks of it, has an SQNR of "
            f"{item.sqnr_db:.1f} dB to {item.reference}, the gate requires {least:.1f}; worst samples: "
            f"{worst}"
        )
    cosine = f"cosine {format_beside(item.cosine, gate.min_cosine, 4)} to {item.reference}"
    found = f"{cosine}, the gate requires {gate.min_cosine:.12g}"
    if item.cosine >= gate.min_cosine:
        found = f"{cosine} as a whole, but {_explain_part(item, gate)}"
    order = "; its rows are in the order of a TopK: a custom metric that reads it can compare the objects"
    return f"{_name(item)} has {found}{order if item.is_ranked else ''}; worst samples: {worst}"


def _explain_part(item: OutputComparison, gate: AccuracySpec) -> str:
    """Returns what of an output is far off, though the whole is near, and what the gate wants of it."""
    wanted = gate.min_cosine
    low = 1 - LOW_FACTOR * (1 - wanted)
    if not item.apart_cosine >= wanted:
        found, where = item.apart_cosine, f"on the {item.apart} values that hardly change or rule classes out"
    elif item.median_cosine < wanted:
        found, where = item.median_cosine, "or less in half of its samples"
    elif item.low_cosine < low:
        found, wanted, where = item.low_cosine, low, "or less in a twentieth of its samples"
    elif item.entry_cosine < (least_entry := _find_least_entry(gate)):
        place, size = item.entry
        found, wanted = item.entry_cosine, least_entry
        where = f"by the noise in some of its channels, tokens or columns, such as index {place} of {size}"
    else:
        least = _find_least_db(gate)
        return f"too large or too small: {item.sqnr_db:.1f} dB, where the gate requires {least:.1f}"
    return f"{format_beside(found, wanted, 4)} {where}, where the gate requires {wanted:.12g}"


def _find_least_entry(gate: AccuracySpec) -> float:
    """Returns the least cosine by its noise that the gate takes of an entry, such as a channel."""
    return max(LOST_ENTRY, 1 - ENTRY_FACTOR * (1 - gate.min_cosine))


def _find_least_db(gate: AccuracySpec) -> float:
    """Returns the least ratio of signal to noise that the gate takes of a whole output."""
    loss = 2 * LOW_FACTOR * (1 - gate.min_cosine)
    return -10 * math.log10(loss) if loss > 0 else math.inf


def _is_as_bad(fp16: OutputComparison, outputs: Sequence[OutputComparison]) -> bool:
    """Whether FP16 alone is nearly as far from FP32 as the candidate, or broken."""
    ours = [item for item in outputs if item.reference in REFERENCES and item.name == fp16.name]
    return fp16.nonfinite > 0 or any(not fp16.sqnr_db > item.sqnr_db + _SAME_DB for item in ours)


def _blame_fp16(item: OutputComparison) -> str:
    return (
        f"FP16 alone has cosine {item.cosine:.4f} to {item.reference} on {_name(item)}: quantization is not "
        f"the cause; keep layers in FP32 with --keep-fp32, or the whole rest with --high-precision fp32"
    )


def _blame_repairs(item: OutputComparison) -> str:
    return (
        f"the repaired model has cosine {item.cosine:.4f} to {item.reference} on {_name(item)} with "
        "the rest in FP16 too: the repairs that round again may be the cause; export the model so "
        "that it needs none"
    )


def _holds(item: OutputComparison, gate: AccuracySpec) -> bool:
    if item.is_dead or math.isnan(item.judged_cosine):
        return False
    return item.is_left_to_metric or (item.judged_cosine >= gate.min_cosine and item.lost is None)
