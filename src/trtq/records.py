"""How near models are to each other, as stages measure it and `report.json` keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtq.json import Measured

GIVEN = "given"
REFERENCES = ("fp32", GIVEN)
"""What the right model is called: the float one, or the one that was given with Q/DQ of its own."""
LOW_FACTOR = 4
"""How many times as far from 1 as the others a low sample's cosine may be: twice the amplitude of noise."""
ENTRY_FACTOR = 25
"""The same of a low entry, such as a channel: five times the amplitude."""
LOST_ENTRY = 0.75
"""With a lower cosine an entry is lost, whatever is wanted: the noise has 0.7 times its amplitude."""


@dataclass(frozen=True, slots=True, order=True)
class WorstSample:
    """A sample, by its place in the data and its name if it has one, and how near its output is."""

    cosine: Measured
    sample: int
    name: str = ""

    def __str__(self) -> str:
        """Returns it as a person reads it: `7 cats/3.png (0.9123)`."""
        return f"{' '.join(filter(None, (str(self.sample), self.name)))} ({self.cosine:.4f})"


@dataclass(frozen=True, slots=True)
class LostClass:
    """A class that a candidate finds in less than half of its places.

    Attributes:
        number: The class.
        found: In how many places it was found.
        count: In how many it is.
    """

    number: int
    found: int
    count: int


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of a candidate against the same output of a reference, over all the data.

    Attributes:
        candidate: The model that is judged: "int8", "fp16".
        reference: The model that it is judged by: "fp32", "fp16", or "given" with Q/DQ of its own.
        output: The output's name.
        cosine: Of the two outputs as long vectors without the values that are judged apart; 1.0 if both are
            zero, NaN if a value is not finite or no value of the reference is. Of truths and whole numbers of
            4 bytes or more, which are names and no amounts, the share of those that are equal.
        sqnr_db: Signal to quantization noise, 10 log10(sum r^2 / sum (r - c)^2) in dB, of the same values;
            inf if equal.
        max_abs: The largest absolute difference.
        mean_abs: The mean absolute difference.
        top1_agreement: The share of rows with the same largest entry; None for outputs that are no scores of
            classes.
        nonfinite: How many of the candidate's values are NaN or infinite where the reference's are not.
        worst: The samples with the lowest cosine, worst first; of an output without a sample axis, the first
            samples of its batches.
        median_cosine: Of the cosines of the samples, the middle one.
        low_cosine: Of the cosines of the samples, the one below which a twentieth of them lies.
        apart: How many values were judged apart: those that hardly change from sample to sample, and scores
            so low that they rule a class out (-1e9).
        apart_cosine: The cosine of these.
        varies: Whether any value of the reference differs between samples.
        is_dead: Whether the candidate gives the same for all samples, where the reference clearly differs.
        change_db: Like `sqnr_db`, but the signal is only what differs from the mean of all samples; of names,
            what differs from the commonest. At 0 dB and below, one answer for all would be as near. None if
            nothing is lost or changes, or the change is not known.
        known: The share of the reference's values that are finite, or that the candidate has too; 0 if it has
            no values.
        is_change_known: Whether it is known how much the reference differs between samples.
        part: The tensor that is joined to others to give the output, such as boxes beside scores; empty: the
            whole output.
        entry_cosine: By the noise of each entry of an axis of a sample, such as a channel, token or column,
            the cosine below which a tenth of them lies, or that of one that is lost; of the worst axis.
        entry: The place of that entry, and how many its axis has.
        lost: Of an output of classes, the one that lost most places, if less than half of it is found.
        quiet_change_db: Like `change_db`, of the nine in ten samples that are nearest the middle one, where
            each is one number; None where that does not tell.
        is_added: Whether the part is what is added to the input, to give the output. It may have the noise
            that an entry may have, since the output shows less of it.
        is_ranked: Whether a TopK decides the order of its rows.
        is_left_to_metric: Whether a metric of the user's own vouches for such an output, so that only values
            that are not finite, and an output that is the same for all samples, count against it.
    """

    candidate: str
    reference: str
    output: str
    cosine: Measured
    sqnr_db: Measured
    max_abs: Measured
    mean_abs: Measured
    top1_agreement: float | None
    nonfinite: int
    worst: tuple[WorstSample, ...]
    median_cosine: Measured = 1.0
    low_cosine: Measured = 1.0
    apart: int = 0
    apart_cosine: Measured = 1.0
    varies: bool = True
    is_dead: bool = False
    change_db: float | None = None
    known: float = 1.0
    part: str = ""
    is_change_known: bool = True
    entry_cosine: Measured = 1.0
    entry: tuple[int, int] = (0, 0)
    lost: LostClass | None = None
    quiet_change_db: float | None = None
    is_added: bool = False
    is_ranked: bool = False
    is_left_to_metric: bool = False

    def __post_init__(self) -> None:
        """Takes a ratio that is NaN beside a finite cosine, as a file has it, for the infinite one it was."""
        if math.isnan(self.sqnr_db) and not math.isnan(self.cosine):
            object.__setattr__(self, "sqnr_db", math.inf if self.max_abs == 0 else -math.inf)

    def with_names(self, names: Sequence[str]) -> OutputComparison:
        """Returns it with the names of its worst samples, of those of all."""
        return replace(self, worst=tuple(replace(item, name=names[item.sample]) for item in self.worst))

    @property
    def name(self) -> str:
        """The output, or its part, as a person reads it."""
        return f"{self.output}, part {self.part}" if self.part else self.output

    @property
    def judged_cosine(self) -> float:
        """The number that a gate for the cosine looks at, in which no loud sample or value hides the others.

        It is the least of all cosines here; but at the low samples the noise may have twice the amplitude,
        since samples differ: 1 - cosine may be `LOW_FACTOR` times as large. So may the noise of the whole,
        which is more than its cosine says if the candidate is louder or softer than the reference. At low
        entries it may have five times the amplitude, unless they are lost.
        """
        if self.is_added:
            return _relax(math.nan if math.isnan(self.cosine) else cosine_of_noise(self.sqnr_db))
        loss = 1 - cosine_of_noise(self.sqnr_db)
        low = 1 - max(1 - self.low_cosine, loss) / LOW_FACTOR
        values = (self.cosine, self.median_cosine, low, self.apart_cosine, _relax(self.entry_cosine))
        return math.nan if any(map(math.isnan, values)) else min(values)


def _relax(cosine: float) -> float:
    """Returns the cosine that counts of a part that may have more noise, unless that is lost."""
    return cosine if cosine < LOST_ENTRY else 1 - (1 - cosine) / ENTRY_FACTOR


def cosine_of_noise(sqnr_db: float) -> float:
    """Returns the cosine of a candidate with this noise that is as loud as its reference; from -1 to 1."""
    return 1 - min(10 ** min(-sqnr_db / 10, 1.0), 4.0) / 2


@dataclass(frozen=True, slots=True)
class LogitsSpan:
    """The logits at some places in a sequence, from `first` to `last`, both from 0.

    Attributes:
        first: The first place.
        last: The last place.
        kl_nats: The mean divergence there.
        top1: The share of places where the most likely token is the same.
        top5: The mean share of the reference's 5 most likely tokens that are among the candidate's.
    """

    first: int
    last: int
    kl_nats: Measured
    top1: Measured
    top5: Measured


@dataclass(frozen=True, slots=True)
class LogitsComparison:
    """The logits of a candidate against those of a reference, over all the data.

    Attributes:
        candidate: The model that is judged.
        reference: The model that it is judged by.
        output: The output's name.
        kl_nats: Mean Kullback-Leibler divergence of the candidate's distribution from the reference's.
        perplexity: Of the candidate, on the next token; NaN if the data has only one token a sample.
        reference_perplexity: Of the reference.
        top1: The share of tokens for which the most likely next one is the same.
        top5: The mean share of the reference's 5 most likely tokens that are among the candidate's.
        spans: The same by the place in the sequence: 0, 1, 2 to 3, 4 to 7 and so on.
    """

    candidate: str
    reference: str
    output: str
    kl_nats: Measured
    perplexity: Measured
    reference_perplexity: Measured
    top1: Measured = math.nan
    top5: Measured = math.nan
    spans: tuple[LogitsSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that was tried.

    Attributes:
        name: The method or the repair.
        gain_db: What it gained over what stood before it.
        num_samples: On so many samples held back.
        applied: Whether it was chosen.
    """

    name: str
    gain_db: Measured
    num_samples: int
    applied: bool


NO_REPAIR_TRIED = "no repair is tried"
"""How the note begins where repairs were asked for, but there was nothing to judge them by."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """What was chosen, and what it gained on the data that was held back.

    Attributes:
        method: The method that the ranges are taken with, and its parameters.
        applied: The repairs that are made, for people.
        before_db: How near the outputs were with the first method and without repairs.
        after_db: How near they are now.
        num_samples: How many samples were held back.
        tried: Everything that was tried, in order.
    """

    method: str
    applied: tuple[str, ...]
    before_db: Measured
    after_db: Measured
    num_samples: int
    tried: tuple[Trial, ...]
