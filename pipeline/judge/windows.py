"""How likely two language models find a text: their logits in windows that slide over its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.observe import Progress
from trtq.errors import DataError, UsageError
from trtq.pipeline.judge.decoder import Decoder
from trtq.pipeline.judge.logits import LogitsMetrics, measure_logits
from trtq.pipeline.judge.runs import open_compared
from trtq.records import LogitsComparison


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a text that a model reads at a time.

    Attributes:
        tokens: int64, shape (T,).
        first: The place from which on predictions count; what is before it is context, and counted in the
            window before.
    """

    tokens: NDArray[np.int64]
    first: int


def slide(texts: Sequence[Sequence[int]], window: int, stride: int) -> list[Window]:
    """Returns windows in which every token of each text but its first is predicted once.

    All but the first window of a text give each prediction that counts `window - stride` tokens of context or
    more.

    Raises:
        UsageError: Windows of this stride leave tokens out.
        DataError: No text has two tokens.
    """
    if not 0 < stride < window:
        raise UsageError(
            f"--stride is 1 to {window - 1} for --window {window}, so that all tokens are predicted"
        )
    found = [item for text in texts for item in _slide(np.array(text, np.int64), window, stride)]
    if not found:
        raise DataError("no text has two tokens or more, so none can be predicted")
    return found


def _slide(text: NDArray[np.int64], window: int, stride: int) -> Iterator[Window]:
    last = max(len(text) - window, 0)
    for start in range(0, last + stride if len(text) > 1 else 0, stride):
        yield Window(text[start : start + window], window - stride - 1 if start else 0)


def compare_texts(
    reference: tuple[str, Path],
    candidate: tuple[str, Path],
    windows: Sequence[Window],
    stride: int,
    progress: Progress = lambda _: None,
) -> LogitsComparison:
    """Returns how far the logits of two ONNX models are apart, and the perplexity of each.

    A model with a cache is given `stride` tokens at a time, with the cache of those before in the window, and
    else the whole window. What an engine holds in FP16 or BF16 is rounded to it, as in a comparison on data.

    Args:
        reference: The name and the file of the model that is right.
        candidate: Those of the model that is judged.
        windows: As `slide` returns them.
        stride: As it was given to `slide`.
        progress: Called after every window.

    Raises:
        ModelError: One is no language model with inputs for tokens, positions, masks or a cache alone, or has
            another vocabulary, or no room for a window.
        DataError: A text has tokens that the vocabulary does not have.
    """
    theirs, ours = (Decoder(path, open_compared(path)) for _, path in (reference, candidate))
    for model in (theirs, ours):
        texts = [[item.tokens.max()] for item in windows]
        model.require_vocabulary(reference[1], theirs.count_vocabulary(), texts, "window")
    metrics = LogitsMetrics()
    for window in windows:
        logits, wanted = (model.read(window.tokens.tolist(), stride)[None] for model in (ours, theirs))
        counted = np.arange(len(window.tokens)) >= window.first
        counted[-1] = False
        metrics.add(measure_logits(logits, wanted, window.tokens[None], counted=counted[None]))
        progress(1)
    return metrics.result(candidate[0], reference[0], theirs.logits)
