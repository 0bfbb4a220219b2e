"""What language models write: the greedy tokens of two of them side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import DataError, ModelError
from trtq.files import refuse_damage
from trtq.models.session import Session, SessionPort, run
from trtq.pipeline.judge.compare import open_compared

_PAST = re.compile(r"past|cache", re.IGNORECASE)
_STATE = re.compile(r"past_key_values|past|present|cache|new|in_|out_", re.IGNORECASE)
_DTYPES: Mapping[str, Any] = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
    "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
}  # fmt: skip
Arrays = Mapping[str, NDArray[Any]]


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
        if path.suffix == ".npy":
            rows = np.atleast_2d(np.load(path, allow_pickle=False)).tolist()
        else:
            lines = path.read_text("utf-8").splitlines()
            rows = [[int(word) for word in re.findall(r"[^\s,]+", line)] for line in lines if line.strip()]
    numbers = [item for row in rows for item in (row if isinstance(row, list) else [None])]
    if not all(rows) or not numbers or not all(isinstance(item, int) and item >= 0 for item in numbers):
        raise DataError(f"{path} holds no prompts; write the ids of tokens, one prompt a line: 1 15043 3186")
    return rows


def compare_generated(
    reference: Path, candidate: Path, prompts: Sequence[Sequence[int]], count: int
) -> list[Generated]:
    """Returns what two ONNX models write behind each prompt, so many tokens.

    A model with a cache is given one token at a time, and else all that was written. What an engine holds in
    FP16 or BF16 is rounded to it, as in a comparison on data.

    Raises:
        ModelError: One is no language model with inputs for tokens, positions, masks or a cache alone, or its
            logits are not finite.
    """
    written = []
    for path in (reference, candidate):
        decoder = _Decoder(path, open_compared(path))
        written.append([decoder.write(prompt, count) for prompt in prompts])
    return [Generated(tuple(prompt), *pair) for prompt, *pair in zip(prompts, *written, strict=True)]


class _Decoder:
    """A language model that is run token by token, for one sequence."""

    def __init__(self, path: Path, session: Session) -> None:
        self._path, self._session = path, session
        inputs = {port.name: port for port in session.get_inputs()}
        outputs = [port.name for port in session.get_outputs()]
        self._caches = {
            name: port for name, port in inputs.items() if _PAST.search(name) and len(port.shape) > 2
        }
        self._plain = {name: port for name, port in inputs.items() if name not in self._caches}
        made = {_bare(name): name for name in outputs}
        self._presents = {name: made.get(_bare(name), "") for name in self._caches}
        self._logits = next((name for name in outputs if "logit" in name.lower()), outputs[0])
        if missing := [name for name, present in self._presents.items() if not present]:
            raise ModelError(f"{path} has a cache {missing[0]!r} as input, and none of that name as output")

    def write(self, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        """Returns the most likely tokens, each behind those before."""
        tokens, known = list(prompt), 0
        state: Arrays = {name: _make_empty(port) for name, port in self._caches.items()}
        for _ in range(count):
            new = tokens[known:]
            feed = {name: self._fill(port, new, known) for name, port in self._plain.items()} | dict(state)
            names = [self._logits, *self._presents.values()]
            logits, *presents = run(self._session, names, feed)
            if logits.ndim != 3:
                raise ModelError(
                    f"{self._path}: output {self._logits!r} has {logits.ndim} axes; logits have 3: batch, "
                    f"sequence, vocabulary"
                )
            scores = logits[0, len(new) - 1]
            if not np.isfinite(scores.max()):
                raise ModelError(
                    f"{self._path}: the logits of token {len(tokens) + 1} are not finite, so none is the "
                    f"most likely; compare the models on data to see how far they are apart"
                )
            tokens.append(int(scores.argmax()))
            if self._caches:
                state, known = dict(zip(self._presents, presents, strict=True)), known + len(new)
        return tuple(tokens[len(prompt) :])

    def _fill(self, port: SessionPort, new: Sequence[int], known: int) -> NDArray[Any]:
        """Returns an input, shape (1, length): tokens, their positions, or a mask of all up to them."""
        name, dtype = port.name.lower(), _DTYPES.get(port.type)
        if "mask" in name:
            values: Sequence[int] = [1] * (known + len(new))
        elif "position" in name:
            values = range(known, known + len(new))
        elif "id" in name or "token" in name:
            values = new
        else:
            dtype, values = None, ()
        if dtype is None or len(port.shape) != 2:
            raise ModelError(
                f"{self._path}: input {port.name!r} is neither tokens, positions, a mask nor a cache of "
                f"known type; tokens are written by models that have nothing else"
            )
        length = port.shape[1]
        if not isinstance(length, int):
            return np.array([values], dtype)
        if len(values) > length:
            raise ModelError(
                f"{self._path}: input {port.name!r} has {length} places, and {len(values)} tokens are too "
                f"many; take shorter prompts, or --generate fewer"
            )
        return np.array([[*values, *[0] * (length - len(values))]], dtype)


def _make_empty(port: SessionPort) -> NDArray[Any]:
    """Returns a cache without positions: the first open axis is the batch, the others are empty."""
    shape = [dim if isinstance(dim, int) else int(axis == 0) for axis, dim in enumerate(port.shape)]
    return np.zeros(shape, _DTYPES.get(port.type, np.float32))


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", ".", _STATE.sub("", name.lower())).strip(".")
