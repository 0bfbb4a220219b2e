"""Whether what was built is as fast as was asked, beyond the noise of the measurement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

from trtq.pipeline.judge.gate import Outcome

LOOKS = 3
"""How often the ratios are looked at: if they decide nothing, more rounds are measured."""
CONFIDENCE = 0.95
"""That the interval of each look holds the ratio, for all looks together."""
_MOST_BLAMED = 3
_ERROR = (1 - CONFIDENCE) / LOOKS  # Bonferroni: who looks again may err again


@dataclass(frozen=True, slots=True)
class LayerTime:
    """What a layer takes in one run, float and quantized, in milliseconds.

    Attributes:
        name: The node of the float model, or "conversions" for what belongs to no layer.
        fused: Further nodes that one of the two computes in the same kernel.
        float_ms: In the float model or engine, with its own conversions of layouts.
        quantized_ms: In the quantized one, with its conversions.
        conversions_ms: What of that only converts, between formats or layouts.
        float_kernels: The operators of the kernels in the float one.
        quantized_kernels: The same in the quantized one.
    """

    name: str
    fused: tuple[str, ...]
    float_ms: float
    quantized_ms: float
    conversions_ms: float
    float_kernels: tuple[str, ...]
    quantized_kernels: tuple[str, ...]

    @property
    def costs_ms(self) -> float:
        """How much more the quantized one takes."""
        return self.quantized_ms - self.float_ms


@dataclass(frozen=True, slots=True)
class SpeedVerdict:
    """What the speed gate says of one model or engine, and what it goes by.

    Attributes:
        verdict: "pass" if the whole interval is at least `wanted`, "fail" if all of it is below; else
            "unverified".
        reasons: Why, unless it passed.
        wanted: How many times as fast as `against` it has to be.
        candidate: What is judged, such as "int8" or "int8 engine".
        against: What it is measured against; empty if there is nothing.
        ratio: How many times as fast it is: the median over the rounds; None if it was not measured.
        low: The lower end of the interval that holds the ratio; None with too few rounds.
        high: The upper end.
        confidence: That the interval holds the ratio, 0 to 1.
        rounds: How many rounds were measured.
        runtime: What ran it, with its version.
        machine: The processor or GPU that it ran on.
        costliest: The layers that quantization slows down most, if it is too slow.
    """

    verdict: Outcome
    reasons: tuple[str, ...]
    wanted: float
    candidate: str
    against: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float = CONFIDENCE
    rounds: int = 0
    runtime: str = ""
    machine: str = ""
    costliest: tuple[LayerTime, ...] = ()


def judge_speed(ratios: Sequence[float], wanted: float, candidate: str, against: str) -> SpeedVerdict:
    """Returns the verdict on paired rounds; each ratio is how many times as fast the candidate was in one."""
    ratio, interval = statistics.median(ratios), bound_median(ratios, _ERROR)
    low, high = interval or (None, None)
    outcome = _decide(interval, wanted)
    found = SpeedVerdict(
        outcome, (), wanted, candidate, against, ratio=ratio, low=low, high=high, rounds=len(ratios)
    )
    return found if outcome == "pass" else replace(found, reasons=(_explain(found),))


def refuse_to_judge(reason: str, wanted: float, candidate: str) -> SpeedVerdict:
    """Returns the verdict on what was not measured."""
    return SpeedVerdict(
        "unverified", (f"the speed of {candidate} is not known: {reason}",), wanted, candidate
    )


def blame_layers(item: SpeedVerdict, layers: Sequence[LayerTime]) -> SpeedVerdict:
    """Returns a verdict that fails with the layers that cost most, of all in the order of what they cost."""
    costliest = tuple(layer for layer in layers if layer.costs_ms > 0)[:_MOST_BLAMED]
    if not costliest:
        return item
    told = ", ".join(
        f"{layer.name} ({layer.float_ms:.3g} ms, quantized {layer.quantized_ms:.3g})" for layer in costliest
    )
    reasons = (*item.reasons[:-1], f"{item.reasons[-1]}; it loses most in {told}")
    return replace(item, reasons=reasons, costliest=costliest)


def bound_median(ratios: Sequence[float], error: float) -> tuple[float, float] | None:
    """Returns the interval that holds the median of what the ratios are drawn from, but for this error.

    It lies between two of the ratios in their order, and supposes nothing of how they are distributed
    (W. R. Thompson, "On confidence ranges for the median", Annals of Mathematical Statistics 7, 1936): that
    k or fewer of n lie below the median is as likely as that k or fewer coins of n show heads. None if even
    the least and the largest are no such interval, as with too few ratios.
    """
    ordered, tail, num_outside = sorted(ratios), 0.0, 0
    for count in range(len(ordered) // 2):
        tail += comb(len(ordered), count) / 2 ** len(ordered)
        if 2 * tail > error:
            break
        num_outside = count + 1
    return (ordered[num_outside - 1], ordered[-num_outside]) if num_outside else None


def describe_speed(item: SpeedVerdict) -> str:
    """Returns what was measured and what is wanted, in a sentence."""
    return f"{item.candidate} is {format_speed(item)}, the gate requires {item.wanted:g}"


def format_speed(item: SpeedVerdict) -> str:
    """Returns what was measured, in words: "0.87 times as fast as fp32 (0.86 to 0.89 ..., 10 rounds)"."""
    ratio = f"{item.ratio:.2f} times as fast as {item.against}"
    if item.low is None or item.high is None:
        return f"{ratio} ({item.rounds} rounds, too few for an interval)"
    interval = f"{item.low:.2f} to {item.high:.2f} with {item.confidence:.0%} confidence"
    return f"{ratio} ({interval}, {item.rounds} rounds)"


def _decide(interval: tuple[float, float] | None, wanted: float) -> Outcome:
    if interval is None or interval[0] < wanted <= interval[1]:
        return "unverified"
    return "pass" if interval[0] >= wanted else "fail"


def _explain(item: SpeedVerdict) -> str:
    undecided = ", which that does not decide; measure again, at rest, or longer with trtq bench --seconds"
    return f"{describe_speed(item)}{undecided if item.verdict == 'unverified' else ''}"
