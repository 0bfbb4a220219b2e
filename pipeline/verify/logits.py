"""What language models are judged by: perplexity on the data, and how far the logits are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VOCABULARY = 8192
"""An output of so many entries is one of logits whatever its name; hidden states are smaller."""


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
    """

    candidate: str
    reference: str
    output: str
    kl_nats: float
    perplexity: float
    reference_perplexity: float


@dataclass(slots=True)
class LogitsMetrics:
    """The running sums of one output; float64."""

    divergence: float = 0.0
    rows: int = 0
    surprise: float = 0.0
    reference_surprise: float = 0.0
    tokens: int = 0

    def add(self, candidate: NDArray[Any], reference: NDArray[Any], ids: NDArray[Any]) -> None:
        """Takes in one batch.

        Args:
            candidate: Logits, shape (N, T, V).
            reference: The same.
            ids: The tokens that went in, shape (N, T), each below V.
        """
        for ours, theirs, tokens in zip(candidate, reference, ids, strict=True):  # a sample at a time
            mine, other = _log_softmax(ours), _log_softmax(theirs)
            with np.errstate(invalid="ignore"):
                terms = np.exp(other) * (other - mine)
            self.divergence += float(np.where(np.isneginf(other), 0.0, terms).sum())
            self.rows += len(tokens)
            places = np.arange(len(tokens) - 1)
            self.surprise -= float(mine[places, tokens[1:]].sum())
            self.reference_surprise -= float(other[places, tokens[1:]].sum())
            self.tokens += len(places)

    def result(self, candidate: str, reference: str, output: str) -> LogitsComparison:
        """Returns the comparison of all that was taken in."""
        return LogitsComparison(
            candidate,
            reference,
            output,
            self.divergence / max(self.rows, 1),
            _perplexity(self.surprise, self.tokens),
            _perplexity(self.reference_surprise, self.tokens),
        )


def tokens_of(output: str, logits: NDArray[Any], feed: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Returns the tokens that belong to an output of logits; None if it looks like no such output.

    Logits are floats of shape (N, T, V), called so or with a large V, where an input holds N x T integers
    below V.

    Args:
        output: Its name.
        logits: Its values.
        feed: The inputs.
    """
    if logits.ndim != 3 or not np.issubdtype(logits.dtype, np.floating):
        return None
    if "logit" not in output.lower() and logits.shape[-1] < _VOCABULARY:
        return None
    for array in feed.values():
        is_whole = np.issubdtype(array.dtype, np.integer) and array.shape == logits.shape[:2]
        if is_whole and array.size and array.min() >= 0 and 1 < array.max() < logits.shape[-1]:
            return array
    return None


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _perplexity(surprise: float, tokens: int) -> float:
    if not tokens:
        return math.nan
    mean = surprise / tokens
    return math.exp(mean) if mean < 700 else math.inf
