"""What language models are judged by: perplexity on the data, and how far the logits are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.records import LogitsComparison, LogitsSpan

_VOCABULARY = 8192
"""An output of so many entries is one of logits whatever its name; hidden states are smaller."""
_TOP = 5
_NO_TOKENS = ("position", "type", "segment", "mask", "label", "cache")
"""In the names of inputs that hold whole numbers of the same shape."""


@dataclass(frozen=True, slots=True)
class SequenceMarks:
    """What the logits of one sequence of tokens say.

    Attributes:
        places: Of each token that counts, ascending: shape (T,).
        sums: Of each: 1, the divergence, and the agreement of the top 1 and top 5: float64, shape (T, 4).
        divergence: The sum.
        surprise: Of the candidate, summed over the tokens that follow.
        reference_surprise: That of the reference.
        tokens: How many follow.
    """

    places: NDArray[np.int64]
    sums: NDArray[np.float64]
    divergence: float
    surprise: float
    reference_surprise: float
    tokens: int


def measure_logits(
    candidate: NDArray[Any],
    reference: NDArray[Any],
    ids: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> tuple[SequenceMarks, ...]:
    """Returns what one batch says, of each sequence.

    Args:
        candidate: Logits, shape (N, T, V).
        reference: The same.
        ids: The tokens that went in, shape (N, T); one that is not in 0 to V - 1 is no token.
        mask: Which of them are tokens and no padding, shape (N, T); None: all.
        counted: Of which of these the logits count, shape (N, T); None: of all.
    """
    real = (ids >= 0) & (ids < reference.shape[-1]) & (True if mask is None else mask)
    chosen = real if counted is None else real & counted
    found = []
    for ours, theirs, tokens, kept, rows in zip(candidate, reference, ids, real, chosen, strict=True):
        mine, other = _log_softmax(ours[rows]), _log_softmax(theirs[rows])
        with np.errstate(invalid="ignore"):
            terms = np.exp(other) * (other - mine)
        divergence = np.where(np.isneginf(other), 0.0, terms).sum(axis=-1)
        top1, top5 = _agree(mine, other)
        is_followed = np.append(kept[1:], False)[rows]
        following = np.flatnonzero(is_followed), np.roll(tokens, -1)[rows][is_followed]
        found.append(
            SequenceMarks(
                np.cumsum(kept)[rows] - 1,
                np.stack([np.ones_like(top1), divergence, top1, top5], axis=1),
                float(divergence.sum()),
                float(mine[following].sum()),
                float(other[following].sum()),
                int(is_followed.sum()),
            )
        )
    return tuple(found)


@dataclass(slots=True)
class LogitsMetrics:
    """The running sums of one output, to which sequences are added in their order; float64."""

    divergence: float = 0.0
    rows: int = 0
    surprise: float = 0.0
    reference_surprise: float = 0.0
    tokens: int = 0
    places: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    """By place in the sequence, sums of: 1, the divergence, and the agreement of the top 1 and top 5."""

    def add(self, sequences: Iterable[SequenceMarks]) -> None:
        """Takes in what `measure_logits` returned for one more batch."""
        for item in sequences:
            self.divergence += item.divergence
            self._add_places(item.places, item.sums)
            self.rows += len(item.places)
            self.surprise -= item.surprise
            self.reference_surprise -= item.reference_surprise
            self.tokens += item.tokens

    def _add_places(self, places: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        if places.size:
            grown = np.zeros((max(len(self.places), int(places[-1]) + 1), 4))
            grown[: len(self.places)] = self.places
            grown[places] += sums
            self.places = grown

    def _list_spans(self) -> Iterator[LogitsSpan]:
        """Yields the means of the places 0, 1, 2 to 3, 4 to 7 and so on; padding has no place."""
        first = 0
        while first < len(self.places):
            last = min(max(2 * first, 1), len(self.places)) - 1
            count, *sums = self.places[first : last + 1].sum(axis=0).tolist()
            yield LogitsSpan(first, last, *(total / count for total in sums))
            first = last + 1

    def result(self, candidate: str, reference: str, output: str) -> LogitsComparison:
        """Returns the comparison of all that was taken in."""
        divergence = self.divergence / self.rows if self.rows else math.nan
        ours, theirs = (_perplexity(item, self.tokens) for item in (self.surprise, self.reference_surprise))
        _, _, top1, top5 = self.places.sum(axis=0) / (self.rows or math.nan)
        spans = tuple(self._list_spans())
        return LogitsComparison(
            candidate, reference, output, divergence, ours, theirs, float(top1), float(top5), spans
        )


def find_tokens(output: str, logits: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> str | None:
    """Returns the input whose tokens belong to an output of logits; None if it is not clear which.

    Logits are floats of shape (N, T, V), called so or with a large V, where an input holds N x T integers
    below V. Of several such inputs the name decides: `input_ids` before `token` before `ids`, and never
    positions, types or masks. `inputs` holds no labels.
    """
    if logits.ndim != 3 or not np.issubdtype(logits.dtype, np.floating):
        return None
    if "logit" not in output.lower() and logits.shape[-1] < _VOCABULARY:
        return None
    found = [name for name, array in inputs.items() if _may_be_tokens(name, array, logits)]
    for word in ("input_ids", "token", "ids", ""):
        named = [name for name in found if word in name.lower()]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def find_mask(tokens: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Returns which tokens, shape (N, T), are no padding: 1 in an input of 0 and 1 called a mask, if any."""
    masks = [
        name
        for name, array in inputs.items()
        if "mask" in name.lower() and array.shape == tokens.shape and np.isin(array, (0, 1)).all()
    ]
    best = min(masks, key=lambda name: "attention" not in name.lower(), default=None)
    return None if best is None else inputs[best] != 0


def _may_be_tokens(name: str, array: NDArray[Any], logits: NDArray[Any]) -> bool:
    if any(word in name.lower() for word in _NO_TOKENS):
        return False
    is_whole = np.issubdtype(array.dtype, np.integer) and array.shape == logits.shape[:2]
    return bool(is_whole and array.size and array.min() >= 0 and 1 < array.max() < logits.shape[-1])


def _agree(
    candidate: NDArray[np.float64], reference: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns for rows of logits, shape (T, V), whether the largest is the same, and the share of 5."""
    top1 = (candidate.argmax(axis=-1) == reference.argmax(axis=-1)).astype(np.float64)
    count = min(_TOP, candidate.shape[-1])
    ours, theirs = (np.argpartition(item, -count, axis=-1)[:, -count:] for item in (candidate, reference))
    return top1, (ours[:, :, None] == theirs[:, None]).any(axis=1).mean(axis=-1)


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _perplexity(surprise: float, tokens: int) -> float:
    if not tokens:
        return math.nan
    mean = surprise / tokens
    return math.exp(mean) if mean < 700 else math.inf
