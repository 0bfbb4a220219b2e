"""How likely two language models find a text: their logits in windows that slide over its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.observe import Progress
from trtq.errors import DataError, ModelError, UsageError
from trtq.models.session import run
from trtq.pipeline.judge.compare import open_compared
from trtq.pipeline.judge.generate import _Decoder, _make_empty
from trtq.pipeline.judge.logits import LogitsMetrics
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
        ModelError: One is no language model with inputs for tokens, positions, masks or a cache alone, or
            their logits differ in shape.
        UsageError: A window is longer than what one takes.
    """
    readers = [_Reader(path, open_compared(path)) for _, path in (candidate, reference)]
    metrics = LogitsMetrics()
    for window in windows:
        ours, theirs = (reader.read(window.tokens.tolist(), stride)[None] for reader in readers)
        if ours.shape != theirs.shape:
            raise ModelError(
                f"the logits have {ours.shape[-1]} entries in {candidate[0]} and {theirs.shape[-1]} in "
                f"{reference[0]}; both need the same vocabulary"
            )
        counted = np.arange(len(window.tokens)) >= window.first
        counted[-1] = False
        metrics.add(ours, theirs, window.tokens[None], counted=counted[None])
        progress(1)
    return metrics.result(candidate[0], reference[0], readers[0].output)


class _Reader(_Decoder):
    """A language model that reads windows."""

    @property
    def output(self) -> str:
        """The name of the logits."""
        return self._logits

    @property
    def _places(self) -> int | None:
        """How many tokens an input of fixed length takes."""
        lengths = [port.shape[1] for port in self._plain.values() if len(port.shape) == 2]
        return min((length for length in lengths if isinstance(length, int)), default=None)

    def read(self, tokens: Sequence[int], piece: int) -> NDArray[Any]:
        """Returns the logits of a window, shape (T, V)."""
        step = self._places or piece if self._caches else len(tokens)
        if not self._caches and self._places is not None and step > self._places:
            raise UsageError(
                f"{self._path} takes {self._places} tokens at a time; give --window of at most {self._places}"
            )
        state = {name: _make_empty(port) for name, port in self._caches.items()}
        found: list[NDArray[Any]] = []
        for known in range(0, len(tokens), step):
            new = tokens[known : known + step]
            feed = {name: self._fill(port, new, known) for name, port in self._plain.items()} | state
            logits, *presents = run(self._session, [self._logits, *self._presents.values()], feed)
            if logits.ndim != 3:
                raise ModelError(
                    f"{self._path}: output {self._logits!r} has {logits.ndim} axes; logits have 3: batch, "
                    f"sequence, vocabulary"
                )
            found.append(logits[0, : len(new)])
            state = dict(zip(self._presents, presents, strict=True))
        return np.concatenate(found)
