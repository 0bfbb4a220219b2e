"""What language models write: the greedy tokens of two of them side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtq.calibrators.observe import Progress
from trtq.errors import DataError
from trtq.files import read_file, refuse_damage
from trtq.pipeline.judge.decoder import Decoder
from trtq.pipeline.judge.runs import open_compared


@dataclass(frozen=True, slots=True)
class Generated:
    """What two models write behind one prompt.

    Attributes:
        prompt: Its tokens.
        reference: The most likely tokens by the reference, each behind those before.
        candidate: The same by the other model, behind its own.
    """

    prompt: tuple[int, ...]
    reference: tuple[int, ...]
    candidate: tuple[int, ...]

    @property
    def diverges_at(self) -> int | None:
        """The first token that differs, from 0; None: none does."""
        pairs = enumerate(zip(self.reference, self.candidate, strict=True))
        return next((place for place, (ours, theirs) in pairs if ours != theirs), None)


def read_prompts(path: Path) -> list[list[int]]:
    """Returns the prompts of a file: a line of numbers each, or the rows of an array in a .npy file.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    rows: list[list[int]]
    with refuse_damage(DataError, f"{path} cannot be read as prompts"):
        content = read_file(path)
        if path.suffix == ".npy":
            rows = np.atleast_2d(np.load(io.BytesIO(content), allow_pickle=False)).tolist()
        else:
            lines = content.decode("utf-8-sig").splitlines()
            rows = [[int(word) for word in re.findall(r"[^\s,]+", line)] for line in lines if line.strip()]
    numbers = [item for row in rows for item in (row if isinstance(row, list) else [None])]
    if not all(rows) or not numbers or not all(type(item) is int and item >= 0 for item in numbers):
        raise DataError(
            f"{path} holds no prompts; write the ids of tokens, one prompt per line: 1 15043 3186"
        )
    return rows


def compare_generated(
    reference: Path,
    candidate: Path,
    prompts: Sequence[Sequence[int]],
    count: int,
    progress: Progress = lambda _: None,
) -> list[Generated]:
    """Returns what two ONNX models write behind each prompt, so many tokens.

    A model with a cache is given what is new, and else all that was written. What an engine holds in FP16 or
    BF16 is rounded to it, as in a comparison on data.

    Raises:
        ModelError: One is no language model with inputs for tokens, positions, masks or a cache alone, or its
            logits are not finite; or their vocabularies are not of one size.
        DataError: A prompt has tokens that the vocabulary does not have.
    """
    written, size = list[list[tuple[int, ...]]](), 0
    for path in (reference, candidate):
        decoder = Decoder(path, open_compared(path))
        size = size or decoder.count_vocabulary()
        decoder.require_vocabulary(reference, size, prompts, "prompt")
        tokens = []
        for prompt in prompts:
            tokens.append(decoder.write(prompt, count))
            progress(1)
        written.append(tokens)
    return [Generated(tuple(prompt), *pair) for prompt, *pair in zip(prompts, *written, strict=True)]
